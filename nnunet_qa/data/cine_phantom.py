"""Drawn cine MR of the beating heart with known curves: short-axis stacks and aortic series, healthy and diseased.

Made for the method of paper 003, whose data (UK Biobank) cannot be had. Volumes and areas are designed first, and masks
are drawn to them: each structure of each slice is exactly the designed number of pixels, rounded, so that curves of the
masks equal the designed ones to half a pixel a slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nnunet_qa.data.cine_aorta import AorticVessels, draw_vessels
from nnunet_qa.data.cine_heart import Heart, draw_heart
from nnunet_qa.data.cine_look import Look, finish, thorax

SHORT_AXIS, AORTIC = "sa", "ao"
STRUCTURES: Mapping[str, Mapping[str, int]] = {
    SHORT_AXIS: {"lv": 1, "myocardium": 2, "rv": 3},
    AORTIC: {"ascending_aorta": 1, "descending_aorta": 2},
}
"""Mask values by view and structure, those of UK Biobank's annotations."""
DISEASES_SA = ("normal", "dilated", "hypertrophic", "rv_dilated", "infarct")
DISEASES_AO = ("normal", "stiff", "aneurysm")
_FIELD = {SHORT_AXIS: 240.0, AORTIC: 200.0}  # mm; the largest hearts fill it, smaller fields would cut them
_HEIGHT = 60.0  # mm from base to apex of a small heart


@dataclass(frozen=True, kw_only=True)
class Cine:
    """One acquisition over one heartbeat; frame 0 is end-diastole.

    Attributes:
        image: `(frames, slices, rows, columns)` float32, 0 to a few hundred, slices from base to apex.
        mask: the same shape, uint8, values of `STRUCTURES[view]`.
        spacing: `(z, y, x)` in mm.
        frame_time: seconds from one frame to the next.
        view: "sa" or "ao".
        curves: of each structure the designed volumes (mL, "sa") or areas (mm², "ao"), `(frames,)` float64.
        disease: one of `DISEASES_SA` or `DISEASES_AO`; empty where it is not known.
    """

    image: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float, float]
    frame_time: float
    view: str
    curves: Mapping[str, np.ndarray]
    disease: str

    @property
    def end_systole(self) -> int:
        """The frame of the smallest left ventricle, or of the largest ascending aorta."""
        if self.view == SHORT_AXIS:
            return int(np.argmin(self.curves["lv"]))
        return int(np.argmax(self.curves["ascending_aorta"]))

    def phase(self, frame: int) -> str:
        """`ED`, `ES` or empty, as the column `phase` of cases.csv has it."""
        return {self.end_systole: "ES", 0: "ED"}.get(frame, "")


def physiological_curve(frames: int, edv: float, esv: float, *, systole: float = 0.35) -> np.ndarray:
    """Volume of a ventricle over one heartbeat: ejection, rapid filling, a pause, and the atrial kick.

    Args:
        frames: over the heartbeat; the frame after the last would be frame 0 again.
        edv: end-diastolic volume, that of frame 0, in mL.
        esv: end-systolic volume, that of frame `round(systole * frames)` exactly, in mL.
        systole: part of the heartbeat from end-diastole to end-systole.

    Returns:
        `(frames,)` float64 in mL, falling to the end-systolic frame and never falling after it.

    Raises:
        ValueError: fewer than 3 frames, volumes that are not 0 <= esv < edv, or a systole without frames of its own.

    >>> physiological_curve(6, 120, 50).round().tolist()
    [120.0, 85.0, 50.0, 75.0, 100.0, 102.0]
    """
    if frames < 3:
        raise ValueError(f"a heartbeat of {frames} frames has no systole and diastole; use at least 3")
    if not 0 <= esv < edv:
        raise ValueError(f"volumes of {edv:g} mL (ED) and {esv:g} mL (ES) are no heartbeat; ES must be the smaller")
    end = round(systole * frames)
    if not 0 < end < frames:
        raise ValueError(
            f"systole {systole:g} of {frames} frames ends in frame {end}; it must lie within the heartbeat"
        )
    frame = np.arange(frames)
    ejected = _smooth(frame / end)
    filling = np.clip((frame - end) / (frames - end), 0, 1)
    filled = 0.72 * _smooth(filling / 0.5) + 0.28 * _smooth((filling - 0.7) / 0.3)
    return edv - (edv - esv) * np.where(frame <= end, ejected, 1 - filled)


def _smooth(x: np.ndarray) -> np.ndarray:
    """0 up to 0, 1 from 1 on, and a smooth step between."""
    x = np.clip(x, 0, 1)
    return np.asarray(x * x * (3 - 2 * x))


def short_axis_cine(
    rng: np.random.Generator,
    *,
    disease: str = "normal",
    frames: int = 50,
    slices: int = 10,
    shape: tuple[int, int] = (192, 208),
    spacing: tuple[float, float, float] = (10.0, 1.8, 1.8),
) -> Cine:
    """Draw a short-axis stack of a subject of its own anatomy, contrast and artefacts.

    The base moves towards the apex in systole, so the top slices leave the ventricles: the mitral plane cuts them, and
    atrium of the same brightness takes the place. Papillary muscles and trabeculae count as blood, as in UK Biobank.

    Args:
        rng: source of all chance.
        disease: one of `DISEASES_SA`.
        frames: over one heartbeat.
        slices: from above the base to the apex.
        shape: rows and columns.
        spacing: `(z, y, x)` in mm.

    Returns:
        The acquisition; its curves hold lv, myocardium and rv in mL.

    Raises:
        ValueError: an unknown disease, fewer than 3 frames, or a field of view that is too small for a heart.
    """
    _check(disease, DISEASES_SA, shape, spacing, SHORT_AXIS)
    if slices * spacing[0] < _HEIGHT:
        raise ValueError(f"{slices} slices of {spacing[0]:g} mm are less than the {_HEIGHT:g} mm of a small heart")
    heart = Heart.draw(rng, disease=disease, frames=frames, height=slices * spacing[0], beat=physiological_curve)
    design = heart.design(slices=slices, slice_mm=spacing[0])
    look = Look.draw(rng)
    places = heart.places(rng, slices=slices)
    clean = thorax(rng, look, shape=shape, spacing=spacing[1:], places=places, frames=frames)
    mask = draw_heart(rng, heart, design, look, places=places, spacing=spacing, clean=clean)
    values = STRUCTURES[SHORT_AXIS]
    return Cine(
        image=finish(rng, clean, look),
        mask=mask,
        spacing=spacing,
        frame_time=heart.beat_s / frames,
        view=SHORT_AXIS,
        curves={name: design.areas[name].sum(axis=1) * spacing[0] * 1e-3 for name in values},
        disease=disease,
    )


def aortic_cine(
    rng: np.random.Generator,
    *,
    disease: str = "normal",
    frames: int = 100,
    shape: tuple[int, int] = (192, 208),
    spacing: tuple[float, float, float] = (6.0, 1.6, 1.6),
) -> Cine:
    """Draw one transverse slice through the ascending and descending aorta over a heartbeat.

    Args:
        rng: source of all chance.
        disease: one of `DISEASES_AO`.
        frames: over one heartbeat.
        shape: rows and columns.
        spacing: `(z, y, x)` in mm.

    Returns:
        The acquisition of one slice; its curves hold ascending_aorta and descending_aorta in mm².

    Raises:
        ValueError: an unknown disease, fewer than 3 frames, or a field of view that is too small.
    """
    _check(disease, DISEASES_AO, shape, spacing, AORTIC)
    if frames < 3:
        raise ValueError(f"a heartbeat of {frames} frames has no systole and diastole; use at least 3")
    vessels = AorticVessels.draw(rng, disease=disease, frames=frames)
    look = Look.draw(rng)
    places = rng.normal(0.0, 4.0, size=(1, 2))
    clean = thorax(rng, look, shape=shape, spacing=spacing[1:], places=places, frames=frames, liver=False)
    mask = draw_vessels(rng, vessels, look, place=places[0], spacing=spacing[1:], clean=clean)
    return Cine(
        image=finish(rng, clean, look),
        mask=mask,
        spacing=spacing,
        frame_time=vessels.beat_s / frames,
        view=AORTIC,
        curves=vessels.areas,
        disease=disease,
    )


def _check(
    disease: str, known: tuple[str, ...], shape: tuple[int, int], spacing: tuple[float, float, float], view: str
) -> None:
    if disease not in known:
        raise ValueError(f'unknown disease "{disease}"; known for this view are {", ".join(known)}')
    field = min(shape[0] * spacing[1], shape[1] * spacing[2])
    if field < _FIELD[view]:
        raise ValueError(f"a field of view of {field:g} mm is too small for a heart; use at least {_FIELD[view]:g} mm")
