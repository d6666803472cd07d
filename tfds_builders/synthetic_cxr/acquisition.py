"""From attenuation to a display-ready radiograph: pose, scatter, quantum noise, blur, window, marker."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How one image was taken; nothing here depends on the findings."""

    rotation: float  # degrees
    zoom: float
    shift: tuple[float, float]  # in half image widths
    scatter: float  # scattered / primary radiation
    noise: float  # standard deviation of the log signal where nothing absorbs
    blur: float  # standard deviation of the blur in half image widths
    low: float  # attenuation shown black
    high: float  # attenuation shown white
    gamma: float
    vignette: float
    collimation: tuple[float, float, float, float]  # unexposed border left, right, top, bottom
    marker: str  # "R", "L" or ""
    seed: int


def sample_exposure(rng: np.random.Generator, *, view: str, spread: float = 1.0) -> Exposure:
    """Draws the settings of one image; `spread` is a factor on how much pose and window vary."""

    def normal(deviation: float) -> float:
        return spread * deviation * float(rng.standard_normal())

    narrow = rng.random() < 0.2 * spread
    border = rng.uniform(0.0, 0.09, 4) if narrow else np.zeros(4)
    marker = (
        "" if rng.random() < 0.15 else ("L" if view == "LATERAL" else str(rng.choice(["R", "L"])))
    )
    return Exposure(
        rotation=float(np.clip(normal(1.3), -4.0, 4.0)),
        zoom=1.0 + normal(0.02),
        shift=(normal(0.016), normal(0.02)),
        scatter=float(rng.uniform(0.02, 0.07)),
        noise=float(np.exp(rng.normal(np.log(0.022), 0.4))),
        blur=float(rng.uniform(0.002, 0.006)),
        low=0.55 + normal(0.12),
        high=4.25 + normal(0.2),
        gamma=float(np.exp(normal(0.13))),
        vignette=float(rng.uniform(0.0, 0.12)),
        collimation=(float(border[0]), float(border[1]), float(border[2]), float(border[3])),
        marker=marker,
        seed=int(rng.integers(1 << 31)),
    )


def pose_matrix(exposure: Exposure, size: int) -> np.ndarray:
    """Affine map [2, 3] from pixels of the upright body to pixels of the image."""
    center = ((size - 1) / 2.0, (size - 1) / 2.0)
    matrix = cv2.getRotationMatrix2D(center, exposure.rotation, exposure.zoom)
    matrix[:, 2] += np.asarray(exposure.shift) * (size / 2.0)
    return matrix


def warp_mask(mask: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Moves a boolean mask [H, W] into the image."""
    size = mask.shape[::-1]
    return cv2.warpAffine(mask.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST) > 0


def expose(attenuation: np.ndarray, exposure: Exposure, matrix: np.ndarray) -> np.ndarray:
    """Takes the radiograph.

    Args:
        attenuation: [H, W] float32, of the upright body.
        exposure: settings of the image.
        matrix: its `pose_matrix`.

    Returns:
        [H, W] uint8, dense structures bright.
    """
    size = attenuation.shape[0]
    rng = np.random.default_rng(exposure.seed)
    posed = cv2.warpAffine(attenuation, matrix, (size, size), flags=cv2.INTER_LINEAR)
    primary = cv2.exp(-posed)
    small = cv2.resize(primary, (size // 8, size // 8), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), size / 80.0)
    scattered = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
    signal = cv2.log(primary + exposure.scatter * scattered)
    np.negative(signal, out=signal)
    grain = rng.standard_normal((size, size), np.float32)
    # Photon counts: the relative noise grows with the square root of the absorption.
    signal += (exposure.noise * cv2.exp(0.42 * signal)) * grain
    sigma = exposure.blur * size / 2.0
    if sigma > 0.2:
        signal = cv2.GaussianBlur(signal, (0, 0), sigma)
    shown = (signal - exposure.low) * (1.0 / (exposure.high - exposure.low))
    np.clip(shown, 0.0, 1.0, out=shown)
    shown = cv2.pow(shown, exposure.gamma)
    shown *= 1.22 - 0.22 * shown * shown  # shoulder of the display curve: dense parts keep contrast
    ticks = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    shown *= 1.0 - exposure.vignette * (ticks[None, :] ** 2 + ticks[:, None] ** 2)
    image = (shown * 255.0).astype(np.uint8)
    _collimate(image, exposure.collimation)
    _mark(image, exposure)
    return image


def _collimate(image: np.ndarray, border: tuple[float, float, float, float]) -> None:
    left, right, top, bottom = (int(part * image.shape[0] / 2.0) for part in border)
    size = image.shape[0]
    image[:, :left] = 0
    image[:, size - right :] = 0
    image[:top] = 0
    image[size - bottom :] = 0


def _mark(image: np.ndarray, exposure: Exposure) -> None:
    """The side marker. The patient's right is on the left of the image, and so is an "R"."""
    if not exposure.marker:
        return
    size = image.shape[0]
    scale = size / 420.0
    x = 0.07 if exposure.marker == "R" else 0.88
    origin = (int(x * size), int((0.10 + 0.08 * (exposure.seed % 2)) * size))
    thickness = max(1, round(size / 160))
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(image, exposure.marker, origin, font, scale, 235, thickness, cv2.LINE_AA)
