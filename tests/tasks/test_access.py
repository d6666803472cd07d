"""Without these, features of an older checkpoint or dataset could stand for those of this one."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from medvlp_jax import build, runs
from medvlp_jax import config as config_lib
from medvlp_jax.__main__ import main
from medvlp_jax.data import build as data_build
from medvlp_jax.data import pipeline, prompt_sets
from medvlp_jax.data.options import DataOptions, ImageOptions, TextOptions
from medvlp_jax.step import variables
from medvlp_jax.tasks import access as access_lib
from medvlp_jax.tasks.access import RunAccess, read_features, write_features


class FakePredictor:
    """Embeds the mean grey of an image; `name` stands for the parameters."""

    def __init__(self, name: str):
        self.name, self.images = name, 0

    def fingerprint(self) -> str:
        return self.name

    def encode_features(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        self.images += int(batch["example_mask"].sum())
        grey = np.asarray(batch["image"], np.float32).mean(axis=(1, 2))
        keys = ("label", "label_mask", "text_id", "subject_id", "study_id", "example_index")
        rows = {key: np.asarray(batch[key]) for key in keys if key in batch}
        return {
            "image_embed": np.ones_like(grey),
            "image_pooled": grey,
            "example_mask": np.asarray(batch["example_mask"]),
            **rows,
        }


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> pathlib.Path:
    """The tiny synthetic corpus, built once."""
    folder = tmp_path_factory.mktemp("datasets")
    data_build.build_dataset("synthetic_cxr/tiny", str(folder))
    return folder


@pytest.fixture
def options(data_root) -> DataOptions:
    return DataOptions(
        dataset="synthetic_cxr/tiny",
        data_dir=str(data_root),
        global_batch_size=8,
        image=ImageOptions(size=32, channels=1, mean=(0.5,), std=(0.5,)),
        text=TextOptions(vocab_size=300, max_length=16),
        threads=0,
        max_examples=21,
    )


@pytest.fixture
def open_access(options, tmp_path) -> Any:
    tokenizer = pipeline.config_tokenizer(options)

    def make(model: str = "a", **changes: Any) -> tuple[RunAccess, FakePredictor]:
        predictor: Any = FakePredictor(model)
        changed = dataclasses.replace(options, **changes)
        cache = tmp_path / "features"
        return RunAccess(predictor, changed, tokenizer, split="test", cache=cache), predictor

    return make


def test_every_example_once_and_only_one_computation(open_access) -> None:
    access, predictor = open_access()
    first = access.features("test")
    assert first.example_index.tolist() == list(range(21))  # the last batch of 8 is padded
    assert predictor.images == 21
    assert len(first.label_names) == first.label.shape[1] == 14
    assert access.features("test") is first
    again, second = open_access()
    found = again.features("test")
    assert second.images == 0
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(first, field.name))
    again.features("train")
    assert second.images == 21


def test_another_model_view_or_dataset_is_computed_again(open_access, options) -> None:
    open_access()[0].features("test")
    for changes in (
        dict(model="b"),
        dict(image=dataclasses.replace(options.image, size=16)),
        dict(image=dataclasses.replace(options.image, fit="pad")),
        dict(max_examples=20),
    ):
        access, predictor = open_access(**changes)
        access.features("test")
        assert predictor.images > 0, changes
    augmented = dataclasses.replace(options.image.augment, rotate=5.0)
    access, predictor = open_access(image=dataclasses.replace(options.image, augment=augmented))
    access.features("test")
    assert predictor.images == 0  # the fixed view is the same


def test_a_damaged_file_is_computed_again(open_access, tmp_path) -> None:
    open_access()[0].features("test")
    (path,) = (tmp_path / "features").iterdir()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nonsense"):
        path.write_bytes(content)
        access, predictor = open_access()
        assert len(access.features("test")) == 21
        assert predictor.images == 21
        assert path.stat().st_size == len(whole)


def test_a_killed_write_leaves_nothing(tmp_path, monkeypatch) -> None:
    path = tmp_path / "features" / "x.npz"
    arrays = {name: np.arange(3) for name in access_lib._ARRAYS}

    def killed(file: Any, **saved: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", killed)
        with pytest.raises(KeyboardInterrupt):
            write_features(path, arrays)
    assert list(path.parent.iterdir()) == []
    assert read_features(path) is None
    write_features(path, arrays)
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]
    found = read_features(path)
    assert found is not None
    assert found.keys() == arrays.keys()


def test_images_and_examples_are_those_of_the_split(open_access) -> None:
    access, _ = open_access()
    examples = access.examples(("image", "boxes", "nothing"))
    assert set(examples.read([0])[0]) == {"image", "boxes"}
    index, images = zip(*access.images(), strict=True)
    assert np.concatenate(index).tolist() == list(range(21))
    grey = np.concatenate(images).astype(np.float32).mean(axis=(1, 2))
    np.testing.assert_allclose(grey, access.features("test").image_pooled, atol=1e-4)


TASKS = ("linear_probe", "grounding", "knn", "few_shot")


def evaluate(capsys: Any, workdir: pathlib.Path) -> tuple[str, dict[str, Any]]:
    code = main(["eval", "--workdir", str(workdir), "--tasks", ",".join(TASKS)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    (path,) = workdir.glob("eval/*/results.json")
    return captured.out, json.loads(path.read_text())


@pytest.mark.slow
def test_eval_of_a_trained_run_without_token_embeddings(
    root, data_root, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_root))
    config = config_lib.load_config("configs/convirt.py:smoke", ["train.steps=2"])
    runs.run_training(config, tmp_path / "w")
    out, results = evaluate(capsys, tmp_path / "w")
    for key in (
        "linear_probe/synthetic_cxr/macro_auroc_100pct",
        "knn/synthetic_cxr/macro_auroc",
        "few_shot/synthetic_cxr/macro_auroc_16shot",
    ):
        assert key in out
        assert 0 <= results["metrics"][key]["value"] <= 1
    assert "grounding skipped: grounding needs projected image tokens" in out
    assert "model.image_token_projection" in results["tasks"]["grounding"]["skipped"]
    files = sorted((tmp_path / "w" / "features").iterdir())
    assert len(files) == 3  # train, validation, test
    written = [file.stat().st_mtime_ns for file in files]
    assert evaluate(capsys, tmp_path / "w")[1]["metrics"] == results["metrics"]
    assert [file.stat().st_mtime_ns for file in files] == written


def test_grounding_of_a_model_with_token_embeddings(
    root, data_root, tmp_path, capsys, monkeypatch
) -> None:
    """An untrained model of MGCA's parts, over the whole test split."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_root))
    config = config_lib.load_config("configs/mgca.py:smoke", [])
    run = runs.open_run(config, tmp_path / "w")
    predictor = runs.make_predictor(run, variables(runs.make_training(run).fresh_state()))
    results = runs.evaluate_split(run, predictor, split="test", tasks=("grounding",))
    metrics = {k.rpartition("/")[2]: m for k, m in results.metrics.items()}
    result = results.tasks["grounding"]
    assert "skipped" not in result.artefacts
    assert metrics["cnr"].n > 20
    assert metrics["mask_cnr"].n > 20
    assert metrics["cnr"].low < metrics["cnr"].value < metrics["cnr"].high
    assert 0 < metrics["pointing_game_chance"].value < 1
    assert result.predictions["map"].shape[0] == result.artefacts["phrases"]
    prompts = prompt_sets.load_prompts("synthetic_cxr", result.artefacts["label_names"])
    firsts = {sides["positive"][0] for sides in prompts.values()}
    assert len(set(result.predictions["phrase"])) > 5
    assert set(result.predictions["phrase"]) <= firsts
    assert not (tmp_path / "w" / "features").exists()  # without a cache nothing is written
    assert build.build_tasks(config, ("grounding",))["grounding"].bootstrap_samples == 50
