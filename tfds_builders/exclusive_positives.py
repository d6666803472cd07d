"""Five-class sets (5x200): images with one of five findings alone, the same everywhere, and how to leave
their patients out of training."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from medvlp_jax.errors import UserError
from tfds_builders.manual_builder import Corpus, ManualConfig, Record
from tfds_builders.manual_tables import read_lines, read_rows

CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
PER_CLASS = 200
WARNING = (
    "warning: these images are from the official training set; build the dataset for pretraining with "
    "--option {option}, or a model has seen them"
)

_FRONTAL = ("AP", "PA")
_IGNORED = ("No Finding",)
_ID_COLUMNS = ("dicom_id", "Path")


@dataclasses.dataclass
class FiveClassConfig(ManualConfig):
    """Options of the five-class sets.

    Attributes:
        per_class: images of each class.
        exclusive: "all": no other finding is positive or uncertain, support devices included (MGCA); "five":
            none of the other four.
        ids: CSV of a published list, with a column dicom_id or Path, which is taken instead.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "exclusive": ("all", "five")}

    per_class: int = PER_CLASS
    exclusive: str = "all"
    ids: str = ""


@dataclasses.dataclass
class ExcludingConfig(ManualConfig):
    """Options of the datasets from which the five-class sets are taken.

    Attributes:
        exclude: text file of images, studies or patients, one a line, or CSV with a column dicom_id or Path;
            their patients are left out.
        exclude_5x200: "yes" leaves out the patients of the five-class set in its default form.
    """

    CHOICES: ClassVar = {**ManualConfig.CHOICES, "exclude_5x200": ("no", "yes")}

    exclude: str = ""
    exclude_5x200: str = "no"


def choose_exclusive(
    records: Iterable[Record],
    label_names: Sequence[str],
    table: pathlib.Path,
    *,
    per_class: int = PER_CLASS,
    exclusive: str = "all",
) -> list[Record]:
    """The frontal training images that show one class alone, in the order of a hash of their id, at most one
    of a study; blank labels count as absent.

    Args:
        records: examples whose labels are `label_names` and whose field `view_position` is AP or PA where
            frontal.
        label_names: must hold `CLASSES`.
        table: the table of labels, for the message.
        per_class: images of each class.
        exclusive: "all" or "five"; see `FiveClassConfig`.

    Returns:
        Records of the split `test`, class after class; their label is int8 [5], 1 for the class and 0 for the
        other four.

    Raises:
        UserError: a class has fewer images.
    """
    columns = [label_names.index(name) for name in CLASSES]
    others = [k for k, name in enumerate(label_names) if name not in _IGNORED]
    checked = columns if exclusive == "five" else others
    found: list[list[Record]] = [[] for _ in CLASSES]
    for record in records:
        if record.split != "train" or record.fields["view_position"] not in _FRONTAL:
            continue
        # 1 is present and -1 uncertain; 0 and -2 (not mentioned) are neither.
        shown = [k for k in checked if abs(int(record.label[k])) == 1]
        if len(shown) == 1 and shown[0] in columns and record.label[shown[0]] == 1:
            found[columns.index(shown[0])].append(record)
    chosen = []
    for k, candidates in enumerate(found):
        studies: dict[str, Record] = {}
        for record in sorted(candidates, key=_place):
            studies.setdefault(str(record.fields["study_id"]), record)
        if len(studies) < per_class:
            raise UserError(
                f"{table} has {len(studies)} studies with {CLASSES[k]} alone, {per_class} are needed; take "
                "the published table unchanged, or build the five-class set with --option exclusive=five or "
                "a smaller per_class, and leave its patients out with --option exclude=its splits/test.txt"
            )
        label = np.zeros(len(CLASSES), np.int8)
        label[k] = 1
        first = list(studies.values())[:per_class]
        chosen += [dataclasses.replace(r, split="test", label=label) for r in first]
    return chosen


def _place(record: Record) -> bytes:
    return hashlib.sha256(f"medvlp-5x200:{record.key}".encode()).digest()


def five_class_corpus(corpus: Corpus, config: FiveClassConfig) -> Corpus:
    """The five-class set of a whole dataset; what is not chosen is not counted as dropped.

    Raises:
        UserError: a class has too few images, or a published list that does not fit.
    """
    dropped = 0
    if config.ids:
        chosen, dropped = _choose_listed(corpus, option_file(config.ids, "ids"))
    else:
        chosen = choose_exclusive(
            corpus.records,
            corpus.label_names,
            corpus.table,
            per_class=config.per_class,
            exclusive=config.exclusive,
        )
    published = config.per_class == PER_CLASS
    # A smaller set is the beginning of the larger one, so the default leaves out its patients, too.
    by_default = config.per_class <= PER_CLASS and config.exclusive == type(config).exclusive
    own = "exclude=splits/test.txt of this dataset"
    option = "exclude_5x200=yes" if by_default and not config.ids else own
    return Corpus(
        records=chosen,
        table=corpus.table,
        label_names=CLASSES,
        expected={"test": PER_CLASS * len(CLASSES)} if published else {},
        dropped={"listed_without_one_class": dropped} if config.ids else {},
        notes=(f"id list SHA-256 {id_list_hash(chosen)}", WARNING.format(option=option)),
    )


def _choose_listed(corpus: Corpus, file: pathlib.Path) -> tuple[list[Record], int]:
    """The images of a published list. The class is what the list says where it has the five columns, else
    what the dataset says; images without exactly one of the five are left out.

    Returns:
        Records, and the number of images that are left out.

    Raises:
        UserError: an image that the dataset does not have.
    """
    by_key = {record.key: record for record in corpus.records}
    columns = [corpus.label_names.index(name) for name in CLASSES]
    chosen, listed = [], _listed_rows(file)
    for name, row in listed:
        record = by_key.get(name)
        if record is None:
            raise UserError(f"{file} lists {name}, which {corpus.table.name} does not have")
        if all(column in row for column in CLASSES):
            label = np.asarray([row[column] in ("1", "1.0") for column in CLASSES], np.int8)
        else:
            label = (record.label[columns] == 1).astype(np.int8)
        if label.sum() == 1:
            chosen.append(dataclasses.replace(record, split="test", label=label))
    return chosen, len(listed) - len(chosen)


def _listed_rows(file: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
    """Ids of a list, with the cells of their rows: a text file of one id a line, or a CSV.

    Raises:
        UserError: empty.
    """
    lines = read_lines(file)
    if not lines:
        raise UserError(f"{file} lists nothing")
    header = [name.strip() for name in lines[0].split(",")]
    column = next((name for name in _ID_COLUMNS if name in header), None)
    if column is None:
        return [(line, {}) for line in lines]
    # GLoRIA writes paths as train.csv of CheXpert does; a key leaves out the name of the release.
    parts = 4 if column == "Path" else 1
    return [
        ("/".join(row[column].split("/")[-parts:]), row) for _, row in read_rows(file, (column,))
    ]


def id_list_hash(records: Iterable[Record]) -> str:
    """SHA-256 over the sorted image ids, one a line: equal hashes mean the same images."""
    return hashlib.sha256("\n".join(sorted(r.key for r in records)).encode()).hexdigest()


def exclude_patients(corpus: Corpus, config: ExcludingConfig, *, exclusive: str) -> Corpus:
    """Takes out the patients that the options name, from every split.

    Args:
        corpus: all examples.
        config: the options.
        exclusive: default of the five-class set of this dataset.

    Raises:
        UserError: the file cannot be read or names nobody of the dataset, or the five-class set cannot be
            made.
    """
    wanted: dict[str, set[str]] = {}
    notes = list(corpus.notes)
    if config.exclude:
        wanted["excluded_patient"] = _listed_patients(
            corpus, option_file(config.exclude, "exclude")
        )
    if config.exclude_5x200 == "yes":
        chosen = choose_exclusive(
            corpus.records, corpus.label_names, corpus.table, exclusive=exclusive
        )
        wanted["patient_of_5x200"] = {record.subject_id for record in chosen}
        notes.append(f"left out the patients of 5x200, id list SHA-256 {id_list_hash(chosen)}")
    records, dropped, expected = corpus.records, dict(corpus.dropped), dict(corpus.expected)
    for reason, patients in wanted.items():
        kept = [record for record in records if record.subject_id not in patients]
        dropped[reason] = len(records) - len(kept)
        for split in {record.split for record in records if record.subject_id in patients}:
            expected.pop(split, None)  # the published number no longer holds
        records = kept
    return dataclasses.replace(
        corpus, records=records, dropped=dropped, expected=expected, notes=tuple(notes)
    )


def option_files(name: str, option: str) -> tuple[pathlib.Path, ...]:
    """The file of an option for `ManualBuilder.table_files`; none where the option is blank."""
    return (option_file(name, option),) if name else ()


def option_file(name: str, option: str) -> pathlib.Path:
    """The file that an option names.

    Raises:
        UserError: not there.
    """
    file = pathlib.Path(name).expanduser()
    if not file.is_file():
        raise UserError(
            f"option {option}={name!r}: no such file; give a text file of ids, one a line, or a CSV with a "
            f"column {' or '.join(_ID_COLUMNS)}"
        )
    return file


def _listed_patients(corpus: Corpus, file: pathlib.Path) -> set[str]:
    """Patients of the images, studies and patients in a file.

    Raises:
        UserError: a line that is none of them.
    """
    patient_of: dict[str, str] = {}
    for record in corpus.records:
        for name in (record.key, str(record.fields["study_id"]), record.subject_id):
            patient_of[name] = record.subject_id
    listed = [name for name, _ in _listed_rows(file)]
    unknown = [name for name in listed if name not in patient_of]
    if unknown:
        first = corpus.records[0]
        raise UserError(
            f"{file} lists {unknown[0]} ({len(unknown)} of {len(listed)} lines are unknown), which is no "
            f"image, study or patient of {corpus.table.name}, e.g. {first.key}, {first.fields['study_id']} "
            f"or {first.subject_id}"
        )
    return {patient_of[name] for name in listed}
