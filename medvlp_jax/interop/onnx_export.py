"""Export as ONNX graphs: the PyTorch package of a model, traced by `torch.onnx` and run by onnxruntime."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.interop import exporting, torch_export
from medvlp_jax.interop.exporting import Exported, Trained
from medvlp_jax.models import frames, multi_image

FORMAT = "medvlp_jax-onnx"
"""Entry `format` of the manifest."""

OPSET = 18
"""Version of the operators: the one that torch.onnx translates to without a conversion afterwards."""

TOLERANCE = 1e-4
"""Largest difference of an entry of an output that an export may have, relative to the output's largest entry
where that is above 1 (embeddings are unit vectors)."""

_LIMIT = 1_500_000_000  # bytes of weights in one file; the format ends at 2 GiB
_NEEDS = ("torch", "onnx", "onnxruntime", "onnxscript")

_FURTHER = {
    multi_image.Encoder: "encode_image_with_prior",
    frames.Encoder: "encode_image_with_mask",
}
"""Encoder with optional inputs -> name of the graph that takes them."""

USAGE = """\
```python
import json
import pathlib

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder = pathlib.Path(".")  # this folder
manifest = json.loads((folder / "manifest.json").read_text())


def run(name, **inputs):
    entry = manifest["functions"][name]
    session = onnxruntime.InferenceSession(folder / entry["file"])
    return session.run(None, {given["name"]: inputs[given["name"]] for given in entry["inputs"]})[0]


length = manifest["text"]["max_length"]
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(length)
tokenizer.enable_padding(length=length, pad_id=manifest["text"]["pad_token_id"])
rows = tokenizer.encode_batch(["There is a pleural effusion.", "No pleural effusion."])
functions = manifest["functions"]
inputs = {
    "input_ids": np.array([row.ids for row in rows], np.int64),
    "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
    # The word each token belongs to, -1 for special tokens; only some models use it.
    "word_ids": np.array([[-1 if w is None else w for w in row.word_ids] for row in rows], np.int64),
}
shape = functions["encode_image"]["inputs"][0]["shape"][1:]
inputs["pixels"] = np.zeros((len(rows), *shape), np.float32)  # normalised as manifest["image"] says
if "encode_text" in functions:  # how well each text fits each image
    images, texts = run("encode_image", **inputs), run("encode_text", **inputs)
    logits = manifest["logit_scale"] * images @ texts.T
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    print(scores / scores.sum(axis=-1, keepdims=True))
if "decode" in functions:  # the most likely token behind each token of a text
    print(tokenizer.decode_batch(run("decode", **inputs).argmax(axis=-1).tolist()))
```"""


def export(trained: Trained, folder: str | os.PathLike[str]) -> Exported:
    """Writes one graph per function, manifest, tokenizer and model card.

    Args:
        trained: a model that fits `torch_export`. There are graphs for its methods `encode_image`,
            `encode_text`, `fuse` and `decode`, see also `signatures`.
        folder: made; an earlier export there is replaced once the new one is verified.

    Raises:
        UserError: a package is missing, the model does not fit (names each part), the folder holds other
            files, or onnxruntime gives other outputs at one of two batch sizes; nothing is left behind then.
    """
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to onnx needs {', '.join(missing)}: pip install 'medvlp_jax[onnx]' (or -e '.[onnx]')"
        )
    torch_export.check(trained)
    earlier = exporting.has_entry(exporting.MANIFEST, "format", FORMAT)
    with exporting.staged(folder, earlier) as new:
        functions = write_graphs(new, trained)
        facts = {
            "format": FORMAT,
            "torch_version": importlib.metadata.version("torch"),
            "opset": OPSET,
            "functions": functions,
        }
        exporting.write_about(new, trained, facts)
        difference = verify(new, trained, functions)
        exporting.accept(difference, TOLERANCE, folder, "onnxruntime")
    return Exported(
        folder=pathlib.Path(folder),
        verified=True,
        difference=difference,
        notes=torch_export.lost_heads(trained),
    )


def signatures(trained: Trained) -> dict[str, tuple[str, ...]]:
    """Name of each graph -> names of its inputs in order.

    An encoder with optional inputs gets one graph without and one with them.
    """
    found = torch_export.methods(trained)
    name = _FURTHER.get(type(trained.model.image_encoder))
    if name is not None:
        found[name] = (*found["encode_image"], *torch_export.further_inputs(trained))
    return found


def _full_batch(trained: Trained, rows: int) -> dict[str, np.ndarray]:
    return {**exporting.random_batch(trained, rows), **torch_export.further(trained, rows)}


def write_graphs(folder: pathlib.Path, trained: Trained) -> dict[str, Any]:
    """Traces every function of the PyTorch package; returns the manifest's `functions`."""
    import torch

    with tempfile.TemporaryDirectory() as name:
        torch_export.write(pathlib.Path(name), trained)
        model = torch_export.load_package(pathlib.Path(name))

    class Call(torch.nn.Module):
        """One method as a module, which is what the tracer takes."""

        def __init__(self, name: str, inputs: tuple[str, ...]):
            super().__init__()
            self.model, self.inputs = model, inputs
            self.method = name if hasattr(model, name) else "encode_image"

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            given = dict(zip(self.inputs, values, strict=True))
            result = getattr(self.model, self.method)(**given)
            return result["pooled"] if isinstance(result, dict) else result

    functions = {}
    # Two rows: a batch of one could be taken for a constant.
    batch = torch_export.torch_batch(trained, _full_batch(trained, 2))
    for name, inputs in signatures(trained).items():
        given = {key: batch[key] for key in inputs}
        path, output = folder / f"{name}.onnx", _output(name)
        shape = _trace(Call(name, inputs).eval(), given, path, output)
        functions[name] = {
            "file": path.name,
            "inputs": [
                {"name": key, "shape": ["batch", *value.shape[1:]], "dtype": _dtype(value)}
                for key, value in given.items()
            ],
            "outputs": [{"name": output, "shape": ["batch", *shape], "dtype": "float32"}],
        }
    return functions


def _output(name: str) -> str:
    return torch_export.OUTPUTS.get(name, torch_export.OUTPUTS["encode_image"])


def _trace(
    module: Any, given: Mapping[str, Any], path: pathlib.Path, output: str
) -> tuple[int, ...]:
    """Writes the graph of `module` with a free batch axis; returns the shape of an output's row."""
    import torch

    size = sum(p.numel() * p.element_size() for p in module.parameters())
    with _quiet(), torch.inference_mode():
        torch.onnx.export(
            module,
            tuple(given.values()),
            path,
            input_names=list(given),
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(tuple({0: torch.export.Dim("batch")} for _ in given),),
            external_data=size > _LIMIT,
            verbose=False,
        )
        return tuple(module(*given.values()).shape[1:])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress lines and its warnings about its own parts."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _dtype(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def verify(folder: pathlib.Path, trained: Trained, functions: Mapping[str, Any]) -> float:
    """Largest difference between onnxruntime's outputs and ours, at batches of 1 and 3."""
    import onnxruntime

    pairs = {}
    for name, entry in functions.items():
        session = onnxruntime.InferenceSession(
            folder / entry["file"], providers=["CPUExecutionProvider"]
        )
        names = [x["name"] for x in entry["inputs"]]
        for rows in (1, 3):
            batch = _full_batch(trained, rows)
            given = {k: v.numpy() for k, v in torch_export.torch_batch(trained, batch).items()}
            got = np.asarray(session.run(None, {key: given[key] for key in names})[0])
            if set(names).isdisjoint(torch_export.further_inputs(trained)):
                batch = exporting.random_batch(trained, rows)
            ours = exporting.outputs(trained, batch)[_output(name)]
            if ours.ndim == 3:  # states at padding mean nothing
                real = batch["attention_mask"] > 0
                ours, got = ours[real], got[real]
            pairs[f"{name}, {rows} rows"] = (ours, got)
    return exporting.largest_difference(pairs)
