"""Where built datasets lie on the disk."""

from __future__ import annotations

import os
import pathlib
import re

from medvlp_jax.data.spec import dataset_names, load_spec
from medvlp_jax.errors import UserError

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"


def data_root(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The data directory: the argument, else `TFDS_DATA_DIR`, else `./data`."""
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "data").expanduser()


def dataset_folder(dataset: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Finds the folder of a built dataset (the one that holds `dataset_info.json`).

    Args:
        dataset: `name`, `name/config` or `name/config/version`. A name alone means its config
            `default`, or its only built config. The newest version is taken.
        data_dir: see `data_root`.

    Raises:
        UserError: not built, or several configs to choose from.
    """
    root = data_root(data_dir)
    folder = root / dataset
    if (folder / _INFO).is_file():
        return folder
    configs = {} if not folder.is_dir() else _built_configs(folder)
    if not configs:
        raise UserError(_not_built(dataset, root))
    if len(configs) == 1:
        return next(iter(configs.values()))
    if "default" in configs:
        return configs["default"]
    raise UserError(
        f"dataset {dataset!r} has several built configs in {folder}: choose one of "
        f"{', '.join(f'{dataset}/{name}' for name in sorted(configs))}"
    )


def built_datasets(data_dir: str | os.PathLike[str] | None = None) -> dict[str, pathlib.Path]:
    """All built datasets below the data directory: `name` or `name/config` -> newest version."""
    root = data_root(data_dir)
    found: dict[str, pathlib.Path] = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_dir():
            for config, path in _built_configs(folder).items():
                found[f"{folder.name}/{config}" if config else folder.name] = path
    return found


def _built_configs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Config name ("" for none) -> newest version folder, for the folder of a dataset or config."""
    found = {}
    newest = _newest_version(folder)
    if newest is not None:
        found[""] = newest
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not _VERSION.match(child.name):
            newest = _newest_version(child)
            if newest is not None:
                found[child.name] = newest
    return found


def _newest_version(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder of the highest complete version, or None."""
    versions = [
        child
        for child in folder.iterdir()
        if _VERSION.fullmatch(child.name) and (child / _INFO).is_file()
    ]
    return max(versions, key=lambda v: tuple(map(int, v.name.split("."))), default=None)


def _not_built(dataset: str, root: pathlib.Path) -> str:
    """Message with the command that builds the dataset."""
    name = dataset.partition("/")[0]
    needs_files = name in dataset_names() and load_spec(name).needs_manual_dir
    manual = " --manual-dir FOLDER" if needs_files else ""
    built = ", ".join(built_datasets(root)) or "nothing"
    return (
        f"dataset {dataset!r} is not built in {root} (built there: {built}); build it with "
        f"`./run.sh data build {dataset}{manual}`, or point data_dir or "
        "TFDS_DATA_DIR to where it is"
    )
