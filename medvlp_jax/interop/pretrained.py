"""Starts a tower from a checkpoint of PyTorch: recognises the naming, checks every key, adapts sizes.

A model file lists the namings it knows as `SOURCES` (name -> rule table of `interop.keys`), or has just
`TORCH_RULES`. The naming and the prefix of the tower's keys are found by counting; the file's name plays no
part.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from medvlp_jax.errors import UserError
from medvlp_jax.interop import keys, weights
from medvlp_jax.models import vit

_GAMMA = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Names of BERT checkpoints that were converted from TensorFlow."""

_MAY_STAY_RANDOM = re.compile(r"pooler/.*|head/.*|attention_pool.*")
"""Parameters that a checkpoint may lack: those of a pooling that it does not have."""

_PADDING_ROWS = 128
"""Largest number of unused rows at the end of an embedding table, put there to round its size up."""

IGNORED: tuple[tuple[str, str], ...] = (
    (r"(.*\.)?(position_ids|relative_position_index|attn_mask)", "table that is computed"),
    (r".*num_batches_tracked", "counter"),
    (r"(.*\.)?mask_token", "token for masked pre-training"),
    (r"(visual|vision_model)\..*", "image tower"),
    (r"(pooler|attn_pool)\..*", "pooler, which the config's pooling does not use"),
    (
        r"(heads?|fc|fc_norm|classifier|cls\w*|lm_head|pre_logits|head_dist|dist_token|logit_scale|proj|"
        r"visual_projection|text_projection|decoder\w*)(\..*)?",
        "head of another task",
    ),
)
"""(regex of a key without its prefix, why it is not read)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """What came out of a checkpoint.

    Attributes:
        variables: collection ("params", "batch_stats") -> nested dict of arrays, complete except `random`.
        naming: recognised naming.
        prefix: what stands before the tower's keys.
        ignored: key -> why it was not read.
        outside: number of tensors without the prefix, by the first word that sets them apart from it: other
            parts of the file.
        random: paths of parameters that the checkpoint does not have.
        notes: what was changed to fit, one sentence each.
    """

    variables: dict[str, Any]
    naming: str
    prefix: str
    ignored: dict[str, str]
    outside: dict[str, int]
    random: tuple[str, ...]
    notes: tuple[str, ...]

    def report(self) -> str:
        """Lines for the log."""
        lines = [f"naming: {self.naming}, prefix {self.prefix!r}"]
        for reason, names in _by_value(self.ignored).items():
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            lines.append(f"not read ({reason}): {shown}")
        if self.outside:
            parts = ", ".join(f"{name} ({n} tensors)" for name, n in sorted(self.outside.items()))
            lines.append(f"not read (other parts of the file): {parts}")
        if self.random:
            lines.append(f"not in the file, so random: {', '.join(self.random)}")
        return "\n  ".join([*lines, *self.notes])


def load(encoder: Any, shapes: Mapping[str, Any], source: str) -> Loaded:
    """Weights of one tower.

    Args:
        encoder: the tower, e.g. `vit.Encoder`; its module lists the namings.
        shapes: collection -> nested dict of shapes (`jax.eval_shape` of its `init`).
        source: see `weights.read`.

    Returns:
        Arrays with the shapes and dtypes asked for. Position tables are resampled to the image size, patch
        kernels to the patch size (FlexiViT, arXiv 2212.08013), three input channels summed into one.

    Raises:
        UserError: the file cannot be read, is of no known naming, or does not fit; all misfits are listed.
    """
    path, entry = weights.locate(source)
    tensors = _prepare(weights.read_at(path, entry))
    _check_config(encoder, path, source)
    like = _merge(shapes)
    naming, prefix, rules = _recognise(encoder, like, tensors, source)
    given = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    table = keys.match(keys.flatten(like), rules)
    random = tuple(
        path
        for path, (key, _) in table.items()
        if key not in given and _MAY_STAY_RANDOM.fullmatch(path)
    )
    wanted = {p: leaf for p, leaf in keys.flatten(like).items() if p not in random}
    ignored = _ignored(set(given) - {table[path][0] for path in wanted})
    notes = []
    for path, leaf in wanted.items():
        key = table[path][0]
        if key in given:
            given[key], note = _adapt(encoder, path, given[key], tuple(leaf.shape), source)
            notes += [note] if note else []
    try:
        found = keys.from_torch(
            given, keys.unflatten(wanted), rules, ignore=map(re.escape, ignored)
        )
    except UserError as error:
        raise UserError(f"{source} ({naming}): {error}") from error
    outside = [k for k in tensors if not k.startswith(prefix)]
    return Loaded(
        variables=_split(found, shapes),
        naming=naming,
        prefix=prefix,
        ignored=ignored,
        outside=dict(collections.Counter(_part(key, prefix) for key in outside)),
        random=random,
        notes=tuple(notes),
    )


def tokenizer_folder(source: str) -> pathlib.Path | None:
    """Folder of the tokenizer that came with a checkpoint, None when there is none."""
    folder = _folder(weights.locate(source)[0])
    for name in ("tokenizer.json", "vocab.txt", "vocab.json"):
        if (folder / name).is_file():
            return folder
    return None


_SETTINGS = {
    "heads": ("num_attention_heads", "num_heads", "n_head"),
    "layer_norm_eps": ("layer_norm_eps", "layer_norm_epsilon"),
}
"""Our field -> names in a config.json of settings that change the result but no shape."""


def _check_config(encoder: Any, path: pathlib.Path, source: str) -> None:
    """Compares what shapes cannot show with the config.json beside the weights, if there is one."""
    file = _folder(path) / "config.json"
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); download it again") from error
    side = "text" if hasattr(encoder, "vocab_size") else "vision"
    config = {**config, **(config.get(f"{side}_config") or {})}
    tower = "text_encoder" if side == "text" else "image_encoder"
    for field, names in _SETTINGS.items():
        ours = getattr(encoder, field, None)
        theirs = next((config[n] for n in names if isinstance(config.get(n), int | float)), None)
        if (
            ours is not None
            and theirs is not None
            and not np.isclose(ours, theirs, rtol=1e-3, atol=0)
        ):
            raise UserError(
                f"{source} was trained with {field} {theirs}, the config builds {ours}; no shape differs, "
                f"so it would load and be wrong: set model.{tower}.{field}={theirs}"
            )


def _folder(path: pathlib.Path) -> pathlib.Path:
    return path if path.is_dir() else path.parent


def _prepare(tensors: weights.Tensors) -> weights.Tensors:
    """Old names become new ones."""
    out: weights.Tensors = {}
    for key, value in tensors.items():
        for old, new in _GAMMA.items():
            key = key.replace(old, new) if key.endswith(old) else key
        out[key] = value
    return _with_class_position(out)


def _with_class_position(tensors: weights.Tensors) -> weights.Tensors:
    """timm's ViT with registers has the class token's position added to that token: zeros take its place."""
    out = dict(tensors)
    for key in tensors:
        if key.rpartition(".")[2] != "reg_token":
            continue
        prefix = key.removesuffix("reg_token")
        out[f"{prefix}register_tokens"] = out.pop(key)
        table = tensors.get(f"{prefix}pos_embed")
        if table is not None and f"{prefix}cls_token" in tensors:
            out[f"{prefix}pos_embed"] = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
    return out


def _namings(encoder: Any) -> dict[str, list[keys.Rule]]:
    module = sys.modules[type(encoder).__module__]
    name = module.__name__.rpartition(".")[2]
    own = getattr(module, "SOURCES", None) or {
        f"{name}: {table}": getattr(module, table)
        for table in dir(module)
        if table.endswith("_RULES")
    }
    if not own:
        raise UserError(
            f"medvlp_jax/models/{name}.py has no rule table, so no checkpoint can be read"
        )
    return own


def _recognise(
    encoder: Any, like: Mapping[str, Any], tensors: weights.Tensors, source: str
) -> tuple[str, str, list[keys.Rule]]:
    """The naming and prefix under which most of the tower's keys are there."""
    best: tuple[int, int, str, str, list[keys.Rule]] | None = None
    flat = keys.flatten(like)
    for naming, rules in _namings(encoder).items():
        try:
            wanted = {key for key, _ in keys.match(flat, rules).values()}
        except UserError:
            continue  # this naming cannot say what the tower has, e.g. register tokens
        counts: collections.Counter[str] = collections.Counter()
        for key in tensors:
            for start in [0, *(m.end() for m in re.finditer(r"\.", key))]:
                if key[start:] in wanted:
                    counts[key[:start]] += 1
        for prefix, count in counts.items():
            candidate = (count, -len(prefix), naming, prefix, rules)
            if best is None or candidate[:2] > best[:2]:
                best = candidate
    if best is None or best[0] < len(flat) // 2:
        some = ", ".join(list(tensors)[:6])
        raise UserError(
            f"{source} is not a checkpoint of this kind of tower: it has keys such as {some}; known are "
            f"{'; '.join(_namings(encoder))}"
        )
    return best[2], best[3], best[4]


def _part(key: str, prefix: str) -> str:
    """What a key outside the prefix belongs to: "text.proj.0.weight", "text.transformer." -> "text.proj"."""
    words, own = key.split("."), prefix.split(".")
    same = next(i for i, word in enumerate(own) if i >= len(words) - 1 or words[i] != word)
    return ".".join(words[: same + 1])


def _ignored(left: set[str]) -> dict[str, str]:
    found = {}
    for key in sorted(left):
        for pattern, reason in IGNORED:
            if re.fullmatch(pattern, key):
                found[key] = reason
                break
    return found


# ---------------------------------------------------------------------------------------------------
# Sizes


def _adapt(
    encoder: Any, path: str, value: np.ndarray, shape: tuple[int, ...], source: str
) -> tuple[np.ndarray, str]:
    """(tensor in PyTorch's layout that fits a parameter of `shape`, what was done or "")."""
    name = path.rpartition("/")[2]
    if (
        path == "position_embed"
        and value.shape[-2] != shape[-2]
        and isinstance(encoder, vit.Encoder)
    ):
        return _resample_positions(encoder, value, shape)
    if path == "word_embed/embedding" and value.shape[0] != shape[0]:
        return _fit_vocabulary(value, shape[0], source)
    if path == "position_embed/embedding" and value.shape[0] > shape[0]:
        note = f"{path}: the first {shape[0]} of {value.shape[0]} positions"
        return value[: shape[0]], note
    if name == "kernel" and value.ndim == 4 and len(shape) == 4:
        return _fit_kernel(path, value, shape)
    return value, ""


def _resample_positions(
    encoder: vit.Encoder, value: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, str]:
    cls = encoder.class_token
    side = round((shape[1] - cls) ** 0.5)
    if side * side != shape[1] - cls:
        raise UserError(
            f"position_embed: {shape[1] - cls} patches are not a square; use square images"
        )
    table = np.asarray(value, np.float32).reshape(1, -1, shape[-1])
    new = np.asarray(vit.resample_positions(table, (side, side), cls=cls))
    old = round((table.shape[1] - cls) ** 0.5)
    return new.reshape(*value.shape[:-2], *new.shape[1:]), (
        f"position_embed: resampled from {old}x{old} to {side}x{side} patches (bicubic)"
    )


def _fit_vocabulary(value: np.ndarray, rows: int, source: str) -> tuple[np.ndarray, str]:
    spare = value.shape[0] - rows
    if not 0 < spare < _PADDING_ROWS:
        raise UserError(
            f"{source} has an embedding table of {value.shape[0]} tokens, but the tokenizer has {rows}: "
            "set data.text.tokenizer to the tokenizer of this checkpoint"
        )
    return value[:rows], f"word_embed: the last {spare} rows belong to no token and were left out"


def _fit_kernel(path: str, value: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """OIHW kernel -> number of input channels and window of HWIO `shape`."""
    notes = []
    if value.shape[1] == 3 and shape[2] == 1:
        # Equal to feeding the grey image three times, if all channels are normalised alike.
        value = value.sum(1, keepdims=True)
        notes.append("three input channels summed into one")
    elif value.shape[1] == 1 and shape[2] == 3:
        value = np.repeat(value, 3, axis=1) / 3
        notes.append("the one input channel spread over three")
    if path == "patch_embed/kernel" and value.shape[2:] != shape[:2]:
        notes.append(f"resized from {value.shape[2:]} to {shape[:2]} pixels (pseudo-inverse)")
        value = resize_patch_kernel(value, shape[0])
    return value, f"{path}: {'; '.join(notes)}" if notes else ""


def resize_patch_kernel(kernel: np.ndarray, side: int) -> np.ndarray:
    """Kernel for patches of another size that gives the same tokens on resized images (FlexiViT, eq. 2).

    Args:
        kernel: [O, I, P, P].
        side: new P.

    Returns:
        [O, I, side, side]: pinv(B)^T w, where B resizes a patch bilinearly from P to `side`.
    """
    old = kernel.shape[-1]
    line = np.zeros((side, old))
    centres = (np.arange(side) + 0.5) * old / side - 0.5
    for row, centre in enumerate(np.clip(centres, 0, old - 1)):
        low = min(int(centre), old - 2) if old > 1 else 0
        line[row, low] += 1 - (centre - low)
        if old > 1:
            line[row, low + 1] += centre - low
    flat = kernel.reshape(-1, old * old).astype(np.float64)
    resized = flat @ np.linalg.pinv(np.kron(line, line))
    return resized.reshape(*kernel.shape[:2], side, side).astype(kernel.dtype)


# ---------------------------------------------------------------------------------------------------
# Collections


def _merge(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """One tree of all collections; `scale` and `mean` of a BatchNorm have different names."""
    flat: dict[str, Any] = {}
    for tree in shapes.values():
        flat |= keys.flatten(tree)
    return keys.unflatten(flat)


def _split(found: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    flat = keys.flatten(found)
    return {
        name: keys.unflatten({p: flat[p] for p in keys.flatten(tree) if p in flat})
        for name, tree in shapes.items()
    }


def _by_value(names: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, value in names.items():
        grouped.setdefault(value, []).append(name)
    return grouped
