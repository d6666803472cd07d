"""The healthy thorax as a map of X-ray attenuation, frontal and lateral.

Coordinates: x to the right and y down, both in [-1, 1] over the image; lengths are in half image
widths. The frontal image is seen from the front, so the patient's right lung lies at x < 0. The map is
what a line through the body absorbs (negative logarithm of the transmitted fraction): tissue adds, air
in the lungs subtracts, so findings and overlapping structures superimpose as they do in a radiograph.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from tfds_builders.synthetic_cxr.labels import LEFT, RIGHT

Coordinate = np.ndarray | np.float32

BODY, AIR, HEART, SPINE, RIB = 2.5, 1.75, 0.80, 0.42, 0.27
"""Peak attenuation of soft tissue, aerated lung (subtracted), heart, spine and one rib."""

RIBS = 10


@dataclasses.dataclass(frozen=True)
class Shape:
    """One patient's build; what a finding deforms is deformed with `dataclasses.replace`."""

    thorax: float  # half width of the rib cage at its widest
    apex: float  # y of the lung apices
    base: tuple[float, float]  # y of the dome of the right and left hemidiaphragm
    dome: float  # depth of the costophrenic angle below the dome
    heart: float  # cardiothoracic ratio: heart width / rib cage width
    heart_y: float
    heart_tilt: float  # radians
    mediastinum: float  # half width
    aorta: float  # radius of the aortic knob
    rib_first: float  # y of the first rib at the spine
    rib_spacing: float
    rib_slope: float
    rib_width: float
    curve: float  # lateral bend of the spine, positive to the patient's left
    curve_phase: float
    shift: float  # displacement of the mediastinum, positive to the patient's left
    breast: float  # attenuation of the breast shadows
    breast_y: float
    fat: float  # thickness of the soft tissue outside the ribs
    lucency: float  # air content of the lungs, 1 in the average patient
    vessels: float  # strength of the vessel markings
    depth: float  # half depth of the thorax, seen in the lateral view
    gas: float  # size of the stomach bubble
    texture: int  # seed of the vessel tree
    breaks: tuple[tuple[int, int, float, float], ...] = ()  # (side, rib, v, step) of broken ribs


@dataclasses.dataclass
class Scene:
    """A view being composed. All maps are [H, W] float32.

    Attributes:
        view: "PA" or "LATERAL".
        shape: the (deformed) anatomy that is drawn.
        x, y: coordinate axes, [1, W] and [H, 1].
        attenuation: the map that the findings change.
        lung: 1 inside the lungs, soft at the border.
        wall: distance to the chest wall, positive inside the lung.
        above: (right, left) height above that hemidiaphragm, positive inside the lung.
        vessels: the vessel markings contained in `attenuation`.
        across: frontal: distance from the midline; lateral: distance behind the sternum.
        patient_left: 1 where a frontal pixel belongs to the patient's left; 0.5 in a lateral view.
        ribs: the rib shadows contained in `attenuation`.
    """

    view: str
    shape: Shape
    x: np.ndarray
    y: np.ndarray
    attenuation: np.ndarray
    lung: np.ndarray
    wall: np.ndarray
    above: tuple[np.ndarray, np.ndarray]
    vessels: np.ndarray
    across: np.ndarray
    patient_left: np.ndarray
    ribs: np.ndarray

    @property
    def pixel(self) -> float:
        """Side of a pixel."""
        return 2.0 / self.attenuation.shape[0]

    def lung_of(self, side: int) -> np.ndarray:
        """Soft mask of one lung; in the lateral view the two lungs coincide."""
        if self.view == "LATERAL":
            return self.lung
        return self.lung * (self.patient_left if side == LEFT else 1.0 - self.patient_left)

    def above_of(self, side: int) -> np.ndarray:
        """Height above the hemidiaphragm of `side`."""
        return self.above[int(side == LEFT)]

    def locate(self, side: int, height: float, lateral: float, depth: float) -> tuple[float, float]:
        """Position (x, y) of a point of a lung in this view.

        Args:
            side: RIGHT or LEFT.
            height: 0 at the apex, 1 at the base.
            lateral: 0 at the mediastinum, 1 at the side wall.
            depth: 0 in front, 1 at the back.
        """
        shape = self.shape
        base = shape.base[int(side == LEFT)]
        y = shape.apex + height * (base - shape.apex)
        if self.view == "LATERAL":
            front, back = side_walls(shape, np.float32(y))
            return float(front + (0.12 + 0.76 * depth) * (back - front)), y
        inner, outer = lung_borders(shape, np.float32(y))
        sign = 1.0 if side == LEFT else -1.0
        return float(midline(shape, np.float32(y)) + sign * (inner + lateral * (outer - inner))), y


def sample_shape(rng: np.random.Generator, *, female: bool, age: int, spread: float = 1.0) -> Shape:
    """Draws a patient's anatomy; the healthy spread overlaps with mild disease on purpose.

    Args:
        rng: source of the draws.
        female: adds breasts and narrows the thorax.
        age: in years.
        spread: factor on the differences between patients.
    """

    def normal() -> float:
        return spread * float(rng.standard_normal())

    base = 0.40 + 0.045 * normal()
    thorax = 0.735 + 0.03 * normal() - 0.02 * female
    return Shape(
        thorax=thorax,
        apex=-0.76 + 0.03 * normal(),
        base=(base, base + 0.045 + 0.02 * normal()),
        dome=0.15 + 0.02 * normal(),
        heart=float(np.clip(0.435 + 0.0006 * (age - 50) + 0.026 * normal(), 0.37, 0.5)),
        heart_y=0.22 + 0.02 * normal(),
        heart_tilt=0.62 + 0.12 * normal(),
        mediastinum=0.135 + 0.013 * normal(),
        aorta=0.085 + 0.012 * normal() + 0.0004 * (age - 50),
        rib_first=-0.75 + 0.02 * normal(),
        rib_spacing=0.137 + 0.006 * normal(),
        rib_slope=0.2 + 0.03 * normal(),
        rib_width=0.027 + 0.003 * normal(),
        curve=0.010 * normal(),
        curve_phase=rng.uniform(-0.5, 0.5),
        shift=0.008 * normal(),
        breast=rng.uniform(0.12, 0.4) if female else 0.0,
        breast_y=0.32 + 0.05 * normal(),
        fat=float(np.clip(0.15 + 0.03 * normal(), 0.08, 0.24)),
        lucency=1.0 + 0.04 * normal(),
        vessels=float(np.clip(1.0 + 0.18 * normal(), 0.5, 1.5)),
        depth=0.55 + 0.03 * normal(),
        gas=rng.uniform(0.05, 0.15),
        texture=int(rng.integers(1 << 31)),
    )


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """0 outside, 1 inside, linear over `width` around the border where `distance` is 0."""
    return np.clip(distance * (1.0 / width) + 0.5, 0.0, 1.0)


def midline(shape: Shape, y: Coordinate) -> np.ndarray:
    """x of the middle of the spine at height y."""
    bend = shape.curve * (np.cos(2.6 * (y + 0.1) + shape.curve_phase) - 0.35)
    return np.asarray(bend, np.float32)


def lung_borders(shape: Shape, y: Coordinate) -> tuple[np.ndarray, np.ndarray]:
    """Distances from the midline of the inner and outer border of a lung at height y (frontal)."""
    t = np.clip((y - shape.apex) / (0.25 - shape.apex), 0.0, 1.0)
    tip = 0.42 * shape.thorax
    rise = np.sqrt(1.0 - (1.0 - t) ** 2.4)
    outer = tip + (shape.thorax - tip) * rise + 0.03 * np.maximum(y - 0.25, 0.0)
    inner = tip - (tip - shape.mediastinum * 0.9) * np.minimum(1.0, 1.6 * np.sqrt(t))
    above_apex = np.maximum(shape.apex - y, 0.0) * 10.0
    return inner + above_apex, outer - above_apex


def side_walls(shape: Shape, y: Coordinate) -> tuple[np.ndarray, np.ndarray]:
    """x of the front and back wall of the lungs at height y (lateral view; the front is at the left)."""
    t = np.clip((y - shape.apex) / (0.30 - shape.apex), 0.0, 1.0)
    rise = np.sqrt(1.0 - (1.0 - t) ** 2.2)
    front = 0.05 - (shape.depth + 0.02) * rise
    back = 0.18 + (shape.depth - 0.10) * rise
    return front, back


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    ticks = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    return ticks[None, :], ticks[:, None]


def _to_pixels(points: np.ndarray, size: int) -> np.ndarray:
    """Points in [-1, 1] to cv2 fixed-point pixel coordinates with 4 fractional bits."""
    return np.round(((points + 1.0) * (size / 2.0) - 0.5) * 16.0).astype(np.int32)


def draw_lines(
    size: int, lines: list[np.ndarray], thickness: list[float], strength: list[int]
) -> np.ndarray:
    """Draws polylines, given in [-1, 1] as [n, 2], into a float map [size, size] in [0, 1]."""
    canvas = np.zeros((size, size), np.uint8)
    for line, width, value in zip(lines, thickness, strength, strict=True):
        pixels = max(1, round(width * size / 2.0))
        cv2.polylines(canvas, [_to_pixels(line, size)], False, value, pixels, cv2.LINE_AA, 4)
    return canvas.astype(np.float32) * (1.0 / 255.0)


def _vessel_tree(shape: Shape, hila: list[tuple[float, float, float]], size: int) -> np.ndarray:
    """Branching vessels that leave each hilum (x, y, sign of the outward direction)."""
    rng = np.random.default_rng(shape.texture)
    lines, thickness, strength = [], [], []
    steps = 7
    for hx, hy, sign in hila:
        angles = np.linspace(-1.35, 1.35, 11) + rng.normal(0.0, 0.12, 11)
        for generation in range(2):
            turn = rng.normal(0.0, 0.3, (angles.size, steps)).cumsum(1)
            heading = angles[:, None] + turn * (0.5 if generation == 0 else 0.8)
            length = (0.095 if generation == 0 else 0.06) * rng.uniform(0.75, 1.25, angles.size)
            px = hx + sign * (np.cos(heading) * length[:, None]).cumsum(1)
            py = hy + (np.sin(heading) * length[:, None] * 1.15).cumsum(1)
            if generation == 0:
                px = np.concatenate([np.full((angles.size, 1), hx), px], 1)
                py = np.concatenate([np.full((angles.size, 1), hy), py], 1)
            points = np.stack([px, py], -1)
            for path in points:
                lines += [path[:3], path[2:5], path[4:]]
                thickness += [0.02, 0.012, 0.008] if generation == 0 else [0.01, 0.008, 0.006]
                strength += [230, 180, 120] if generation == 0 else [140, 110, 80]
            start = rng.integers(2, 5, angles.size)
            hx = points[np.arange(angles.size), start, 0][:, None]
            hy = points[np.arange(angles.size), start, 1][:, None]
            angles = angles + rng.choice([-0.7, 0.7], angles.size)
    return cv2.GaussianBlur(draw_lines(size, lines, thickness, strength), (3, 3), 0.7)


def _rib_bands(shape: Shape, rows: np.ndarray, v: np.ndarray, soft: float) -> np.ndarray:
    """Profile of rib shadows around integer rows: brighter at the cortex, 0 between ribs."""
    number = np.rint(rows)
    distance = np.abs(rows - number) * (shape.rib_spacing / shape.rib_width)
    band = ramp(1.0 - distance, soft / shape.rib_width) * (0.65 + 0.5 * np.minimum(distance, 1.0))
    band *= (number >= 0) & (number < RIBS) & (v > 0.08)
    return band


def _frontal_ribs(shape: Shape, y: np.ndarray, across: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Rib shadows of the frontal view: posterior arcs, and fainter anterior arcs that cross them."""
    soft = 0.012 + 2.0 / y.size
    v = across * (1.0 / shape.thorax)
    fall = shape.rib_slope * v * (0.35 + 0.9 * v * v)
    rows = (y - shape.rib_first - fall) * (1.0 / shape.rib_spacing)
    for side, rib, place, step in shape.breaks:
        mine = left if side == LEFT else ~left
        near = mine & (np.abs(rows - rib) < 0.5)
        rows = np.where(near & (v > place), rows + step / shape.rib_spacing, rows)
    posterior = _rib_bands(shape, rows, v, soft)
    for side, rib, place, _ in shape.breaks:
        mine = left if side == LEFT else ~left
        gap = mine & (np.abs(rows - rib) < 0.5) & (np.abs(v - place) < 0.03)
        posterior = np.where(gap, 0.15 * posterior, posterior)
    end = shape.rib_slope * 1.25
    rows = (y - shape.rib_first - end - 0.50 * (1.02 - v)) * (1.0 / shape.rib_spacing)
    anterior = _rib_bands(shape, rows, v, soft) * (rows < 6.5) * np.clip((v - 0.35) * 4.0, 0.0, 1.0)
    return (posterior + 0.6 * anterior) * ramp(1.06 - v, 0.04)


def _clavicles(shape: Shape, y: np.ndarray, across: np.ndarray) -> np.ndarray:
    """S-shaped bands from the sternum upwards to the shoulders."""
    v = across * (1.0 / shape.thorax)
    middle = shape.apex + 0.20 - 0.13 * v - 0.035 * np.sin(4.5 * v)
    return ramp(0.034 + 0.012 * v - np.abs(y - middle), 0.02) * (v > 0.08) * ramp(1.35 - v, 0.1)


def _heart(shape: Shape, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Heart and great vessels of the frontal view, in units of the heart's peak attenuation."""
    half = shape.heart * shape.thorax
    cx = 0.30 * half + shape.shift
    cos, sin = np.cos(shape.heart_tilt), np.sin(shape.heart_tilt)
    # Half width of the tilted ellipse with half axes 1.14 r and 0.88 r is `half`.
    r = half / np.sqrt((1.14 * cos) ** 2 + (0.88 * sin) ** 2)
    dx, dy = x - cx, y - shape.heart_y
    long = (dx * cos + dy * sin) * (1.0 / (1.14 * r))
    short = (dy * cos - dx * sin) * (1.0 / (0.88 * r))
    inside = 1.0 - long * long - short * short
    heart = 0.55 * ramp(inside, 0.10) + 0.45 * np.sqrt(np.clip(inside, 0.0, 1.0))
    # The right atrium gives the heart its convex border on the patient's right.
    dx, dy = (x - cx + 0.56 * half) / (0.44 * half), (y - shape.heart_y - 0.02) / (0.62 * half)
    inside = 1.0 - dx * dx - dy * dy
    return np.maximum(heart, 0.8 * ramp(inside, 0.3)) * ramp(shape.base[1] + 0.06 - y, 0.16)


def frontal_scene(shape: Shape, size: int) -> Scene:
    """Composes the frontal (PA) view, [size, size]."""
    x, y = _axes(size)
    soft = 0.015 + 2.0 / size
    middle = midline(shape, y)
    offset = x - middle
    across, left = np.abs(offset), offset > 0
    inner, outer = lung_borders(shape, y)
    wall = np.minimum(outer - across, 1.2 * (y - shape.apex) + 0.02)
    curve = shape.dome * ((across - 0.40 * shape.thorax) * (1.0 / (0.57 * shape.thorax))) ** 2
    height = curve - y
    right_base, left_base = shape.base
    own = height + np.where(left, np.float32(left_base), np.float32(right_base))
    depth = np.minimum(np.minimum(wall, 0.6 * (across - inner)), own)
    lung = ramp(depth, soft)
    attenuation = _trunk(shape, x, y)
    attenuation *= 1.0 + 0.22 * ramp(-own, 0.05)  # the abdomen is denser than the chest wall
    gas = ((x - 0.36) / 0.2) ** 2 + ((y - left_base - 0.13) / shape.gas) ** 2
    attenuation -= 0.5 * np.clip(1.2 - gas, 0.0, 1.0) * (own < 0)
    air = lung * (0.55 + 0.45 * np.sqrt(np.clip(depth * 3.6, 0.0, 1.0)))
    heart = _heart(shape, offset, y)
    air *= 1.0 - 0.38 * heart  # the heart takes the place of lung
    attenuation -= (AIR * shape.lucency) * air
    attenuation += _mediastinum(shape, x, y, offset)
    attenuation += HEART * heart
    ribs = RIB * _frontal_ribs(shape, y, across, left)
    attenuation += ribs + 0.2 * _clavicles(shape, y, across)
    hila = [(-0.17 + shape.shift, 0.02, -1.0), (0.19 + shape.shift, -0.03, 1.0)]
    vessels = (0.5 * shape.vessels) * _vessel_tree(shape, hila, size) * lung
    attenuation += vessels
    if shape.breast:
        for sign in (-1.0, 1.0):
            inside = ((x - sign * 0.42) / 0.34) ** 2 + ((y - shape.breast_y) / 0.27) ** 2
            attenuation += shape.breast * np.sqrt(np.clip(1.0 - inside, 0.0, 1.0))
    above = (height + np.float32(right_base), height + np.float32(left_base))
    patient_left = left.astype(np.float32)
    return Scene(
        "PA", shape, x, y, attenuation, lung, wall, above, vessels, across, patient_left, ribs
    )


def _trunk(shape: Shape, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Soft tissue of trunk, shoulders and neck of the frontal view."""
    shoulder = 0.55 / (1.0 + np.exp((y + 0.52) / 0.05))
    half = shape.thorax + shape.fat + 0.06 * y + shoulder
    span = np.abs(x) * (1.0 / half)
    top = -1.02 + 0.42 * np.clip(np.abs(x) - 0.22, 0.0, 1.0) ** 0.8
    thick = 0.5 + 0.5 * np.sqrt(np.clip(1.0 - span * span, 0.0, 1.0))
    return (BODY * thick * ramp(1.0 - span, 0.05) * ramp(y - top, 0.06)).astype(np.float32)


def _mediastinum(shape: Shape, x: np.ndarray, y: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Spine, mediastinal soft tissue, aortic knob, hila and the dark trachea (frontal)."""
    across = np.abs(offset)
    discs = 0.8 + 0.2 * np.tanh(3.0 * np.sin(2.0 * np.pi * y / (0.9 * shape.rib_spacing)) + 2.0)
    out = SPINE * discs * ramp(0.085 - across, 0.03)
    moved = offset - shape.shift * ramp(y + 0.3, 0.6)
    out += 0.55 * ramp(shape.mediastinum - np.abs(moved), 0.06) * ramp(0.02 - y, 0.35)
    knob = ((moved - 0.105) / shape.aorta) ** 2 + ((y + 0.27) / (1.15 * shape.aorta)) ** 2
    out += 0.5 * ramp(1.0 - knob, 0.5)
    trachea = ramp(0.042 - np.abs(offset - 0.3 * shape.shift), 0.02) * ramp(-0.14 - y, 0.1)
    out -= 0.42 * trachea
    for hx, hy in ((-0.19, 0.03), (0.21, -0.02)):
        spread = ((offset - hx - shape.shift) / 0.085) ** 2 + ((y - hy) / 0.13) ** 2
        out += 0.34 * np.exp(-spread)
    return out


def lateral_scene(shape: Shape, size: int) -> Scene:
    """Composes the left lateral view, [size, size]; the sternum is at the left."""
    x, y = _axes(size)
    soft = 0.015 + 2.0 / size
    front, back = side_walls(shape, y)
    wall = np.minimum(np.minimum(x - front, back - x), y - shape.apex)
    across = x - front
    curve = shape.dome * 1.5 * ((x + 0.12) * (1.0 / (0.95 * shape.depth))) ** 2 * np.sign(x + 0.12)
    curve = np.where(x > -0.12, curve, -0.3 * curve)
    height = curve - y
    above = (height + np.float32(shape.base[0]), height + np.float32(shape.base[1]))
    both = np.minimum(above[0], above[1])
    depth = np.minimum(wall, np.maximum(above[0], above[1]))
    lung = ramp(depth, soft)
    one = ramp(np.minimum(wall, both), soft)
    air = 0.5 * (lung + one) * (0.5 + 0.5 * np.sqrt(np.clip(depth * 2.6, 0.0, 1.0)))
    attenuation = _side_trunk(shape, x, y)
    attenuation *= 1.0 + 0.15 * ramp(-both, 0.05)
    attenuation -= (AIR * shape.lucency) * air
    attenuation += _side_mediastinum(shape, x, y, back)
    ribs = (0.75 * RIB) * _lateral_ribs(shape, x, y, front, back)
    attenuation += ribs
    hila = [(0.02, 0.0, 1.0), (0.0, 0.0, -1.0)]
    vessels = (0.42 * shape.vessels) * _vessel_tree(shape, hila, size) * lung
    attenuation += vessels
    if shape.breast:
        inside = ((x + shape.depth + 0.1) / 0.26) ** 2 + ((y - shape.breast_y) / 0.27) ** 2
        attenuation += shape.breast * np.sqrt(np.clip(1.0 - inside, 0.0, 1.0))
    half = np.full_like(lung, 0.5)
    return Scene(
        "LATERAL", shape, x, y, attenuation, lung, wall, above, vessels, across, half, ribs
    )


def _side_trunk(shape: Shape, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Soft tissue of the lateral view, with the raised arms at the top."""
    front, back = side_walls(shape, np.maximum(y, -0.5))
    skin = np.minimum(x - front + 0.6 * shape.fat, back - x + 0.24 + 0.5 * shape.fat)
    thick = 0.55 + 0.45 * np.sqrt(np.clip(skin * 1.7, 0.0, 1.0))
    arms = ramp(-0.62 - y - 0.2 * np.abs(x + 0.1), 0.25)
    return (1.08 * BODY * ramp(skin, 0.05) * (thick + 0.12 * arms)).astype(np.float32)


def _side_mediastinum(shape: Shape, x: np.ndarray, y: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Spine, heart, aortic arch, hilum, trachea and sternum of the lateral view."""
    column = back - 0.02 + 0.05 * np.sin(2.0 * y) + 0.3 * abs(shape.curve)
    discs = 0.7 + 0.3 * np.tanh(3.0 * np.sin(2.0 * np.pi * y / (0.95 * shape.rib_spacing)) + 1.5)
    fade = 1.0 - 0.25 * ramp(y, 1.2)  # the spine darkens downwards where the lungs are thickest
    out = (
        (SPINE * 1.3)
        * discs
        * fade
        * ramp(0.11 + 0.4 * abs(shape.curve) - np.abs(x - column), 0.05)
    )
    half = shape.heart * shape.thorax
    dx, dy = x + 0.20, y - shape.heart_y - 0.02
    long, short = (dx * 0.8 - dy * 0.6) / (1.0 * half), (dy * 0.8 + dx * 0.6) / (1.12 * half)
    inside = 1.0 - long * long - short * short
    out += 0.9 * HEART * (0.5 * ramp(inside, 0.12) + 0.5 * np.sqrt(np.clip(inside, 0.0, 1.0)))
    arch = np.abs(np.sqrt((x - 0.10) ** 2 + (y + 0.12) ** 2) - 0.22)
    out += 0.28 * ramp(shape.aorta * 0.85 - arch, 0.05) * ramp(-0.02 - y, 0.1)
    out += 0.3 * np.exp(-(((x - 0.03) / 0.1) ** 2) - ((y - 0.0) / 0.12) ** 2)
    out -= 0.3 * ramp(0.045 - np.abs(x - 0.06 - 0.12 * (y + 0.5)), 0.03) * ramp(-0.02 - y, 0.1)
    front, _ = side_walls(shape, y)
    sternum = ramp(0.03 - np.abs(x - front + 0.03), 0.03) * ramp(0.3 - y, 0.1) * ramp(y + 0.6, 0.1)
    return out + 0.3 * sternum


def _lateral_ribs(
    shape: Shape, x: np.ndarray, y: np.ndarray, front: np.ndarray, back: np.ndarray
) -> np.ndarray:
    """Rib shadows of the lateral view: two sets of oblique bands, of the near and the far side."""
    soft = 0.012 + 2.0 / y.size
    v = (back + 0.05 - x) * (1.0 / (2.0 * shape.depth))
    out = 0.0
    for shift in (0.0, 0.4):
        fall = 0.62 * v - 0.1 * v * v
        rows = (y - shape.rib_first + 0.05 - fall) * (1.0 / shape.rib_spacing) - shift
        for side, rib, place, step in shape.breaks:
            if (side == RIGHT) == (shift == 0.0):
                near = (np.abs(rows - rib) < 0.5) & (v > place)
                rows = np.where(near, rows + step / shape.rib_spacing, rows)
        out = out + _rib_bands(shape, rows, v + 0.1, soft)
    fade = ramp(shape.base[0] + 0.1 - y, 0.5)
    return out * fade * ramp(x - front + 0.05, 0.05) * ramp(back + 0.08 - x, 0.05)


def compose(shape: Shape, view: str, size: int) -> Scene:
    """Composes one view of the anatomy, [size, size]."""
    return frontal_scene(shape, size) if view == "PA" else lateral_scene(shape, size)
