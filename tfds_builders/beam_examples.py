"""Examples made in an Apache Beam pipeline; TFDS's own Beam writer stores them, without TensorFlow."""

from __future__ import annotations

import json
import pathlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Beam is the extra `beam`; whoever calls this file has it.
# pyright: reportMissingImports=false
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners import PipelineRunner, create_runner

from medvlp_jax.data.images import ImageError
from medvlp_jax.errors import UserError

if TYPE_CHECKING:
    from tfds_builders.manual_builder import ManualBuilder, Record

WORK = "beam"
"""Folder of an unfinished build for records on their way in and rejections on their way out."""

_CHUNK = 64  # records per file: small enough that a thousand workers share a large dataset
_REJECTED = "rejected.json"


def split_examples(
    builder: ManualBuilder, splits: Mapping[str, Sequence[Record]], work: pathlib.Path
) -> dict[str, SplitExamples]:
    """The examples of all splits.

    Builder and records travel in files and not inside the pipeline, whose description most runners limit to a
    few megabytes. All machines must therefore see the data directory and the official files under one path.

    Args:
        builder: it has read its tables.
        splits: split -> records.
        work: folder to be made for the files in between.

    Raises:
        UserError: the builder holds something that another process cannot have.
    """
    work.mkdir()
    file = work / "builder.pickle"
    try:
        file.write_bytes(pickle.dumps(builder))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UserError(
            f"{builder.name} reads from files that only one process can have open ({error}); build it "
            "without --beam"
        ) from error
    return {split: SplitExamples(file, found, work / split) for split, found in splits.items()}


class SplitExamples(beam.PTransform):
    """The examples of one split as (key, example)."""

    def __init__(self, builder: pathlib.Path, records: Sequence[Record], work: pathlib.Path):
        """Args: file of the builder, its records, and a folder to be made for the files in between."""
        super().__init__()
        self._builder = str(builder)
        self._work = work
        work.mkdir()
        self._chunks = []
        for start in range(0, len(records), _CHUNK):
            chunk = work / f"{start:09d}.pickle"
            chunk.write_bytes(pickle.dumps(list(records[start : start + _CHUNK])))
            self._chunks.append(str(chunk))

    def expand(self, pcoll: Any) -> Any:
        """Builds the steps."""
        loaded = (
            pcoll
            | "Chunks" >> beam.Create(self._chunks)
            | "Spread" >> beam.Reshuffle()
            | "Load" >> beam.ParDo(_Load(self._builder)).with_outputs(_REJECTED, main="examples")
        )
        _ = (
            loaded[_REJECTED]
            | "Gather" >> beam.combiners.ToList()
            | "WriteRejected" >> beam.Map(_write_rejected, file=str(self._work / _REJECTED))
        )
        return loaded["examples"]


class _Load(beam.DoFn):
    """From a file of records to examples, and to what could not be decoded."""

    def __init__(self, builder: str):
        self._builder = builder

    def setup(self) -> None:
        self._load = pickle.loads(pathlib.Path(self._builder).read_bytes()).loader()

    def process(self, element: str) -> Iterator[Any]:
        for record in pickle.loads(pathlib.Path(element).read_bytes()):
            try:
                yield record.key, self._load(record)
            except ImageError as error:
                yield beam.pvalue.TaggedOutput(_REJECTED, (record.key, record.image, str(error)))


def _write_rejected(rejected: list[tuple[str, str, str]], file: str) -> None:
    pathlib.Path(file).write_text(json.dumps(sorted(rejected)), encoding="utf-8")


def read_rejected(work: pathlib.Path) -> list[tuple[str, str, str]]:
    """Key, image and reason of what a finished pipeline rejected, sorted; none for an absent split."""
    file = work / _REJECTED
    if not file.exists():
        return []
    return [(key, image, reason) for key, image, reason in json.loads(file.read_text("utf-8"))]


def make_runner(name: str, options: Sequence[str]) -> tuple[PipelineRunner, PipelineOptions]:
    """A runner and its options.

    Args:
        name: as Beam knows it, e.g. `"DirectRunner"`.
        options: `KEY=VALUE` texts: Beam's command-line flags without the dashes.

    Raises:
        UserError: unknown runner, one that is not installed, or an option without `=`.
    """
    for option in options:
        if "=" not in option:
            raise UserError(f"--beam-option {option}: expected KEY=VALUE")
    try:
        runner = create_runner(name)
    except (ValueError, ImportError) as error:
        raise UserError(f"--beam {name}: {error}") from error
    return runner, PipelineOptions([f"--{option}" for option in options])
