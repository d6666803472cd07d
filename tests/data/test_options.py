"""Without these, a misspelt or impossible key of `config.data` would pass unseen into the results."""

from __future__ import annotations

import dataclasses

import pytest
from ml_collections import ConfigDict

from medvlp_jax.data.options import DataOptions, ImageOptions, data_options
from medvlp_jax.errors import UserError


def test_defaults_and_config_dicts() -> None:
    assert data_options({}) == DataOptions()
    config = ConfigDict(
        {"image": {"size": 64, "mean": [0.5, 0.5, 0.5]}, "text": {"sample": "section"}}
    )
    options = data_options(config)
    assert options.image.size == 64
    assert options.image.mean == (0.5, 0.5, 0.5)
    assert options.text.sample == "section"
    assert data_options(options) is options
    assert data_options(ConfigDict(dataclasses.asdict(options))) == options
    hash(options.image)  # frozen and made of tuples


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"img": {}}, "data.img is unknown"),
        ({"image": {"sizee": 3}}, r"data.image.sizee is unknown; did you mean size"),
        ({"image": {"augment": {"flip": True}}}, "data.image.augment.flip is unknown.*hflip"),
        ({"pairing": "pair"}, "data.pairing='pair': expected one of paired, unpaired"),
        ({"text": {"sample": "word"}}, "data.text.sample='word'"),
        ({"image": {"channels": 4}}, "data.image.channels: expected 1 .grey. or 3 .RGB., got 4"),
        ({"image": {"mean": (0.5, 0.5)}}, "data.image.mean"),
        ({"image": {"std": (0.0,)}}, "data.image.std"),
        ({"image": {"size": 224, "resize": 200}}, "data.image.resize"),
        ({"image": {"augment": {"crop_scale": (0, 1)}}}, "crop_scale"),
        ({"text": {"max_length": 2}}, "data.text.max_length"),
        ({"text_dataset": "other"}, "data.text_dataset"),
        ({"global_batch_size": 0}, "data.global_batch_size"),
        ({"distinct": "subject"}, "data.distinct='subject': expected one of none, patient, text, "),
        ({"mixture": {"a": -1}}, "data.mixture: expected a dict of datasets and positive weights"),
        ({"text": {"per_image": 0}}, "data.text.per_image"),
        ({"image": {"views": 3}}, "data.image.views: expected 1 or 2, got 3"),
        ({"image": {"per_study": 0}}, "data.image.per_study"),
        ({"image": {"frames": -1}}, "data.image.frames"),
        ({"image": {"frames": 2, "per_study": 2}}, "data.image.per_study"),
        ({"image": {"prior": True, "per_study": 2}}, "data.image.prior"),
        ({"image": {"prior": True, "frames": 2}}, "data.image.prior"),
    ],
)
def test_wrong_values_name_the_key(config, message) -> None:
    with pytest.raises(UserError, match=message):
        data_options(config)


def test_one_mean_serves_all_channels() -> None:
    assert data_options({"image": {"mean": (0.5,), "std": (0.2,)}}).image == ImageOptions(
        mean=(0.5,), std=(0.2,)
    )


def test_mixture_of_a_config() -> None:
    config = ConfigDict({"mixture": None})
    with config.ignore_type():
        config["mixture"] = {"mimic_cxr": 2, "image_text_folder/own": 0.5}
    options = data_options(config)
    assert options.mixture == {"mimic_cxr": 2.0, "image_text_folder/own": 0.5}
    assert data_options(ConfigDict(dataclasses.asdict(options))) == options
