"""Without these, the short way around TFDS's decoding could give other values than TFDS."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from medvlp_jax.data import pipeline
from medvlp_jax.data.records import RecordDecoder

FEATURES = tfds.features.FeaturesDict(
    {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "text": tfds.features.Text(),
        "label": tfds.features.Tensor(shape=(None,), dtype=np.int8),
        "side": tfds.features.Tensor(shape=(3,), dtype=np.int32),
        "weight": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        "age": np.float32,
        "days": np.int64,
        "qa": tfds.features.Sequence({"question": tfds.features.Text()}),
        "boxes": tfds.features.Sequence(
            {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(num_classes=4)}
        ),
    }
)


def png(grey: int) -> bytes:
    return cv2.imencode(".png", np.full((4, 4), grey, np.uint8))[1].tobytes()


def record(labels: list[int]) -> bytes:
    example = {
        "image": io.BytesIO(png(5)),
        "text": "Größe 3 µm.\n",
        "label": np.array(labels, np.int8),
        "side": [1, -2, 3],
        "weight": [0.5, 0.25],
        "age": 61.5,
        "days": 7,
        "qa": [{"question": "Where?"}, {"question": "Élargi?"}],
        "boxes": [{"bbox": tfds.features.BBox(0.1, 0.2, 0.3, 0.4), "label": 2}],
    }
    return FEATURES.serialize_example(FEATURES.encode_example(example))


@pytest.mark.parametrize("labels", [[1, 0, -1, -2], [0], []])
def test_values_are_those_of_tfds(labels) -> None:
    data = record(labels)
    skip = {"image": tfds.decode.SkipDecoding()}
    expected = FEATURES.deserialize_example_np(data, decoders=skip)
    found = RecordDecoder(FEATURES, tuple(FEATURES))(data)
    assert set(found) == set(expected)
    assert found["image"] == expected["image"] == png(5)
    assert found["text"] == expected["text"].decode()
    for name in ("label", "side", "weight", "age", "days"):
        np.testing.assert_array_equal(found[name], expected[name])
        assert np.asarray(found[name]).dtype == np.asarray(expected[name]).dtype
    assert found["qa"]["question"] == ["Where?", "Élargi?"]
    np.testing.assert_array_equal(found["boxes"]["bbox"], expected["boxes"]["bbox"])
    np.testing.assert_array_equal(found["boxes"]["label"], expected["boxes"]["label"])


def test_only_chosen_features_are_decoded() -> None:
    decode = RecordDecoder(FEATURES, ("text", "label", "missing"))
    assert decode._others is None  # nothing is left to TFDS
    assert list(decode(record([1]))) == ["text", "label"]


def test_volumes_are_lists_of_encoded_slices() -> None:
    features = tfds.features.FeaturesDict(
        {"slices": tfds.features.Sequence(tfds.features.Image(shape=(4, 4, 1)))}
    )
    volume = [io.BytesIO(png(grey)) for grey in (3, 9)]
    data = features.serialize_example(features.encode_example({"slices": volume}))
    (found,) = RecordDecoder(features, ("slices",))(data).values()
    assert isinstance(found, list)
    assert found == [png(3), png(9)]


def test_near_and_far_files_give_the_same_examples(small) -> None:
    """Files behind a network are read in threads of their own."""
    source = pipeline.open_source("image_text_folder", "train", small)
    near = source.read([5, 0, 22, 5])
    source.folder = "gs://somewhere"
    far = source.read([5, 0, 22, 5])
    assert [e["image_id"] for e in near] == [e["image_id"] for e in far]
    assert [e["image"] for e in near] == [e["image"] for e in far]
    assert near[0]["image_id"] == near[3]["image_id"] != near[1]["image_id"]
