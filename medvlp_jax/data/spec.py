"""`DatasetSpec`: what is known about a dataset, as data; one file per dataset in `data/datasets`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

from medvlp_jax.errors import UserError

DATASETS_PACKAGE = "medvlp_jax.data.datasets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One dataset: where its builder is, who may use it, what a correct build holds.

    Attributes:
        name: name on the command line and of the folder below the data directory.
        builder: `"package.module:Class"` of the TFDS builder.
        description: one or two sentences.
        modality: e.g. `"chest X-ray"`.
        language: language of the texts.
        licence: licence of the data.
        access: how to get it, in one sentence with the address.
        homepage: address of the official page.
        citation: reference in one line.
        splits: names of the splits, in the order training, validation, test.
        label_names: names of the K labels; empty when they depend on the user's files.
        expected_counts: examples per split of a complete build, and `rows` for all rows of the official
            tables together; empty when unknown. A builder with several splits records those of the split
            that was built.
        needs_manual_dir: whether the user has to provide files (`--manual-dir`).
        layout: what the manual directory must hold, shown when it does not.
    """

    name: str
    builder: str
    description: str
    modality: str
    language: str
    licence: str
    access: str
    homepage: str
    citation: str
    splits: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    expected_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    needs_manual_dir: bool = True
    layout: str = ""

    def builder_class(self) -> Any:
        """Imports and returns the TFDS builder class.

        Raises:
            UserError: the module or class does not exist in this installation.
        """
        module_name, _, class_name = self.builder.partition(":")
        try:
            return getattr(importlib.import_module(module_name), class_name)
        except (ModuleNotFoundError, AttributeError) as error:
            raise UserError(
                f"dataset {self.name}: its builder {self.builder} cannot be imported ({error}); "
                "install the project with its tfds_builders package (pip install -e .)"
            ) from error


def dataset_names() -> tuple[str, ...]:
    """Names of all datasets that have a file in `data/datasets`, sorted."""
    folder = pathlib.Path(__file__).parent / "datasets"
    return tuple(sorted(f.stem for f in folder.glob("*.py") if f.stem != "__init__"))


def load_spec(name: str) -> DatasetSpec:
    """Returns the spec of a dataset; `name` may carry a config (`"image_text_folder/covid_cxr"`).

    Raises:
        UserError: unknown name; the message lists the nearest ones.
    """
    base = name.partition("/")[0]
    known = dataset_names()
    if base not in known:
        near = difflib.get_close_matches(base, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}."
        raise UserError(
            f"dataset {base!r} is unknown; {hint} `data list` shows all; for your own folder of "
            "images and texts use image_text_folder."
        )
    return importlib.import_module(f"{DATASETS_PACKAGE}.{base}").SPEC


def all_specs() -> tuple[DatasetSpec, ...]:
    """The specs of all datasets, sorted by name."""
    return tuple(load_spec(name) for name in dataset_names())
