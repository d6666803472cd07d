"""Without these, a map would lie beside the finding it shows, and grounding numbers would not be BioViL's."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from medvlp_jax.data import images, transforms
from medvlp_jax.data.options import ImageOptions
from medvlp_jax.tasks.similarity_map import interpolate, smooth, to_image_size


def test_the_released_code_of_biovil(reference_dir) -> None:
    with np.load(reference_dir / "biovil_similarity_map.npz") as file:
        reference = dict(file)
    meta = json.loads(str(reference["_meta"]))
    cosine = reference["patches"] @ reference["text"][0]
    similarity = smooth(cosine, meta["sigma"])
    np.testing.assert_allclose(similarity, reference["similarity"], atol=1e-6)
    size = meta["height"], meta["width"]
    image = ImageOptions(size=meta["crop"], resize=meta["resize"])
    for kind in ("nearest", "bilinear"):
        found = to_image_size(similarity, *size, image, kind)
        np.testing.assert_allclose(found, reference[f"map_{kind}"], atol=1e-6)
        assert np.isnan(found).sum() == np.isnan(reference[f"map_{kind}"]).sum() > 0
        whole = interpolate(similarity, *size, kind)
        np.testing.assert_allclose(whole, reference[f"map_nocrop_{kind}"], atol=1e-6)


@pytest.mark.parametrize("target", [(5, 7), (37, 12), (7, 7), (64, 64), (3, 1)])
@pytest.mark.parametrize("kind", ["nearest", "bilinear"])
def test_it_is_the_interpolation_of_torch(target: tuple[int, int], kind: str) -> None:
    grid = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    corners = {} if kind == "nearest" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(
        torch.tensor(grid)[None, None], size=target, mode=kind, **corners
    )[0, 0].numpy()
    np.testing.assert_allclose(interpolate(grid, *target, kind), expected, atol=1e-6)


def test_no_smoothing_and_a_constant_map() -> None:
    grid = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    assert smooth(grid, 0) is grid
    np.testing.assert_allclose(smooth(np.full((4, 4), 0.3, np.float32)), 0.3, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 60), (64, 64), (61, 90)])
@pytest.mark.parametrize(
    "options",
    [
        ImageOptions(size=32, channels=1),
        ImageOptions(size=32, resize=40, channels=1),
        ImageOptions(size=32, fit="pad", channels=1),
    ],
)
def test_a_spot_of_the_input_lies_where_it_is_in_the_image(
    height: int, width: int, options: ImageOptions
) -> None:
    """The model's input itself serves as a map with one cell per pixel."""
    picture = np.zeros((height, width, 1), np.uint8)
    row, column = height * 5 // 9, width * 4 // 9
    picture[row - 4 : row + 5, column - 4 : column + 5] = 255
    picture = cv2.GaussianBlur(picture, (0, 0), 2)[:, :, None]
    seen = transforms.eval_image(images.encode_for_storage(picture, "png"), options)
    placed = to_image_size(seen[:, :, 0].astype(np.float32), height, width, options)
    assert placed.shape == (height, width)
    weight = np.nan_to_num(placed)
    rows, columns = np.mgrid[:height, :width]
    assert (weight * rows).sum() / weight.sum() == pytest.approx(row, abs=1.0)
    assert (weight * columns).sum() / weight.sum() == pytest.approx(column, abs=1.0)
    assert np.isnan(placed).any() == (
        options.fit == "crop" and (height != width or options.resize == 40)
    )
