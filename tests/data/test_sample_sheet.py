"""Without these, the page of samples could differ from run to run, or show confidential texts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medvlp_jax.data import check, sample_sheet
from medvlp_jax.errors import UserError


@pytest.fixture
def sources(small):
    return check.open_splits("image_text_folder", small)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_every_split_shows_its_images(sources, tmp_path) -> None:
    sample_sheet.write_sheet(tmp_path / "a.png", sources, seed=1)
    page = pixels(tmp_path / "a.png")
    tile, gap = sample_sheet._TILE, sample_sheet._GAP
    top = sample_sheet._HEADER
    for number, (split, source) in enumerate(sources.items()):
        chosen = sample_sheet.chosen_examples(len(source), 12, 1, number)
        assert len(chosen) == {"train": 12, "validation": 10, "test": 5}[split]
        height = tile + sample_sheet._LINE + gap
        for place, index in enumerate(chosen):
            row, column = divmod(place, 6)
            y, x = top + row * height, gap + column * (tile + gap)
            file = int(source[int(index)]["image_id"].removesuffix(".png"))
            middle = page[y + tile // 2, x + tile // 2]
            assert np.abs(middle.astype(int) - (10 + 6 * file)).max() <= 1  # `grey_of` in conftest
        top += height * -(-len(chosen) // 6) + sample_sheet._HEADER
    assert top - sample_sheet._HEADER == page.shape[0]


def test_one_seed_one_page(sources, tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sample_sheet.write_sheet(tmp_path / f"{name}.png", sources, seed=seed)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    a, c = pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png")
    assert (a != c).any()


def test_texts_are_only_shown_on_request(sources) -> None:
    (example,) = (e for e in sources["train"] if e["image_id"] == "00.png")
    names = sources["train"].label_names

    def lines(captions) -> str:
        return " ".join(sample_sheet._caption(example, 0, names, captions))

    assert lines("id") == "0: 00.png"
    assert lines("label") == "0: 00.png even, rare"
    assert "Grey number 0" in lines("text")


def test_captions_take_their_space(sources, tmp_path) -> None:
    heights = []
    for captions in ("id", "label", "text"):
        sample_sheet.write_sheet(tmp_path / "a.png", sources, captions=captions, per_split=2)
        heights.append(pixels(tmp_path / "a.png").shape[0])
    assert np.diff(heights).tolist() == [3 * 14, 3 * 3 * 14]


def test_wrong_names(sources, tmp_path) -> None:
    with pytest.raises(UserError, match=r"ends in \.png"):
        sample_sheet.write_sheet(tmp_path / "a.jpg", sources)
    with pytest.raises(UserError, match="does not exist"):
        sample_sheet.write_sheet(tmp_path / "missing" / "a.png", sources)
