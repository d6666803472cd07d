"""What the verbs do: train, evaluate, load and export one run (a config and its workdir)."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from medvlp_jax import build, evaluate, warm_start
from medvlp_jax import config as config_lib
from medvlp_jax.checkpoint import Checkpoints, abstract
from medvlp_jax.config import Config
from medvlp_jax.data import build as data_build
from medvlp_jax.data import pipeline
from medvlp_jax.data.images import ImageError, decode_image, encode_for_storage
from medvlp_jax.data.options import data_options
from medvlp_jax.data.spec import load_spec
from medvlp_jax.data.transforms import eval_image
from medvlp_jax.errors import UserError
from medvlp_jax.interop import formats, model_card
from medvlp_jax.interop.exporting import ImageInput, Trained
from medvlp_jax.metrics import MetricLog
from medvlp_jax.models.vision_language import VisionLanguageModel
from medvlp_jax.objectives.system import System
from medvlp_jax.optim import frozen_for_ever, make_optimizer
from medvlp_jax.parallel.distributed import is_main_process
from medvlp_jax.parallel.mesh import check_batch, make_mesh, put_batch
from medvlp_jax.parallel.rules import placement_table
from medvlp_jax.predictor import Predictor, trained_logit_bias, trained_logit_scale
from medvlp_jax.step import TrainState, make_init, make_train_step, place_state, variables
from medvlp_jax.tasks.base import Metric
from medvlp_jax.tasks.zero_shot import with_prompts
from medvlp_jax.train import Plan, train
from medvlp_jax.types import Batch


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a config does not say and the data does; kept in `workdir/run.json`, so that a trained
    model loads where its dataset is not.

    Attributes:
        steps_per_epoch: global batches in one pass over the training split.
        example: key -> (shape without the batch axis, dtype) of a training batch.
    """

    steps_per_epoch: int
    example: dict[str, tuple[tuple[int, ...], str]]

    def batch(self, size: int) -> Batch:
        """An all-zero batch of those shapes, for `eval_shape` and initialisation."""
        return {
            key: jnp.zeros((size, *shape), dtype) for key, (shape, dtype) in self.example.items()
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything built from a config: nothing here depends on a checkpoint."""

    config: Config
    mesh: Mesh
    tokenizer: Any
    system: System
    preprocess: Callable[[Batch], Batch]
    facts: Facts
    total_steps: int


def open_run(config: Config, workdir: str | pathlib.Path, facts: Facts | None = None) -> Run:
    """Builds mesh, tokenizer, model and objectives, and checks the numbers that must fit.

    Args:
        config: the config.
        workdir: holds (or gets) the tokenizer.
        facts: from `load_facts`; None looks at the training data.

    Raises:
        UserError: a batch that does not divide, a dataset smaller than a batch, a wrong key ...
    """
    mesh = make_mesh(config.mesh)
    if facts is None:
        check_batch(config.data.global_batch_size, mesh, "data.global_batch_size")
    check_batch(config.eval.batch_size, mesh, "eval.batch_size")
    tokenizer = _shared_tokenizer(config, workdir)
    system = build.build_system(config, tokenizer)
    facts = facts or look_at_data(config, tokenizer)
    total = config_lib.duration(
        config.train.steps, steps_per_epoch=facts.steps_per_epoch, key="train.steps"
    )
    return Run(
        config=config,
        mesh=mesh,
        tokenizer=tokenizer,
        system=system,
        preprocess=build.make_preprocess(config),
        facts=facts,
        total_steps=total,
    )


def look_at_data(config: Config, tokenizer: Any) -> Facts:
    """Reads the first training batch for its shapes."""
    batches = _train_batches(config, tokenizer)
    try:
        first = next(batches)
    finally:
        batches.close()
    example = {k: (tuple(v.shape[1:]), str(v.dtype)) for k, v in first.items()}
    return Facts(steps_per_epoch=batches.steps_per_epoch, example=example)


def _train_batches(config: Config, tokenizer: Any) -> pipeline.TrainIterator:
    return pipeline.train_iterator(
        config.data,
        tokenizer,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def load_facts(workdir: str | pathlib.Path) -> Facts:
    """Reads `workdir/run.json`."""
    path = pathlib.Path(workdir) / "run.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist: expected the --workdir of a training")
    stored = json.loads(path.read_text(encoding="utf-8"))
    example = {k: (tuple(shape), dtype) for k, (shape, dtype) in stored["example"].items()}
    return Facts(steps_per_epoch=stored["steps_per_epoch"], example=example)


def ensure_data(config: Config) -> None:
    """Builds the datasets that build by themselves and are not there (main process only)."""
    if is_main_process():
        for name in dict.fromkeys((config.data.dataset, *pipeline.train_datasets(config.data))):
            data_build.ensure_built(name, config.data.data_dir)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("dataset")


def _shared_tokenizer(config: Config, workdir: str | pathlib.Path) -> Any:
    """The main process makes and stores the tokenizer, the others read it from the workdir."""
    tokenizer = build.build_tokenizer(config, workdir) if is_main_process() else None
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tokenizer")
    return tokenizer if tokenizer is not None else build.build_tokenizer(config, workdir)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Initialiser, step and placement of one run's state."""

    init: Callable[[jax.Array, Batch], TrainState]
    key: jax.Array
    example: Batch
    shapes: TrainState
    shardings: TrainState
    step: Callable[[TrainState, Batch], tuple[TrainState, Any]]
    model: VisionLanguageModel
    checkpoints: Mapping[tuple[str, ...], str]

    def fresh_state(self) -> TrainState:
        """Initial state, made in place on the mesh; towers with `init` get the weights of their files."""
        state = jax.jit(self.init, out_shardings=self.shardings)(self.key, self.example)
        return warm_start.warm_start(state, self.model, self.checkpoints, self.shardings)


def make_training(run: Run) -> Training:
    """Compiles nothing yet: shapes, placement, optimiser and step of a run."""
    config = run.config
    example = run.facts.batch(run.config.data.global_batch_size)
    key = jax.random.key(config.seed)

    def make_tx(params: Any) -> Any:
        return make_optimizer(
            config.optim, params, total=run.total_steps, steps_per_epoch=run.facts.steps_per_epoch
        )[0]

    init = make_init(
        run.system,
        make_tx,
        run.preprocess,
        ema_decay=config.train.ema_decay,
        adapters=build.lora_settings(config),
    )
    shapes, shardings = place_state(init, key, example, run.mesh, build.sharding_rules(config))
    tx, schedule = make_optimizer(
        config.optim,
        shapes.params,
        total=run.total_steps,
        steps_per_epoch=run.facts.steps_per_epoch,
    )
    step = make_train_step(
        run.system,
        tx,
        schedule,
        run.preprocess,
        shardings=shardings,
        mesh=run.mesh,
        ema_decay=config.train.ema_decay,
        frozen=frozen_for_ever(config.optim, shapes.params),
    )
    return Training(
        init=init,
        key=key,
        example=example,
        shapes=shapes,
        shardings=shardings,
        step=step,
        model=run.system.model,
        checkpoints=build.pretrained_sources(config),
    )


def run_training(config: Config, workdir: str | pathlib.Path) -> dict[str, float]:
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
    ensure_data(config)
    run = open_run(config, workdir)
    training = make_training(run)
    batches = _train_batches(config, run.tokenizer)
    checkpoints = Checkpoints(
        workdir,
        keep_last=config.train.keep_last,
        keep_best=config.train.keep_best,
        best_metric=config.train.best_metric,
        best_mode=config.train.best_mode,
    )
    try:
        state, start = _initial_state(training, checkpoints, batches, config)
        _describe_run(workdir, run)
        log = MetricLog(workdir, start_step=start or 0)
        scores: dict[str, float] = {}

        predictor = make_predictor(run, variables(state))

        def evaluate_now(current: TrainState, step: int) -> Mapping[str, float]:
            del step
            now = predictor.with_variables(variables(current, averaged=True))
            results = evaluate_split(run, now, split=config.data.eval_split)
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
        batches.close()
        checkpoints.close()
    return {"step": float(done), **scores}


def _plan(run: Run) -> Plan:
    settings = run.config.train

    def steps(key: str) -> int:
        return config_lib.duration(
            settings[key],
            steps_per_epoch=run.facts.steps_per_epoch,
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
    training: Training, checkpoints: Checkpoints, batches: Any, config: Config
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


def _describe_run(workdir: pathlib.Path, run: Run) -> None:
    """Writes `config.json` and `run.json`, which every later verb reads."""
    if is_main_process():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(config_lib.to_json(run.config), encoding="utf-8")
        facts = {"steps_per_epoch": run.facts.steps_per_epoch, "example": run.facts.example}
        (workdir / "run.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")


def evaluate_split(
    run: Run,
    predictor: Predictor,
    *,
    split: str,
    dataset: str = "",
    tasks: tuple[str, ...] = (),
    prompts: str = "",
    cache: pathlib.Path | None = None,
) -> evaluate.Results:
    """Runs the config's (or the named) tasks on one split of the config's (or another) dataset, if wanted
    with other prompts (a style or file of `data.prompt_sets`) and a folder that keeps image features."""
    config = run.config.copy_and_resolve_references()
    if dataset:
        config.data.dataset = dataset
    chosen = build.build_tasks(config, tasks)
    if prompts:
        chosen = with_prompts(chosen, prompts)
    return evaluate.evaluate(
        predictor,
        config,
        chosen,
        split=split,
        tokenizer=run.tokenizer,
        cache=cache,
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
    # A run trained on many devices is used on whatever is here.
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1, "rules": ()}
    devices = jax.device_count()
    config.eval.batch_size = -(-config.eval.batch_size // devices) * devices
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
        run = open_run(config, workdir, load_facts(workdir))
        training = make_training(run)
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
    prompts: str = "",
    step: int | None = None,
) -> evaluate.Results:
    """Evaluates a checkpoint and writes `results.json`, predictions and plots into the workdir."""
    run, state, step = load_run(workdir, step=step)
    split = split or run.config.eval.split
    predictor = make_predictor(run, variables(state, averaged=True))
    results = evaluate_split(
        run,
        predictor,
        split=split,
        dataset=dataset,
        tasks=tasks,
        prompts=prompts,
        cache=pathlib.Path(workdir) / "features",
    )
    if is_main_process():
        folder = evaluate.results_folder(workdir, results.dataset, split)
        evaluate.write_results(results, folder, step=step, config=run.config)
    return results


def run_dry(config: Config, workdir: str | pathlib.Path) -> str:
    """Builds everything under `jax.eval_shape` and returns the placement table; trains nothing."""
    ensure_data(config)
    run = open_run(config, workdir)
    training = make_training(run)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(training.shapes.params))
    table = placement_table(training.shapes.params, run.mesh, build.sharding_rules(config))
    return f"{table}\n{count:,} parameters, {run.total_steps} steps, mesh {dict(run.mesh.shape)}"


def run_export(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    step: int | None = None,
    to: str = "hf",
    part: str = "both",
) -> pathlib.Path:
    """Exports a checkpoint (default: the best, else the newest) for use without this package.

    Args:
        workdir: of a training.
        out: folder to write; an earlier export there is replaced only by one that verified.
        step: checkpoint.
        to: hf, jax, torch, onnx or timm; see `interop.formats`.
        part: both, or image or text for one tower (hf only).

    Returns:
        The folder.

    Raises:
        UserError: the model does not fit the format, or both sides differ.
    """
    formats.check(to, part)
    run, state, step = load_run(workdir, step=step)
    model_variables = jax.device_get(variables(state, averaged=True))
    metrics, evaluated_on = _stored_metrics(workdir, run.config, step)
    card = model_card.model_card(
        title=f"{run.config.name} ({pathlib.Path(workdir).name}, step {step})",
        config=run.config.to_dict(),
        dataset=_dataset_facts(run.config.data.dataset),
        metrics=metrics,
        evaluated_on=evaluated_on,
        **formats.card_options(to, part, run.system.model),
    )
    exported = formats.export(_trained(run, model_variables, card), out, to=to, part=part)
    if is_main_process():
        how = (
            f"verified against our own outputs, largest difference {exported.difference:.1e}"
            if exported.verified
            else "not verified: install the torch extra (pip install -e '.[torch]') and export again"
        )
        print(f"exported {exported.folder} ({how})")
        for note in exported.notes:
            print(f"  note: {note}")
    return pathlib.Path(exported.folder)


def _trained(run: Run, model_variables: Mapping[str, Any], card: str) -> Trained:
    """A run's model as the exports take it."""
    image = run.config.data.image
    return Trained(
        model=run.system.model,
        params=model_variables["params"]["model"],
        batch_stats=model_variables.get("batch_stats", {}).get("model", {}),
        tokenizer=run.tokenizer,
        image=ImageInput(
            size=image.size,
            channels=image.channels,
            mean=tuple(image.mean),
            std=tuple(image.std),
            # Runs of before these options lack them.
            frames=image.get("frames", 0) or (n if (n := image.get("per_study", 1)) > 1 else 0),
        ),
        max_length=run.config.data.text.max_length,
        logit_scale=trained_logit_scale(model_variables, run.system.objectives),
        logit_bias=trained_logit_bias(model_variables),
        card=card,
    )


def _dataset_facts(name: str) -> dict[str, str]:
    """What the model card says about the training data."""
    spec = load_spec(name)
    return {
        "name": name,
        "description": spec.description,
        "modality": spec.modality,
        "language": spec.language,
        "licence": spec.licence,
        "access": spec.access,
        "citation": spec.citation,
    }


def _stored_metrics(
    workdir: str | pathlib.Path, config: Config, step: int
) -> tuple[dict[str, Metric], str]:
    """Metrics of an earlier `eval` of the same checkpoint, and the split they were measured on."""
    folder = evaluate.results_folder(workdir, config.data.dataset, config.eval.split)
    path = folder / "results.json"
    if not path.is_file():
        return {}, ""
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["step"] != step:
        return {}, ""
    nan = float("nan")
    metrics = {
        key: Metric(**cast(Any, {k: nan if v is None else v for k, v in values.items()}))
        for key, values in stored["metrics"].items()
    }
    return metrics, f"{stored['dataset']}, split {stored['split']}"


def read_images(
    workdir: str | pathlib.Path, paths: list[str]
) -> tuple[list[pathlib.Path], np.ndarray]:
    """Reads image files and folders as a trained workdir wants them.

    Args:
        workdir: of a training; says size and channels.
        paths: files, or folders whose files are all read.

    Returns:
        files, uint8 [n,H,W,C].

    Raises:
        UserError: a path does not exist, or no or an undecodable image; names the file.
    """
    options = data_options(build.load_run_config(workdir).data).image
    files: list[pathlib.Path] = []
    for name in paths:
        path = pathlib.Path(name)
        if path.is_dir():
            files += sorted(
                f for f in path.rglob("*") if f.is_file() and not f.name.startswith(".")
            )
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path} does not exist: give image files or folders")
    if not files:
        raise UserError(f"no files in {', '.join(paths)}")
    images = []
    for file in files:
        try:
            decoded = decode_image(file.read_bytes())
        except ImageError as error:
            raise UserError(f"{file}: {error}; remove the file or leave it out") from None
        images.append(eval_image(encode_for_storage(decoded, "png"), options))
    return files, np.stack(images)
