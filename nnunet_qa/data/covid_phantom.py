"""Drawn chest CT with COVID-19 findings, written in the layouts of four public sets: for tests, demos and dry runs.

A phantom has what the conversions must cope with: HU, ground glass and consolidation in tapering lungs, effusion, text
burnt into a corner, volumes stored in a lung window, masks with decimals. It is no model of CT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from nnunet_qa.data.images import Geometry, write_image
from nnunet_qa.files import replacing

AIR, TISSUE, LUNG, BONE, TEXT = -1000, 40, -820, 700, 1500
"""HU of the drawn structures."""
GGO, CONSOLIDATION, EFFUSION = 1, 2, 3
_FINDING_HU = {GGO: -450, CONSOLIDATION: 10, EFFUSION: 5}
_WINDOW = (-1250, 250)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Chest:
    """A drawn volume, spine at the bottom; all arrays `(slices, rows, columns)`.

    Attributes:
        image: HU, int16.
        findings: 0, `GGO`, `CONSOLIDATION` or `EFFUSION`, uint8; effusion lies outside the lungs.
        lungs: 0, or 1 and 2 for the two lungs with what is in them, uint8.
        geometry: position in the patient.
    """

    image: np.ndarray
    findings: np.ndarray
    lungs: np.ndarray
    geometry: Geometry


def draw_chest(rng: np.random.Generator, *, slices: int = 6, size: int = 64, geometry: Geometry | None = None) -> Chest:
    """Draw a chest.

    Args:
        rng: for place and size of the findings, and for noise.
        slices: their number; the first and the last have no lung where there are more than three.
        size: rows and columns.
        geometry: position in the patient; None for 1.5 mm pixels and 5 mm slices along the body.
    """
    geometry = geometry or Geometry((1.5, 1.5, 5.0), (-48.0, -40.0, -300.0), IDENTITY)
    y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    body = (x / 0.92) ** 2 + (y / 0.72) ** 2 < 1
    spine = x**2 + (y - 0.5) ** 2 < 0.12**2
    # broad at the back (y > 0), tapering to the front, as lungs are
    width = 0.3 * np.sqrt(np.clip((y + 0.5) / 0.9, 0, None)) * (y < 0.4)
    sides = [np.abs(x - side) < width for side in (-0.45, 0.45)]
    image = np.empty((slices, size, size))
    findings, lungs = (np.zeros((slices, size, size), dtype=np.uint8) for _ in range(2))
    for index in range(slices):
        image[index] = np.where(body, TISSUE, AIR)
        image[index][spine] = BONE
        image[index][: size // 16, : size // 4] = TEXT
        if slices > 3 and index in (0, slices - 1):
            continue
        for number, side in enumerate(sides, start=1):
            lungs[index][side & body & ~spine] = number
        image[index][lungs[index] > 0] = LUNG
        findings[index] = _findings(rng, lungs[index], body & ~spine)
        for finding, value in _FINDING_HU.items():
            image[index][findings[index] == finding] = value
    noise = ndimage.gaussian_filter(rng.normal(0, 30, image.shape), (0, 0.5, 0.5))
    return Chest(np.rint(image + noise).astype(np.int16), findings, lungs, geometry)


def _findings(rng: np.random.Generator, lungs: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Blobs of ground glass with a dense core in one lung, and a rim of effusion behind it."""
    out = np.zeros(lungs.shape, dtype=np.uint8)
    inside = np.argwhere(lungs == rng.integers(1, 3))
    if len(inside) == 0:
        return out
    row, column = inside[rng.integers(len(inside))]
    rows, columns = np.indices(lungs.shape)
    distance = np.hypot(rows - row, columns - column) / len(lungs)
    out[(distance < rng.uniform(0.08, 0.14)) & (lungs > 0)] = GGO
    out[(distance < 0.05) & (lungs > 0)] = CONSOLIDATION
    rim = ndimage.binary_dilation(lungs > 0, iterations=2) & (lungs == 0) & body
    out[rim & (rows > len(lungs) * 0.6)] = EFFUSION
    return out


def write_medseg(folder: Path, chests: Sequence[Chest], *, pool: Chest) -> Path:
    """Write `tr_im.nii.gz`, `tr_mask.nii.gz`, `tr_lungmasks_updated.nii.gz` and `val_im.nii.gz`; give the folder.

    Args:
        folder: where to.
        chests: their slices are stacked; the position of the first counts.
        pool: slices without masks.
    """
    place = chests[0].geometry
    for name, arrays in (
        ("tr_im", [chest.image.astype(np.float32) for chest in chests]),
        ("tr_mask", [chest.findings for chest in chests]),
        ("tr_lungmasks_updated", [chest.lungs for chest in chests]),
    ):
        write_image(folder / f"{name}.nii.gz", np.concatenate(arrays), place)
    write_image(folder / "val_im.nii.gz", pool.image.astype(np.float32), pool.geometry)
    return folder


def write_radiopaedia(folder: Path, chests: Sequence[Chest]) -> Path:
    """Write `rp_im/1.nii.gz` …, `rp_msk` and `rp_lung_msk`, which knows no effusion; give the folder."""
    for number, chest in enumerate(chests, start=1):
        findings = np.where(chest.findings == EFFUSION, 0, chest.findings).astype(np.uint8)
        for name, array in (("rp_im", chest.image), ("rp_msk", findings), ("rp_lung_msk", chest.lungs)):
            write_image(folder / name / f"{number}.nii.gz", array, chest.geometry)
    return folder


def write_kaggle(folder: Path, medseg: Chest, radiopedia: Chest, *, pool: Chest) -> Path:
    """Write the five `.npy` arrays; give the folder."""
    for name, chest in (("medseg", medseg), ("radiopedia", radiopedia)):
        _write_array(folder / f"images_{name}.npy", chest.image[..., None].astype(np.float32))
        _write_array(folder / f"masks_{name}.npy", kaggle_channels(chest))
    _write_array(folder / "test_images_medseg.npy", pool.image[..., None].astype(np.float32))
    return folder


def kaggle_channels(chest: Chest) -> np.ndarray:
    """Ground glass, consolidation, other lung and background as four channels at the end, one of them 1, float32."""
    ground, dense = chest.findings == GGO, chest.findings == CONSOLIDATION
    other = (chest.lungs > 0) & ~ground & ~dense
    return np.stack([ground, dense, other, ~(ground | dense | other)], axis=-1).astype(np.float32)


def _write_array(path: Path, array: np.ndarray) -> None:
    with replacing(path) as temporary:
        np.save(temporary, array, allow_pickle=False)


def write_zenodo(folder: Path, chests: Mapping[str, Chest]) -> Path:
    """Write `COVID-19-CT-Seg_20cases` and the three folders of masks; give the folder.

    Volumes named after Radiopaedia are stored in a lung window as 0 to 255, and the infection masks hold decimals.

    Args:
        folder: where to.
        chests: by name, such as `coronacases_001` and `radiopaedia_10_85902_1`.
    """
    low, high = _WINDOW
    for name, chest in chests.items():
        image = chest.image
        if name.startswith("radiopaedia"):
            image = np.rint((np.clip(image, low, high) - low) / (high - low) * 255.0).astype(np.uint8)
        infected = (chest.findings == GGO) | (chest.findings == CONSOLIDATION)
        decimals = np.where(chest.findings == GGO, 0.25, infected).astype(np.float32)
        both = np.where(infected, 3, chest.lungs).astype(np.uint8)
        for part, array in (
            ("COVID-19-CT-Seg_20cases", image),
            ("Infection_Mask", decimals),
            ("Lung_Mask", chest.lungs),
            ("Lung_and_Infection_Mask", both),
        ):
            write_image(folder / part / f"{name}.nii.gz", array, chest.geometry)
    return folder
