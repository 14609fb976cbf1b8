"""A drawn heart in short-axis slices: volumes first, then the area of each slice, then pixels to that area."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_qa.data.cine_look import Look, plane, texture
from nnunet_qa.data.cine_shape import border_level, smallest_pixels, soft

_CROP = 96.0  # mm around the left ventricle, enough for the largest right one; only there anything is drawn
_DENSITY = 1.05  # g/mL of myocardium
_RANGES: Mapping[str, tuple[tuple[float, float], ...]] = {
    # LV end-diastolic volume in mL, LV and RV ejection fraction, mass in g
    "normal": ((105, 190), (0.55, 0.70), (0.50, 0.62), (75, 135)),
    "dilated": ((200, 310), (0.18, 0.40), (0.35, 0.55), (120, 200)),
    "hypertrophic": ((90, 150), (0.62, 0.78), (0.50, 0.65), (160, 260)),
    "rv_dilated": ((90, 150), (0.50, 0.65), (0.26, 0.42), (75, 125)),
    "infarct": ((140, 220), (0.30, 0.48), (0.45, 0.60), (100, 160)),
}


@dataclass(frozen=True)
class HeartDesign:
    """Areas to draw, exact before rounding to pixels.

    Attributes:
        areas: of lv, myocardium and rv, `(frames, slices)` in mm².
        whole: the same, had the plane of the valves not cut anything off.
        depth: of each slice, 0 at the base and 1 at the apex of the ventricle, `(frames, slices)`.
        cut: `(frames, slices)` where the plane of the valves crosses the slice, −1 (all atrium) to 1 (all ventricle).
    """

    areas: Mapping[str, np.ndarray]
    whole: Mapping[str, np.ndarray]
    depth: np.ndarray
    cut: np.ndarray


@dataclass(frozen=True)
class Heart:
    """Anatomy and beat of one subject; angles in radians, 0 to the right of the image and growing downwards.

    Attributes:
        lv: volume of the left ventricle, `(frames,)` in mL.
        rv: volume of the right ventricle, `(frames,)` in mL.
        muscle: volume of the left ventricle's myocardium in mL; it hardly changes over the beat.
        beat_s: length of the heartbeat in seconds.
        length: of the ventricle at end-diastole in mm.
        apex: place of the apex along the stack in mm, from the stack's upper end.
        descent: how far the base moves towards the apex in systole, in mm.
        plane: half of what the valve's plane covers along the stack, in mm, and its angle in the slice.
        septum: where the right ventricle lies.
        lobes: shape of the cavity: amplitudes and angles of its harmonics 2 to 5.
        thick: wall that is thicker or thinner on one side: amount, angle, width.
        still: wall that does not move: amount, angle, width.
        rv_shape: distance of the right ventricle's middle in epicardial radii, ratio of its axes, harmonic.
        flat: how much a dilated right ventricle flattens the septum.
        trabeculae: darkness of the trabeculae.
        fat: thickness of epicardial fat in mm.
        misplaced: standard deviation of where slices lie, in mm, from one held breath to the next.
        at: where the heart lies in the image, down and right of its middle, in mm.
    """

    lv: np.ndarray
    rv: np.ndarray
    muscle: float
    beat_s: float
    length: float
    apex: float
    descent: float
    plane: tuple[float, float]
    septum: float
    lobes: np.ndarray
    thick: tuple[float, float, float]
    still: tuple[float, float, float]
    rv_shape: tuple[float, float, float]
    flat: float
    trabeculae: float
    fat: float
    misplaced: float
    at: tuple[float, float]

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        *,
        disease: str,
        frames: int,
        height: float,
        beat: Callable[..., np.ndarray],
    ) -> Heart:
        """Draw a subject; both ventricles eject the same to 5%.

        Args:
            rng: source of all chance.
            disease: a key of the ranges above.
            frames: over one heartbeat.
            height: of the stack in mm.
            beat: `physiological_curve`.
        """
        edv, ef, rv_ef, mass = (rng.uniform(*limits) for limits in _RANGES[disease])
        stroke = edv * ef
        rv_edv = stroke * rng.uniform(0.95, 1.05) / rv_ef
        rv_stroke = rv_edv * rv_ef
        length = min(float(np.cbrt(edv / 140)) * rng.uniform(80, 94), height - 4)
        septum = float(np.pi + rng.normal(0.15, 0.35))
        systole = rng.uniform(0.3, 0.42)
        sick = {"infarct": 0.22, "dilated": 0.06}.get(disease, 0.0)
        infarct_at = rng.uniform(0, 2 * np.pi)
        thick = {"hypertrophic": (rng.uniform(0.15, 0.4), septum, 0.9), "infarct": (-0.1, infarct_at, 0.7)}
        return cls(
            lv=beat(frames, edv, edv - stroke, systole=systole),
            rv=beat(frames, rv_edv, rv_edv - rv_stroke, systole=systole),
            muscle=mass / _DENSITY,
            beat_s=rng.uniform(0.7, 1.15),
            length=length,
            apex=rng.uniform(max(length, 0.86 * height), max(length, 0.97 * height)),
            descent=rng.uniform(0.1, 0.17) * length * (0.5 + min(ef, 0.6)),
            plane=(rng.uniform(5, 9), rng.uniform(0, 2 * np.pi)),
            septum=septum,
            lobes=np.column_stack([rng.normal(0, (0.05, 0.03, 0.02, 0.012)), rng.uniform(0, 2 * np.pi, 4)]),
            thick=thick.get(disease, (rng.uniform(0.0, 0.1), septum, 1.0)),
            still=(sick, infarct_at, 0.75),
            rv_shape=(rng.uniform(0.85, 1.15), rng.uniform(1.2, 1.6), rng.uniform(-0.08, 0.08)),
            flat=rng.uniform(0.1, 0.25) if disease == "rv_dilated" else rng.uniform(0, 0.06),
            trabeculae=rng.uniform(0.2, 0.7),
            fat=rng.uniform(1.5, 9.0),
            misplaced=rng.uniform(0.2, 2.2),
            at=(rng.normal(-5, 9), rng.normal(12, 11)),
        )

    def places(self, rng: np.random.Generator, *, slices: int) -> np.ndarray:
        """Where the ventricle lies in each slice, `(slices, 2)` in mm: an oblique axis, breaths held differently."""
        along = np.linspace(-1, 1, slices)[:, None] * rng.normal(0, 4, size=2)
        return np.asarray(self.at) + along + rng.normal(0, self.misplaced, size=(slices, 2))

    def design(self, *, slices: int, slice_mm: float) -> HeartDesign:
        """Areas of all slices, that sum up to the volumes.

        Args:
            slices: of the stack.
            slice_mm: distance of slices in mm.
        """
        centre = (np.arange(slices) + 0.5) * slice_mm
        systole = (self.lv[0] - self.lv) / (self.lv[0] - self.lv.min())
        base = self.apex - self.length + self.descent * systole[:, None]
        depth = (centre[None] - base) / (self.apex - base)
        cut = np.clip((centre[None] - base) / self.plane[0], -1, 1)
        part = _part_of_disc(cut)
        within = np.clip(depth, 0, None)
        cavity = np.clip(1 - within**2.4, 0, None)
        cap = 1 + 9.0 / self.length
        wall = np.clip(1 - (within / cap) ** 3, 0, None) ** 0.6 * (1 - 0.2 * within)
        right = np.clip(1 - (within / 0.9) ** 1.7, 0, None) ** 0.7 * (1.2 - 0.3 * within)

        def scaled(profile: np.ndarray, volume: np.ndarray) -> np.ndarray:
            total = (profile * part).sum(axis=1) * slice_mm * 1e-3
            return np.asarray(profile * (volume / total)[:, None])

        muscle = np.full(len(self.lv), self.muscle)
        whole = {"lv": scaled(cavity, self.lv), "myocardium": scaled(wall, muscle), "rv": scaled(right, self.rv)}
        areas = {name: area * part for name, area in whole.items()}
        return HeartDesign(areas=areas, whole=whole, depth=depth, cut=cut)


def _part_of_disc(cut: np.ndarray) -> np.ndarray:
    """Part of a disc of radius 1 on one side of a line at distance `cut` from its middle."""
    return np.asarray(1 - (np.arccos(cut) - cut * np.sqrt(1 - cut**2)) / np.pi)


def draw_heart(
    rng: np.random.Generator,
    heart: Heart,
    design: HeartDesign,
    look: Look,
    *,
    places: np.ndarray,
    spacing: tuple[float, float, float],
    clean: np.ndarray,
) -> np.ndarray:
    """Draw the heart into the chest.

    Args:
        rng: source of all chance.
        heart: of the subject.
        design: areas of all slices.
        look: of the acquisition.
        places: `(slices, 2)` middle of the ventricle, down and right of the image's middle, in mm.
        spacing: `(z, y, x)` in mm.
        clean: `(frames, slices, rows, columns)` float32, the chest; changed in place.

    Returns:
        The mask, uint8: 1 left ventricle, 2 myocardium, 3 right ventricle.

    Raises:
        ValueError: the heart does not fit into the field of view.
    """
    mask = np.zeros(clean.shape, dtype=np.uint8)
    pixel = spacing[1] * spacing[2]
    counts = {name: np.rint(area / pixel).astype(int) for name, area in design.areas.items()}
    for index in range(clean.shape[1]):
        down, right = plane(clean.shape[2:], spacing[1:], places[index])
        rows, columns = (np.flatnonzero(np.abs(axis.ravel()) <= _CROP) for axis in (down, right))
        window = (slice(None), index, slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        shapes = _Shapes.of(rng, heart, design, index, down[rows], right[:, columns])
        lv = smallest_pixels(shapes.cavity, counts["lv"][:, index])
        muscle = smallest_pixels(shapes.outer, counts["myocardium"][:, index], ~lv)
        rv = smallest_pixels(shapes.right, counts["rv"][:, index], ~(lv | muscle))
        mask[window] = lv + 2 * muscle.astype(np.uint8) + 3 * rv.astype(np.uint8)
        _paint(rng, heart, look, shapes, (lv, muscle, rv), clean[window])
    return mask


@dataclass(frozen=True)
class _Shapes:
    """Levels of one slice, `(frames, rows, columns)` float32 in mm: the distance outwards from a border, nearly.

    `above` is negative on the atria's side of the valves, `polar` holds radius and angle around the ventricle's middle,
    `radius` that of the cavity, `depth` how near the apex the slice is (`(frames,)`).
    """

    cavity: np.ndarray
    outer: np.ndarray
    right: np.ndarray
    above: np.ndarray
    atria: np.ndarray
    polar: tuple[np.ndarray, np.ndarray]
    radius: np.ndarray
    depth: np.ndarray

    @classmethod
    def of(
        cls,
        rng: np.random.Generator,
        heart: Heart,
        design: HeartDesign,
        index: int,
        down: np.ndarray,
        right: np.ndarray,
    ) -> _Shapes:
        systole = _along((heart.lv[0] - heart.lv) / (heart.lv[0] - heart.lv.min()))
        down, right = (axis - systole * rng.normal(0, 1.2) for axis in (down, right))  # the heart moves as a whole
        rho, angle = np.hypot(down, right), np.arctan2(down, right)
        blood = _radius(design.whole["lv"][:, index])
        epi = _radius(design.whole["lv"][:, index] + design.whole["myocardium"][:, index])
        rv = _radius(design.whole["rv"][:, index])
        form = np.zeros_like(angle)
        for n, (amount, at) in enumerate(heart.lobes.tolist(), start=2):
            form += (amount + rng.normal(0, 0.012)) * np.cos(n * (angle - at))
        flat = heart.flat * _bump(angle, heart.septum, 0.8)
        still = heart.still[0] * systole * _bump(angle, *heart.still[1:])
        thick = heart.thick[0] * _bump(angle, *heart.thick[1:])
        off, ratio, harmonic = heart.rv_shape
        cos, sin = float(np.cos(heart.septum)), float(np.sin(heart.septum))
        along, across = right * cos + down * sin - off * epi, down * cos - right * sin
        around = np.arctan2(across, along)
        size = np.sqrt(along**2 * ratio + across**2 / ratio)
        cos, sin = float(np.cos(heart.plane[1])), float(np.sin(heart.plane[1]))
        line, cut = down * sin + right * cos, _along(design.cut[:, index])
        # through the middle of each ventricle, so that both are cut at the same time; not at all where cut is 1
        whole = np.where(cut >= 1, np.float32(-_CROP), np.float32(0))
        valve = line - cut * epi + whole
        tricuspid = line - off * epi * float(np.cos(heart.septum - heart.plane[1])) - 1.2 * cut * rv + whole
        swollen = _radius(design.whole["lv"].max(axis=0))[index] * (0.85 + 0.2 * systole)
        return cls(
            cavity=np.maximum(rho - blood * (1 + form - flat + still), valve),
            outer=np.maximum(rho - epi * (1 + 0.7 * form - 0.7 * flat + thick), valve),
            right=np.maximum(size / (1 + harmonic * np.cos(3 * around) + 0.1 * np.cos(around)) - rv, tricuspid),
            above=-np.minimum(valve, tricuspid),
            atria=np.minimum(rho - swollen * (1 + form), np.hypot(along, across) - 0.9 * swollen),
            polar=(rho, angle),
            radius=blood,
            depth=design.depth[:, index],
        )


def _along(values: np.ndarray) -> np.ndarray:
    """A value a frame as `(frames, 1, 1)` float32."""
    return values.astype(np.float32)[:, None, None]


def _radius(area: np.ndarray) -> np.ndarray:
    """Radius of discs in mm, `(frames, 1, 1)`."""
    return _along(np.sqrt(area / np.pi))


def _bump(angle: np.ndarray, at: float, width: float) -> np.ndarray:
    """1 at an angle and near 0 away from it."""
    return np.exp((np.cos(angle - at) - 1) / width**2)


def _paint(
    rng: np.random.Generator,
    heart: Heart,
    look: Look,
    shapes: _Shapes,
    drawn: tuple[np.ndarray, ...],
    picture: np.ndarray,
) -> None:
    """Paint one slice, from what lies behind to what lies before, into a view of the image."""
    rho, angle = shapes.polar
    # towards the apex the wall runs oblique to the slice, so that its borders blur
    edge = float(look.edge * (1 + 1.2 * np.clip(shapes.depth.mean(), 0, 1) ** 4))
    levels = (shapes.cavity, shapes.outer, shapes.right)
    borders = [border_level(level, part) for level, part in zip(levels, drawn, strict=True)]
    inside = soft(shapes.cavity, borders[0], edge)
    outside = soft(shapes.outer, borders[1], edge)
    right = soft(shapes.right, borders[2], edge)

    def over(part: np.ndarray, brightness: np.ndarray | float) -> None:
        picture[...] = picture * (1 - part) + brightness * part

    halo = np.minimum(shapes.outer - borders[1], shapes.right - borders[2])
    over(soft(halo, heart.fat * (1 + 0.6 * np.sin(2 * angle + heart.septum)), edge), look.fat)
    flow = 1 - look.flow * (1 + texture(rng, picture.shape, (4, 4, 4))).clip(0, 3)
    above = soft(shapes.above, 0.0, edge)
    over(soft(shapes.atria, 2.5, edge) * above, look.muscle)
    over(soft(shapes.atria, 0.0, edge) * above, flow)
    rv_wall = soft(shapes.right, borders[2] + 3.0, edge)
    over(rv_wall, look.muscle)
    ripple = _ripple(rng, angle)
    rough = heart.trabeculae * ripple
    over(right, flow - (flow - look.muscle) * rough * np.exp(-np.clip(borders[2] - shapes.right, 0, None) / 5.0))
    over(outside, look.muscle * (1 + 0.06 * texture(rng, picture.shape[1:], 2.0)))
    lining = rough * np.exp(-np.clip(borders[0] - shapes.cavity, 0, None) / 2.0) * 0.8
    over(inside, flow - (flow - look.muscle) * lining)
    over(_papillary(rng, heart, shapes, rho, angle) * inside, look.muscle)


def _ripple(rng: np.random.Generator, angle: np.ndarray) -> np.ndarray:
    """Where trabeculae lie around a wall: irregular waves, 0 to 1."""
    waves = sum(np.cos(n * angle + rng.uniform(0, 6.3)) for n in rng.integers(5, 19, size=5).tolist())
    return np.asarray(np.clip(0.4 + waves / 4, 0, 1))


def _papillary(
    rng: np.random.Generator, heart: Heart, shapes: _Shapes, rho: np.ndarray, angle: np.ndarray
) -> np.ndarray:
    """The two papillary muscles; they keep their size while the cavity around them shrinks, and end near the base."""
    within = (shapes.depth > 0.25) & (shapes.depth < 0.85)
    part = np.zeros_like(rho)
    for side in (1.0, -1.0):
        at = heart.septum + np.pi + side * rng.normal(1.0, 0.12)
        away = np.maximum(shapes.radius - rng.uniform(5, 8), 0.55 * shapes.radius)
        distance = np.sqrt(np.clip(rho**2 + away**2 - 2 * rho * away * np.cos(angle - at), 0, None))
        part = np.maximum(part, soft(distance, rng.uniform(2.5, 4.5), 2.0))
    return part * within[:, None, None]
