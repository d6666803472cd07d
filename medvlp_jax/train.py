"""The one training loop. It knows steps, checkpoints and logs, and nothing about systems."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from medvlp_jax.checkpoint import Checkpoints
from medvlp_jax.errors import UserError
from medvlp_jax.metrics import MetricLog, Progress
from medvlp_jax.step import TrainState
from medvlp_jax.types import Batch, Metrics


class BatchIterator(Protocol):
    """Endless iterator over local batches whose position can be saved."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """When things happen, in steps. 0 switches evaluation or saving off (but for the last step)."""

    total: int
    log_every: int
    eval_every: int
    save_every: int
    global_batch_size: int


class Stop:
    """Turns SIGTERM and SIGINT into a request that the loop answers after the step in flight."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True

    def agreed(self, step: int, every: int) -> bool:
        """True when any process was asked to stop. All processes must leave at the same step, so with
        several of them they ask each other, and only every `every` steps."""
        if jax.process_count() == 1:
            return self.requested
        if step % every:
            return False
        flags = multihost_utils.process_allgather(np.asarray(self.requested))
        return bool(np.any(flags))


def check_finite(pending: list[tuple[int, Metrics]]) -> list[tuple[int, dict[str, float]]]:
    """Fetches metrics of past steps from the device and stops at the first non-finite loss.

    Raises:
        UserError: names the step and the objective.
    """
    fetched = [
        (step, {key: float(value) for key, value in metrics.items()})
        for step, metrics in jax.device_get(pending)
    ]
    for step, metrics in fetched:
        losses = {k: v for k, v in metrics.items() if k == "loss" or k.endswith("/loss")}
        bad = [k for k, v in losses.items() if not np.isfinite(v)]
        if bad or not np.isfinite(metrics["grad_norm"]):
            named = [k.removesuffix("/loss") for k in bad if k != "loss"] or ["gradient"]
            raise UserError(
                f"non-finite loss at step {step} in {', '.join(named)}; the last checkpoint is kept. "
                "Lower optim.lr or optim.clip_norm, or lengthen optim.warmup, and start again"
            )
    return fetched


def train(
    state: TrainState,
    *,
    start: int,
    resumed: bool,
    plan: Plan,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    batches: BatchIterator,
    put: Callable[[Batch], Batch],
    evaluate: Callable[[TrainState, int], Mapping[str, float]],
    checkpoints: Checkpoints,
    config: Mapping[str, Any],
    log: MetricLog,
) -> tuple[TrainState, int]:
    """Runs steps `start .. plan.total - 1`.

    Order within one step (do not change: a resumed run must be bit-identical):
    evaluate -> save (state and position of the data) -> next batch -> step.

    Args:
        state: placed on the mesh; its memory is reused.
        start: number of steps already done.
        resumed: whether `state` comes from a checkpoint (its step is then neither evaluated nor saved).
        plan: when to log, evaluate and save.
        train_step: from `step.make_train_step`.
        batches: local batches.
        put: local batch -> global arrays.
        evaluate: (state, step) -> metrics; logged and used to rank checkpoints.
        checkpoints: where to save.
        config: stored in each checkpoint.
        log: where metrics go.

    Returns:
        The state and the number of steps done (less than the total after SIGTERM).
    """
    pending: list[tuple[int, Metrics]] = []
    progress = Progress(plan.total, start=start, unit_size=plan.global_batch_size)

    def flush(step: int) -> None:
        """Fetches pending metrics, checks them, and logs the newest."""
        if not pending:
            return
        newest = check_finite(pending)[-1][1]
        pending.clear()
        rate = progress.rate(step)
        newest["images_per_second"] = rate * plan.global_batch_size
        log.write(step, newest)
        progress.report(step, newest, rate)

    def evaluate_and_save(step: int, *, last: bool) -> None:
        scores: Mapping[str, float] = {}
        if last or _due(step, plan.eval_every):
            flush(step)
            scores = evaluate(state, step)
            log.write(step, scores)
            progress.message(f"step {step}: {_summary(scores)}")
        if last or (step and _due(step, plan.save_every)):
            flush(step)  # never save parameters whose loss was not finite
            checkpoints.save(
                step, state, data_state=batches.get_state(), config=config, metrics=scores
            )
        progress.skip_time()

    step = start
    with Stop() as stop:
        for step in range(start, plan.total + 1):
            if not (resumed and step == start):
                evaluate_and_save(step, last=step == plan.total)
            if step == plan.total:
                break
            if stop.agreed(step, plan.log_every):
                flush(step)
                checkpoints.save(step, state, data_state=batches.get_state(), config=config)
                checkpoints.wait()
                progress.message(
                    f"stopped on request at step {step}: saved; the same command goes on"
                )
                break
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, put(next(batches)))
            pending.append((step + 1, metrics))
            progress.advance()
            if (step + 1) % plan.log_every == 0:
                flush(step + 1)
    progress.close()
    checkpoints.wait()
    return state, step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _summary(scores: Mapping[str, float]) -> str:
    """The few numbers worth a line: macro AUROC and Recall@1/5 when they are there."""
    shown = {
        k: v for k, v in scores.items() if k.endswith(("macro_auroc", "recall_at_1", "recall_at_5"))
    }
    return "  ".join(f"{k} {v:.3f}" for k, v in (shown or dict(scores)).items()) or "no tasks"
