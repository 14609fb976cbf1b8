"""Scans of drawn legs, and what reading them gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunet_qa.data.fibula_phantom import (
    LegScan,
    draw_legs,
)
from nnunet_qa.dataset_conversion.engine import Case, LeftOut
from nnunet_qa.dataset_conversion.fibula import Settings, Sides, read_patient
from nnunet_qa.dataset_conversion.fibula_files import find_patients

_C, _S = np.cos(0.3), np.sin(0.3)
DIRECTIONS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "oblique": np.array([[_C, -_S, 0], [_S, _C, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, _C, -_S], [0, _S, _C]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]]),
}
WHOLE = {"sides": Sides.TOGETHER, "hu_clip": None}


def drawn(direction: str = "LPS", **options: object) -> LegScan:
    turned = tuple(DIRECTIONS[direction].ravel().tolist())
    shape = (40, 16, 80) if direction == "coronal" else (12, 40, 80)
    spacing = (4.0, 4.0, 4.0) if direction == "coronal" else (4.0, 3.5, 6.0)
    return draw_legs(np.random.default_rng(3), shape=shape, spacing=spacing, direction=turned, **options)


def cases(source: Path, **settings: object) -> dict[str, Case]:
    units, _ = find_patients(source)
    found = [one for unit in units for one in read_patient(unit.content, settings=Settings(**settings))]
    return {one.case_id: one for one in found if isinstance(one, Case)}


def left_out(source: Path, **settings: object) -> list[LeftOut]:
    units, found = find_patients(source)
    read = [one for unit in units for one in read_patient(unit.content, settings=Settings(**settings))]
    return [*found, *(one for one in read if isinstance(one, LeftOut))]
