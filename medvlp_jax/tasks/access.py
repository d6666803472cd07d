"""The model and the stored examples behind an evaluation, with a cache of image features on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from medvlp_jax.data import pipeline
from medvlp_jax.data.options import DataOptions, ImageOptions
from medvlp_jax.data.source import Source
from medvlp_jax.predictor import Predictor, extract
from medvlp_jax.tasks.base import Features

_ARRAYS = tuple(f.name for f in dataclasses.fields(Features) if f.name != "label_names")


class RunAccess:
    """`tasks.base.Access` of a predictor on one dataset.

    Features are computed once per split: they are kept in memory, so that all tasks of an evaluation share
    them, and in `cache`, so that the next evaluation of the same checkpoint does too.
    """

    def __init__(
        self,
        predictor: Predictor,
        options: DataOptions,
        tokenizer: Any,
        *,
        split: str,
        cache: pathlib.Path | None = None,
    ):
        """Reads nothing yet.

        Args:
            predictor: the model.
            options: `config.data` of the evaluated dataset; `global_batch_size` is that of evaluation.
            tokenizer: the model's.
            split: the evaluated split.
            cache: folder of the feature files, visible to all processes; None keeps them in memory only.
        """
        self.split = split
        self.train_split = options.train_split
        self.validation_split = options.eval_split
        self.image: ImageOptions = options.image
        self._predictor, self._options, self._tokenizer = predictor, options, tokenizer
        self._cache = cache
        self._features: dict[str, Features] = {}
        self._model = ""

    def features(self, split: str) -> Features:
        """Image features of a split.

        Raises:
            UserError: the dataset has no such split, or it is empty.
        """
        if split not in self._features:
            batches = self._batches(split, jax.process_index(), jax.process_count())
            path = None if self._cache is None else self._path(batches.source)
            arrays = None if path is None else read_features(path)
            if arrays is None:
                found = extract(self._predictor, batches, images_only=True)
                arrays = {name: found[name] for name in _ARRAYS}
                if path is not None and jax.process_index() == 0:
                    write_features(path, arrays)
            self._features[split] = Features(**arrays, label_names=batches.label_names)
        return self._features[split]

    def examples(self, fields: Sequence[str]) -> Source:
        """See `tasks.base.Access`."""
        return self._batches(self.split, 0, 1).source.with_fields(fields)

    def images(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `tasks.base.Access`."""
        for batch in self._batches(self.split, 0, 1):
            real = np.asarray(batch["example_mask"]) > 0
            yield np.asarray(batch["example_index"])[real], np.asarray(batch["image"])[real]

    def ground(self, images: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        """See `Predictor.ground`."""
        return self._predictor.ground(images, phrases)

    def _batches(self, split: str, process: int, processes: int) -> pipeline.EvalBatches:
        return pipeline.eval_batches(self._options, self._tokenizer, split, process, processes)

    def _path(self, source: Source) -> pathlib.Path:
        """File of a split's features: named by whatever changes them."""
        assert self._cache is not None
        self._model = self._model or self._predictor.fingerprint()
        view = {k: v for k, v in dataclasses.asdict(self.image).items() if k != "augment"}
        info = (pathlib.Path(source.folder) / "dataset_info.json").read_bytes()
        key = {
            "model": self._model,
            "dataset": source.name,
            "built": hashlib.sha256(info).hexdigest(),
            "split": source.split,
            "examples": len(source),
            "view": view,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        name = "".join(c if c.isalnum() else "_" for c in f"{source.name}_{source.split}")
        return self._cache / f"{name}_{digest}.npz"


def write_features(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a feature file; a killed write leaves nothing under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            saved: dict[str, Any] = dict(arrays)
            np.savez(file, **saved)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_features(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """The arrays of a feature file, None where it is missing or damaged.

    All processes agree: if only some of them computed features, they would wait for the others for ever.
    """
    found = None
    try:
        with path.open("rb") as file, np.load(file) as stored:
            found = {name: stored[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found = None
    if jax.process_count() > 1:
        everywhere = multihost_utils.process_allgather(np.array(found is not None))
        found = found if bool(np.all(everywhere)) else None
    return found
