"""`doctor`: what this machine has, what is missing, and the command that gets it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

_CORE = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets",
         "transformers", "tokenizers", "ml_collections", "pydicom")  # fmt: skip
_EXTRAS = {
    "torch": "checks exports against PyTorch: pip install 'torch==2.13.0'",
    "gradio": "demo page: pip install -e '.[serve]'",
    "apache-beam": "parallel builds of very large datasets: pip install -e '.[beam]'",
}


def report() -> str:
    """Readable report: versions, devices, extras, disk space, and remedies."""
    lines = [f"python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name:<22}{_version(name) or 'MISSING: run ./run.sh again'}" for name in _CORE]
    lines += [
        f"{name:<22}{_version(name) or 'not installed; ' + use}" for name, use in _EXTRAS.items()
    ]
    lines += _devices()
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    lines.append(f"disk: {free:.0f} GiB free here" + ("" if free > 5 else "; MIMIC-CXR needs 30"))
    lines.append(f"datasets in {os.environ.get('TFDS_DATA_DIR') or os.path.abspath('data')}")
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _devices() -> list[str]:
    """Devices as jax sees them, and what to do when an accelerator is there but not seen."""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return [
            f"jax finds no device: {str(error).splitlines()[0]}; set MEDVLP_DEVICE and rerun run.sh"
        ]
    lines = [f"devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform})"]
    if devices[0].platform == "cpu":
        if shutil.which("nvidia-smi"):
            lines.append(
                "an NVIDIA driver is here but jax runs on the CPU: MEDVLP_DEVICE=cuda ./run.sh doctor"
            )
        if any(os.path.exists(f"/dev/accel{i}") for i in range(4)):
            lines.append("a TPU is here but jax runs on the CPU: MEDVLP_DEVICE=tpu ./run.sh doctor")
    return lines
