"""A whole heartbeat from a real image at end-diastole and one at end-systole, for data that hold no more than these.

Each slice of both images is moved to the shape between them that the volume curve asks for, and the two are blended.
Around the ventricle the motion is radial and keeps the area of the wall, as muscle does that cannot be compressed; what
else moves (the right ventricle, the chest) is found by registering the two once they are half way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_qa.data.cine_phantom import SHORT_AXIS, STRUCTURES, Cine, physiological_curve
from nnunet_qa.data.cine_shape import smallest_pixels
from nnunet_qa.errors import ImageError

_BEAT = 0.9  # s; pairs of images do not say how long the heartbeat was
_WALL, _REACH = 0.35, 2.0  # beyond the cavity, in its radii at ED: moves along fully, and where that has faded away
_ANGLES = 720
_TOLERANCE = 0.01  # of a volume


def warped_cycle(
    ed_image: np.ndarray,
    ed_mask: np.ndarray,
    es_image: np.ndarray,
    es_mask: np.ndarray,
    *,
    frames: int = 30,
    spacing: tuple[float, float, float],
    curve: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
) -> Cine:
    """Build a full cycle from an end-diastolic and an end-systolic volume of the same patient.

    Only slices that show the left ventricle in both remain. Volumes with different numbers of slices are laid over each
    other where their images fit best. The end-diastolic frame (0) and the end-systolic one hold the given images and
    masks unchanged; between them, the area of each structure in each slice changes in step with the left ventricle.

    Args:
        ed_image: `(slices, rows, columns)`, any intensities.
        ed_mask: the same shape; 1 left ventricle, and 2 myocardium and 3 right ventricle where known.
        es_image: as `ed_image`, the number of slices may differ.
        es_mask: as `ed_mask`.
        frames: of the cycle where no curve is given.
        spacing: `(z, y, x)` in mm.
        curve: volume of the left ventricle, `(frames,)` in mL, from that of `ed_mask` down to that of `es_mask`, in the
            slices that remain; a physiological one where None.
        rng: for noise of which blending takes some away; none is added where None.

    Returns:
        The cycle; its curves are the designed volumes in mL of the structures that the masks hold.

    Raises:
        ImageError: shapes that do not fit, unknown labels, no slice with the ventricle in both, a ventricle that does
            not shrink, or a curve that does not lie between both volumes.
    """
    pair = _Pair.of(ed_image, ed_mask, es_image, es_mask)
    millilitres = float(np.prod(spacing)) * 1e-3
    volumes = pair.volumes(millilitres)
    edv, esv = volumes["lv"]
    if not esv < edv:
        raise ImageError(
            f"the left ventricle has {edv:.1f} mL in the ED mask and {esv:.1f} mL in the ES mask; were the two swapped?"
        )
    if curve is None:
        curve = physiological_curve(frames, edv, esv)
    _check_curve(curve, edv, esv)
    part = np.clip((edv - curve) / (edv - esv), 0, 1)
    part[0], part[int(np.argmin(curve))] = 0, 1
    slices = [_Slice.of(*pair.slice(index), spacing=spacing[1:]).cycle(part, rng) for index in range(len(pair))]
    return Cine(
        image=np.stack([image for image, _ in slices], axis=1),
        mask=np.stack([mask for _, mask in slices], axis=1),
        spacing=spacing,
        frame_time=_BEAT / len(part),
        view=SHORT_AXIS,
        curves={name: ed + (es - ed) * part for name, (ed, es) in volumes.items()},
        disease="",
    )


def _check_curve(curve: np.ndarray, edv: float, esv: float) -> None:
    if curve.ndim != 1 or len(curve) < 3 or not np.isfinite(curve).all():
        raise ImageError("the curve must be a row of at least 3 volumes in mL")
    near = abs(curve[0] - edv) <= _TOLERANCE * edv and abs(curve.min() - esv) <= _TOLERANCE * edv
    if not near or curve.max() > edv * (1 + _TOLERANCE):
        raise ImageError(
            f"the curve begins with {curve[0]:.1f} mL and goes from {curve.min():.1f} to {curve.max():.1f} mL, but the "
            f"masks have {edv:.1f} mL at ED and {esv:.1f} mL at ES; scale the curve to these"
        )


@dataclass(frozen=True)
class _Pair:
    """Images and masks at ED and ES, cut to the same slices."""

    images: tuple[np.ndarray, np.ndarray]
    masks: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, ed_image: np.ndarray, ed_mask: np.ndarray, es_image: np.ndarray, es_mask: np.ndarray) -> _Pair:
        known = {0, *STRUCTURES[SHORT_AXIS].values()}
        for name, image, mask in (("ED", ed_image, ed_mask), ("ES", es_image, es_mask)):
            if image.ndim != 3 or image.shape != mask.shape:
                raise ImageError(
                    f"the {name} image has shape {image.shape}, its mask {mask.shape}; "
                    "both must be (slices, rows, columns)"
                )
            unknown = sorted(set(np.unique(mask).tolist()) - known)
            if unknown:
                raise ImageError(f"the {name} mask holds {unknown[0]}; use 1 LV, 2 myocardium, 3 RV")
        if ed_image.shape[1:] != es_image.shape[1:]:
            raise ImageError(f"slices at ED have {ed_image.shape[1:]} pixels and at ES {es_image.shape[1:]}")
        offset = slice_offset(ed_image, es_image)
        pairs = [(index + offset, index) for index in range(len(es_image)) if 0 <= index + offset < len(ed_image)]
        both = [(d, s) for d, s in pairs if (ed_mask[d] == 1).any() and (es_mask[s] == 1).any()]
        if not both:
            raise ImageError("no slice shows the left ventricle (label 1) in both masks; a cycle needs at least one")
        ed, es = ([index[side] for index in both] for side in (0, 1))
        return cls(
            images=(ed_image[ed].astype(np.float32), es_image[es].astype(np.float32)),
            masks=(ed_mask[ed].astype(np.uint8), es_mask[es].astype(np.uint8)),
        )

    def __len__(self) -> int:
        return len(self.images[0])

    def volumes(self, voxel: float) -> dict[str, tuple[float, float]]:
        """Volumes at ED and ES of the structures that the ED mask holds, in the unit of a voxel's volume."""
        ed, es = self.masks
        return {
            name: (float((ed == value).sum()) * voxel, float((es == value).sum()) * voxel)
            for name, value in STRUCTURES[SHORT_AXIS].items()
            if (ed == value).any()
        }

    def slice(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return (
            (self.images[0][index], self.images[1][index]),
            (self.masks[0][index], self.masks[1][index]),
        )


def slice_offset(ed_image: np.ndarray, es_image: np.ndarray) -> int:
    """Which slice at end-diastole the first one at end-systole lies in.

    Stacks of the same number of slices are taken to begin with the same one. Otherwise the place counts at which the
    correlation of the images is highest, the mean over slices; the shorter stack lies within the longer one.

    Args:
        ed_image: `(slices, rows, columns)`.
        es_image: the same rows and columns.

    Returns:
        The number to add to a slice's index at ES to get its index at ED; negative where ES has more slices.
    """
    more = len(ed_image) - len(es_image)
    ed, es = (
        ndimage.gaussian_filter(image.astype(np.float32), (0, 2, 2)).reshape(len(image), -1)
        for image in (ed_image, es_image)
    )
    ed, es = ((image - image.mean(axis=1, keepdims=True)) for image in (ed, es))
    norms = np.linalg.norm(ed, axis=1)[:, None] * np.linalg.norm(es, axis=1)[None]
    alike = (ed @ es.T) / np.maximum(norms, 1e-9)
    offsets = range(min(0, more), max(0, more) + 1)
    return max(offsets, key=lambda offset: float(np.diagonal(alike, -offset).mean()))


@dataclass(frozen=True)
class _Slice:
    """One slice at both times (ED first), and how its tissue moves between them; lengths in mm.

    `levels` are the signed distances of each structure, `centres` the middle of the ventricle, `radii` its radius in
    `_ANGLES` directions, `rest` the motion that is not the ventricle's, `(2, rows, columns)`.
    """

    images: tuple[np.ndarray, np.ndarray]
    masks: tuple[np.ndarray, np.ndarray]
    spacing: np.ndarray
    levels: tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray]]
    centres: tuple[np.ndarray, np.ndarray]
    radii: tuple[np.ndarray, np.ndarray]
    rest: np.ndarray

    @classmethod
    def of(
        cls,
        images: tuple[np.ndarray, np.ndarray],
        masks: tuple[np.ndarray, np.ndarray],
        *,
        spacing: tuple[float, ...],
    ) -> _Slice:
        size = np.array(spacing)
        levels = [
            {value: _signed_distance(mask == value, spacing) for value in np.unique(mask[mask > 0]).tolist()}
            for mask in masks
        ]
        centres = [np.argwhere(mask == 1).mean(axis=0) * size for mask in masks]
        radii = [_radii(level[1], centre, size) for level, centre in zip(levels, centres, strict=True)]
        still = np.zeros((2, *images[0].shape), dtype=np.float32)
        parts = (images, masks, size, (levels[0], levels[1]), (centres[0], centres[1]), (radii[0], radii[1]))
        halfway = cls(*parts, rest=still)
        ed, es = (halfway.moved(image, source) for image, source in zip(images, halfway.sources(0.5), strict=True))
        return cls(*parts, rest=_registered(ed, es, spacing))

    def cycle(self, part: np.ndarray, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        """Images and masks `(frames, rows, columns)`; `part` goes from 0 at ED to 1 at ES."""
        frames = [self.frame(float(at), rng) for at in part]
        return np.stack([image for image, _ in frames]), np.stack([mask for _, mask in frames])

    def frame(self, part: float, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
        if part in (0, 1):
            return self.images[int(part)], self.masks[int(part)]
        sources = self.sources(part)
        ed, es = (self.moved(image, source) for image, source in zip(self.images, sources, strict=True))
        image = (1 - part) * ed + part * es
        if rng is not None:  # blending took away some of what was independent in both
            image += _noise_of(self.images[0]) * np.sqrt(2 * part * (1 - part)) * rng.standard_normal(image.shape)
            image = np.clip(image, *self._range())
        return image.astype(np.float32), self._mask(part, sources)

    def _range(self) -> tuple[float, float]:
        return min(image.min() for image in self.images), max(image.max() for image in self.images)

    def _mask(self, part: float, sources: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Each structure with as many pixels as lie between both times, where its warped shapes say."""
        mask = np.zeros(self.masks[0].shape, dtype=np.uint8)
        weights = (1 - part, part)
        for value in sorted({*self.levels[0], *self.levels[1]}):
            count = round(float(np.dot(weights, [(given == value).sum() for given in self.masks])))
            seen = [side for side in (0, 1) if value in self.levels[side]]
            found = [self.moved(self.levels[side][value], sources[side], order=1) for side in seen]
            level = np.average(found, axis=0, weights=[weights[side] for side in seen])
            mask[smallest_pixels(level[None], np.array([count]), mask[None] == 0)[0]] = value
        return mask

    def moved(self, values: np.ndarray, source: np.ndarray, *, order: int = 3) -> np.ndarray:
        """Values `(rows, columns)` from where each pixel comes from, `source` being `(2, rows, columns)` in mm."""
        found = ndimage.map_coordinates(values, source / self.spacing[:, None, None], order=order, mode="nearest")
        return np.clip(found, values.min(), values.max())

    def sources(self, part: float) -> tuple[np.ndarray, np.ndarray]:
        """Where each pixel of a time between lies at ED and at ES, two arrays `(2, rows, columns)` in mm."""
        grid = np.indices(self.masks[0].shape) * self.spacing[:, None, None]
        centre = (1 - part) * self.centres[0] + part * self.centres[1]
        radii = np.sqrt((1 - part) * self.radii[0] ** 2 + part * self.radii[1] ** 2)  # so that areas change evenly
        # what the ventricle's own motion explains is not moved twice
        rho, radius = _polar(grid, centre, radii)
        rest = self.rest * np.clip((rho / radius - 1.1) / 0.5, 0, 1)
        ed = self._radial(grid - part * rest, centre, radii, side=0)
        es = self._radial(grid + (1 - part) * rest, centre, radii, side=1)
        return ed, es

    def _radial(self, points: np.ndarray, centre: np.ndarray, radii: np.ndarray, *, side: int) -> np.ndarray:
        """The same tissue at ED or ES: stretched within the cavity, of the same area beyond it, at rest far away."""
        rho, (now, then) = _polar(points, centre, np.stack([radii, self.radii[side]]))
        reach = float(self.radii[0].mean())
        faded = np.clip((rho - now - _WALL * reach) / (_REACH * reach), 0, 1)
        along = 1 - faded * faded * (3 - 2 * faded)
        outside = np.sqrt(np.maximum(rho**2 + (then**2 - now**2) * along, 0))
        scale = np.where(rho <= now, then / now, outside / np.maximum(rho, 1e-6))
        away = points - centre[:, None, None]
        shift = (self.centres[side] - centre)[:, None, None] * along
        return np.asarray(centre[:, None, None] + away * scale + shift)


def _signed_distance(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance from the border of a mask in mm, negative inside."""
    inside, outside = (ndimage.distance_transform_edt(part, sampling=spacing) for part in (mask, ~mask))
    half = min(spacing) / 2  # the border runs between pixels, distances are taken from middle to middle
    return np.where(mask, half - inside, outside - half).astype(np.float32)


def _radii(level: np.ndarray, centre: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance of the border from the middle in `_ANGLES` directions, in mm, at least half a pixel."""
    angles = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
    steps = np.arange(0, np.hypot(*(np.array(level.shape) * spacing)), float(spacing.min()) / 4)
    rays = centre[:, None, None] + np.stack([np.sin(angles), np.cos(angles)])[..., None] * steps
    inside = ndimage.map_coordinates(level, rays / spacing[:, None, None], order=1, mode="nearest") <= 0
    last = steps[inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)] * inside.any(axis=1)
    return np.asarray(ndimage.gaussian_filter1d(np.maximum(last, spacing.min() / 2), 8.0, mode="wrap"))


def _polar(points: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of points from the middle, and the radii in their direction; both `(…, rows, columns)` in mm."""
    down, right = points - centre[:, None, None]
    at = np.rint(np.arctan2(down, right) * (_ANGLES / (2 * np.pi))).astype(int) % _ANGLES
    return np.hypot(down, right), radii[..., at]


def _registered(ed: np.ndarray, es: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """How tissue of the first image moves to the second, `(2, rows, columns)` in mm, smooth (symmetric demons)."""
    low, high = np.percentile(ed, (1, 99))
    fixed, moving = (
        sitk.GetImageFromArray(((image - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32))
        for image in (ed, es)
    )
    for image in (fixed, moving):
        image.SetSpacing(tuple(float(size) for size in reversed(spacing)))
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(15)  # more gain little: the mean difference half way falls by another 2%
    demons.SetStandardDeviations(3 * float(min(spacing)))
    demons.SetMaximumUpdateStepLength(1.0)
    field = sitk.GetArrayFromImage(demons.Execute(fixed, moving))
    return np.stack([field[..., 1], field[..., 0]]).astype(np.float32)


def _noise_of(image: np.ndarray) -> float:
    """Standard deviation of the noise, from what no smooth surface leaves behind (Immerkær 1996)."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32)
    left = ndimage.convolve(image, kernel)
    return float(np.median(np.abs(left)) / 0.6745 / 6)
