"""Without these, a dataset could be listed that cannot be built, or carry other labels than its builder."""

from __future__ import annotations

import pytest

from medvlp_jax.data import build
from medvlp_jax.data.paths import built_datasets, data_root, dataset_folder
from medvlp_jax.data.spec import all_specs, dataset_names, load_spec
from medvlp_jax.errors import UserError


def test_every_spec_is_complete_and_has_a_builder() -> None:
    specs = all_specs()
    assert [s.name for s in specs] == list(dataset_names())
    assert {"image_text_folder", "synthetic_cxr"} <= set(dataset_names())
    for spec in specs:
        for field in ("description", "modality", "licence", "access", "language"):
            assert getattr(spec, field), f"{spec.name}.{field}"
        assert spec.splits
        assert not spec.needs_manual_dir or spec.layout
        builder = spec.builder_class()
        assert builder.name == spec.name


def test_labels_of_the_embedded_corpus_are_those_of_its_builder() -> None:
    from tfds_builders.synthetic_cxr import labels

    assert load_spec("synthetic_cxr").label_names == tuple(labels.LABEL_NAMES)


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(UserError, match="did you mean synthetic_cxr"):
        load_spec("syntetic_cxr")
    with pytest.raises(UserError, match="known: "):
        load_spec("zzz")
    assert load_spec("image_text_folder/mine").name == "image_text_folder"


def test_builders_that_need_no_files_take_no_options(tmp_path) -> None:
    with pytest.raises(UserError, match="takes no options"):
        build.build_dataset("synthetic_cxr", tmp_path, options={"size": "3"})
    with pytest.raises(UserError, match="has no config 'huge'"):
        build.build_dataset("synthetic_cxr/huge", tmp_path)


def test_data_directory(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert data_root().as_posix() == "data"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert data_root() == tmp_path
    assert data_root(tmp_path / "x") == tmp_path / "x"


def test_names_are_resolved_to_the_newest_version(tmp_path) -> None:
    def make(path: str) -> None:
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "dataset_info.json").write_text("{}")

    with pytest.raises(UserError, match=r"built there: nothing.*data build synthetic_cxr`"):
        dataset_folder("synthetic_cxr", tmp_path)
    make("plain/1.9.0")
    make("plain/1.10.0")
    (tmp_path / "plain/2.0.0").mkdir()  # no info file: not complete
    make("many/a/1.0.0")
    make("many/b/1.0.0")
    assert dataset_folder("plain", tmp_path) == tmp_path / "plain/1.10.0"
    assert dataset_folder("plain/1.9.0", tmp_path) == tmp_path / "plain/1.9.0"
    assert dataset_folder("many/b", tmp_path) == tmp_path / "many/b/1.0.0"
    with pytest.raises(UserError, match="choose one of many/a, many/b"):
        dataset_folder("many", tmp_path)
    make("many/default/1.0.0")
    assert dataset_folder("many", tmp_path) == tmp_path / "many/default/1.0.0"
    assert set(built_datasets(tmp_path)) == {"plain", "many/a", "many/b", "many/default"}


def test_list_shows_access_and_what_is_built(small) -> None:
    table = build.list_datasets(small)
    assert "image_text_folder/small" in table
    assert "synthetic_cxr" in table


def test_ensure_built_asks_for_files_where_they_are_needed(tmp_path, small) -> None:
    assert build.ensure_built("image_text_folder", small).name == "1.0.0"
    with pytest.raises(UserError, match="--manual-dir FOLDER"):
        build.ensure_built("image_text_folder", tmp_path)
