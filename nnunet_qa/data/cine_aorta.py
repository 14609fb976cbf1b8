"""The great vessels of a transverse slice, drawn to areas that are designed first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_qa.data.cine_look import Look, plane, texture
from nnunet_qa.data.cine_shape import border_level, smallest_pixels, soft

_RANGES: Mapping[str, tuple[tuple[float, float], ...]] = {
    # smallest area of the ascending aorta in mm², its strain, that of the descending one
    "normal": ((450, 900), (0.14, 0.34), (0.16, 0.36)),
    "stiff": ((600, 1100), (0.02, 0.07), (0.03, 0.09)),
    "aneurysm": ((1350, 2300), (0.03, 0.12), (0.08, 0.2)),
}


@dataclass(frozen=True)
class AorticVessels:
    """Anatomy and pulse of one subject; mm from the slice's middle, down and right.

    Attributes:
        areas: of ascending_aorta and descending_aorta, `(frames,)` in mm².
        beat_s: length of the heartbeat in seconds.
        ascending: place.
        descending: place.
        others: of the vessels that are not the aorta: place, half axes, angle.
        lobes: amplitudes and angles of the aorta's harmonics 2 and 3.
        pulse: `(frames,)` 0 to 1, how fast blood flows.
        move: how far the ascending aorta moves in systole.
    """

    areas: Mapping[str, np.ndarray]
    beat_s: float
    ascending: np.ndarray
    descending: np.ndarray
    others: np.ndarray
    lobes: np.ndarray
    pulse: np.ndarray
    move: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, *, disease: str, frames: int) -> AorticVessels:
        """Draw a subject."""
        least, strain, strain_down = (rng.uniform(*limits) for limits in _RANGES[disease])
        least_down = min(least, 900) * rng.uniform(0.42, 0.68)
        rise, fall = rng.uniform(0.2, 0.3), rng.uniform(0.2, 0.4)
        delay = rng.uniform(0.01, 0.04)
        ascending = np.array([rng.normal(-22, 5), rng.normal(-12, 6)])
        radius = float(np.sqrt(least / np.pi))
        trunk = ascending + (radius + rng.uniform(13, 17)) * _direction(rng.normal(-0.1, 0.3))
        cava = ascending + (radius + rng.uniform(10, 13)) * _direction(np.pi + rng.normal(-0.2, 0.3))
        branch = ascending + (radius + rng.uniform(10, 13)) * _direction(np.pi / 2 + rng.normal(0, 0.2))
        return cls(
            areas={
                "ascending_aorta": least * (1 + strain * _pulse(frames, rise, fall, 0.0)),
                "descending_aorta": least_down * (1 + strain_down * _pulse(frames, rise, fall, delay)),
            },
            beat_s=rng.uniform(0.7, 1.15),
            ascending=ascending,
            descending=np.array([rng.normal(42, 5), rng.normal(14, 5)]),
            others=np.array(
                [
                    [*trunk, rng.uniform(10, 14), rng.uniform(12, 19), rng.uniform(0, 3.1)],
                    [*cava, rng.uniform(5, 9), rng.uniform(6, 9), rng.uniform(0, 3.1)],
                    [*branch, rng.uniform(6, 9), rng.uniform(15, 26), rng.normal(0, 0.2)],
                ]
            ),
            lobes=np.column_stack([rng.normal(0, (0.04, 0.02)), rng.uniform(0, 6.3, 2)]),
            pulse=_pulse(frames, 0.12, 0.12, 0.0),
            move=rng.normal(0, 2.5, size=2),
        )


def _direction(angle: float) -> np.ndarray:
    return np.array([np.sin(angle), np.cos(angle)])


def _pulse(frames: int, rise: float, fall: float, delay: float) -> np.ndarray:
    """0 in frame 0, quickly to 1, and with a fading exponential back to 0 where the next beat begins."""
    time = np.clip(np.arange(frames) / frames - delay, 0, None)
    up = np.clip(time / rise, 0, 1)
    down = np.clip(time - rise, 0, None)
    left = np.exp(-(1 - rise) / fall)
    curve = np.where(time <= rise, up * up * (3 - 2 * up), (np.exp(-down / fall) - left) / (1 - left))
    return np.asarray(curve / curve.max())


def draw_vessels(
    rng: np.random.Generator,
    vessels: AorticVessels,
    look: Look,
    *,
    place: np.ndarray,
    spacing: tuple[float, ...],
    clean: np.ndarray,
) -> np.ndarray:
    """Draw the vessels into the chest.

    Args:
        rng: source of all chance.
        vessels: of the subject.
        look: of the acquisition.
        place: of the vessels' middle, down and right of the image's, in mm.
        spacing: of rows and columns in mm.
        clean: `(frames, 1, rows, columns)` float32, the chest; changed in place.

    Returns:
        The mask, uint8: 1 ascending, 2 descending aorta.

    Raises:
        ValueError: the vessels do not fit into the field of view.
    """
    picture = clean[:, 0]
    down, right = plane(clean.shape[2:], spacing, place)
    for y, x, short, long, angle in vessels.others:
        along = (right - x) * np.cos(angle) + (down - y) * np.sin(angle)
        across = (down - y) * np.cos(angle) - (right - x) * np.sin(angle)
        level = (np.hypot(along / long, across / short) - 1) * short
        swell = 1.5 * vessels.pulse[:, None, None]
        _over(picture, soft(level, 1.5 + swell, look.edge), look.muscle)
        _over(picture, soft(level, swell, look.edge), _blood(rng, vessels, look, picture.shape))
    mask = np.zeros(picture.shape, dtype=np.uint8)
    centres = {"ascending_aorta": vessels.ascending, "descending_aorta": vessels.descending}
    for value, (name, centre) in enumerate(centres.items(), start=1):
        move = vessels.pulse[:, None] * (vessels.move if value == 1 else 0.2 * vessels.move)
        y = down[None] - centre[0] - move[:, 0, None, None]
        x = right[None] - centre[1] - move[:, 1, None, None]
        angle = np.arctan2(y, x)
        form = 1 + sum(amount * np.cos(n * (angle - at)) for n, (amount, at) in enumerate(vessels.lobes, 2))
        level = np.hypot(y, x) - np.sqrt(vessels.areas[name] / np.pi)[:, None, None] * form
        counts = np.rint(vessels.areas[name] / (spacing[0] * spacing[1])).astype(int)
        chosen = smallest_pixels(level, counts, mask == 0)
        border = border_level(level, chosen)
        _over(picture, soft(level, border + 2.0, look.edge), look.muscle)
        _over(picture, soft(level, border, look.edge), _blood(rng, vessels, look, picture.shape))
        mask[chosen] = value
    return mask[:, None]


def _blood(rng: np.random.Generator, vessels: AorticVessels, look: Look, shape: tuple[int, ...]) -> np.ndarray:
    """Blood that grows dark and patchy where it flows fast."""
    void = look.flow * (0.3 + 2.5 * vessels.pulse[:, None, None])
    return np.asarray(1 - void * (0.6 + 0.6 * texture(rng, shape, (3, 3, 3))).clip(0, 2))


def _over(picture: np.ndarray, part: np.ndarray, brightness: np.ndarray | float) -> None:
    picture[...] = picture * (1 - part) + brightness * part
