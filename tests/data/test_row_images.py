"""Without these, a model of volumes, pairs or two views could see other pixels than the config says."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from medvlp_jax import build
from medvlp_jax.data import pipeline, row_images, transforms
from medvlp_jax.data.options import data_options
from medvlp_jax.errors import UserError
from medvlp_jax.objectives.corruption import MismatchPairs

AUGMENT = {"crop": "random_resized", "rotate": 10.0, "brightness": 0.2}


def with_image(config: dict, **changes) -> dict:
    return {**config, "image": {**config["image"], **changes}}


@pytest.mark.parametrize(
    ("stored", "wanted", "offset", "expected"),
    [
        (8, 4, 0.0, [0, 2, 4, 6]),
        (8, 4, 0.5, [1, 3, 5, 7]),
        (8, 4, 0.99, [1, 3, 5, 7]),
        (9, 3, 0.5, [1, 4, 7]),
        (5, 5, 0.7, [0, 1, 2, 3, 4]),
        (2, 4, 0.5, [0, 0, 1, 1]),
        (1, 3, 0.9, [0, 0, 0]),
        (7, 1, 0.5, [3]),
    ],
)
def test_slices_at_equal_distances(stored, wanted, offset, expected) -> None:
    assert row_images.frame_indices(stored, wanted, offset).tolist() == expected


def test_slices_stay_encoded(volumes) -> None:
    source = pipeline.open_source("volumes", "train", volumes)
    example = next(e for e in source if e["image_id"] == "1")
    assert [data[1:4] for data in example["slices"]] == [b"PNG"] * 4
    assert example["spacing"].tolist() == [1, 1, 1]
    assert example["text"] == "Volume."


def test_evaluation_takes_the_middle_of_each_part(of_volumes, tokenizer) -> None:
    batches = pipeline.eval_batches(of_volumes, tokenizer, "test")
    (batch,) = batches
    assert batch["image"].shape == (4, 4, 32, 32, 1)
    assert batch["image"].dtype == np.uint8
    view = data_options(of_volumes).image
    for row, index in enumerate(batch["example_index"]):
        example = batches.source[int(index)]
        chosen = row_images.frame_indices(len(example["slices"]), 4, 0.5)
        for frame, number in enumerate(chosen):
            expected = transforms.eval_image(example["slices"][number], view)
            np.testing.assert_array_equal(batch["image"][row, frame], expected)


def test_training_moves_the_slices_but_changes_them_alike(of_volumes, tokenizer) -> None:
    iterator = pipeline.train_iterator(of_volumes, tokenizer, seed=0)
    source = pipeline.open_source("volumes", "train", of_volumes["data_dir"])
    deep = next(i for i, e in enumerate(source) if e["image_id"] == "0")
    seen = set()
    for _ in range(20):
        batch = next(iterator)
        image = batch["image"][batch["example_index"].tolist().index(deep)]
        seen.add(tuple((image[:, 0, 0, 0] - image[0, 0, 0, 0]).tolist()))
    # 9 slices in 4 parts: the distances are 2 or 3, depending on the offset.
    assert len(seen) > 1
    assert all(set(np.diff(places)) <= {2, 3} for places in seen)
    changed = with_image(of_volumes, augment=AUGMENT)
    batch = next(pipeline.train_iterator(changed, tokenizer, seed=0))
    flat = (
        batch["example_index"]
        .tolist()
        .index(next(i for i, e in enumerate(source) if e["image_id"] == "2"))
    )
    # The volume of one slice shows it four times: cropped, turned and brightened in one way.
    assert all((frame == batch["image"][flat, 0]).all() for frame in batch["image"][flat])
    again = with_image(of_volumes, augment=AUGMENT, views=2)
    batch = next(pipeline.train_iterator(again, tokenizer, seed=0))
    assert batch["image_2"].shape == (4, 4, 32, 32, 1)
    assert (batch["image_2"][flat] != batch["image"][flat]).any()


def test_volumes_resume_and_split_like_images(of_volumes, tokenizer) -> None:
    chosen = with_image(of_volumes, augment=AUGMENT)
    iterator = pipeline.train_iterator(chosen, tokenizer, seed=0)
    first = [next(iterator) for _ in range(3)]
    half = pipeline.train_iterator(chosen, tokenizer, 0, 1, 2)
    half.set_state({**half.get_state(), "step": 2})
    np.testing.assert_array_equal(next(half)["image"], first[2]["image"][2:])


def test_wrong_kind_of_data(of_volumes, config, tokenizer) -> None:
    images = with_image(of_volumes, frames=0)
    for start in (pipeline.train_iterator, pipeline.eval_batches):
        with pytest.raises(UserError, match=r"volumes stores no images: set data.image.frames"):
            start(images, tokenizer, *(("test",) if start is pipeline.eval_batches else (0,)))
    with pytest.raises(UserError, match="frames=4 needs the feature slices, which image_text"):
        pipeline.train_iterator(with_image(config, frames=4), tokenizer, 0)


def test_second_view_is_another_random_one(config, built, tokenizer) -> None:
    synthetic = {**config, "dataset": "synthetic_cxr/tiny"}
    plain = next(pipeline.train_iterator(with_image(synthetic, augment=AUGMENT), tokenizer, seed=0))
    twice = with_image(synthetic, augment=AUGMENT, views=2)
    batch = next(pipeline.train_iterator(twice, tokenizer, seed=0))
    np.testing.assert_array_equal(batch["image"], plain["image"])
    assert batch["image_2"].shape == batch["image"].shape
    assert all((a != b).any() for a, b in zip(batch["image"], batch["image_2"], strict=True))
    fixed = next(iter(pipeline.eval_batches(twice, tokenizer, "test")))
    assert "image_2" not in fixed


@pytest.mark.parametrize("shape", [(2, 4, 4, 1), (2, 3, 4, 4, 1)])
def test_all_pixels_are_normalised_on_the_device(shape) -> None:
    config = ConfigDict({"data": {"image": {"mean": (0.5,), "std": (0.25,), "channels": 3}}})
    pixels = np.full(shape, 255, np.uint8)
    batch = {"image": pixels, "image_2": pixels, "prior_image": pixels, "prior_mask": np.ones(2)}
    done = jax.jit(build.make_preprocess(config))(batch)
    for key in ("image", "image_2", "prior_image"):
        assert done[key].shape == (*shape[:-1], 3)
        np.testing.assert_allclose(done[key], 2.0, rtol=1e-6)
    np.testing.assert_array_equal(done["prior_mask"], batch["prior_mask"])
    assert set(build.make_preprocess(config)({"image": pixels})) == {"image"}


def test_all_images_of_a_row_are_exchanged_together() -> None:
    rows = np.arange(6)
    pixels = np.broadcast_to(rows[:, None, None, None], (6, 2, 2, 1))
    batch = {"text_id": rows, "example_mask": np.ones(6), "study_id": rows, "prior_mask": rows}
    batch |= {"image": pixels, "image_2": pixels, "prior_image": pixels, "image_present": rows}
    moved = MismatchPairs(share=1.0)(batch, jax.random.key(0))
    assert (moved["study_id"] != rows).all()
    for key in ("image", "image_2", "prior_image", "image_present", "prior_mask"):
        np.testing.assert_array_equal(
            np.asarray(moved[key]).reshape(6, -1)[:, 0], moved["study_id"], err_msg=key
        )
