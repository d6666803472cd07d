"""What the verbs do: train, evaluate, load and export one run (a config and its workdir)."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medvlp_jax import build, evaluate
from medvlp_jax import config as config_lib
from medvlp_jax.checkpoint import Checkpoints, abstract
from medvlp_jax.data import pipeline
from medvlp_jax.errors import UserError
from medvlp_jax.metrics import MetricLog
from medvlp_jax.objectives.system import System
from medvlp_jax.optim import make_optimizer
from medvlp_jax.parallel.distributed import is_main_process
from medvlp_jax.parallel.mesh import check_batch, make_mesh, put_batch
from medvlp_jax.predictor import Predictor
from medvlp_jax.step import TrainState, make_init, make_train_step, place_state, variables
from medvlp_jax.train import Plan, train
from medvlp_jax.types import Batch


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything built from a config: nothing here depends on a checkpoint."""

    config: ConfigDict
    mesh: Mesh
    tokenizer: Any
    system: System
    preprocess: Callable[[Batch], Batch]
    steps_per_epoch: int
    total_steps: int


def open_run(config: ConfigDict, workdir: str | pathlib.Path, *, save: bool = True) -> Run:
    """Builds mesh, tokenizer, model and objectives, and checks the numbers that must fit.

    Raises:
        UserError: a batch that does not divide, a dataset smaller than a batch, a wrong key ...
    """
    mesh = make_mesh(config.mesh)
    check_batch(config.data.global_batch_size, mesh, "data.global_batch_size")
    check_batch(config.eval.batch_size, mesh, "eval.batch_size")
    data = config.data
    count = pipeline.count_examples(
        data.dataset, data.train_split, data.data_dir or None, max_examples=data.max_examples
    )
    steps_per_epoch = max(1, count // data.global_batch_size)
    total = config_lib.duration(
        config.train.steps, steps_per_epoch=steps_per_epoch, key="train.steps"
    )
    tokenizer = _shared_tokenizer(config, workdir, save=save)
    return Run(
        config=config,
        mesh=mesh,
        tokenizer=tokenizer,
        system=build.build_system(config, tokenizer),
        preprocess=build.make_preprocess(config),
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
    )


def _shared_tokenizer(config: ConfigDict, workdir: str | pathlib.Path, *, save: bool) -> Any:
    """The main process makes and stores the tokenizer, the others read it from the workdir."""
    if jax.process_count() == 1 or is_main_process():
        tokenizer = build.build_tokenizer(config, workdir, save=save)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tokenizer")
        if not is_main_process():
            tokenizer = build.build_tokenizer(config, workdir, save=False)
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class Training:
    """Initialiser, step and placement of one run's state."""

    init: Callable[[jax.Array, Batch], TrainState]
    key: jax.Array
    example: Batch
    shapes: TrainState
    shardings: TrainState
    step: Callable[[TrainState, Batch], tuple[TrainState, Any]]

    def fresh_state(self) -> TrainState:
        """Initial state, made in place on the mesh: no host ever holds the whole of it."""
        return jax.jit(self.init, out_shardings=self.shardings)(self.key, self.example)


def make_training(run: Run, example: Batch) -> Training:
    """Compiles nothing yet: shapes, placement, optimiser and step of a run.

    Args:
        run: the run.
        example: a batch with the keys, types and trailing shapes of training batches.
    """
    config = run.config
    example = {k: jnp.zeros(np.shape(v), np.asarray(v).dtype) for k, v in example.items()}
    key = jax.random.key(config.seed)

    def make_tx(params: Any) -> Any:
        return make_optimizer(
            config.optim, params, total=run.total_steps, steps_per_epoch=run.steps_per_epoch
        )[0]

    init = make_init(run.system, make_tx, run.preprocess, ema_decay=config.train.ema_decay)
    shapes, shardings = place_state(init, key, example, run.mesh, build.sharding_rules(config))
    tx, schedule = make_optimizer(
        config.optim, shapes.params, total=run.total_steps, steps_per_epoch=run.steps_per_epoch
    )
    step = make_train_step(
        run.system,
        tx,
        schedule,
        run.preprocess,
        shardings=shardings,
        mesh=run.mesh,
        ema_decay=config.train.ema_decay,
    )
    return Training(
        init=init, key=key, example=example, shapes=shapes, shardings=shardings, step=step
    )


def run_training(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, float]:
    """Trains (or goes on training) a config in a workdir and evaluates the validation split.

    Args:
        config: from `config.load_config`.
        workdir: created when missing; a checkpoint in it is resumed.

    Returns:
        The last validation metrics.

    Raises:
        UserError: anything the user can fix; nothing already written is lost.
    """
    workdir = pathlib.Path(workdir)
    run = open_run(config, workdir)
    batches = pipeline.train_iterator(
        config.data,
        run.tokenizer,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    beginning = batches.get_state()
    training = make_training(run, next(batches))
    batches.set_state(beginning)
    checkpoints = Checkpoints(
        workdir,
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        best_metric=config.train.best_metric,
        best_mode=config.train.best_mode,
    )
    try:
        state, start = _initial_state(training, checkpoints, batches, config)
        _write_config(workdir, config)
        log = MetricLog(workdir, start_step=start or 0)
        scores: dict[str, float] = {}

        def evaluate_now(current: TrainState, step: int) -> Mapping[str, float]:
            results = evaluate_state(run, current, split=config.data.validation_split)
            scores.clear()
            scores.update({key: metric.value for key, metric in results.metrics.items()})
            return dict(scores)

        _, done = train(
            state,
            start=start or 0,
            resumed=start is not None,
            plan=_plan(run),
            train_step=training.step,
            batches=batches,
            put=lambda batch: put_batch(batch, run.mesh),
            evaluate=evaluate_now,
            checkpoints=checkpoints,
            config=config.to_dict(),
            log=log,
        )
        log.close()
    finally:
        checkpoints.close()
    return {"step": float(done), **scores}


def _plan(run: Run) -> Plan:
    settings = run.config.train

    def steps(key: str) -> int:
        return config_lib.duration(
            settings[key],
            steps_per_epoch=run.steps_per_epoch,
            total=run.total_steps,
            key=f"train.{key}",
        )

    return Plan(
        total=run.total_steps,
        log_every=max(1, settings.log_every),
        eval_every=steps("eval_every"),
        save_every=steps("save_every"),
        global_batch_size=run.config.data.global_batch_size,
    )


def _initial_state(
    training: Training, checkpoints: Checkpoints, batches: Any, config: ConfigDict
) -> tuple[TrainState, int | None]:
    """The newest checkpoint's state with the data position restored, or a fresh state and None."""
    latest = checkpoints.latest_step()
    if latest is None:
        return training.fresh_state(), None
    like = abstract(training.shapes, training.shardings)
    state, data_state, saved = checkpoints.restore(latest, like)
    batches.set_state(data_state)
    changed = [
        line for line in config_lib.differences(saved, config) if not line.startswith("spec:")
    ]
    if is_main_process():
        print(f"resuming from step {latest}", flush=True)
        if changed:
            print("config differs from the checkpoint's:\n  " + "\n  ".join(changed), flush=True)
    return state, latest


def _write_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    if is_main_process():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(config_lib.to_json(config), encoding="utf-8")


def evaluate_state(
    run: Run,
    state: TrainState,
    *,
    split: str,
    dataset: str = "",
    tasks: tuple[str, ...] = (),
) -> evaluate.Results:
    """Runs the config's (or the named) tasks on one split with a state's (averaged) parameters."""
    config = run.config.copy_and_resolve_references()
    if dataset:
        config.data.dataset = dataset
    predictor = make_predictor(run, variables(state, averaged=True))
    return evaluate.evaluate(
        predictor, config, build.build_tasks(config, tasks), split=split, mesh=run.mesh
    )


def make_predictor(run: Run, model_variables: Mapping[str, Any], batch_size: int = 0) -> Predictor:
    """A `Predictor` for a run's model with the given variables."""
    config = run.config
    return Predictor(
        run.system,
        model_variables,
        run.tokenizer,
        image_size=config.data.image.size,
        channels=config.data.image.channels,
        mean=tuple(config.data.image.mean),
        std=tuple(config.data.image.std),
        max_length=config.data.text.max_length,
        batch_size=batch_size or config.eval.batch_size,
        mesh=run.mesh,
    )


def load_run(
    workdir: str | pathlib.Path, *, step: int | None = None
) -> tuple[Run, TrainState, int]:
    """Opens a trained workdir and restores one checkpoint (default: the best, else the newest).

    Raises:
        UserError: no checkpoint, unreadable, or of another architecture.
    """
    config = build.load_run_config(workdir)
    # A run trained on many devices is evaluated on whatever is here.
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1, "rules": ()}
    checkpoints = Checkpoints(
        workdir,
        best_metric=config.train.best_metric,
        best_mode=config.train.best_mode,
        read_only=True,
    )
    try:
        step = checkpoints.best_step() if step is None else step
        if step is None:
            raise UserError(f"{workdir} holds no checkpoint yet: train it first")
        run = open_run(config, workdir, save=False)
        example = pipeline.example_batch(config.data, run.tokenizer)
        training = make_training(run, example)
        state, _, _ = checkpoints.restore(step, abstract(training.shapes, training.shardings))
    finally:
        checkpoints.close()
    return run, state, step


def load_predictor(
    workdir: str | pathlib.Path, *, step: int | None = None, batch_size: int = 0
) -> Predictor:
    """Object with `encode_image`, `encode_text`, `zero_shot`, `ground` for a trained workdir."""
    run, state, _ = load_run(workdir, step=step)
    return make_predictor(run, variables(state, averaged=True), batch_size)


def run_evaluation(
    workdir: str | pathlib.Path,
    *,
    split: str = "",
    dataset: str = "",
    tasks: tuple[str, ...] = (),
    step: int | None = None,
) -> evaluate.Results:
    """Evaluates a checkpoint and writes `results.json`, predictions and plots into the workdir."""
    run, state, step = load_run(workdir, step=step)
    split = split or run.config.data.test_split
    results = evaluate_state(run, state, split=split, dataset=dataset, tasks=tasks)
    if is_main_process():
        name = (dataset or run.config.data.dataset).replace("/", "_")
        evaluate.write_results(
            results,
            pathlib.Path(workdir) / "eval" / f"{name}_{split}",
            step=step,
            config=run.config,
        )
    return results


def run_dry(config: ConfigDict, workdir: str | pathlib.Path) -> str:
    """Builds everything under `jax.eval_shape` and returns the placement table; trains nothing."""
    from medvlp_jax.parallel.rules import placement_table

    run = open_run(config, workdir, save=False)
    training = make_training(run, pipeline.example_batch(config.data, run.tokenizer))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(training.shapes.params))
    table = placement_table(training.shapes.params, run.mesh, build.sharding_rules(config))
    return f"{table}\n{count:,} parameters, {run.total_steps} steps, mesh {dict(run.mesh.shape)}"


def read_results(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads a `results.json`."""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
