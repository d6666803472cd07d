"""Without these, a config could name a key, a module or a size that does not exist."""

from __future__ import annotations

import pathlib

import jax
import pytest

from medvlp_jax import config as config_lib
from medvlp_jax import runs
from medvlp_jax.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common")
)
ARGUMENTS = ("", "variant=released", "image=resnet", "image=vit")


def takes(name: str, argument: str) -> bool:
    """Whether the config's `parse_arg` call names the argument (`variant="paper"`)."""
    key = argument.split("=")[0]
    return not key or f'{key}="' in (ROOT / "configs" / f"{name}.py").read_text()


VARIANTS = [
    f"{name}:{argument}" for name in NAMES for argument in ARGUMENTS if takes(name, argument)
]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    from medvlp_jax.data import build

    folder = tmp_path_factory.mktemp("datasets")
    build.build_dataset("synthetic_cxr/tiny", str(folder))
    return folder


def load(spec: str, *overrides: str):
    name, _, arg = spec.partition(":")
    return config_lib.load_config(f"{ROOT}/configs/{name}.py:{arg}", overrides)


@pytest.mark.parametrize("name", NAMES)
def test_header_says_what_a_reader_needs(name: str) -> None:
    text = (ROOT / "configs" / f"{name}.py").read_text()
    for word in ("Command:", "./run.sh"):
        assert word in text.split('"""')[1], f"configs/{name}.py lacks {word!r} in its header"


@pytest.mark.parametrize("spec", VARIANTS)
def test_full_size_builds(spec: str, data_root, tmp_path) -> None:
    """The published sizes, shapes only: nothing is allocated."""
    config = load(
        spec,
        f"data.data_dir={data_root}",
        "data.dataset=synthetic_cxr/tiny",
        "data.global_batch_size=8",
        "data.text.tokenizer=None",
    )
    run = runs.open_run(config, tmp_path)
    shapes = runs.make_training(run).shapes
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    assert count > (1_000_000 if spec.startswith("quickstart") else 70_000_000)


QUICK = ("m3ae", "quickstart")
"""One config of each kind of system; the others run with `-m slow`, all in one session."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else (pytest.mark.slow,)) for n in NAMES]
)
def test_smoke_runs_and_resumes(name: str, data_root, tmp_path) -> None:
    config = load(
        f"{name}:smoke", f"data.data_dir={data_root}", "train.steps=2", "train.eval_every=2"
    )
    result = runs.run_training(config, tmp_path)
    assert result["step"] == 2
    assert Checkpoints(tmp_path, read_only=True).latest_step() == 2
    again = runs.run_training(config, tmp_path)  # nothing left to do
    assert again["step"] == 2
