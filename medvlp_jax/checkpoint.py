"""Checkpoints: the only file that knows Orbax.

A checkpoint `W/checkpoints/<step>` holds four items: `state` (the arrays), `data` (position of the data
iterator), `config` (the full config) and `layout` (path, shape and type of every array, so that a
checkpoint of another architecture is refused with names instead of a stack trace). Orbax writes to a
temporary folder and renames it, so a killed save leaves the checkpoints before it whole.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from medvlp_jax.errors import UserError
from medvlp_jax.parallel.rules import flat_paths


class Checkpoints:
    """Checkpoints of one workdir: keep the last few and the best few, resume from the newest."""

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        best_metric: str = "",
        best_mode: str = "max",
        read_only: bool = False,
    ):
        """Opens (or creates) `workdir/checkpoints`.

        Args:
            workdir: folder of the run.
            keep_last: newest checkpoints to keep (at least 1).
            keep_best: checkpoints with the best `best_metric` to keep besides; 0 = none.
            best_metric: key of the evaluation metrics given to `save`.
            best_mode: "max" or "min".
            read_only: never create or delete anything.
        """
        if best_mode not in ("max", "min"):
            raise UserError(f"config key train.best_mode={best_mode!r}: expected 'max' or 'min'")
        self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
        if read_only and not self.folder.is_dir():
            raise UserError(f"{workdir} holds no checkpoints: expected the --workdir of a training")
        self._best_metric, self._best_mode = best_metric, best_mode
        policies: list[Any] = [checkpoint_managers.LatestN(max(1, keep_last))]
        if keep_best and best_metric:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[best_metric],
                    reverse=best_mode == "min",
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                # Only with a best_fn does Orbax store the metrics that BestN ranks by.
                best_fn=(lambda metrics: metrics[best_metric]) if best_metric else None,
                best_mode=best_mode,
            ),
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the best checkpoint by the metric saved with it, else the newest."""
        scores = {
            step: metrics[self._best_metric]
            for step in self._manager.all_steps()
            if (metrics := self._manager.metrics(step)) and self._best_metric in metrics
        }
        if not scores:
            return self.latest_step()
        # Of equal scores the newest wins: the longer trained one.
        sign = 1.0 if self._best_mode == "max" else -1.0
        return max(scores, key=lambda step: (sign * scores[step], step))

    def save(
        self,
        step: int,
        state: Any,
        *,
        data_state: Any,
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving in the background; a step that is already saved is left alone."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave({"iterator": data_state}),
                config=ocp.args.JsonSave(dict(config)),
                layout=ocp.args.JsonSave(_layout(state)),
            ),
            metrics=_finite(metrics) if metrics else None,
        )

    def restore(self, step: int, like: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Restores one checkpoint.

        Args:
            step: which one.
            like: tree of `jax.ShapeDtypeStruct` with shardings (from `jax.eval_shape`).

        Returns:
            state, data iterator state, config.

        Raises:
            UserError: unreadable, incomplete, or of another architecture.
        """
        where = self.folder / str(step)
        small = self._read(
            where,
            lambda: self._manager.restore(
                step,
                args=ocp.args.Composite(
                    layout=ocp.args.JsonRestore(),
                    data=ocp.args.JsonRestore(),
                    config=ocp.args.JsonRestore(),
                ),
            ),
        )
        _check_layout(small["layout"], _layout(like), where)
        arrays = self._read(
            where,
            lambda: self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
            ),
        )
        return arrays["state"], small["data"]["iterator"], dict(small["config"])

    def _read(self, where: pathlib.Path, read: Any) -> Any:
        try:
            return read()
        except Exception as error:  # Orbax and TensorStore raise many types; the cause is shown.
            reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
            others = sorted(s for s in self._manager.all_steps() if str(s) != where.name)
            remedy = (
                f"move that folder away to go on from step {others[-1]}"
                if others
                else "no other checkpoint is left: start in another --workdir"
            )
            raise UserError(f"checkpoint {where} cannot be read ({reason}); {remedy}") from error

    def wait(self) -> None:
        """Blocks until the running save is complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the running save and releases the manager."""
        self._manager.wait_until_finished()
        self._manager.close()


def _layout(tree: Any) -> dict[str, list[Any]]:
    """Slash path -> [shape, dtype] of every array."""
    return {
        path: [list(np.shape(leaf)), str(leaf.dtype)]
        for path, leaf in flat_paths(tree)
        if hasattr(leaf, "dtype")
    }


def _check_layout(found: Any, wanted: dict[str, list[Any]], where: pathlib.Path) -> None:
    """Raises UserError that lists (some of) the arrays which differ."""
    found = json.loads(json.dumps(found))
    wanted = json.loads(json.dumps(wanted))
    if found == wanted:
        return
    lines = [
        f"  {path}: checkpoint {found.get(path, 'lacks it')}, model {wanted.get(path, 'lacks it')}"
        for path in sorted(found.keys() | wanted.keys())
        if found.get(path) != wanted.get(path)
    ]
    more = f"\n  ... and {len(lines) - 8} more" if len(lines) > 8 else ""
    raise UserError(
        f"checkpoint {where} is of another architecture than the config ({len(lines)} arrays differ):\n"
        + "\n".join(lines[:8])
        + more
        + "\nUse the config of that workdir, or another --workdir. Nothing was changed."
    )


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Orbax ranks by value, and NaN has no rank: only finite metrics are stored."""
    return {key: float(value) for key, value in metrics.items() if np.isfinite(value)}


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes of a tree with shardings attached, as `Checkpoints.restore` wants it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
