"""Reads checkpoint files of PyTorch as NumPy arrays, without PyTorch and without running anything in them.

safetensors files are read by their library. `.pt`, `.pth` and `.bin` files are pickles, which can run any
program when they are opened in the usual way. The reader here knows a short list of names (tensors and plain
containers) and stops at the first other one, before anything happens. It reads the zip format (since PyTorch
1.6), the older one-stream format in which most BERT checkpoints are, and TorchScript (OpenAI's CLIP).
"""

from __future__ import annotations

import collections
import io
import json
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from medvlp_jax.errors import UserError

Tensors = dict[str, np.ndarray]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE = 256 * 2**20  # bytes; structure only, tensors are stored apart
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "teacher", "module")
_NAMES = (
    ("model", "safetensors"),
    ("open_clip_model", "safetensors"),
    ("pytorch_model", "bin"),
    ("open_clip_pytorch_model", "bin"),
)
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile

_STORAGE: dict[str, np.dtype] = {
    f"{name}Storage": np.dtype(kind)
    for name, kind in {
        "Float": "<f4",
        "Double": "<f8",
        "Half": "<f2",
        "BFloat16": ml_dtypes.bfloat16,
        "Long": "<i8",
        "Int": "<i4",
        "Short": "<i2",
        "Char": "<i1",
        "Byte": "<u1",
        "Bool": "?",
    }.items()
}


def read(source: str | pathlib.Path) -> Tensors:
    """All tensors of a checkpoint.

    Args:
        source: a file (`.safetensors`, `.pt`, `.pth`, `.bin`, `.ckpt`), a folder as transformers saves it
            (sharded or not, safetensors preferred), or the name of a Hugging Face model. `file.pt#key` takes
            one entry of a checkpoint that holds several, e.g. `#teacher`.

    Returns:
        Key -> array. A wrapper ("state_dict", "model" ...) and the prefix "module." are taken off.

    Raises:
        UserError: not there, truncated, compressed, with code in it, or not a checkpoint.
    """
    return read_at(*locate(source))


def locate(source: str | pathlib.Path) -> tuple[pathlib.Path, str]:
    """(file or folder on this machine, entry in it or ""); a model name is looked up at the hub.

    Raises:
        UserError: not there.
    """
    text, _, entry = str(source).partition("#")
    path = pathlib.Path(text)
    return (path if path.exists() else hub_folder(text)), entry


def read_at(path: pathlib.Path, entry: str) -> Tensors:
    """`read` of what `locate` found."""
    tensors = _read_folder(path) if path.is_dir() else _read_file(path, entry)
    if not tensors:
        raise UserError(f"{path} holds no tensors: expected the state dict of a model")
    return _without_prefix(tensors)


def hub_folder(name: str) -> pathlib.Path:
    """Folder with the files of a Hugging Face model, from the local cache or downloaded.

    Raises:
        UserError: neither a path here nor a model there.
    """
    parts = pathlib.PurePath(name).parts
    if not 1 <= len(parts) <= 2 or name.startswith((".", "/", "~")) or pathlib.Path(name).suffix in (
        ".safetensors", ".pt", ".pth", ".bin", ".ckpt"
    ):  # fmt: skip
        raise UserError(
            f"{name} does not exist: expected a checkpoint file, a folder or a model name"
        )
    import huggingface_hub  # only needed for names that are not on the disk

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        listed = huggingface_hub.list_repo_files(name)
        if not any(file.endswith(".safetensors") for file in listed):
            wanted.append("*pytorch_model*.bin")
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        try:  # offline: what an earlier run downloaded
            folder = pathlib.Path(
                # The same patterns again: other files of the model were never wanted and are not missed.
                huggingface_hub.snapshot_download(
                    name, allow_patterns=wanted, local_files_only=True
                )
            )
            if not any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir()):
                raise FileNotFoundError("the download broke off before the weights")
            return folder
        except Exception:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{name!r} is neither a file or folder here nor available from the Hugging Face hub "
                f"({reason}); give the path of a checkpoint file or folder"
            ) from error


def _read_folder(folder: pathlib.Path) -> Tensors:
    for stem, suffix in _NAMES:
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            return _read_shards(folder, index)
        if (folder / f"{stem}.{suffix}").is_file():
            return _read_file(folder / f"{stem}.{suffix}", "")
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return _read_file(others[0], "")
    found = ", ".join(sorted(f.name for f in folder.iterdir())[:8]) or "nothing"
    raise UserError(
        f"folder {folder} holds no checkpoint (found {found}): expected model.safetensors, "
        "pytorch_model.bin or an index of shards; or name the file"
    )


def _read_shards(folder: pathlib.Path, index: pathlib.Path) -> Tensors:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{index} is not an index of shards ({error!r}); download it again"
        ) from error
    tensors: Tensors = {}
    for shard in shards:
        path = folder / shard
        if pathlib.PurePath(shard).name != shard or not path.is_file():
            raise UserError(f"{index} names the shard {shard!r}, which is not in the folder")
        tensors.update(_read_file(path, ""))
    return tensors


def _read_file(path: pathlib.Path, entry: str) -> Tensors:
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = _read_zip(path) if start == b"PK\x03\x04" else _read_legacy(path)
    except UserError:
        raise
    except (
        pickle.UnpicklingError, EOFError, zipfile.BadZipFile, struct.error, KeyError, IndexError,
        ValueError, TypeError, AttributeError, NotImplementedError, OSError,
    ) as error:  # fmt: skip
        raise UserError(
            f"{path} is not a PyTorch checkpoint or is damaged ({type(error).__name__}: {error}); "
            "download it again"
        ) from error
    return _tensors_of(content, path, entry)


def _read_safetensors(path: pathlib.Path) -> Tensors:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is not a safetensors file or is damaged ({error}); download it again"
        ) from error


# ---------------------------------------------------------------------------------------------------
# Pickles


class _Inert:
    """Stands for an object whose class is not loaded: it only keeps its state."""

    def __init__(self, *args: Any) -> None:
        self.state: Any = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Storage:
    """A flat block of memory; its bytes may come later in the file."""

    def __init__(self, dtype: np.dtype, count: int) -> None:
        self.dtype, self.count = dtype, count
        self.data: np.ndarray | None = None


class _Tensor:
    """A view of a storage."""

    def __init__(self, storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> None:
        del rest  # gradient flags and hooks
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without storage")
        self.storage, self.offset = storage, int(offset)
        self.size, self.stride = tuple(map(int, size)), tuple(map(int, stride))

    def array(self) -> np.ndarray:
        """The values, copied out of the storage."""
        data = self.storage.data
        if data is None:
            raise ValueError("a tensor whose data is not in the file")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        count = int(np.prod(self.size, dtype=np.int64))
        bad = min((*self.size, *self.stride, self.offset), default=0) < 0
        if bad or (count and last >= data.size) or count > data.size:
            # Also refuses a small storage that pretends to be a huge tensor by strides of 0.
            raise ValueError(f"a tensor of size {self.size} in a storage of {data.size} values")
        step = data.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            data[self.offset :], self.size, [s * step for s in self.stride], writeable=False
        )
        return np.array(view)


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    del rest
    return data


def _build_list(value: Any) -> Any:
    return value


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch", "device"): _Inert,
    ("argparse", "Namespace"): _Inert,  # MAE stores the command line with the weights
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): name for name in _STORAGE},
    **{("torch.jit._pickle", f"build_{k}list"): _build_list for k in ("int", "tensor", "double", "bool")},
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; any other name in the file is refused."""

    def __init__(self, file: Any, path: pathlib.Path, *, script: bool = False) -> None:
        super().__init__(file, encoding="utf-8")
        self.path, self.script = path, script
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if self.script and module.startswith("__torch__"):
            return _Inert
        raise UserError(
            f"{self.path} is refused: it is a pickle that wants to run {module}.{name}, which could be "
            "any program. If you trust it, load it with PyTorch and save the bare state dict as "
            "safetensors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, count = pid[:5]
        if (
            kind != "storage"
            or storage_type not in _STORAGE
            or (len(pid) > 5 and pid[5] is not None)
        ):
            raise ValueError(f"unknown reference {pid!r}")
        storage = _Storage(_STORAGE[storage_type], int(count))
        return self.storages.setdefault(str(key), storage)


def _read_zip(path: pathlib.Path) -> Any:
    """The zip format: `NAME/data.pkl` with the structure, `NAME/data/KEY` with the bytes."""
    with zipfile.ZipFile(path) as archive:
        # The code of a TorchScript archive is compressed; it is not read.
        data = [i for i in archive.infolist() if "data.pkl" in i.filename or "/data/" in i.filename]
        packed = [i.filename for i in data if i.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise UserError(
                f"{path} is refused: {packed[0]} is compressed, which PyTorch never does and which could "
                "unpack to any size"
            )
        names = {info.filename: info.file_size for info in data}
        if sum(names.values()) > path.stat().st_size:
            raise UserError(
                f"{path} is refused: its entries overlap and would unpack to more than it is"
            )
        roots = [name for name in names if name.endswith("data.pkl")]
        if len(roots) != 1 or names[roots[0]] > _LARGEST_PICKLE:
            raise ValueError("expected one data.pkl")
        root = roots[0].removesuffix("data.pkl")
        if (
            f"{root}byteorder" in archive.namelist()
            and archive.read(f"{root}byteorder") != b"little"
        ):
            raise ValueError("written on a big-endian machine")
        script = f"{root}constants.pkl" in archive.namelist()
        unpickler = _Unpickler(io.BytesIO(archive.read(roots[0])), path, script=script)
        content = unpickler.load()
        for key, storage in unpickler.storages.items():
            raw = archive.read(f"{root}data/{key}")
            storage.data = np.frombuffer(raw, storage.dtype)
            if storage.data.size < storage.count:
                raise ValueError(f"data/{key} is shorter than it should be")
    return content


def _read_legacy(path: pathlib.Path) -> Any:
    """The format before PyTorch 1.6: five pickles, then the bytes of each storage."""
    with path.open("rb") as file:
        if _Unpickler(file, path).load() != _LEGACY_MAGIC:
            raise ValueError("no magic number")
        _Unpickler(file, path).load()  # protocol
        _Unpickler(file, path).load()  # system
        unpickler = _Unpickler(file, path)
        content = unpickler.load()
        for key in _Unpickler(file, path).load():
            storage = unpickler.storages[str(key)]
            (count,) = struct.unpack("<q", file.read(8))
            raw = file.read(max(count, 0) * storage.dtype.itemsize)
            storage.data = np.frombuffer(raw, storage.dtype)
            if count < 0 or storage.data.size != count:
                raise EOFError("the file ends early")
    return content


# ---------------------------------------------------------------------------------------------------
# From what was stored to key -> array


def _tensors_of(content: Any, path: pathlib.Path, entry: str) -> Tensors:
    if isinstance(content, _Inert):  # TorchScript: modules within modules
        return {key: tensor.array() for key, tensor in _walk(content, "")}
    node = content
    if entry:
        if not isinstance(node, Mapping) or entry not in node:
            _no_entry(path, entry, node)
        node = node[entry]
    else:
        while isinstance(node, Mapping):
            inside = [key for key in _WRAPPERS if isinstance(node.get(key), Mapping)]
            if not inside:
                break
            node = node[inside[0]]
    if not isinstance(node, Mapping):
        raise UserError(f"{path} holds a {type(node).__name__}, not a state dict")
    try:
        return {str(k): v.array() for k, v in node.items() if isinstance(v, _Tensor)}
    except ValueError as error:
        raise UserError(f"{path} is refused or damaged: {error}") from error


def _walk(module: _Inert, prefix: str) -> Iterator[tuple[str, _Tensor]]:
    for name, value in (module.state if isinstance(module.state, Mapping) else {}).items():
        if isinstance(value, _Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Inert):
            yield from _walk(value, f"{prefix}{name}.")


def _no_entry(path: pathlib.Path, entry: str, node: Any) -> NoReturn:
    have = ", ".join(map(str, list(node)[:8])) if isinstance(node, Mapping) else type(node).__name__
    raise UserError(f"{path} has no entry {entry!r}; it has {have}")


def _without_prefix(tensors: Tensors) -> Tensors:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
