"""TFDS builder of PMC-OA from its JSONL lists and the archive of images, which is read as it is."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from medvlp_jax.data.datasets.pmc_oa import SPEC as PMC_OA
from medvlp_jax.data.spec import DatasetSpec
from medvlp_jax.errors import UserError
from tfds_builders.downloads import Download
from tfds_builders.json_lines import read_json_lines, text_of
from tfds_builders.manual_builder import Corpus, ManualBuilder, ManualConfig, Record
from tfds_builders.numbered_names import NumberedNames
from tfds_builders.official_layout import Needed, find_one, require_layout
from tfds_builders.patient_splits import hash_splits
from tfds_builders.split_leaks import leak_notes
from tfds_builders.zipped_images import ZippedImages, find_place

_FRACTIONS = (0.98, 0.01, 0.01)
_LISTS = {"own": "pmc_oa.jsonl", "whole": "pmc_oa_beta.jsonl"}
_PARTS = {"train": "train.jsonl", "validation": "valid.jsonl", "test": "test.jsonl"}
_FIRST = "14e866ed52483bd1d25ddbde735c4e796d6899d8"  # the revision that has a split
_ARCHIVE = "images.zip"
_IMAGES = "caption_T060_filtered_top4_sep_v0_subfigures"
_PLACES = (_IMAGES, f"images/{_IMAGES}", "images")
_NO_LABEL = np.zeros(0, np.int8)


@dataclasses.dataclass
class PmcOaConfig(ManualConfig):
    """Options of PMC-OA.

    Attributes:
        split: "by_article": 98 / 1 / 1 % of the articles by a hash; "published": train.jsonl, valid.jsonl and
            test.jsonl as they were published first.
        captions: "own": each part has its part of the caption; "whole": that of the whole figure.
    """

    CHOICES: ClassVar = {
        **ManualConfig.CHOICES,
        "split": ("by_article", "published"),
        "captions": tuple(_LISTS),
    }
    VARIANTS: ClassVar = {
        "by_article": {"split": "by_article", "captions": "own"},
        "published": {"split": "published", "captions": "own"},
        "beta": {"split": "by_article", "captions": "whole"},
    }

    split: str = "by_article"
    captions: str = "own"


class PmcOa(ManualBuilder):
    """Parts of figures with caption, article and how well both were aligned."""

    SPEC: ClassVar[DatasetSpec] = PMC_OA
    CONFIG = PmcOaConfig
    _settings: PmcOaConfig

    @classmethod
    def downloads(cls, settings: ManualConfig) -> tuple[Download, ...]:
        assert isinstance(settings, PmcOaConfig)
        published = settings.split == "published" and settings.captions == "own"
        lists = tuple(_PARTS.values()) if published else (_LISTS[settings.captions],)
        address = f"{PMC_OA.homepage}/resolve"
        return (
            *(Download(f"{address}/{_FIRST if published else 'main'}/{n}", n) for n in lists),
            Download(f"{address}/main/{_ARCHIVE}", _ARCHIVE),
        )

    def extra_features(self) -> dict[str, Any]:
        text = tfds.features.Text()
        return {"alignment_type": text, "alignment_score": np.float32, "url_name": text}

    def table_files(self, folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
        parts, settings = tuple(_PARTS.values()), self._settings
        if settings.split == "published" and settings.captions == "whole":
            raise UserError(
                "the published split has no captions of whole figures; leave one of the options "
                "split=published and captions=whole out"
            )
        whole = _LISTS[settings.captions]
        images = Needed((_ARCHIVE, *_PLACES), f"images, from {self.SPEC.homepage}")
        if settings.split == "by_article" and find_one(folder, (whole,)):
            names: tuple[str, ...] = (whole,)
        elif settings.captions == "whole":
            names = (whole,)
        else:
            # Either form of the lists has all pairs.
            asked = settings.split == "published" or find_one(folder, parts)
            names = parts if asked else (whole,)
        lists = (Needed((name,), f"captions, from {self.SPEC.homepage}") for name in names)
        return require_layout(folder, self.SPEC, (*lists, images))[:-1]

    def read_pixels(self, folder: pathlib.Path, record: Record) -> np.ndarray:
        if record.image:
            return super().read_pixels(folder, record)
        return self._zipped.read(record.source)

    def read_corpus(self, folder: pathlib.Path) -> Corpus:
        tables = self.table_files(folder)
        archive = folder / _ARCHIVE
        self._zipped = ZippedImages([archive] if archive.is_file() else [])
        published = self._settings.split == "published"
        records, blank = [], 0
        key_of = NumberedNames()
        splits = tuple(_PARTS) if len(tables) == len(_PARTS) else ("",)
        for split, table in zip(splits, tables, strict=True):
            for name, article, fields in _read_list(table):
                if not fields["text"]:
                    blank += 1
                    continue
                records.append(
                    Record(
                        key=key_of(name),
                        image=find_place(folder, name, _PLACES, self._zipped),
                        split=split,
                        subject_id=article,
                        label=_NO_LABEL,
                        fields=fields,
                        source=name,
                    )
                )
        if not records:
            raise UserError(f"{tables[0]} lists no image with a caption; download it again")
        return Corpus(
            records=records if published else _by_article(records),
            table=tables[0],
            label_names=(),
            dropped={"blank_text": blank},
            notes=(f"images: {key_of.images}", *(leak_notes(records) if published else ())),
            patient_hint="their names do not start with the article's number",
            shared_subjects=published,
        )


def _read_list(file: pathlib.Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Image, article and features of each row."""
    for line, entry in read_json_lines(file, ("image", "caption")):
        name = text_of(entry, "image")
        article = text_of(entry, "pmcid") or (re.match(r"PMC\d+", name) or [""])[0]
        score = entry.get("alignment_score")
        if score is not None and not isinstance(score, int | float):
            raise UserError(
                f"{file} line {line}: alignment_score is {score!r}, expected a number; take the published "
                "file unchanged"
            )
        fields = {
            "text": text_of(entry, "caption"),
            "alignment_type": text_of(entry, "alignment_type"),
            "alignment_score": math.nan if score is None else float(score),
            "url_name": text_of(entry, "url_name"),
        }
        yield name, article, fields


def _by_article(records: list[Record]) -> list[Record]:
    """The records with a split in which no article is in two parts."""
    splits = hash_splits({r.subject_id or r.key for r in records}, _FRACTIONS)
    return [dataclasses.replace(r, split=splits[r.subject_id or r.key]) for r in records]
