"""Without these, files would start to import in circles, and a heavy library would leak out of its door."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

# Every part may import itself, parts of lower rank, and parts of its own rank listed in PEERS.
RANK = {
    "errors": 0, "types": 0, "config": 1, "losses": 1, "knowledge": 1,
    "models": 2, "parallel": 2, "data": 2,
    "objectives": 3, "optim": 3, "checkpoint": 3, "metrics": 3, "interop": 3, "report": 3,
    "predictor": 4, "step": 4, "tasks": 5, "train": 6, "evaluate": 6,
    "folds": 6, "build": 7, "doctor": 7, "warm_start": 8, "runs": 9, "quickstart": 10,
    "__main__": 11, "__init__": 12,
}  # fmt: skip
PEERS = {("step", "predictor"), ("evaluate", "train")}

# third party -> files that may import it (prefixes, relative to the package)
DOORS = {
    "orbax": ("checkpoint.py",),
    "grain": ("data/pipeline.py", "data/order.py", "data/iterators.py"),
    "tensorflow_datasets": ("data/",),
    "transformers": ("data/text.py", "interop/"),
    "tokenizers": ("data/text.py", "interop/"),
    "flax.linen": ("models/", "objectives/"),
    "torch": ("interop/",),
    "tensorflow": (),
    "matplotlib": ("report/", "data/check.py"),
    "sklearn": ("tasks/", "report/"),
    "pydicom": ("data/",),
    "cv2": ("data/",),
    "PIL": ("data/",),
    "flax.nnx": (),
}


def imports(path: pathlib.Path) -> list[str]:
    """Dotted names of everything a file imports, also inside functions."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def files(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted((root / "medvlp_jax").rglob("*.py"))


def part(relative: str) -> str:
    return relative.split("/")[0].removesuffix(".py")


def test_import_direction(root) -> None:
    wrong = []
    for path in files(root):
        relative = path.relative_to(root / "medvlp_jax").as_posix()
        here = part(relative)
        for name in imports(path):
            if not name.startswith("medvlp_jax."):
                continue
            there = name.split(".")[1]
            if there not in RANK or here == there:
                continue
            if RANK[there] >= RANK[here] and (here, there) not in PEERS:
                wrong.append(f"{relative} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_part_has_a_rank(root) -> None:
    parts = {part(p.relative_to(root / "medvlp_jax").as_posix()) for p in files(root)}
    assert parts <= set(RANK), f"give {sorted(parts - set(RANK))} a place in RANK"


@pytest.mark.parametrize("library", sorted(DOORS))
def test_heavy_libraries_stay_behind_their_door(root, library: str) -> None:
    wrong = []
    for path in files(root):
        relative = path.relative_to(root / "medvlp_jax").as_posix()
        for name in imports(path):
            hit = name == library or name.startswith(library + ".")
            if hit and not relative.startswith(DOORS[library]):
                wrong.append(f"{relative} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_registry_no_utils(root) -> None:
    assert not list((root / "medvlp_jax").rglob("utils.py"))


def run_python(root, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_package_import_is_quick_and_light(root) -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import medvlp_jax; d = time.perf_counter() - t;"
        "print(d < 1.0, [m for m in ('jax', 'numpy', 'torch', 'tensorflow') if m in sys.modules])"
    )
    assert run_python(root, code) == "True []"


def test_everything_imports_without_tensorflow_and_torch(root) -> None:
    modules = [
        "medvlp_jax." + p.relative_to(root / "medvlp_jax").as_posix()[:-3].replace("/", ".")
        for p in files(root)
        # Files of torch_package are copied into exports and never imported from here.
        if p.name not in ("__init__.py", "__main__.py") and "torch_package" not in p.parts
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print([m for m in ('torch', 'tensorflow', 'flax.nnx') if m in sys.modules])"
    )
    assert run_python(root, code) == "[]"
