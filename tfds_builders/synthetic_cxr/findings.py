"""The findings: how each one deforms the anatomy or changes the attenuation map.

A finding that alters the build (a large heart, a raised diaphragm, a bent spine, a broken rib) does so in
`deform`, before the anatomy is drawn; every finding then goes through `draw`, which adds or removes
attenuation and returns one mask per part, so that boxes and masks are exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

from tfds_builders.synthetic_cxr import labels
from tfds_builders.synthetic_cxr.anatomy import (
    AIR,
    RIB,
    Scene,
    Shape,
    draw_lines,
    lung_borders,
    midline,
    ramp,
)
from tfds_builders.synthetic_cxr.labels import BILATERAL, LEFT, MIDLINE, NO_SIDE, RIGHT


@dataclasses.dataclass(frozen=True)
class Part:
    """One lesion, device or affected side of a finding.

    Attributes:
        side: RIGHT, LEFT or MIDLINE.
        kind: subtype, e.g. the kind of device; "" where there is only one.
        height: 0 at the apex of the lung, 1 at its base.
        lateral: 0 at the mediastinum, 1 at the side wall.
        depth: 0 in front, 1 at the back.
        size: extent, 1 = typical of its severity.
        seed: seed of its texture.
    """

    side: int
    kind: str = ""
    height: float = 0.5
    lateral: float = 0.5
    depth: float = 0.5
    size: float = 1.0
    seed: int = 0

    @property
    def zone(self) -> int:
        """Index into `labels.ZONES`."""
        return min(2, int(self.height * 3.0))


@dataclasses.dataclass(frozen=True)
class Finding:
    """A finding as it stands in one study. `severity` is 1 to 3 and counts for all parts."""

    label: int
    severity: int
    parts: tuple[Part, ...]

    @property
    def side(self) -> int:
        """Side code over all parts."""
        sides = {part.side for part in self.parts}
        if sides >= {RIGHT, LEFT}:
            return BILATERAL
        if len(sides) == 1:
            return sides.pop()
        return next((side for side in (RIGHT, LEFT) if side in sides), NO_SIDE)


def deform(shape: Shape, findings: tuple[Finding, ...]) -> Shape:
    """Applies what the findings do to the build of the patient."""
    for finding in findings:
        change = _DEFORM.get(finding.label)
        if change is not None:
            shape = change(shape, finding)
    return shape


def draw(scene: Scene, finding: Finding) -> list[np.ndarray]:
    """Changes `scene.attenuation` in place; returns one boolean mask [H, W] per part."""
    return [_DRAW[finding.label](scene, finding, part) for part in finding.parts]


def draw_order(finding: Finding) -> int:
    """Rank in which findings are drawn: fluid and air last, since they displace the lung."""
    late = (labels.EFFUSION, labels.PNEUMOTHORAX, labels.DEVICE)
    return late.index(finding.label) + 1 if finding.label in late else 0


def _enlarge_heart(shape: Shape, finding: Finding) -> Shape:
    ratio = (0.0, 0.545, 0.60, 0.67)[finding.severity] * finding.parts[0].size
    return dataclasses.replace(shape, heart=max(ratio, shape.heart + 0.03))


def _inflate(shape: Shape, finding: Finding) -> Shape:
    grade = finding.severity * finding.parts[0].size
    return dataclasses.replace(
        shape,
        base=(shape.base[0] + 0.05 * grade, shape.base[1] + 0.05 * grade),
        dome=shape.dome * (1.0 - 0.24 * grade),
        heart=shape.heart * (1.0 - 0.045 * grade),
        heart_y=shape.heart_y + 0.02 * grade,
        lucency=shape.lucency + 0.05 * grade,
        vessels=shape.vessels * (1.0 - 0.18 * grade),
        depth=shape.depth + 0.025 * grade,
        rib_slope=shape.rib_slope * (1.0 - 0.1 * grade),
    )


def _raise_diaphragm(shape: Shape, finding: Finding) -> Shape:
    right, left = shape.base
    for part in finding.parts:
        rise = (0.0, 0.12, 0.20, 0.30)[finding.severity] * part.size
        if part.side == RIGHT:
            right = min(right, left) - rise
        else:
            left = min(right, left) - rise
    return dataclasses.replace(shape, base=(right, left))


def _collapse(shape: Shape, finding: Finding) -> Shape:
    """Volume loss of an atelectasis: the diaphragm rises a little, the mediastinum moves over."""
    right, left = shape.base
    shift = shape.shift
    for part in finding.parts:
        loss = (0.0, 0.0, 0.02, 0.05)[finding.severity] * part.size
        if part.side == RIGHT:
            right, shift = right - loss, shift - 0.8 * loss
        else:
            left, shift = left - loss, shift + 0.8 * loss
    return dataclasses.replace(shape, base=(right, left), shift=shift)


def _push(shape: Shape, finding: Finding) -> Shape:
    """A large effusion or pneumothorax displaces the mediastinum to the other side."""
    if finding.severity < 3 or finding.side not in (RIGHT, LEFT):
        return shape
    push = 0.06 if finding.side == RIGHT else -0.06
    return dataclasses.replace(shape, shift=shape.shift + push)


def _bend(shape: Shape, finding: Finding) -> Shape:
    part = finding.parts[0]
    amount = (0.0, 0.055, 0.095, 0.15)[finding.severity] * part.size
    return dataclasses.replace(shape, curve=amount if part.side == LEFT else -amount)


def _break_ribs(shape: Shape, finding: Finding) -> Shape:
    breaks = []
    for part in finding.parts:
        if part.kind == "rib":
            rib, place = _rib_of(part)
            step = (0.0, 0.04, 0.055, 0.068)[finding.severity] * (1.0 if part.seed % 2 else -1.0)
            breaks.append((part.side, rib, place, step))
    return dataclasses.replace(shape, breaks=shape.breaks + tuple(breaks))


def _rib_of(part: Part) -> tuple[int, float]:
    """Index of the posterior rib of a fracture and its place along it, 0 at the spine, 1 at the wall."""
    return 2 + int(part.height * 6.0), 0.5 + 0.4 * part.lateral


def _texture(scene: Scene, seed: int, cells: int) -> np.ndarray:
    """Smooth noise, about N(0, 1), that stays with the lesion over the studies."""
    size = scene.attenuation.shape[0]
    coarse = np.random.default_rng(seed).standard_normal((cells, cells), np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _radius(scene: Scene, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    """Squared elliptical distance from (cx, cy)."""
    return ((scene.x - cx) / rx) ** 2 + ((scene.y - cy) / ry) ** 2


def _smooth_min(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Minimum of two distances whose corner is rounded over `width`."""
    blend = np.clip(1.0 - np.abs(a - b) * (1.0 / width), 0.0, 1.0)
    return np.minimum(a, b) - (0.25 * width) * blend * blend


def _draw_heart(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    shape = scene.shape
    half = shape.heart * shape.thorax
    if scene.view == "LATERAL":
        return _radius(scene, -0.20, shape.heart_y + 0.02, half, half) < 1.0
    middle = float(midline(shape, np.float32(shape.heart_y)))
    cx = middle + 0.30 * half + shape.shift
    return (_radius(scene, cx, shape.heart_y, half, 0.98 * half) < 1.0) & (scene.above[1] > -0.06)


def _draw_consolidation(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    cx, cy = scene.locate(part.side, part.height, part.lateral, part.depth)
    radius = (0.0, 0.15, 0.21, 0.28)[finding.severity] * part.size
    noise = _texture(scene, part.seed, 14)
    field = 1.15 - _radius(scene, cx, cy, radius * 1.05, radius) + 0.28 * noise
    blob = np.clip(field * 1.1, 0.0, 1.0) * scene.lung_of(part.side)
    gain = (0.0, 0.75, 1.0, 1.2)[finding.severity]
    scene.attenuation += blob * (gain + 0.1 * noise)
    scene.attenuation -= 1.7 * blob * scene.vessels  # vessels vanish, the bronchi stay dark
    return blob > 0.3


def _draw_edema(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    lung = scene.lung_of(part.side)
    hx, hy = scene.locate(part.side, 0.66, 0.18, 0.5)
    near = np.exp(-_radius(scene, hx, hy, 0.30, 0.42))
    grade = finding.severity * part.size
    noise = _texture(scene, part.seed, 22)
    haze = lung * near * (0.14 + 0.17 * grade) * (1.0 + 0.25 * noise)
    fine = np.abs(_texture(scene, part.seed + 1, 44))
    scene.attenuation += haze + lung * (0.035 * grade) * fine
    scene.attenuation += lung * scene.vessels * (0.35 + 0.3 * grade)
    lines = []
    rng = np.random.default_rng(part.seed)
    sign = 1.0 if part.side == LEFT else -1.0
    for height in rng.uniform(0.72, 0.98, 3 + 2 * finding.severity):
        x, y = scene.locate(part.side, float(height), 0.97, 0.1)
        lines.append(np.array([[x, y], [x - sign * 0.09, y + 0.01]]))
    count = len(lines)
    septa = draw_lines(lung.shape[0], lines, [0.006] * count, [200] * count)
    scene.attenuation += 0.25 * septa * lung
    return (near * lung) > 0.35


def _draw_effusion(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    lung, above = scene.lung_of(part.side), scene.above_of(part.side)
    shape = scene.shape
    base = shape.base[int(part.side == LEFT)]
    span = base - shape.apex
    level = (0.0, 0.02, 0.22, 0.5)[finding.severity]
    top = base + (0.0, 0.05, 0.0, 0.0)[finding.severity] - level * span * part.size
    meniscus = (0.0, 0.11, 0.20, 0.26)[finding.severity]
    surface = top - meniscus * np.exp(-np.maximum(scene.wall, 0.0) * (1.0 / 0.10))
    if scene.view == "LATERAL":
        surface = surface + 0.15 * np.clip(0.25 - scene.across, 0.0, 1.0)
    inside = ramp(scene.y - surface, 0.05) * lung
    depth = np.clip((scene.y - surface) * 4.0, 0.0, 1.0)
    scene.attenuation += inside * (0.72 + 0.68 * depth) * (0.85 if finding.severity == 1 else 1.0)
    scene.attenuation -= inside * scene.vessels
    return (inside > 0.4) & (above > -0.02)


def _draw_pneumothorax(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    lung = scene.lung_of(part.side)
    shape = scene.shape
    collapse = (0.0, 0.16, 0.30, 0.55)[finding.severity] * part.size
    height = (scene.y - shape.apex) * (1.0 / (shape.base[0] - shape.apex))
    thick = collapse * shape.thorax * (0.65 - 0.35 * np.clip(height, 0.0, 1.0))
    wall = scene.wall
    if scene.view == "LATERAL":
        wall, thick = scene.across, 0.45 * thick  # free air lies in front when the patient stands
    top = scene.y - shape.apex - 0.75 * collapse
    pleura = _smooth_min(wall - thick, top, 0.5 * collapse)
    if finding.severity == 3:
        pleura = _smooth_min(pleura, scene.above_of(part.side) - 0.3 * collapse, 0.2)
    air = ramp(-pleura, 2.0 * scene.pixel) * lung
    line = np.clip(1.0 - np.abs(pleura) * (1.0 / max(0.011, scene.pixel)), 0.0, 1.0) * lung
    collapsed = lung * ramp(pleura, 0.02)
    scene.attenuation -= air * (0.16 * AIR + scene.vessels)
    scene.attenuation += 0.26 * line + collapsed * (0.10 + 0.75 * max(0.0, collapse - 0.2))
    return air > 0.4


def _draw_nodule(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    cx, cy = scene.locate(part.side, part.height, part.lateral, part.depth)
    radius = (0.0, 0.055, 0.085, 0.120)[finding.severity] * part.size
    wobble = 0.12 * _texture(scene, part.seed, 40)
    inside = 1.0 - _radius(scene, cx, cy, radius, radius * 0.94) + wobble
    blob = 0.6 * ramp(inside, 0.5) + 0.4 * np.sqrt(np.clip(inside, 0.0, 1.0))
    gain = 1.9 if part.kind == "calcified" else (0.0, 0.8, 1.0, 1.15)[finding.severity]
    scene.attenuation += gain * blob
    return _radius(scene, cx, cy, radius, radius) < 1.1


def _draw_fracture(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    x, y = fracture_place(scene, part)
    grade = finding.severity
    size = part.size
    callus = np.exp(-_radius(scene, x, y, 0.05 * size, 0.045 * size))
    swelling = np.exp(-_radius(scene, x, y, 0.13 * size, 0.09 * size))
    scene.attenuation += (0.6 + 0.15 * grade) * callus + 0.2 * grade * swelling
    if part.kind == "clavicle":
        sign = 1.0 if part.side == LEFT else -1.0
        fall = 0.03 + 0.02 * grade
        end = (x + sign * 0.24, y + fall - 0.06)
        fragment = np.array([[x - sign * 0.05, y + fall], end])
        pixels = scene.attenuation.shape[0]
        scene.attenuation += 0.55 * draw_lines(pixels, [fragment], [0.055], [255])
        return _radius(scene, x + sign * 0.06, y, 0.16, 0.11) < 1.0
    return _radius(scene, x, y, 0.10, 0.085) < 1.0


def fracture_place(scene: Scene, part: Part) -> tuple[float, float]:
    """Position (x, y) of a fracture in this view."""
    shape = scene.shape
    sign = 1.0 if part.side == LEFT else -1.0
    if part.kind == "clavicle":
        v = 0.55 + 0.3 * part.lateral
        y = shape.apex + 0.20 - 0.13 * v - 0.035 * np.sin(4.5 * v)
        if scene.view == "LATERAL":
            return -0.12, float(y)
        return float(midline(shape, np.float32(y)) + sign * v * shape.thorax), float(y)
    rib, v = _rib_of(part)
    y = shape.rib_first + rib * shape.rib_spacing + shape.rib_slope * v * (0.35 + 0.9 * v * v)
    if scene.view == "LATERAL":
        return float(scene.locate(part.side, 0.5, 0.0, 1.2 - 0.7 * v)[0]), float(y)
    return float(midline(shape, np.float32(y)) + sign * v * shape.thorax), float(y)


def _draw_atelectasis(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    if part.kind == "lobar":
        return _draw_lobar(scene, finding, part)
    lung = scene.lung_of(part.side)
    rng = np.random.default_rng(part.seed)
    total = np.zeros_like(lung)
    for index in range(finding.severity):
        height = min(0.97, part.height + 0.09 * index)
        cx, cy = scene.locate(part.side, height, part.lateral, part.depth)
        angle = rng.uniform(-0.35, 0.35)
        dx, dy = scene.x - cx, scene.y - cy
        along = dx * np.cos(angle) + dy * np.sin(angle)
        off = dy * np.cos(angle) - dx * np.sin(angle) - rng.uniform(-0.7, 0.7) * along * along
        length = 0.20 * part.size * rng.uniform(0.85, 1.2)
        thick = 0.024 + 0.006 * finding.severity
        total = np.maximum(
            total, ramp(length - np.abs(along), 0.14) * ramp(thick - np.abs(off), 0.02)
        )
    band = total * lung
    scene.attenuation += (0.55 + 0.15 * finding.severity) * band
    haze = cv2.GaussianBlur(band, (0, 0), 0.03 / scene.pixel)
    scene.attenuation += 0.5 * haze * lung
    return band > 0.3


def _draw_lobar(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    """Collapsed lower lobe: a dense wedge between the spine and the diaphragm."""
    lung, above = scene.lung_of(part.side), scene.above_of(part.side)
    reach = (0.0, 0.22, 0.30, 0.38)[finding.severity] * part.size
    if scene.view == "LATERAL":
        inward = np.maximum(scene.wall, 0.0) + 0.6 * (scene.across < 0.5)
    else:
        inward = np.maximum(scene.across - 0.10, 0.0)
    wedge = ramp(reach - above * 0.72 - inward * 1.0, 0.05) * lung
    scene.attenuation += (0.7 + 0.15 * finding.severity) * wedge
    scene.attenuation -= wedge * scene.vessels
    return wedge > 0.4


def _draw_emphysema(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    lung = scene.lung_of(part.side)
    shape = scene.shape
    upper = ramp(shape.apex + 0.62 * (shape.base[0] - shape.apex) - scene.y, 0.3)
    scene.attenuation -= lung * upper * (0.06 + 0.035 * finding.severity) * part.size
    scene.attenuation -= 0.6 * lung * upper * scene.vessels
    rng = np.random.default_rng(part.seed)
    for _ in range((0, 0, 1, 3)[finding.severity]):
        height, lateral = rng.uniform(0.12, 0.45), rng.uniform(0.35, 0.9)
        cx, cy = scene.locate(
            part.side, float(height), float(lateral), float(rng.uniform(0.2, 0.8))
        )
        radius = rng.uniform(0.07, 0.13)
        q = np.sqrt(_radius(scene, cx, cy, radius, radius * 1.15))
        rim = np.clip(1.0 - np.abs(q - 1.0) * (radius / 0.012), 0.0, 1.0)
        scene.attenuation += lung * (0.13 * rim - 0.12 * ramp(1.0 - q, 0.15))
    return (lung * upper) > 0.5


def _draw_hernia(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    shape = scene.shape
    radius = (0.0, 0.13, 0.175, 0.22)[finding.severity] * part.size
    cy = max(shape.base) + 0.06 - radius
    cx = (
        0.24
        if scene.view == "LATERAL"
        else float(midline(shape, np.float32(cy))) + 0.04 - 0.08 * part.lateral
    )
    q = _radius(scene, cx, cy, radius * 1.12, radius)
    inside = ramp(1.0 - q, 0.15)
    level = cy - 0.15 * radius
    gas = inside * ramp(level - scene.y, 2.0 * scene.pixel)
    rim = np.clip(1.0 - np.abs(np.sqrt(q) - 1.0) * (radius / 0.02), 0.0, 1.0)
    scene.attenuation += 0.62 * inside + 0.22 * rim - 1.15 * gas * ramp(0.72 - q, 0.2)
    return q < 1.05


def _draw_thickening(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    lung = scene.lung_of(part.side)
    shape = scene.shape
    thick = (0.0, 0.075, 0.115, 0.15)[finding.severity] * part.size
    span = shape.base[0] - shape.apex
    center = shape.apex + part.height * span
    extent = np.exp(-(((scene.y - center) / (0.30 * span)) ** 4))
    noise = _texture(scene, part.seed, 26)
    wall = scene.wall
    if part.kind == "apical":
        extent = ramp(shape.apex + 0.28 * span - scene.y, 0.1)
        thick = 1.25 * thick
    band = ramp(thick * extent * (1.0 + 0.22 * noise) - wall, 0.025) * lung * (extent > 0.1)
    plaques = np.clip(_texture(scene, part.seed + 1, 40) - 0.6, 0.0, 1.0)
    scene.attenuation += band * (0.85 + 0.12 * noise + 1.2 * plaques)
    scene.attenuation -= band * scene.vessels
    return band > 0.4


def _draw_scoliosis(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    shape = scene.shape
    inside = (scene.y > shape.apex) & (scene.y < max(shape.base) + 0.15)
    if scene.view == "LATERAL":
        return inside & (np.abs(scene.wall) < 0.1) & (scene.across > 0.5)
    return inside & (scene.across < 0.1)


def _draw_elevation(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    rise = (0.0, 0.12, 0.20, 0.30)[finding.severity] * part.size
    below = scene.above_of(part.side)
    band = (below < 0.03) & (below > -rise)
    if scene.view == "LATERAL":
        return band & (scene.wall > 0.05)
    _, outer = lung_borders(scene.shape, scene.y)
    mine = scene.patient_left if part.side == LEFT else 1.0 - scene.patient_left
    return band & (mine > 0.5) & (scene.across < outer) & (scene.across > 0.12)


def _draw_device(scene: Scene, finding: Finding, part: Part) -> np.ndarray:
    size = scene.attenuation.shape[0]
    lines, width, gain = device_lines(scene, part)
    image = draw_lines(size, lines, [width * part.size] * len(lines), [255] * len(lines))
    if part.kind == "pacemaker":
        sign = 1.0 if part.side == LEFT else -1.0
        x, y = (-0.42, -0.42) if scene.view == "LATERAL" else (sign * 0.52, -0.46)
        q = np.abs((scene.x - x) / 0.11) ** 3 + np.abs((scene.y - y) / 0.095) ** 3
        image = np.maximum(image, ramp(1.0 - q, 0.2) * 1.2)
    if part.kind == "port":
        x, y = scene.locate(part.side, 0.3, 0.62, 0.0)
        image = np.maximum(image, ramp(1.0 - _radius(scene, x, y, 0.055, 0.055), 0.3))
    scene.attenuation += gain * image
    return cv2.dilate((image > 0.3).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def device_lines(scene: Scene, part: Part) -> tuple[list[np.ndarray], float, float]:
    """Polylines (x, y), line width and attenuation of a tube, line or wire in this view."""
    rng = np.random.default_rng(part.seed)
    jitter = rng.normal(0.0, 0.015, 8)
    sign = 1.0 if part.side == LEFT else -1.0
    side_view = scene.view == "LATERAL"
    back = 0.12 if side_view else 0.0
    shape = scene.shape
    if part.kind == "tube":
        tip = -0.24 + jitter[0]
        path = [(0.02 + jitter[1], -1.1), (jitter[2] * 0.5, -0.6), (0.005, tip)]
        width, gain = 0.036, 0.9
    elif part.kind == "feeding tube":
        path = [(0.03, -1.1), (0.03 + jitter[0], -0.4), (0.05 + jitter[1], 0.1)]
        path += [(0.07 + jitter[2], 0.45), (0.22, 0.62), (0.36 + jitter[3], 0.66)]
        width, gain = 0.022, 1.1
    elif part.kind in ("central line", "port"):
        start = [(sign * 0.24, -0.98), (sign * 0.22, -0.75)]
        if part.kind == "port":
            x, y = scene.locate(part.side, 0.3, 0.62, 0.0)
            start = [(x, y), (sign * 0.36, -0.62)]
        path = [*start, (-0.04 + 0.1 * sign, -0.5), (-0.10, -0.3), (-0.11 + jitter[0], 0.02)]
        width, gain = 0.020, 1.2
    elif part.kind == "pacemaker":
        path = [(sign * 0.50, -0.52), (sign * 0.38, -0.66), (0.04 * sign, -0.5), (-0.11, -0.2)]
        path += [(-0.12, 0.15), (0.02, 0.33 + jitter[0]), (0.24 + jitter[1], 0.34)]
        width, gain = 0.020, 2.0
    elif part.kind == "chest tube":
        x0, y0 = scene.locate(part.side, 0.80, 1.12, 0.4)
        x1, y1 = scene.locate(part.side, 0.60, 0.66, 0.5)
        x2, y2 = scene.locate(part.side, 0.18, 0.52 + jitter[0], 0.5)
        path, width, gain = [(x0, y0), (x1, y1), (x2, y2)], 0.036, 1.0
        return [_smooth(path)], width, gain
    else:  # sternal wires
        lines = []
        for y in np.linspace(-0.34, 0.26, 6):
            cx = -shape.depth + 0.10 if side_view else jitter[0]
            angle = np.linspace(0.0, 2.0 * np.pi, 13)
            rx = 0.012 if side_view else 0.035
            lines.append(np.stack([cx + rx * np.cos(angle), y + 0.018 * np.sin(angle)], -1))
        return lines, 0.014, 2.5
    if side_view:
        path = [
            (0.05 + back * (0.4 - y) * 0.6 - 0.25 * (part.kind == "pacemaker"), y) for _, y in path
        ]
    return [_smooth(path)], width, gain


def _smooth(path: list[tuple[float, float]]) -> np.ndarray:
    """Rounds the corners of a polyline: two rounds of corner cutting."""
    points = np.asarray(path, dtype=np.float64)
    for _ in range(2):
        first, last = points[:1], points[-1:]
        near = 0.75 * points[:-1] + 0.25 * points[1:]
        far = 0.25 * points[:-1] + 0.75 * points[1:]
        middle = np.stack([near, far], 1).reshape(-1, 2)
        points = np.concatenate([first, middle[1:-1], last])
    return points


def draw_mimic(scene: Scene, kind: str, side: int, seed: int) -> None:
    """Draws a harmless look-alike: "nipple", "skin fold", "granuloma", "crossing" or "braid".

    These are what makes a nodule, a pneumothorax, a fracture and a line not trivial to tell.
    """
    rng = np.random.default_rng(seed)
    lung = scene.lung
    if kind == "nipple":
        for one in (RIGHT, LEFT):
            x, y = scene.locate(one, 0.86 + rng.normal(0, 0.02), 0.55 + rng.normal(0, 0.03), 0.0)
            scene.attenuation += 0.26 * ramp(1.0 - _radius(scene, x, y, 0.035, 0.032), 0.6)
    elif kind == "skin fold":
        x, y = scene.locate(side, 0.3, 0.7, 0.5)
        slope = rng.uniform(-0.3, 0.3)
        edge = scene.x - x - slope * (scene.y - y)
        edge = edge if side == LEFT else -edge
        fade = np.exp(-(((scene.y - y) / 0.35) ** 2))
        # Brightens gradually up to a sharp edge; vessels go on beyond it, unlike a pneumothorax.
        scene.attenuation += 0.2 * lung * fade * np.exp(np.minimum(edge, 0.0) * 9.0) * (edge < 0)
    elif kind == "granuloma":
        x, y = scene.locate(side, rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.8), 0.5)
        scene.attenuation += 0.6 * ramp(1.0 - _radius(scene, x, y, 0.016, 0.016), 0.8)
    elif kind == "crossing":
        x, y = scene.locate(side, rng.uniform(0.3, 0.7), rng.uniform(0.5, 0.9), 0.5)
        scene.attenuation += 0.5 * RIB * np.exp(-_radius(scene, x, y, 0.04, 0.03))
    else:
        points = [(rng.uniform(-0.5, -0.3), -1.0), (rng.uniform(-0.45, -0.25), -0.6)]
        line = draw_lines(lung.shape[0], [_smooth([*points, (-0.3, -0.45)])], [0.035], [255])
        scene.attenuation += 0.15 * line


_DEFORM: dict[int, Callable[[Shape, Finding], Shape]] = {
    labels.CARDIOMEGALY: _enlarge_heart,
    labels.EMPHYSEMA: _inflate,
    labels.ELEVATION: _raise_diaphragm,
    labels.ATELECTASIS: _collapse,
    labels.EFFUSION: _push,
    labels.PNEUMOTHORAX: _push,
    labels.SCOLIOSIS: _bend,
    labels.FRACTURE: _break_ribs,
}

_DRAW: dict[int, Callable[[Scene, Finding, Part], np.ndarray]] = {
    labels.ATELECTASIS: _draw_atelectasis,
    labels.CARDIOMEGALY: _draw_heart,
    labels.CONSOLIDATION: _draw_consolidation,
    labels.EDEMA: _draw_edema,
    labels.EFFUSION: _draw_effusion,
    labels.PNEUMOTHORAX: _draw_pneumothorax,
    labels.NODULE: _draw_nodule,
    labels.FRACTURE: _draw_fracture,
    labels.DEVICE: _draw_device,
    labels.EMPHYSEMA: _draw_emphysema,
    labels.HERNIA: _draw_hernia,
    labels.THICKENING: _draw_thickening,
    labels.SCOLIOSIS: _draw_scoliosis,
    labels.ELEVATION: _draw_elevation,
}
__all__ = ["MIDLINE", "Finding", "Part", "deform", "draw", "draw_mimic", "draw_order"]
