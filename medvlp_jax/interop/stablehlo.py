"""Export as StableHLO programs (`jax.export`): the encoders as functions that need jax and no code of ours.

The weights lie beside the programs as arguments and are not constants in them. A program then has some
hundred kilobytes whatever the model's size, stays clear of the 2 GB limit of the format, and both programs
read one safetensors file, which can be looked at, cast or replaced without tracing anything again.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from medvlp_jax.interop import exporting, keys
from medvlp_jax.interop.exporting import Exported, Trained

FORMAT = "medvlp_jax-stablehlo"
"""Entry `format` of the manifest."""

TOLERANCE = 1e-5
"""Largest difference of an entry of the embeddings (unit vectors) that an export may have."""

PLATFORMS = ("cpu", "cuda", "tpu")

WEIGHTS = "model.safetensors"

USAGE = """\
```python
import json
import pathlib

import jax
import jax.export
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

folder = pathlib.Path(".")  # this folder
manifest = json.loads((folder / "manifest.json").read_text())
weights = load_file(folder / "model.safetensors")


def load(name):
    entry = manifest["functions"][name]
    program = jax.export.deserialize(bytearray((folder / entry["file"]).read_bytes()))
    own = {key: weights[key] for key in entry["weights"]}
    return lambda *inputs: program.call(own, *inputs)


length = manifest["text"]["max_length"]
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(length)
tokenizer.enable_padding(length=length, pad_id=manifest["text"]["pad_token_id"])
rows = tokenizer.encode_batch(["There is a pleural effusion.", "No pleural effusion."])
inputs = {
    "input_ids": np.array([row.ids for row in rows], np.int32),
    "attention_mask": np.array([row.attention_mask for row in rows], np.int32),
    # The word each token belongs to, -1 for special tokens; only some models ask for it.
    "word_ids": np.array([[-1 if w is None else w for w in row.word_ids] for row in rows], np.int32),
}
functions = manifest["functions"]
shape = functions["encode_image"]["inputs"][0]["shape"][1:]
inputs["image"] = np.zeros((len(rows), *shape), np.float32)  # normalised as manifest["image"] says


def run(name):
    return load(name)(*[inputs[entry["name"]] for entry in functions[name]["inputs"]])


if "encode_text" in functions:  # how well each text fits each image
    logits = manifest["logit_scale"] * run("encode_image") @ run("encode_text").T
    print(jax.nn.softmax(logits, axis=-1))
if "decode" in functions:  # the most likely token behind each token of a text
    print(tokenizer.decode_batch(run("decode").argmax(axis=-1).tolist()))
```"""

_OUTPUTS = {
    "encode_image": "image_embed",
    "encode_text": "text_embed",
    "fuse": "fused_pooled",
    "decode": "decoder_logits",
}
_PARTS = {
    "encode_image": ("image_encoder", "image_projection"),
    "encode_text": ("text_encoder", "text_projection"),
    "fuse": ("image_encoder", "text_encoder", "fusion"),
    "decode": ("image_encoder", "context_projection", "text_decoder"),
}
"""Program -> the parts of the model that it runs."""


def export(trained: Trained, folder: str | os.PathLike[str]) -> Exported:
    """Writes programs, weights, manifest, tokenizer and model card.

    Args:
        trained: any model; see `names` for its programs.
        folder: made; an earlier export there is replaced once the new one is verified.

    Raises:
        UserError: the folder holds other files, or the programs read back give other outputs at one of two
            batch sizes; nothing is left behind then.
    """
    exact = trained.exact()
    with exporting.staged(folder, exporting.has_entry(exporting.MANIFEST, "format", FORMAT)) as new:
        weights = flat_weights(exact)
        functions = {name: _write_program(new, exact, name, weights) for name in names(exact)}
        used = {key for entry in functions.values() for key in entry["weights"]}
        safetensors.numpy.save_file({key: weights[key] for key in sorted(used)}, new / WEIGHTS)
        facts = {
            "format": FORMAT,
            "jax_version": jax.__version__,
            "platforms": list(PLATFORMS),
            "weights": WEIGHTS,
            "functions": functions,
        }
        manifest = exporting.write_about(new, exact, facts)
        difference = verify(new, trained, manifest)
        exporting.accept(difference, TOLERANCE, folder, "the exported programs")
    return Exported(
        folder=pathlib.Path(folder), verified=True, difference=difference, notes=_notes(trained)
    )


def names(trained: Trained) -> tuple[str, ...]:
    """Programs of a model: one for each encoder, and `fuse` and `decode` where it has these parts."""
    last = {"encode_image": "image_encoder", "encode_text": "text_encoder", "fuse": "fusion"}
    return tuple(
        name
        for name, part in {**last, "decode": "text_decoder"}.items()
        if getattr(trained.model, part) is not None
    )


def flat_weights(trained: Trained) -> dict[str, np.ndarray]:
    """`{"params/image_encoder/...": array, "batch_stats/...": array}`."""
    variables = {"params": trained.params, "batch_stats": trained.batch_stats}
    return {k: np.ascontiguousarray(v) for k, v in keys.flatten(variables).items()}


def inputs(trained: Trained, name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name of each input of a program, in order -> (shape without the batch axis, dtype)."""
    length = trained.max_length
    image = {"image": (trained.image.shape, "float32")}
    text = {"input_ids": ((length,), "int32"), "attention_mask": ((length,), "int32")}
    if name == "encode_image":
        return image
    if name in ("fuse", "decode"):
        return {**image, **text}
    return {**text, "word_ids": ((length,), "int32")} if trained.needs_words else text


def _write_program(
    folder: pathlib.Path, trained: Trained, name: str, weights: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Traces one function, writes it, and returns its entry in the manifest."""
    own = {k: v for k, v in weights.items() if k.split("/")[1] in _PARTS[name]}
    (batch,) = jax.export.symbolic_shape("batch")
    given = inputs(trained, name)
    shapes = [jax.ShapeDtypeStruct((batch, *shape), dtype) for shape, dtype in given.values()]
    like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in own.items()}
    # Full float32 products are part of the program, so that an accelerator gives the same embeddings.
    with jax.default_matmul_precision("highest"):
        program = jax.export.export(jax.jit(_function(trained, name)), platforms=PLATFORMS)(
            like, *shapes
        )
    file = f"{name}.stablehlo"
    (folder / file).write_bytes(program.serialize())
    shape = [int(n) for n in program.out_avals[0].shape[1:]]
    return {
        "file": file,
        "inputs": [
            {"name": key, "shape": ["batch", *shape], "dtype": dtype}
            for key, (shape, dtype) in given.items()
        ],
        "outputs": [{"name": _OUTPUTS[name], "shape": ["batch", *shape], "dtype": "float32"}],
        "weights": sorted(own),
    }


def _function(trained: Trained, name: str) -> Any:
    """The function that a program holds: (flat weights, inputs in order) -> one array."""
    model = portable(trained)
    order = tuple(inputs(trained, name))
    joint = name in ("fuse", "decode")
    if joint:
        others = {part for parts in _PARTS.values() for part in parts} - set(_PARTS[name])
        model = model.clone(**dict.fromkeys(others))

    def call(weights: Mapping[str, jax.Array], *values: jax.Array) -> jax.Array:
        variables = keys.unflatten(weights)
        batch = dict(zip(order, values, strict=True))
        # `__call__` encodes both sides and joins them.
        method = None if joint else name
        outputs: Any = model.apply(variables, batch, method=method)
        return outputs[_OUTPUTS[name]].astype(jnp.float32)

    return call


def portable(trained: Trained) -> Any:
    """The model with attention as plain matrix products: a fused kernel exists on one platform only."""
    model = exporting.float32(trained.model)
    changed = {}
    for part in ("image_encoder", "text_encoder", "fusion", "text_decoder"):
        module = getattr(model, part)
        if module is not None:
            changed[part] = exporting.with_fields(module, attention="einsum")
    # Merged words matter for the embedding only where it is their mean.
    return model.clone(**changed, merge_words=trained.needs_words)


def verify(folder: pathlib.Path, trained: Trained, manifest: Mapping[str, Any]) -> float:
    """Largest difference between the programs read back and our forward pass, at batches of 1 and 3."""
    weights = safetensors.numpy.load_file(folder / manifest["weights"])
    pairs = {}
    for rows in (1, 3):
        batch = exporting.random_batch(trained, rows)
        expected = exporting.outputs(trained, batch)
        for name, entry in manifest["functions"].items():
            program = jax.export.deserialize(bytearray((folder / entry["file"]).read_bytes()))
            own = {key: weights[key] for key in entry["weights"]}
            got = program.call(own, *[batch[given["name"]] for given in entry["inputs"]])
            ours = expected[_OUTPUTS[name]]
            if ours.ndim == 3:  # states at padding mean nothing
                real = batch["attention_mask"] > 0
                ours, got = ours[real], got[real]
            pairs[f"{name}, {rows} rows"] = (ours, got)
    return exporting.largest_difference(pairs)


def _notes(trained: Trained) -> tuple[str, ...]:
    parts = ("image_token_projection", "text_token_projection")
    lost = [part for part in parts if getattr(trained.model, part) is not None]
    return (f"{' and '.join(lost)} stay behind: the programs give no token embeddings",) * bool(
        lost
    )
