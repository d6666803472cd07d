"""Without these, the moving average, frozen towers or donated memory could go wrong unnoticed."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from medvlp_jax import config as config_lib
from medvlp_jax import runs
from medvlp_jax.data import pipeline
from medvlp_jax.parallel.mesh import put_batch
from medvlp_jax.parallel.rules import flat_paths
from medvlp_jax.step import variables


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    from medvlp_jax.data import build

    folder = tmp_path_factory.mktemp("datasets")
    build.build_dataset("synthetic_cxr/tiny", str(folder))
    return folder


def start(root, data_root, tmp_path, *overrides: str):
    config = config_lib.load_config(
        f"{root}/configs/quickstart.py:smoke", [f"data.data_dir={data_root}", *overrides]
    )
    run = runs.open_run(config, tmp_path)
    training = runs.make_training(run)
    batches = pipeline.train_iterator(config.data, run.tokenizer, seed=0)
    batch = put_batch(next(batches), run.mesh)
    batches.close()
    return training, batch


def arrays(tree) -> dict[str, np.ndarray]:
    return {path: np.array(leaf) for path, leaf in flat_paths(tree)}


def test_overfits_one_batch(root, data_root, tmp_path) -> None:
    training, batch = start(
        root, data_root, tmp_path, "train.steps=60", "optim.lr=0.003", "optim.warmup=5"
    )
    state = training.fresh_state()
    losses = []
    for _ in range(60):
        state, metrics = training.step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.3 * losses[0]


def test_metrics_and_step_count(root, data_root, tmp_path) -> None:
    training, batch = start(root, data_root, tmp_path)
    state, metrics = training.step(training.fresh_state(), batch)
    assert int(state.step) == 1
    for key in ("loss", "info_nce/loss", "grad_norm", "param_norm", "update_norm", "learning_rate"):
        assert np.isfinite(float(metrics[key])), key
    np.testing.assert_allclose(metrics["loss"], metrics["info_nce/loss"], rtol=1e-6)


def test_same_seed_same_step(root, data_root, tmp_path) -> None:
    training, batch = start(root, data_root, tmp_path)
    a, _ = training.step(training.fresh_state(), batch)
    b, _ = training.step(training.fresh_state(), batch)
    for path, leaf in arrays(a.params).items():
        np.testing.assert_array_equal(leaf, arrays(b.params)[path])


def test_frozen_tower_does_not_move(root, data_root, tmp_path) -> None:
    training, batch = start(
        root, data_root, tmp_path, "optim.groups=(('text_encoder', {'freeze': True}),)"
    )
    state = training.fresh_state()
    before = arrays(state.params)
    for _ in range(2):
        state, _ = training.step(state, batch)
    after = arrays(state.params)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved
    assert not [path for path in moved if "text_encoder" in path]


def test_moving_average(root, data_root, tmp_path) -> None:
    training, batch = start(root, data_root, tmp_path, "train.ema_decay=0.9")
    state = training.fresh_state()
    before = arrays(state.params)
    state, _ = training.step(state, batch)
    after, average = arrays(state.params), arrays(variables(state, averaged=True)["params"])
    for path, leaf in average.items():
        np.testing.assert_allclose(leaf, 0.9 * before[path] + 0.1 * after[path], atol=1e-6)


def test_state_memory_is_reused(root, data_root, tmp_path) -> None:
    training, batch = start(root, data_root, tmp_path)
    state = training.fresh_state()
    training.step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_padded_rows_change_no_gradient(root, data_root, tmp_path) -> None:
    """A batch whose last rows are marked as padding gives a finite loss that ignores their content."""
    training, batch = start(root, data_root, tmp_path)
    mask = np.ones(8, np.float32)
    mask[6:] = 0
    losses = []
    for fill in (0, 255):
        image = np.array(batch["image"])
        image[6:] = fill
        changed = {
            **{k: np.array(v) for k, v in batch.items()},
            "image": image,
            "example_mask": mask,
        }
        _, metrics = training.step(training.fresh_state(), changed)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_frozen_tower_stores_nothing_for_the_gradient(root, data_root, tmp_path) -> None:
    """Its parameters stay bit for bit, and the compiled step needs less memory and fewer operations."""
    freeze = "optim.groups=(('image_encoder/', {'freeze': True}),)"
    cost = {}
    for name, overrides in (("all", ()), ("frozen", (freeze,))):
        training, batch = start(root, data_root, tmp_path / name, *overrides)
        state = training.fresh_state()
        compiled = training.step.lower(state, batch).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        cost[name] = (memory, compiled.cost_analysis()["flops"])
    assert cost["frozen"][0] < cost["all"][0]
    assert cost["frozen"][1] < 0.8 * cost["all"][1]
    before = arrays(state.params)
    state, metrics = training.step(state, batch)
    after = arrays(state.params)
    for path in before:
        same = np.array_equal(before[path], after[path])
        assert same == ("image_encoder/" in path), path
    assert float(metrics["grad_norm"]) > 0


def test_lora_trains_the_adapters_only(root, data_root, tmp_path) -> None:
    """Frozen base bit for bit the same, adapters moved, and evaluation sees the merged weights."""
    training, batch = start(
        root,
        data_root,
        tmp_path,
        "model.lora.regex=text_encoder/.*(query|value)/kernel",
        "model.lora.rank=2",
        "optim.groups=(('^lora/', {}), ('^model/text_encoder/', {'freeze': True}))",
    )
    state = training.fresh_state()
    before = arrays(state.params)
    plain = arrays(variables(state)["params"])
    for _ in range(3):
        state, _ = training.step(state, batch)
    after, seen = arrays(state.params), arrays(variables(state)["params"])
    adapters = [path for path in before if path.startswith("lora/")]
    assert adapters
    assert all(not np.array_equal(before[p], after[p]) for p in adapters if p.endswith("/b"))
    assert not any(path.startswith("lora/") for path in seen)
    for path in plain:
        base = "text_encoder/" in path
        same = np.array_equal(plain[path], seen[path])
        adapted = base and path.endswith(("query/kernel", "value/kernel"))
        assert same == (base and not adapted), path
        if base:
            assert np.array_equal(before[path], after[path]), path
