"""`data check --sheet`: random examples of each split on one page, to be looked at."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medvlp_jax.data.source import Source
from medvlp_jax.data.transforms import decode, pad_to_square
from medvlp_jax.errors import UserError

Captions = Literal["id", "label", "text"]
CAPTIONS: tuple[str, ...] = get_args(Captions)

_TILE = 192  # pixels of an image on the page
_GAP = 8
_LINE = 14  # height of a line of caption
_LINES = {"id": 1, "label": 2, "text": 5}
_COLUMNS = 6
_HEADER = 26


def write_sheet(
    file: str | os.PathLike[str],
    sources: Mapping[str, Source],
    *,
    seed: int = 0,
    per_split: int = 2 * _COLUMNS,
    captions: Captions = "id",
) -> None:
    """Writes a PNG with random examples of each split; the same seed chooses the same ones.

    Args:
        file: where; must end in .png.
        sources: split -> examples.
        seed: of the choice.
        per_split: number of examples, fewer where the split is smaller.
        captions: what stands below an image: its id alone; also its positive labels; or also its
            text, which may be confidential.

    Raises:
        UserError: another kind of file, or a folder that does not exist.
    """
    path = pathlib.Path(file)
    if path.suffix.lower() != ".png":
        raise UserError(f"--sheet {path}: give a name that ends in .png")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--sheet {path}: the folder {path.parent} does not exist; make it first")
    bands = [
        _band(split, source, chosen_examples(len(source), per_split, seed, number), captions)
        for number, (split, source) in enumerate(sources.items())
    ]
    page = Image.new("RGB", (bands[0].width, sum(band.height for band in bands)), "white")
    top = 0
    for band in bands:
        page.paste(band, (0, top))
        top += band.height
    page.save(path, "PNG")


def chosen_examples(number: int, wanted: int, seed: int, stream: int) -> np.ndarray:
    """Indices of the examples on a page, int [min(wanted, number)], in rising order.

    Args:
        number: examples in the split.
        wanted: how many to choose.
        seed: of the page.
        stream: number of the split, so that splits of one size do not choose the same.
    """
    rng = np.random.default_rng([seed, stream])
    return np.sort(rng.choice(number, size=min(wanted, number), replace=False))


def _band(split: str, source: Source, chosen: np.ndarray, captions: Captions) -> Image.Image:
    """The part of the page that shows one split."""
    width = _COLUMNS * (_TILE + _GAP) + _GAP
    height = _TILE + _LINES[captions] * _LINE + _GAP
    rows = -(-len(chosen) // _COLUMNS)
    band = Image.new("RGB", (width, _HEADER + rows * height), "white")
    draw = ImageDraw.Draw(band)
    title = f"{source.name}  {split}: {len(chosen)} of {len(source)} examples"
    draw.text((_GAP, 5), title, fill="black", font=_font(15))
    for place, (index, example) in enumerate(zip(chosen, source.read(chosen), strict=True)):
        left = _GAP + place % _COLUMNS * (_TILE + _GAP)
        top = _HEADER + place // _COLUMNS * height
        picture = _picture(example)
        if picture is not None:
            band.paste(Image.fromarray(picture), (left, top))
        lines = _caption(example, int(index), source.label_names, captions)
        for number, line in enumerate(lines):
            at = (left, top + _TILE + 1 + number * _LINE)
            draw.text(at, _shortened(line, draw), fill="black", font=_font(11))
    return band


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _picture(example: Mapping[str, Any]) -> np.ndarray | None:
    """uint8 [_TILE, _TILE, 3]: the image, or the middle slice of a volume; None for texts alone."""
    slices = example.get("slices") or []
    data = example.get("image") or (slices[len(slices) // 2] if slices else None)
    return None if data is None else pad_to_square(decode(data, 3), _TILE)


def _caption(
    example: Mapping[str, Any], index: int, names: Sequence[str], captions: Captions
) -> list[str]:
    """Lines below an image, the id cut in front, where names of files differ least."""
    lines = [f"{index}: " + str(example.get("image_id") or "")[-24:]]
    if captions == "id":
        return lines
    values = np.asarray(example.get("label", ()))
    lines.append(", ".join(name for name, value in zip(names, values, strict=False) if value == 1))
    if captions == "label":
        return lines
    words = " ".join(str(example.get("text", "")).split())
    lines += [words[start : start + 34] for start in range(0, len(words), 34)]
    return lines[: _LINES["text"]]


def _shortened(line: str, draw: ImageDraw.ImageDraw) -> str:
    """As much of a line as fits below an image."""
    while line and draw.textlength(line, font=_font(11)) > _TILE:
        line = line[:-1]
    return line
