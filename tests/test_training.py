"""Without these, a resumed run, another mesh or a second host could silently train something else."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from medvlp_jax import config as config_lib
from medvlp_jax import runs
from medvlp_jax.checkpoint import Checkpoints, abstract
from medvlp_jax.data import pipeline
from medvlp_jax.errors import UserError
from medvlp_jax.parallel.mesh import make_mesh, put_batch
from medvlp_jax.parallel.rules import flat_paths
from medvlp_jax.train import check_finite

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> pathlib.Path:
    """The tiny synthetic corpus, built once."""
    from medvlp_jax.data import build

    folder = tmp_path_factory.mktemp("datasets")
    build.build_dataset("synthetic_cxr/tiny", str(folder))
    return folder


def smoke(data_root, name: str = "quickstart", *overrides: str):
    return config_lib.load_config(
        f"{ROOT}/configs/{name}.py:smoke",
        [f"data.data_dir={data_root}", *overrides],
    )


def params_of(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    config = runs.build.load_run_config(workdir)
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1, "rules": ()}
    run = runs.open_run(config, workdir, runs.load_facts(workdir))
    training = runs.make_training(run)
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.latest_step()
    state, _, _ = checkpoints.restore(step, abstract(training.shapes, training.shardings))
    return {path: np.asarray(leaf) for path, leaf in flat_paths((state.params, state.opt_state))}


def losses_on(data_root, tmp_path, sizes, devices: int, steps: int = 4, name="quickstart"):
    """Losses of the first steps on a mesh of `devices` devices."""
    config = smoke(data_root, name)
    run = runs.open_run(config, tmp_path)
    run = dataclasses.replace(run, mesh=make_mesh(sizes, jax.devices()[:devices]))
    training = runs.make_training(run)
    state = training.fresh_state()
    batches = pipeline.train_iterator(config.data, run.tokenizer, seed=0)
    losses = []
    for _ in range(steps):
        state, metrics = training.step(state, put_batch(next(batches), run.mesh))
        losses.append(float(metrics["loss"]))
    batches.close()
    return losses


def test_same_losses_on_every_mesh(data_root, tmp_path) -> None:
    one = losses_on(data_root, tmp_path, {"data": 1}, 1)
    assert one[-1] != one[0]
    for sizes in ({"data": 8}, {"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        np.testing.assert_allclose(
            losses_on(data_root, tmp_path, sizes, 8), one, rtol=1e-5, atol=1e-5
        )


def test_parameters_are_really_split(data_root, tmp_path) -> None:
    run = runs.open_run(smoke(data_root), tmp_path)
    run = dataclasses.replace(run, mesh=make_mesh({"data": 1, "fsdp": 8}))
    state = runs.make_training(run).fresh_state()
    kernels = [leaf for path, leaf in flat_paths(state.params) if path.endswith("query/kernel")]
    assert kernels
    for leaf in kernels:
        assert leaf.addressable_shards[0].data.size * 8 == leaf.size


def test_interrupted_run_is_bit_identical(data_root, tmp_path) -> None:
    """Stop after a save, start again: parameters and moments equal those of the straight run."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    runs.run_training(smoke(data_root, "quickstart"), straight)
    # What a run killed after step 3 leaves behind.
    shutil.copytree(straight, broken)
    shutil.rmtree(broken / "checkpoints" / "6")
    assert (broken / "checkpoints" / "3").is_dir()
    runs.run_training(smoke(data_root, "quickstart"), broken)
    a, b = params_of(straight), params_of(broken)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)
    rows = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "learning_rate" in row]
    assert steps == [1, 2, 3, 4, 5, 6], "a resumed run writes each step once"


def test_resume_refuses_another_architecture(data_root, tmp_path) -> None:
    runs.run_training(smoke(data_root, "quickstart", "train.steps=2"), tmp_path)
    before = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    with pytest.raises(UserError, match="another architecture"):
        runs.run_training(
            smoke(data_root, "quickstart", "model.image_projection.features=24",
                  "model.text_projection.features=24"),
            tmp_path,
        )  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == before


def test_batch_that_does_not_divide(data_root, tmp_path) -> None:
    with pytest.raises(UserError, match=r"data\.global_batch_size=12 does not divide"):
        runs.run_training(smoke(data_root, "quickstart", "data.global_batch_size=12"), tmp_path)


def test_non_finite_loss_names_objective_and_step() -> None:
    good = {"loss": 1.0, "a/loss": 1.0, "b/loss": 1.0, "grad_norm": 1.0}
    assert check_finite([(1, good)])[0][0] == 1
    with pytest.raises(UserError, match="step 7 in b"):
        check_finite([(6, good), (7, {**good, "loss": np.nan, "b/loss": np.nan})])
    with pytest.raises(UserError, match="step 3 in gradient"):
        check_finite([(3, {**good, "grad_norm": np.inf})])


# ---------------------------------------------------------------------------------------------------
# Real processes


def command(workdir, data_root, *overrides: str) -> list[str]:
    return [
        sys.executable, "-m", "medvlp_jax", "train", "--config", "configs/quickstart.py:smoke",
        "--workdir", str(workdir), f"--config.data.data_dir={data_root}", "--config.train.steps=12",
        "--config.train.save_every=2", "--config.train.eval_every=0", *overrides,
    ]  # fmt: skip


def environment(cache: pathlib.Path, devices: int = 1, **extra: str) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **extra,
    }


def run_to_end(arguments, env) -> str:
    done = subprocess.run(
        arguments, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def logged_steps(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def has_checkpoint(workdir: pathlib.Path) -> bool:
    return any(path.name.isdigit() for path in workdir.glob("checkpoints/*"))


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_killed_process_resumes_bit_identically(data_root, tmp_path, kind) -> None:
    straight, broken, cache = tmp_path / "straight", tmp_path / "broken", tmp_path / "cache"
    env = environment(cache)
    run_to_end(command(straight, data_root), env)
    moment = int(np.random.default_rng().integers(3, 9))
    process = subprocess.Popen(command(broken, data_root), env=env, cwd=ROOT)
    deadline = time.monotonic() + 120
    # A busy machine writes the first checkpoint late; before it there is nothing to resume from.
    while process.poll() is None and (logged_steps(broken) < moment or not has_checkpoint(broken)):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(kind)
    code = process.wait(timeout=60)
    if kind == signal.SIGTERM:
        assert code == 0
    output = run_to_end(command(broken, data_root), env)
    if code != 0:
        assert "resuming from step" in output
    a, b = params_of(straight), params_of(broken)
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=f"{path} (killed after {moment})")


def test_two_processes_give_the_same_losses(data_root, tmp_path) -> None:
    cache = tmp_path / "cache"
    alone, together = tmp_path / "alone", tmp_path / "together"
    run_to_end(command(alone, data_root, "--config.train.steps=4"), environment(cache, 2))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            command(together, data_root, "--config.train.steps=4", "--config.train.eval_every=4"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(
                cache,
                1,
                MEDVLP_COORDINATOR=address,
                MEDVLP_NUM_PROCESSES="2",
                MEDVLP_PROCESS_ID=str(i),
            ),
        )
        for i in range(2)
    ]
    outputs = [p.communicate(timeout=240)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)

    def losses(folder: pathlib.Path) -> list[float]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows if "loss" in row]

    assert len(losses(together)) == 4
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5, atol=1e-5)
