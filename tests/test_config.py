"""Without these, a misspelt config key would train something else than the user asked for."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from medvlp_jax import config
from medvlp_jax.errors import UserError


@pytest.fixture
def settings() -> ConfigDict:
    return ConfigDict(
        {
            "optim": {"lr": 1e-3, "groups": (("a", {"freeze": True}),), "name": "adamw"},
            "train": {"steps": "10ep", "log_every": 5},
            "flag": False,
        }
    )


def test_override_keeps_the_type_of_the_default(settings: ConfigDict) -> None:
    for text in ("optim.lr=2", "train.log_every=7", "flag=true", "train.steps=100"):
        config.apply_override(settings, text)
    assert settings.optim.lr == 2.0
    assert isinstance(settings.optim.lr, float)
    assert settings.train.log_every == 7
    assert settings.flag is True
    assert settings.train.steps == "100"


def test_override_of_a_tuple(settings: ConfigDict) -> None:
    config.apply_override(settings, "optim.groups=(('x', {'lr_mult': 5.0}),)")
    assert settings.optim.groups == (("x", {"lr_mult": 5.0}),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.learning_rate=1", "optim.lr"),
        ("optin.lr=1", "near it: optim.lr"),
        ("optim=3", "is a group"),
        ("train.log_every=often", "expected int"),
        ("flag=maybe", "expected bool"),
        ("train.steps", "has no value"),
    ],
)
def test_wrong_override_names_key_and_remedy(settings: ConfigDict, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.apply_override(settings, text)


def test_parse_arg() -> None:
    parsed = config.parse_arg("smoke,data=covid,size=64", smoke=False, data="x", size=224)
    assert (parsed.smoke, parsed.data, parsed.size) == (True, "covid", 64)
    with pytest.raises(UserError, match="'smok' is unknown"):
        config.parse_arg("smok", smoke=False)


def test_missing_config_file_suggests_a_neighbour(root) -> None:
    with pytest.raises(UserError, match=r"convirt\.py"):
        config.load_config(str(root / "configs" / "convrt.py"))


@pytest.mark.parametrize(("text", "steps"), [("500", 500), ("3ep", 30), ("10%", 20), ("0.5ep", 5)])
def test_duration(text: str, steps: int) -> None:
    assert config.duration(text, steps_per_epoch=10, total=200, key="k") == steps


def test_duration_error_names_the_key() -> None:
    with pytest.raises(UserError, match=r"train\.steps='soon'"):
        config.duration("soon", steps_per_epoch=10, key="train.steps")


def test_json_round_trip_and_differences(settings: ConfigDict) -> None:
    again = config.from_json(config.to_json(settings))
    assert config.differences(settings, again) == []
    again.optim.lr = 0.5
    assert config.differences(settings, again) == ["optim.lr: 0.001 -> 0.5"]


def test_argument_that_a_config_dict_would_hide_is_refused() -> None:
    """`options.lock` would be the method, so `options.lock == "both"` never true."""
    with pytest.raises(ValueError, match="rename it"):
        config.parse_arg("", lock="image")
