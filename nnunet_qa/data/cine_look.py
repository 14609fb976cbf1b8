"""What surrounds the heart in a cine MR image, and what the scanner does to it: chest, coil shading, ghosts, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_qa.data.cine_shape import soft


@dataclass(frozen=True)
class Look:
    """Brightness and artefacts of one acquisition; brightness is relative to blood, which is 1.

    Attributes:
        muscle: brightness of the myocardium.
        fat: of subcutaneous and epicardial fat.
        lung: of the lungs.
        liver: of liver and spleen.
        edge: width of a border in mm, from blurring.
        shading: strength of the coil's fall-off, as the logarithm of its range.
        shading_angle: from where the coil lights, in radians.
        noise: standard deviation of the noise.
        ghost: strength of the ghost of the beating heart along the rows.
        band: depth of a dark band of off-resonance.
        flow: strength of flow voids in the blood.
        gain: arbitrary unit of the scanner.
    """

    muscle: float
    fat: float
    lung: float
    liver: float
    edge: float
    shading: float
    shading_angle: float
    noise: float
    ghost: float
    band: float
    flow: float
    gain: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Look:
        """Draw the look of an acquisition; about one of four has a ghost, one of four a dark band."""
        return cls(
            muscle=rng.uniform(0.3, 0.62),
            fat=rng.uniform(0.75, 1.25),
            lung=rng.uniform(0.04, 0.18),
            liver=rng.uniform(0.3, 0.7),
            edge=rng.uniform(1.6, 4.0),
            shading=rng.uniform(0.2, 1.3),
            shading_angle=rng.normal(-2.4, 0.6),
            noise=float(np.exp(rng.uniform(np.log(0.02), np.log(0.12)))),
            ghost=float(rng.uniform(0.06, 0.2) * (rng.random() < 0.25)),
            band=float(rng.uniform(0.3, 0.75) * (rng.random() < 0.25)),
            flow=rng.uniform(0.02, 0.2),
            gain=rng.uniform(120, 500),
        )


def plane(shape: tuple[int, int], spacing: tuple[float, ...], place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each pixel from a place, down and to the right, in mm.

    Args:
        shape: rows and columns.
        spacing: of rows and columns in mm.
        place: `(2,)` offset of the place from the image's middle, down and right, in mm.

    Returns:
        Two float32 arrays `(rows, 1)` and `(1, columns)`.
    """
    down = (np.arange(shape[0], dtype=np.float32) - (shape[0] - 1) / 2) * spacing[0] - place[0]
    right = (np.arange(shape[1], dtype=np.float32) - (shape[1] - 1) / 2) * spacing[1] - place[1]
    return down.astype(np.float32)[:, None], right.astype(np.float32)[None, :]


def texture(rng: np.random.Generator, shape: tuple[int, ...], size: float | tuple[float, ...]) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1, with blobs of about `size` pixels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), size)
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-9), dtype=np.float32)


def thorax(
    rng: np.random.Generator,
    look: Look,
    *,
    shape: tuple[int, int],
    spacing: tuple[float, ...],
    places: np.ndarray,
    frames: int,
    liver: bool = True,
) -> np.ndarray:
    """Draw the chest without its heart: fat, wall with ribs, lungs with vessels, liver, stomach, spine.

    Args:
        rng: source of all chance.
        look: of the acquisition.
        shape: rows and columns.
        spacing: of rows and columns in mm.
        places: `(slices, 2)` where the heart lies, down and right of the middle, in mm.
        frames: of the result; all the same, for the chest stands still.
        liver: whether liver and stomach lie below the heart.

    Returns:
        `(frames, slices, rows, columns)` float32, blood being 1.
    """
    chest = _Chest.draw(rng)
    fine, coarse = (texture(rng, (len(places), *shape), (0.7, size, size)) for size in (3.0, 9.0))
    drawn = np.empty((len(places), *shape), dtype=np.float32)
    for index, place in enumerate(places):
        down, right = plane(shape, spacing, place + chest.turn_by(index))
        picture = chest.walls(look, down, right, coarse[index])
        picture = chest.organs(look, picture, down, right, fine[index], depth=index / len(places), liver=liver)
        drawn[index] = picture * (1 + 0.06 * fine[index])
    return np.repeat(drawn[None], frames, axis=0)


@dataclass(frozen=True)
class _Chest:
    """The body of one subject; mm and radians, seen from the heart."""

    half: tuple[float, float]
    tilt: float
    middle: tuple[float, float]
    fat: float
    wall: float
    ribs: float
    liver_edge: float
    liver_slope: float
    stomach: tuple[float, float, float]
    spine: tuple[float, float]
    vessels: np.ndarray
    drift: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Chest:
        vessels = np.column_stack([rng.uniform(-110, 110, (26, 2)), rng.uniform(2.0, 6.0, 26), rng.uniform(0.2, 1, 26)])
        return cls(
            half=(rng.uniform(98, 122), rng.uniform(130, 165)),
            tilt=rng.normal(0.25, 0.15),
            middle=(rng.uniform(5, 30), rng.uniform(-40, -5)),
            fat=rng.uniform(6, 26),
            wall=rng.uniform(8, 16),
            ribs=rng.uniform(0, 6.3),
            liver_edge=rng.uniform(38, 62),
            liver_slope=rng.uniform(-0.35, 0.2),
            stomach=(rng.uniform(60, 80), rng.uniform(25, 70), rng.uniform(16, 34)),
            spine=(rng.uniform(74, 92), rng.uniform(-20, 45)),
            vessels=vessels.astype(np.float32),
            drift=(rng.normal(0, 1.2), rng.normal(0, 1.2)),
        )

    def turn_by(self, index: int) -> np.ndarray:
        """How far the chest lies from where it was in the first slice, because slices run oblique to it."""
        return index * np.array(self.drift)

    def _inside(self, down: np.ndarray, right: np.ndarray, less: float) -> np.ndarray:
        """Level in mm: negative within the body less a layer of so many mm."""
        y, x = down - self.middle[0], right - self.middle[1]
        along = x * np.cos(self.tilt) + y * np.sin(self.tilt)
        across = y * np.cos(self.tilt) - x * np.sin(self.tilt)
        high, wide = self.half[0] - less, self.half[1] - less
        return np.asarray(((np.abs(across) / high) ** 2.4 + (np.abs(along) / wide) ** 2.4) ** (1 / 2.4) - 1) * high

    def walls(self, look: Look, down: np.ndarray, right: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        """Air, fat, chest wall with ribs, and lung within."""
        angle = np.arctan2(down - self.middle[0], right - self.middle[1])
        ripple = 0.5 + 0.5 * np.sin(14 * angle + self.ribs)
        picture = look.fat * soft(self._inside(down, right, 0), 0, look.edge)
        wall = look.muscle * 0.8 + (look.fat - look.muscle) * 0.5 * ripple
        inner = soft(self._inside(down, right, self.fat) + coarse, 0, look.edge)
        picture = picture * (1 - inner) + wall * inner
        lung = soft(self._inside(down, right, self.fat + self.wall) + coarse, 0, look.edge)
        return np.asarray(picture * (1 - lung) + look.lung * lung)

    def organs(
        self,
        look: Look,
        picture: np.ndarray,
        down: np.ndarray,
        right: np.ndarray,
        fine: np.ndarray,
        *,
        depth: float,
        liver: bool,
    ) -> np.ndarray:
        """Vessels in the lung, the fat around the heart, liver and stomach below it, spine and its muscles behind."""
        within = soft(self._inside(down, right, self.fat + self.wall), 0, look.edge)

        def over(level: np.ndarray, brightness: np.ndarray | float) -> None:
            nonlocal picture
            part = soft(level, 0, look.edge) * within
            picture = picture * (1 - part) + brightness * part

        for y, x, radius, bright in self.vessels:
            over(np.hypot(down - y, right - x) - radius, 0.9 * float(bright))
        over(np.hypot(down / 0.85, right) - 62 + 4 * fine, look.fat * 0.65 + 0.1 * fine)
        if liver:
            edge = self.liver_edge - 22 * depth + self.liver_slope * right + 0.002 * right**2
            over(edge - down, look.liver + 0.1 * (fine > 1.3))
            y, x, radius = self.stomach
            over(np.hypot(down - y + 14 * depth, right - x) - radius, 0.15 + 0.75 * (down > y - 14 * depth))
        y, x = self.spine
        over(np.hypot(down - y, right - x) - 30, look.muscle * 0.9)
        over(np.hypot(down - y, right - x) - 17, look.liver * 0.8 + 0.1 * fine)
        return picture


def finish(rng: np.random.Generator, clean: np.ndarray, look: Look) -> np.ndarray:
    """What the scanner makes of the clean picture: ghost, dark band, shading, Rician noise, arbitrary units.

    Args:
        rng: source of all chance.
        clean: `(frames, slices, rows, columns)` float32, blood being 1; changed in place.
        look: of the acquisition.

    Returns:
        The image, float32, not negative.
    """
    slices, rows, columns = clean.shape[1:]
    down, right = plane((rows, columns), (2 / rows, 2 / columns), np.zeros(2))
    light = np.exp(look.shading * (down * np.sin(look.shading_angle) + right * np.cos(look.shading_angle)) / 1.4)
    where = right * rng.normal(1, 0.3) + down * rng.normal(0, 0.6) + 0.25 * down**2 - rng.uniform(-0.25, 0.25)
    light = light * (1 - look.band * np.exp(-((where / 0.09) ** 2)))
    light = light * rng.uniform(0.9, 1.1, size=(slices, 1, 1))
    still = clean.mean(axis=0) if look.ghost else None
    shift = round(rows * rng.uniform(0.25, 0.4))
    for frame in clean:
        if still is not None:  # only what moves leaves a ghost
            frame += look.ghost * np.roll(2 * np.abs(frame - still) + 0.15 * frame, shift, axis=1)
        frame *= light
        frame += look.noise * rng.standard_normal(frame.shape, dtype=np.float32)
        np.hypot(frame, look.noise * rng.standard_normal(frame.shape, dtype=np.float32), out=frame)
        frame *= look.gain
    return clean
