"""Without it a damaged table or a wrong folder would give a traceback, or a build of half the data."""

from __future__ import annotations

import gzip
import subprocess
import sys

import pytest

from medvlp_jax.data.paths import dataset_folder
from medvlp_jax.data.spec import all_specs, load_spec
from medvlp_jax.data.split_lists import split_hash
from medvlp_jax.errors import UserError
from tfds_builders.chexpert.chexpert import ChexpertConfig
from tfds_builders.manual_builder import ManualConfig, parse_config
from tfds_builders.manual_tables import read_lines, read_rows, read_tagged_lines
from tfds_builders.official_layout import Needed, require_images, require_layout
from tfds_builders.patient_splits import hash_splits

SPEC = load_spec("nih_cxr14")


def test_tables_are_read_plain_and_compressed(tmp_path) -> None:
    text = '\ufeffa, b\n 1 ,"x,\ny"\n\n2,z,,\n'
    (tmp_path / "t.csv").write_text(text, "utf-8")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("t.csv", "t.csv.gz"):
        rows = list(read_rows(tmp_path / name, ("a", "b")))
        assert rows == [(3, {"a": "1", "b": "x,\ny"}), (5, {"a": "2", "b": "z"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"has no column a, b \(it has none\)"),
        (b"a,c\n1,2\n", r"has no column b \(it has a, c\)"),
        (b"a,b\n1\n", "line 2 has 1 cells, its header has 2"),
        (b"a,b\n1,2,3\n", "line 2 has 3 cells"),
        (b"a,b\n1,caf\xe9\n", "is not UTF-8"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0)[:-12], "is damaged near line"),
        (b"a,b\n", None),
    ],
)
def test_damaged_tables_name_file_and_line(tmp_path, content, message) -> None:
    file = tmp_path / ("t.csv.gz" if content[:2] == b"\x1f\x8b" else "t.csv")
    file.write_bytes(content)
    if message is None:
        assert list(read_rows(file, ("a", "b"))) == []
        return
    with pytest.raises(UserError, match=rf"t\.csv.*{message}"):
        list(read_rows(file, ("a", "b")))


def test_plain_lists(tmp_path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("a.png\r\n\n b.png \n")
    assert read_lines(file) == ["a.png", "b.png"]
    file.write_text("x\t\tone\t two \n\ny\n")
    assert list(read_tagged_lines(file)) == [("x", ["one", "two"]), ("y", [])]
    file.write_bytes(b"\xe9\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        read_lines(file)


def test_layout_lists_all_that_is_missing_and_where_it_is(tmp_path) -> None:
    needed = (Needed(("a.csv.gz",), "first"), Needed(("b", "c"), "second"))
    with pytest.raises(
        UserError, match=r"missing a\.csv\.gz \(first\); b or c \(second\)\. public"
    ):
        require_layout(tmp_path, SPEC, needed)
    inner = tmp_path / "inner"
    (inner / "c").mkdir(parents=True)
    (inner / "a.csv").write_text("")
    assert require_layout(inner, SPEC, needed) == (inner / "a.csv", inner / "c")
    for wrong in (tmp_path, inner / "c"):
        with pytest.raises(UserError, match=rf"give --manual-dir {inner}\."):
            require_layout(wrong, SPEC, needed)


def test_missing_images_are_counted(tmp_path) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    names = [f"{i}.png" for i in range(9)]
    with pytest.raises(
        UserError, match=r"8 of 9 images that t\.csv .* 1\.png, 2\.png.*5\.png, \.\.\."
    ):
        require_images(tmp_path, names, spec=SPEC, table=tmp_path / "t.csv")
    require_images(tmp_path, names[:1], spec=SPEC, table=tmp_path / "t.csv")


def test_configs_and_variants(tmp_path) -> None:
    assert parse_config(ManualConfig, tmp_path, {}).name == "default"
    assert parse_config(ManualConfig, tmp_path, {"name": "a b"}).name == "a_b"
    assert parse_config(ManualConfig, tmp_path, {"max_rejected": "0.5"}).max_rejected == 0.5
    for options, name, split in (
        ({}, "official", "official"),
        ({"name": "holdout"}, "holdout", "holdout"),
        ({"split": "holdout"}, "holdout", "holdout"),
        ({"split": "holdout", "name": "mine"}, "mine", "holdout"),
        ({"name": "mine"}, "mine", "official"),
    ):
        config = parse_config(ChexpertConfig, tmp_path, options)
        assert (config.name, config.split) == (name, split)
    for options, message in (
        ({"folder": "/"}, "option 'folder' is unknown"),
        ({"size": "big"}, "size='big': expected a value like 256"),
        ({"max_rejected": "-1"}, "max_rejected='-1'"),
        ({"max_rejected": "nan"}, "max_rejected='nan'"),
        ({"missing_images": "maybe"}, "missing_images='maybe': expected refuse or skip"),
    ):
        with pytest.raises(UserError, match=message):
            parse_config(ManualConfig, tmp_path, options)


def test_splits_are_stable_when_patients_are_added() -> None:
    patients = {str(i) for i in range(1000)}
    before = hash_splits(patients, (0.7, 0.1, 0.2))
    after = hash_splits(patients | {"new"}, (0.7, 0.1, 0.2))
    assert sum(before[p] != after[p] for p in patients) <= 2
    counts = [list(before.values()).count(s) for s in ("train", "validation", "test")]
    assert counts == [700, 100, 200]
    assert split_hash(before.items()) == split_hash(reversed(before.items()))
    assert split_hash(before.items()) != split_hash(after.items())


def test_message_of_an_unbuilt_dataset_asks_for_files(tmp_path) -> None:
    with pytest.raises(UserError, match=r"data build nih_cxr14/random --manual-dir FOLDER`"):
        dataset_folder("nih_cxr14/random", tmp_path)
    with pytest.raises(UserError, match=r"data build synthetic_cxr/tiny`"):
        dataset_folder("synthetic_cxr/tiny", tmp_path)


def test_every_dataset_has_a_readme_with_access_and_command(root) -> None:
    for spec in all_specs():
        text = (root / "tfds_builders" / spec.name / "README.md").read_text("utf-8")
        assert f"data build {spec.name}" in text, spec.name
        assert "Access" in text or not spec.homepage, spec.name


def test_builders_do_not_load_tensorflow() -> None:
    code = (
        "import sys\n"
        "from medvlp_jax.data.spec import all_specs\n"
        "[spec.builder_class() for spec in all_specs()]\n"
        "sys.exit('tensorflow' in sys.modules or 'torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
