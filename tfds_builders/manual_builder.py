"""Builder of datasets whose official files the user provides; a further one only says how to read them."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.contrast import EQUALISE, Equalise
from medvlp_jax.data.images import ImageError
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.data.split_lists import split_hash, write_split_lists
from medvlp_jax.errors import UserError
from tfds_builders.downloads import Download, fetch
from tfds_builders.official_layout import require_images
from tfds_builders.stored_images import RejectedFiles, load_ahead, read_image, stored_bytes

UNKNOWN = -2
"""Label value where nothing is known."""


@dataclasses.dataclass
class ManualConfig(tfds.core.BuilderConfig):
    """Options of every dataset of this kind; `data build --option KEY=VALUE` sets them.

    Attributes:
        folder: absolute path of the official files.
        size: shorter side of the stored images in pixels; 0 keeps the original size.
        quality: JPEG quality of the stored images; 0 stores PNG.
        equalise: contrast of the stored images: "none", "histogram" (as MIMIC-CXR-JPG) or "clahe".
        max_rejected: share of undecodable images over which the build stops.
        missing_images: "refuse", or "skip" builds what has been downloaded.
        workers: threads that decode images; 0 = one per core.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "missing_images": ("refuse", "skip"),
        "equalise": EQUALISE,
    }
    VARIANTS: ClassVar[dict[str, dict[str, str]]] = {}
    """Config name -> options it stands for, e.g. one per published split."""

    folder: str = ""
    size: int = 256
    quality: int = 95
    equalise: Equalise = "none"
    max_rejected: float = 0.01
    missing_images: str = "refuse"
    workers: int = 0


Config = TypeVar("Config", bound=ManualConfig)


def parse_config(
    kind: type[Config], folder: str | os.PathLike[str], options: Mapping[str, str]
) -> Config:
    """Config of a build.

    Args:
        kind: the dataset's config class.
        folder: the official files.
        options: texts from the command line; `name=NAME` is the name of the config: one of the class's
            `VARIANTS`, which sets its options, or a free one to keep several builds.

    Raises:
        UserError: unknown option, or a value that does not parse.
    """
    options = dict(options)
    name = re.sub(r"[^A-Za-z0-9_]+", "_", options.pop("name", "")).strip("_")
    default = next(iter(kind.VARIANTS), "default")
    options = {**kind.VARIANTS.get(name or default, {}), **options}
    config = kind(name=name or default, folder=str(pathlib.Path(folder).expanduser().resolve()))
    known = sorted(_option_names(kind))
    for key, text in options.items():
        if key not in known:
            raise UserError(f"option {key!r} is unknown; there are {', '.join(known)}, name")
        setattr(config, key, _parse(key, text, getattr(config, key), kind.CHOICES.get(key)))
    if not name:
        # `--option split=random` alone is the variant of that name, not another `official`.
        same = [
            v for v, o in kind.VARIANTS.items() if all(options.get(k) == t for k, t in o.items())
        ]
        config.name = same[0] if same else config.name
    return config


def _option_names(kind: type[ManualConfig]) -> set[str]:
    """Options of a config class that the user may set."""
    own = {f.name for f in dataclasses.fields(kind)}
    return own - {f.name for f in dataclasses.fields(tfds.core.BuilderConfig)} - {"folder"}


def _parse(key: str, text: str, default: Any, choices: Sequence[str] | None) -> Any:
    if choices and text not in choices:
        raise UserError(f"option {key}={text!r}: expected {' or '.join(choices)}")
    try:
        value = type(default)(text)
        if not isinstance(value, str) and not value >= 0:
            raise ValueError
        return value
    except ValueError:
        raise UserError(f"option {key}={text!r}: expected a value like {default!r}") from None


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One example before its image is read.

    Attributes:
        key: unique id.
        image: path relative to the folder; "" where `ManualBuilder.read_pixels` or `read_media` knows better,
            e.g. for images inside an archive, or for texts alone.
        split: split.
        subject_id: patient, or whatever must not be in two splits; "" where unknown.
        label: int8 [K].
        fields: values of further features; those that are left out are "" or NaN or empty.
        source: what `ManualBuilder.complete` or `read_pixels` need besides.
    """

    key: str
    image: str
    split: str
    subject_id: str
    label: np.ndarray
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: Any = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What the official tables say.

    Attributes:
        records: all examples.
        table: the table that lists them, for messages.
        label_names: names of the K labels.
        expected: split -> published number of examples, `rows` -> that of all rows; what is not published is
            left out.
        dropped: reason -> number of rows that became no example.
        notes: lines that the build prints, e.g. further counts.
        patient_hint: what to do, or to know, where patients are unknown.
        shared_subjects: whether a subject may be in two splits, because the published split does so.
    """

    records: list[Record]
    table: pathlib.Path
    label_names: tuple[str, ...]
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    patient_hint: str = ""
    shared_subjects: bool = False


class ManualBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Checks the layout, prints and records counts, stores resized images; needs no TensorFlow.

    Attributes:
        SPEC: what is known about the dataset.
        CONFIG: class of its options.
        DOWNLOADS: its public files, where no account is needed.
        SPLITS: version of the rule that puts examples into splits; raised when the rule changes.
    """

    code_path = None  # no checksums of downloads to look for
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012
    SPEC: ClassVar[DatasetSpec]
    CONFIG: ClassVar[type[ManualConfig]] = ManualConfig
    DOWNLOADS: ClassVar[tuple[Download, ...]] = ()
    SPLITS: ClassVar[str] = "1"

    def __init__(self, *, config: ManualConfig, data_dir: str | os.PathLike[str], **kwargs: Any):
        """Args: config from `parse_config`, data directory, and what TFDS takes besides."""
        self._settings = config
        self._beam = False
        super().__init__(config=config, data_dir=data_dir, **kwargs)
        self._own = frozenset(vars(self))

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: the arguments, and what `read_corpus` has kept on the instance."""
        kept = {
            name: value
            for name, value in vars(self).items()
            # What the class has too is a cached property of TFDS, which each process makes for itself.
            if name not in self._own and name != "_own" and not hasattr(type(self), name)
        }
        return {**super().__getstate__(), "kept": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        vars(self).update(state["kept"])

    def use_beam(self, runner: str, options: Sequence[str]) -> tuple[Any, Any]:
        """Lets the next build make its examples in an Apache Beam pipeline.

        Args:
            runner: e.g. `"DirectRunner"`.
            options: `KEY=VALUE` texts of the runner.

        Returns:
            Beam's `PipelineRunner` and `PipelineOptions`.

        Raises:
            UserError: Beam is not installed, or see `beam_examples.make_runner`.
        """
        try:
            from tfds_builders.beam_examples import make_runner
        except ModuleNotFoundError as error:
            raise UserError("--beam needs Apache Beam: pip install -e '.[beam]'") from error
        self._beam = True
        return make_runner(runner, options)

    @classmethod
    def downloads(cls, settings: ManualConfig) -> tuple[Download, ...]:
        """The public files a build with these settings needs; empty where they cannot be fetched."""
        del settings
        return cls.DOWNLOADS

    def fetch(self) -> None:
        """Fetches the public files into the folder of the settings; see `downloads.fetch`."""
        wanted = self.downloads(self._settings)
        fetch(wanted, pathlib.Path(self._settings.folder), access=self.SPEC.access)

    @classmethod
    def make_config(
        cls, folder: str | os.PathLike[str], options: Mapping[str, str]
    ) -> ManualConfig:
        """Config of a build; see `parse_config`."""
        return parse_config(cls.CONFIG, folder, options)

    @abc.abstractmethod
    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        """Checks the layout and reads the tables, but no image.

        Raises:
            UserError: wrong layout or table.
        """

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        """The tables whose change makes another dataset; the default has none."""
        del folder
        return ()

    def extra_features(self) -> dict[str, Any]:
        """Features besides those that every dataset has."""
        return {}

    def media_features(self) -> dict[str, Any]:
        """Features of what an example shows: one image; a dataset of texts or volumes has others."""
        # Grey images are stored with one channel; decoders give three.
        encoding = "jpeg" if self._settings.quality else "png"
        return {"image": tfds.features.Image(shape=(None, None, 3), encoding_format=encoding)}

    def read_pixels(self, folder: pathlib.Path, record: Record) -> np.ndarray:
        """Image of an example, uint8 [H, W, 1 or 3]; the default reads the file `record.image`.

        Raises:
            ImageError: it cannot be decoded.
        """
        return read_image(folder, record.image)

    def read_media(
        self, folder: pathlib.Path, record: Record
    ) -> tuple[dict[str, Any], tuple[int, int]]:
        """Values of `media_features`, and original height and width for `complete`.

        Raises:
            ImageError: a file cannot be decoded.
        """
        image = self.read_pixels(folder, record)
        settings = self._settings
        stored = stored_bytes(
            image, size=settings.size, quality=settings.quality, contrast=settings.equalise
        )
        return {"image": io.BytesIO(stored)}, (image.shape[0], image.shape[1])

    def complete(self, record: Record, height: int, width: int) -> dict[str, Any]:
        """Features that are made in the decoding threads, e.g. from a report file or a mask.

        Args:
            record: the example.
            height: of the original image in pixels.
            width: likewise.

        Raises:
            ImageError: what it needs is damaged; the example is rejected.
        """
        del record, height, width
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        spec = self.SPEC
        features: dict[str, Any] = {
            **self.media_features(),
            "label": tfds.features.Tensor(shape=(None,), dtype=np.int8),
            "age": np.float32,
        }
        names = ("text", "findings", "impression", "subject_id", "study_id", "image_id")
        features.update(dict.fromkeys((*names, "view_position", "sex"), text))
        return tfds.core.DatasetInfo(
            builder=self,
            description=spec.description,
            features=tfds.features.FeaturesDict({**features, **self.extra_features()}),
            homepage=spec.homepage or None,
            citation=spec.citation or None,
            license=spec.licence,
            metadata=tfds.core.MetadataDict({}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        folder = pathlib.Path(self._settings.folder)
        corpus = self.read_corpus(folder)
        records, skipped = self._present(folder, corpus)
        _require_disjoint_subjects(corpus, records)
        self._rejected = RejectedFiles(
            pathlib.Path(self.data_path), allowed=int(self._settings.max_rejected * len(records))
        )
        subjects: dict[str, set[str]] = {}
        for record in records:
            subjects.setdefault(record.split, set()).add(record.subject_id or record.key)
        dropped = {**corpus.dropped, **({"missing_image": skipped} if skipped else {})}
        assert self.info.metadata is not None
        self.info.metadata.update(
            {
                "label_names": list(corpus.label_names),
                "rows": len(corpus.records) + sum(corpus.dropped.values()),
                "dropped": {**dropped, "rejected": 0},
                "patients": {split: len(found) for split, found in subjects.items()},
                "rows_without_patient": sum(not record.subject_id for record in records),
                "split_hash": split_hash((r.split, r.key) for r in records),
                "split_version": self.SPLITS,
                "expected_counts": dict(corpus.expected),
                "tables_hash": self._tables_hash(),
                "options": self._recorded_options(),
                "access": self.SPEC.access,
                "notes": list(corpus.notes),
                "patient_hint": corpus.patient_hint,
            }
        )
        ids = [(r.split, r.key) for r in records]
        write_split_lists(pathlib.Path(self.data_path), ids, version=self.SPLITS)
        by_split = {
            split: [r for r in records if r.split == split]
            for split in self.SPEC.splits
            if split in subjects
        }
        if not self._beam:
            return {s: self._generate_examples(found) for s, found in by_split.items()}
        from tfds_builders import beam_examples

        work = pathlib.Path(self.data_path) / beam_examples.WORK
        return beam_examples.split_examples(self, by_split, work)

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        """Counts what a Beam pipeline rejected, and removes its working files."""
        del pipeline_result
        from tfds_builders import beam_examples

        work = pathlib.Path(self.data_path) / beam_examples.WORK
        for split in self.SPEC.splits:
            for key, image, reason in beam_examples.read_rejected(work / split):
                self._reject(key, image, reason)
        shutil.rmtree(work)

    def _present(self, folder: pathlib.Path, corpus: Corpus) -> tuple[list[Record], int]:
        """Records whose image is there, and how many are not."""
        if self._settings.missing_images == "refuse":
            names = (record.image for record in corpus.records if record.image)
            require_images(folder, names, spec=self.SPEC, table=corpus.table)
            return corpus.records, 0
        present = [r for r in corpus.records if not r.image or (folder / r.image).exists()]
        if not present:
            raise UserError(
                f"none of the {len(corpus.records)} images that {corpus.table.name} lists is in {folder}; "
                f"the first is {corpus.records[0].image}"
            )
        return present, len(corpus.records) - len(present)

    def _generate_examples(self, records: list[Record]) -> Iterator[tuple[str, dict[str, Any]]]:
        used = 0
        for record, example in load_ahead(records, self.loader(), self._settings.workers):
            try:
                yield record.key, example.result()
                used += 1
            except ImageError as error:
                self._reject(record.key, record.image, str(error))
        if not used:  # TFDS cannot write a split without examples
            raise UserError(
                f"none of the {len(records)} images of split {records[0].split} can be used; see "
                f"{self._rejected.file} for the reasons"
            )

    def _reject(self, key: str, image: str, reason: str) -> None:
        """Notes an example that is left out."""
        self._rejected.add(key, image, reason)
        assert self.info.metadata is not None
        self.info.metadata["dropped"]["rejected"] += 1

    def loader(self) -> Callable[[Record], dict[str, Any]]:
        """Function that turns a record into an example; it raises `ImageError` for a damaged one."""
        folder = pathlib.Path(self._settings.folder)
        extra = self.extra_features()
        blank: dict[str, Any] = {
            name: [] for name, f in extra.items() if isinstance(f, tfds.features.Sequence)
        }
        texts = ("text", "findings", "impression", "study_id", "view_position", "sex")
        blank.update({name: "" for name, f in extra.items() if isinstance(f, tfds.features.Text)})

        def load(record: Record) -> dict[str, Any]:
            media, size = self.read_media(folder, record)
            return {
                **blank,
                **dict.fromkeys(texts, ""),
                "age": math.nan,
                **media,
                "label": record.label,
                "subject_id": record.subject_id or f"image:{record.key}",
                "image_id": record.key,
                **record.fields,
                **self.complete(record, *size),
            }

        return load

    def difference_to_built(self, *, tables: bool = True) -> str | None:
        """What differs between this build and the one that is already on the disk; None = nothing.

        Args:
            tables: whether the official tables are compared; if not, they need not be there.
        """
        built = self.info.metadata or {}
        old = built.get("options", {})
        now = json.loads(json.dumps(self._recorded_options()))
        changed = [
            f"{k} (was {old.get(k)!r}, now {v!r})" for k, v in now.items() if old.get(k) != v
        ]
        if changed:
            return f"options differ: {', '.join(changed)}"
        if tables and built.get("tables_hash") != self._tables_hash():
            return "its tables have changed, or it was built from another folder"
        return None

    def _recorded_options(self) -> dict[str, Any]:
        """The options that change what is stored."""
        names = _option_names(type(self._settings)) - {"workers", "max_rejected"}
        return {name: getattr(self._settings, name) for name in sorted(names)}

    def _tables_hash(self) -> str:
        """SHA-256 over the official tables."""
        digest = hashlib.sha256()
        for file in self.table_files(pathlib.Path(self._settings.folder)):
            with file.open("rb") as data:
                digest.update(hashlib.file_digest(data, "sha256").digest())
        return digest.hexdigest()


def _require_disjoint_subjects(corpus: Corpus, records: Sequence[Record]) -> None:
    """Stops when a patient is in two splits, or a key occurs twice.

    Raises:
        UserError: with the first such patient.
    """
    repeated = [key for key, count in Counter(r.key for r in records).items() if count > 1]
    if repeated:
        raise UserError(
            f"{corpus.table} lists {repeated[0]} twice; take the published file unchanged"
        )
    if corpus.shared_subjects:
        return
    first: dict[str, str] = {}
    for record in records:
        split = first.setdefault(record.subject_id or record.key, record.split)
        if split != record.split:
            raise UserError(
                f"{corpus.table}: subject {record.subject_id} is in {split} and in {record.split}, which "
                "leaks between training and test; take the published files unchanged"
            )
