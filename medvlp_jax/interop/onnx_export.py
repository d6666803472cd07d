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

FORMAT = "medvlp_jax-onnx"
"""Entry `format` of the manifest."""

OPSET = 18
"""Version of the operators: the one that torch.onnx translates to without a conversion afterwards."""

TOLERANCE = 1e-4
"""Largest difference of an entry of an output that an export may have, relative to the output's largest entry
where that is above 1 (embeddings are unit vectors)."""

_LIMIT = 1_500_000_000  # bytes of weights in one file; the format ends at 2 GiB
_NEEDS = ("torch", "onnx", "onnxruntime", "onnxscript")
_OUTPUTS = {"encode_image": "image_embed", "encode_text": "text_embed", "fuse": "fused_pooled"}

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
texts = run(
    "encode_text",
    input_ids=np.array([row.ids for row in rows], np.int64),
    attention_mask=np.array([row.attention_mask for row in rows], np.int64),
    # The word each token belongs to, -1 for special tokens; only some models use it.
    word_ids=np.array([[-1 if w is None else w for w in row.word_ids] for row in rows], np.int64),
)
side, channels = manifest["image"]["size"], manifest["image"]["channels"]
pixels = np.zeros((1, channels, side, side), np.float32)  # normalised as manifest["image"] says
logits = manifest["logit_scale"] * run("encode_image", pixels=pixels) @ texts.T
scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
print(scores / scores.sum(axis=-1, keepdims=True))
```"""


def export(trained: Trained, folder: str | os.PathLike[str]) -> Exported:
    """Writes one graph per function, manifest, tokenizer and model card.

    Args:
        trained: a model that fits `torch_export`; one with a fusion encoder gets a third graph, `fuse`.
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


def write_graphs(folder: pathlib.Path, trained: Trained) -> dict[str, Any]:
    """Traces every function of the PyTorch package; returns the manifest's `functions`."""
    import torch

    with tempfile.TemporaryDirectory() as name:
        torch_export.write(pathlib.Path(name), trained)
        model = torch_export.load_package(pathlib.Path(name))
    calls = {"encode_image": model.encode_image, "encode_text": model.encode_text}
    if trained.model.fusion is not None:
        calls["fuse"] = lambda *inputs: model.fuse(*inputs)["pooled"]

    class Call(torch.nn.Module):
        """One method as a module, which is what the tracer takes."""

        def __init__(self, name: str):
            super().__init__()
            self.model, self.name = model, name

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return calls[self.name](*inputs)

    functions = {}
    # Two rows: a batch of one could be taken for a constant.
    batch = torch_batch(exporting.random_batch(trained, 2))
    for name in calls:
        given = {key: batch[key] for key in inputs(trained, name)}
        path = folder / f"{name}.onnx"
        width = _trace(Call(name).eval(), given, path, _OUTPUTS[name])
        functions[name] = {
            "file": path.name,
            "inputs": [
                {"name": key, "shape": ["batch", *value.shape[1:]], "dtype": _dtype(value)}
                for key, value in given.items()
            ],
            "outputs": [{"name": _OUTPUTS[name], "shape": ["batch", width], "dtype": "float32"}],
        }
    return functions


def _trace(module: Any, given: Mapping[str, Any], path: pathlib.Path, output: str) -> int:
    """Writes the graph of `module` with a free batch axis; returns the width of its output."""
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
        return int(module(*given.values()).shape[-1])


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


def inputs(trained: Trained, name: str) -> tuple[str, ...]:
    """Names of the inputs of a function, in order."""
    text = ("input_ids", "attention_mask")
    if name == "encode_image":
        return ("pixels",)
    if name == "fuse":
        return ("pixels", *text)
    return (*text, "word_ids") if trained.needs_words else text


def torch_batch(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A batch of ours as the package takes it: `pixels` float32 [B, C, H, W], the others int64."""
    import torch

    pixels = torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy())
    rest = {k: torch.from_numpy(v).long() for k, v in batch.items() if k != "image"}
    return {"pixels": pixels, **rest}


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
        for rows in (1, 3):
            batch = exporting.random_batch(trained, rows)
            given = {k: v.numpy() for k, v in torch_batch(batch).items()}
            got = session.run(None, {x["name"]: given[x["name"]] for x in entry["inputs"]})[0]
            pairs[f"{name}, {rows} rows"] = (
                exporting.outputs(trained, batch)[_OUTPUTS[name]],
                got,
            )
    return exporting.largest_difference(pairs)
