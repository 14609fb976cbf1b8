"""Drawn OCT B-scans with intraretinal cysts, written in the layouts of two public sets: for tests, demos and dry runs.

A phantom shows what makes the real task hard: cysts of little contrast, dark layers and vessel shadows that are no
fluid, speckle, white corners of a shifted raster, and looks that differ from subject to subject. It is no model of OCT.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.io import savemat
from skimage.draw import polygon

from nnunet_qa.data.images import write_image
from nnunet_qa.files import replacing
from nnunet_qa.progress import track

LAYERS = (0.0, 0.12, 0.38, 0.50, 0.62, 0.82, 0.92, 1.0)
"""The eight layer boundaries (inner limiting membrane … Bruch's membrane) as parts of the retina's thickness."""
_BRIGHTNESS = (0.04, 0.62, 0.42, 0.27, 0.40, 0.24, 0.72, 0.95)  # vitreous, then the seven layers
_CHOROID = 0.45
_FLUID = 0.05


@dataclass(frozen=True)
class SubjectLook:
    """What the B-scans of one subject have in common; lengths are parts of the image's rows or columns.

    Attributes:
        depth: row of the retina's inner surface.
        thickness: of the healthy retina.
        tilt: rise of the retina over half the width.
        curvature: sag of the retina at the sides.
        fovea: column of the fovea, −1 (left) to 1 (right).
        brightness: factor on all intensities.
        looks: shape of the gamma-distributed speckle; fewer looks, more speckle.
        contrast: mean contrast of cysts to the tissue around them, 0 (invisible) to 1 (black).
        severity: how much fluid, 0 (none) to 1 (large cysts and a swollen fovea).
    """

    depth: float
    thickness: float
    tilt: float
    curvature: float
    fovea: float
    brightness: float
    looks: float
    contrast: float
    severity: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, severity: float | None = None) -> SubjectLook:
        """Draw a subject; without `severity` it is drawn from 0.25 to 1.

        Raises:
            ValueError: severity is not within 0 and 1.
        """
        if severity is not None and not 0 <= severity <= 1:
            raise ValueError(f"severity {severity} is not within 0 and 1")
        return cls(
            depth=rng.uniform(0.27, 0.38),
            thickness=rng.uniform(0.17, 0.22),
            tilt=rng.uniform(-0.06, 0.06),
            curvature=rng.uniform(-0.01, 0.06),
            fovea=rng.uniform(-0.25, 0.25),
            brightness=rng.uniform(0.65, 1.0),
            looks=rng.uniform(2.5, 6.0),
            contrast=rng.uniform(0.45, 0.8),
            severity=float(rng.uniform(0.25, 1.0)) if severity is None else severity,
        )


@dataclass(frozen=True)
class Bscan:
    """A drawn B-scan.

    Attributes:
        image: `(rows, columns)` uint8; 255 only in the padding.
        fluid: `(rows, columns)` uint8, 0 outside fluid, otherwise the number of the cyst from 1.
        layers: `(8, columns)` float, rows of the layer boundaries, 0-based.
    """

    image: np.ndarray
    fluid: np.ndarray
    layers: np.ndarray


def draw_bscan(
    rng: np.random.Generator,
    *,
    look: SubjectLook,
    position: float = 0.0,
    rows: int = 496,
    columns: int = 768,
    padding: bool = True,
) -> Bscan:
    """Draw one B-scan.

    Args:
        rng: source of all chance.
        look: of the subject.
        position: of the B-scan in its volume, −1 to 1; fluid and the foveal pit fade away from the middle.
        rows: height in pixels.
        columns: width in pixels.
        padding: whether a corner above or below may be white, as where a raster was shifted.

    Returns:
        Image, fluid and layers.

    Raises:
        ValueError: fewer than 32 rows or columns.
    """
    if rows < 32 or columns < 32:
        raise ValueError(f"a B-scan of {rows} x {columns} pixels is too small for layers; use at least 32 x 32")
    burden = look.severity * float(np.exp(-((position / 0.6) ** 2))) * rng.uniform(0.6, 1.2)
    layers = _layers(rng, look, position=position, burden=burden, shape=(rows, columns))
    clean = _tissue(rng, layers, shape=(rows, columns))
    fluid = _cysts(rng, look, layers, burden=burden, shape=(rows, columns))
    clean = _fill(rng, clean, fluid, contrast=look.contrast)
    clean = _distractors(rng, clean, layers)
    image = _speckle(rng, clean, look)
    if padding:
        white = _padding(rng, layers, shape=(rows, columns))
        image[white] = 255
    return Bscan(image=image, fluid=fluid, layers=layers)


def _layers(
    rng: np.random.Generator, look: SubjectLook, *, position: float, burden: float, shape: tuple[int, int]
) -> np.ndarray:
    """Rows of the eight boundaries: tilted, curved, wavy, with a foveal pit that swelling fills."""
    rows, columns = shape
    x = np.linspace(-1, 1, columns)
    wave = ndimage.gaussian_filter1d(rng.normal(size=(2, columns)), columns / 16, axis=1, mode="wrap")
    wave *= 0.006 / max(float(wave.std()), 1e-9)
    centre = np.exp(-(((x - look.fovea) / 0.18) ** 2))
    bump = np.exp(-(((x - look.fovea) / 0.35) ** 2))
    away = float(np.exp(-((position / 0.3) ** 2)))
    base = look.depth + look.thickness + look.tilt * x - look.curvature * (x**2) + wave[0]
    thickness = look.thickness * (1 - 0.45 * away * max(0.0, 1 - 2 * burden) * centre + 0.9 * burden * bump) + wave[1]
    top = np.maximum(base - thickness, 0.02)
    return np.stack([(top + part * (base - top)) * rows for part in LAYERS])


def _tissue(rng: np.random.Generator, layers: np.ndarray, *, shape: tuple[int, int]) -> np.ndarray:
    """Brightness without speckle, 0 to 1: vitreous, seven layers, and a choroid that fades with depth."""
    rows, columns = shape
    row = np.arange(rows)[:, None] + 0.5
    number = (row[None] >= layers[:, None, :]).sum(axis=0)
    clean = np.array([*_BRIGHTNESS, _CHOROID])[number]
    below = np.clip(row - layers[-1], 0, None) / rows
    blotches = ndimage.gaussian_filter(rng.normal(size=shape), (rows / 60, columns / 50))
    blotches *= 0.3 / max(float(blotches.std()), 1e-9)
    choroid = (_CHOROID * np.exp(-below / 0.11) * (1 + blotches * np.exp(-below / 0.1)) + 0.05).clip(0, 1)
    clean = np.where(number == len(_BRIGHTNESS), choroid, clean)
    return np.asarray(ndimage.gaussian_filter(clean, (rows / 400, columns / 200)))


def _cysts(
    rng: np.random.Generator, look: SubjectLook, layers: np.ndarray, *, burden: float, shape: tuple[int, int]
) -> np.ndarray:
    """Numbered cysts: lobed ellipses in the inner nuclear layer (small, long) and the outer one (large, upright)."""
    rows, columns = shape
    fluid = np.zeros(shape, dtype=np.uint8)
    inside = np.arange(rows)[:, None] + 0.5
    tissue = (inside > layers[1]) & (inside < layers[5])  # fluid stays within the retina
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    for _ in range(min(250, rng.poisson(22 * burden))):
        x = float(np.clip(look.fovea + rng.normal(0, 0.12 + 0.18 * burden), -0.95, 0.95))
        column = (x + 1) / 2 * (columns - 1)
        line = layers[:, round(column)]
        inner = rng.random() < 0.4
        centre = rng.uniform(line[2], line[3]) if inner else rng.uniform(line[3], line[5])
        space = line[5] - line[1]
        high = space * (rng.uniform(0.06, 0.14) if inner else rng.uniform(0.1, 0.2 + 0.25 * burden))
        wide = columns * (rng.uniform(0.008, 0.02) if inner else rng.uniform(0.006, 0.012 + 0.03 * burden))
        lobes = 1 + sum(rng.uniform(-0.15, 0.15) * np.cos(n * angles + rng.uniform(0, 6.3)) for n in (2, 3, 5))
        area = polygon(
            centre + max(high, 1.3) * lobes * np.sin(angles), column + max(wide, 1.3) * lobes * np.cos(angles), shape
        )
        drawn = np.zeros(shape, dtype=bool)
        drawn[area] = True
        drawn &= tissue & (fluid == 0)
        if drawn.any():
            fluid[drawn] = int(fluid.max()) + 1
    return fluid


def _fill(rng: np.random.Generator, clean: np.ndarray, fluid: np.ndarray, *, contrast: float) -> np.ndarray:
    """Darken each cyst by a contrast of its own, so that some can hardly be told from the layer they lie in."""
    own = np.clip(rng.normal(contrast, 0.2, size=int(fluid.max()) + 1), 0.2, 0.97)
    own[0] = 0.0
    amount = ndimage.gaussian_filter(own[fluid], (clean.shape[0] / 600, clean.shape[1] / 600))
    return clean * (1 - amount) + _FLUID * amount


def _distractors(rng: np.random.Generator, clean: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Vessels and hard exudates with the shadows that they cast; none of them is fluid."""
    rows, columns = clean.shape
    row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
    result = clean.copy()
    for _ in range(rng.poisson(5)):
        at = int(rng.integers(columns))
        from_row = rng.uniform(layers[0, at], layers[4, at])
        width = columns * rng.uniform(0.003, 0.012)
        profile = np.exp(-(((column - at) / width) ** 2))
        result *= 1 - rng.uniform(0.3, 0.75) * profile * (row > from_row)
        spot = np.exp(-(((row - from_row) / (rows * 0.006)) ** 2)) * profile
        result += rng.uniform(0.2, 0.6) * spot
    return result.clip(0, 1)


def _speckle(rng: np.random.Generator, clean: np.ndarray, look: SubjectLook) -> np.ndarray:
    """Multiplicative speckle, a noise floor that is cut at zero, and rounding to 0–254."""
    rows, columns = clean.shape
    speckle = rng.gamma(look.looks, 1 / look.looks, size=clean.shape)
    speckle = ndimage.gaussian_filter(speckle, (rows / 1200, columns / 1200))
    floor = rng.normal(0.0, 0.05, size=clean.shape)
    image = look.brightness * (clean * speckle) ** 0.9 + floor
    return np.rint(np.clip(image, 0, 1) * 254).astype(np.uint8)


def _padding(rng: np.random.Generator, layers: np.ndarray, *, shape: tuple[int, int]) -> np.ndarray:
    """Corners above and below that the raster left free; they end well before the retina."""
    rows, columns = shape
    row = np.arange(rows)[:, None]
    slope = np.linspace(-1, 1, columns) * rng.uniform(-0.04, 0.04)
    above = np.minimum((rng.uniform(-0.04, 0.06) + slope) * rows, layers[0] - 0.08 * rows)
    below = np.maximum((1 - rng.uniform(-0.04, 0.06) + slope) * rows, layers[-1] + 0.2 * rows)
    return np.asarray((row < above) | (row >= below))


def write_chiu(
    folder: Path,
    rng: np.random.Generator,
    *,
    subjects: int = 10,
    rows: int = 496,
    columns: int = 768,
    bscans: int = 61,
    annotated: int = 11,
    severity: float | None = None,
) -> list[Path]:
    """Write `2015_BOE_Chiu/Subject_01.mat` … as in the Duke set (Chiu et al. 2015), with its keys, shapes and NaNs.

    Args:
        folder: where the folder `2015_BOE_Chiu` is made.
        rng: source of all chance.
        subjects: number of files.
        rows: height of a B-scan in pixels.
        columns: width of a B-scan in pixels.
        bscans: B-scans of a volume.
        annotated: B-scans of each volume with manual fluid, at places that differ from subject to subject.
        severity: of all subjects, 0 to 1; drawn for each where None.

    Returns:
        The files.

    Raises:
        ValueError: more annotated B-scans than B-scans.
    """
    if not 0 <= annotated <= bscans:
        raise ValueError(f"{annotated} annotated B-scans were asked for of {bscans}")
    paths = []
    for number in track(range(1, subjects + 1), "Drawing subjects", total=subjects):
        look = SubjectLook.draw(rng, severity=severity)
        places = np.linspace(0.15, 0.82, annotated) * (bscans - 1) + rng.uniform(-0.04, 0.04) * bscans
        known = set(np.clip(np.rint(places).astype(int), 0, bscans - 1).tolist())
        free = [index for index in range(bscans) if index not in known]
        known |= set(free[: annotated - len(known)])  # rounding may have joined two places of a short volume
        drawn = _volume(rng, look, bscans=bscans, rows=rows, columns=columns)
        path = folder / "2015_BOE_Chiu" / f"Subject_{number:02d}.mat"
        with replacing(path) as temporary:
            savemat(temporary, _chiu_content(rng, drawn, known), do_compression=True)
        paths.append(path)
    return paths


def _volume(rng: np.random.Generator, look: SubjectLook, *, bscans: int, rows: int, columns: int) -> list[Bscan]:
    positions = np.linspace(-1, 1, bscans) if bscans > 1 else np.zeros(1)
    return [draw_bscan(rng, look=look, position=float(at), rows=rows, columns=columns) for at in positions]


def _chiu_content(rng: np.random.Generator, drawn: Sequence[Bscan], known: set[int]) -> dict[str, np.ndarray]:
    """Variables of one file; what was not annotated by hand is NaN."""
    shape = (*drawn[0].image.shape, len(drawn))
    by_hand = {name: np.full(shape, np.nan) for name in ("manualFluid1", "manualFluid2")}
    layers = np.stack([bscan.layers + 1 for bscan in drawn], axis=-1)  # MATLAB counts rows from 1
    layers_by_hand = np.full(layers.shape, np.nan)
    for index in sorted(known):
        by_hand["manualFluid1"][..., index] = drawn[index].fluid
        by_hand["manualFluid2"][..., index] = second_opinion(rng, drawn[index].fluid)
        layers_by_hand[..., index] = layers[..., index]
    automatic = np.stack([second_opinion(rng, bscan.fluid) for bscan in drawn], axis=-1).astype(np.float64)
    return {
        "images": np.stack([bscan.image for bscan in drawn], axis=-1),
        **by_hand,
        "automaticFluidDME": automatic,
        "manualLayers1": layers_by_hand,
        "manualLayers2": layers_by_hand + rng.normal(0, 1, size=layers.shape),
        "automaticLayersDME": layers,
        "automaticLayersNormal": layers,
    }


def second_opinion(rng: np.random.Generator, fluid: np.ndarray) -> np.ndarray:
    """Fluid as another grader may outline it: some cysts missed, the others drawn wider or narrower.

    Args:
        rng: source of all chance.
        fluid: numbered cysts `(rows, columns)`.

    Returns:
        Numbered cysts of the same shape and type.
    """
    result = np.zeros_like(fluid)
    for cyst in range(1, int(fluid.max()) + 1):
        if rng.random() < 0.15:
            continue
        area = fluid == cyst
        shift = tuple(rng.integers(-1, 2, size=2).tolist())
        area |= np.roll(area, shift, axis=(0, 1))
        if rng.random() < 0.5 and area.sum() > 12:
            area = ndimage.binary_erosion(area)
        result[area] = cyst
    return result


def write_ocsc(
    folder: Path,
    rng: np.random.Generator,
    *,
    stacks: Iterable[str] = ("spectralis_1", "nidek_2", "topcon_3", "cirrus_4"),
    train: int = 8,
    annotated: int = 5,
    test: int = 3,
    rows: int = 496,
    columns: int = 512,
    graders: Sequence[str] = (),
    ending: str = ".png",
    severity: float | None = None,
) -> list[Path]:
    """Write stacks as in the circulating copies of the OPTIMA cyst challenge.

    The files are `<vendor>_<n>/{train,test}/{Image,GT}/bscan_<k>.png`, masks 0 and 255.

    Args:
        folder: where the stacks' folders are made.
        rng: source of all chance.
        stacks: names `<vendor>_<n>`.
        train: B-scans in `train`.
        annotated: how many of these have a mask.
        test: B-scans in `test`, all with a mask; 0 for no such folder.
        rows: height in pixels.
        columns: width in pixels.
        graders: folders below `GT`, from G1, G2, G3 (the agreement of G1 and G2); none for masks right in `GT`.
        ending: of the image files.
        severity: of all subjects, 0 to 1; drawn for each where None.

    Returns:
        The folders of the stacks.
    """
    names = list(stacks)
    for stack in track(names, "Drawing stacks", total=len(names)):
        look = SubjectLook.draw(rng, severity=severity)
        for split, count, known in (("train", train, annotated), ("test", test, test)):
            at = folder / stack / split
            order = rng.permutation(count)[:known]  # so that those annotated are not simply the first
            for index, bscan in enumerate(
                _volume(rng, look, bscans=count, rows=rows, columns=columns) if count else ()
            ):
                write_image(at / "Image" / f"bscan_{index + 1}{ending}", bscan.image)
                if index in order:
                    _write_opinions(rng, at / "GT", f"bscan_{index + 1}.png", bscan.fluid, graders)
    return [folder / stack for stack in names]


def _write_opinions(
    rng: np.random.Generator, folder: Path, name: str, fluid: np.ndarray, graders: Sequence[str]
) -> None:
    first, second = fluid > 0, second_opinion(rng, fluid) > 0
    masks = {"G1": first, "G2": second, "G3": first & second}
    wanted = {folder / grader: masks[grader] for grader in graders} or {folder: first}
    for place, mask in wanted.items():
        write_image(place / name, mask.astype(np.uint8) * 255)
