"""Building and listing datasets: what `data build` and `data list` do."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from medvlp_jax.data.paths import built_datasets, data_root, dataset_folder
from medvlp_jax.data.spec import DatasetSpec, all_specs, load_spec
from medvlp_jax.data.spilling import spilling_without_tensorflow
from medvlp_jax.errors import UserError


def build_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    manual_dir: str | os.PathLike[str] | None = None,
    options: Mapping[str, str] | None = None,
    beam: str = "",
    beam_options: Sequence[str] = (),
) -> pathlib.Path:
    """Builds a dataset as array_record files and prints what came out.

    A stopped build leaves a temporary folder, which the next one removes. A built dataset is left alone.

    Args:
        name: `name` or `name/config`.
        data_dir: None = `TFDS_DATA_DIR`, else `./data`.
        manual_dir: the user's files, where the dataset needs them. None fetches public ones into
            `downloads/NAME` of the data directory.
        options: options of the builder.
        beam: runner of Apache Beam, e.g. `"DirectRunner"`; "" uses threads of this process.
        beam_options: `KEY=VALUE` texts of the runner.

    Returns:
        The folder of the built version.

    Raises:
        UserError: unknown dataset or option, wrong or missing manual_dir, failed fetch, too many unusable
            files, disk full, another build running, or the same name built from other files or options.
    """
    spec = load_spec(name)
    root = data_root(data_dir)
    options = dict(options or {})
    if spec.needs_manual_dir and "/" in name:
        options.setdefault("name", name.partition("/")[2])
    fetched = spec.needs_manual_dir and manual_dir is None
    files = _download_folder(spec, root, options) if fetched else manual_dir
    with _quiet_tfds():
        builder = _make_builder(spec, name, root, files, options)
    config = _beam_config(spec, builder, beam, beam_options)
    folder = pathlib.Path(builder.data_path)
    try:
        with _locked(folder.parent / ".building", f"another process is building {folder}"):
            if folder.is_dir():
                # Files that were fetched may have been deleted after the build.
                _require_unchanged(builder, name, folder, **({"tables": False} if fetched else {}))
                print(f"already built: {folder} (delete it to build again)")
            else:
                if fetched:
                    _fetch(builder)
                _prepare(builder, folder, config)
    except (OSError, RuntimeError) as error:
        reason = _disk_error(error)
        if reason is None:
            raise
        raise UserError(
            f"{name} could not be written to {root}: {reason}; free some space or give --data-dir "
            "another disk. Nothing half-built was kept"
        ) from error
    print(_summary(spec, builder.info))
    return folder


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps back TFDS's own messages, which speak of downloads and custom configurations, and its
    progress bars where they would fill a log file."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _locked(lock: pathlib.Path, busy: str) -> Iterator[None]:
    """Holds a lock, because a second build would remove the first one's files. The operating system
    releases it when the process ends in any way.

    Raises:
        UserError: another process holds it; the message begins with `busy`.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: no lock
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{busy}; wait until it has finished") from None
        yield


def _disk_error(error: Exception) -> str | None:
    """What the disk has against it; None if it is another error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # array_record's writer, and Beam around it, give the system's message inside their own.
    found = re.search(r"\b(?:open|write|fsync|close)\(\) failed: ([^;\n]+)", str(error))
    return found[1] if found else None


def _prepare(builder: Any, folder: pathlib.Path, config: Any) -> None:
    """Builds the dataset."""
    _remove_leftovers(folder)
    print(f"building {folder}", flush=True)
    try:
        with _quiet_tfds(), spilling_without_tensorflow():
            builder.download_and_prepare(file_format="array_record", download_config=config)
    finally:
        _remove_leftovers(folder)


def _download_folder(
    spec: DatasetSpec, root: pathlib.Path, options: Mapping[str, str]
) -> pathlib.Path:
    """Where the public files of a dataset go.

    Raises:
        UserError: it has none.
    """
    cls = spec.builder_class()
    folder = root / "downloads" / spec.name
    if hasattr(cls, "downloads") and cls.downloads(cls.make_config(folder, options)):
        return folder
    raise UserError(
        f"dataset {spec.name} needs your files: give --manual-dir FOLDER. {spec.access}. "
        f"The folder must hold {spec.layout}"
    )


def _fetch(builder: Any) -> None:
    """Fetches the public files; two configs of a dataset, which share them, do not do so at once."""
    folder = pathlib.Path(builder.builder_config.folder)
    lock = folder.with_name(f".{folder.name}.fetching")
    with _locked(lock, f"another process is fetching {folder}"):
        builder.fetch()


def _beam_config(spec: DatasetSpec, builder: Any, runner: str, options: Sequence[str]) -> Any:
    """TFDS's settings for a runner; None for a build in this process.

    Raises:
        UserError: options without a runner, a dataset that Beam cannot build, or see `use_beam`.
    """
    if not runner:
        if options:
            raise UserError("--beam-option needs --beam RUNNER")
        return None
    if not hasattr(builder, "use_beam"):
        raise UserError(f"dataset {spec.name} is not built with Beam; leave --beam out")
    made, settings = builder.use_beam(runner, options)
    return tfds.download.DownloadConfig(beam_runner=made, beam_options=settings)


def _require_unchanged(builder: Any, name: str, folder: pathlib.Path, **how: bool) -> None:
    """Stops when the dataset on the disk is not what this build would give; `how` as `difference_to_built`.

    Raises:
        UserError: the user's table or the options have changed.
    """
    compare = getattr(builder, "difference_to_built", None)
    difference = compare(**how) if compare else None
    if difference:
        raise UserError(
            f"{name} is already built in {folder}, but {difference}. Delete that folder to build it "
            "again, or keep both: --option name=OTHER_NAME"
        )


def _make_builder(
    spec: DatasetSpec,
    name: str,
    root: pathlib.Path,
    manual_dir: str | os.PathLike[str] | None,
    options: dict[str, str],
) -> Any:
    cls = spec.builder_class()
    if spec.needs_manual_dir:
        return cls(config=cls.make_config(manual_dir, options), data_dir=root)
    if options:
        raise UserError(f"dataset {spec.name} takes no options, got {', '.join(options)}")
    config = name.partition("/")[2] or None
    known = [c.name for c in cls.BUILDER_CONFIGS]
    if config is not None and config not in known:
        raise UserError(f"dataset {spec.name} has no config {config!r}; it has {', '.join(known)}")
    return cls(config=config, data_dir=root)


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what killed builds left: folders `incomplete.XXXXXX_1.0.0` beside the version."""
    if folder.parent.is_dir():
        for path in folder.parent.glob(f"incomplete.*_{folder.name}"):
            shutil.rmtree(path, ignore_errors=True)


def ensure_built(name: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Folder of a dataset, which is built first if it is not there and needs nobody's files.

    Raises:
        UserError: it is not there and cannot be built without `--manual-dir`.
    """
    try:
        return dataset_folder(name, data_dir)
    except UserError:
        if load_spec(name).needs_manual_dir:
            raise
    return build_dataset(name, data_dir)


def _summary(spec: DatasetSpec, info: Any) -> str:
    """Found and expected counts, dropped rows, patients."""
    metadata = dict(info.metadata or {})
    config = f"/{info.config_name}" if info.config_name else ""
    lines = [f"{spec.name}{config} {info.version}"]
    patients = metadata.get("patients", {})
    # A dataset with several published splits records the counts of the one that was built.
    counts = metadata.get("expected_counts", spec.expected_counts)
    for split, found in info.splits.items():
        expected = counts.get(split)
        note = "" if expected is None else f" (published: {expected})"
        lines.append(
            f"  {split:<12}{found.num_examples:>8} images{note}, {patients.get(split, '?')} patients"
        )
    if "rows" in metadata:
        published = f" (published: {counts['rows']})" if "rows" in counts else ""
        lines.append(f"  rows in the table {metadata['rows']}{published}")
    for reason, count in dict(metadata.get("dropped", {})).items():
        listed = (
            " (listed in rejected.jsonl beside the version)"
            if reason == "rejected" and count
            else ""
        )
        lines.append(f"  dropped, {reason.replace('_', ' ')}: {count}{listed}")
    if metadata.get("rows_without_patient"):
        hint = metadata.get("patient_hint", "add a patient_id column")
        lines.append(
            f"  warning: {metadata['rows_without_patient']} rows have no patient id, so sister images of "
            f"one patient may be in two splits; {hint}"
        )
    lines += [f"  {note}" for note in metadata.get("notes", ())]
    names = metadata.get("label_names", ())
    if names:
        lines.append(f"  labels: {', '.join(names)}")
    if "split_hash" in metadata:
        lines.append(f"  split hash {metadata['split_hash'][:16]}")
    return "\n".join(lines)


def list_datasets(data_dir: str | os.PathLike[str] | None = None) -> str:
    """Table of all datasets with access rules, and what is built."""
    built = built_datasets(data_dir)
    lines = [f"{'dataset':<20}{'modality':<26}{'licence':<26}access"]
    for spec in all_specs():
        lines.append(f"{spec.name:<20}{spec.modality:<26}{spec.licence:<26}{spec.access}")
        for name, folder in built.items():
            if name.partition("/")[0] == spec.name:
                lines.append(f"  built: {name:<34}{folder}")
    return "\n".join(lines)
