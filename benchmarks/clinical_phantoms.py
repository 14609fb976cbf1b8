"""Phantoms of the size of clinical scans, few of each, for `benchmarks.conversion --clinical`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from nnunet_qa.data.cine_dicom import write_ukbiobank_zip
from nnunet_qa.data.cine_files import write_labels
from nnunet_qa.data.cine_phantom import short_axis_cine
from nnunet_qa.data.covid_phantom import draw_chest, write_kaggle, write_medseg, write_radiopaedia, write_zenodo
from nnunet_qa.data.fibula_phantom import write_fibula
from nnunet_qa.data.folder_phantom import write_folder
from nnunet_qa.data.images import Geometry
from nnunet_qa.data.phantoms import write_chiu, write_ocsc
from nnunet_qa.data.retouch_phantom import write_retouch

_CT = Geometry((0.75, 0.75, 5.0), (-190.0, -150.0, -300.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def _chiu(folder: Path, rng: np.random.Generator) -> Path:
    write_chiu(folder, rng, subjects=6, bscans=12, annotated=6)  # two of them for testing
    return folder / "2015_BOE_Chiu"


def _ocsc(folder: Path, rng: np.random.Generator) -> Path:
    write_ocsc(folder / "OCSC", rng)
    return folder / "OCSC"


def _retouch(folder: Path, rng: np.random.Generator) -> Path:
    write_retouch(
        folder / "RETOUCH", rng, vendors=("Cirrus", "Spectralis"), annotated=1, rows=496, columns=512, bscans=32
    )
    return folder / "RETOUCH"


def _medseg(folder: Path, rng: np.random.Generator) -> Path:
    chests = [draw_chest(rng, slices=1, size=512, geometry=_CT) for _ in range(12)]
    return write_medseg(folder / "medseg", chests, pool=draw_chest(rng, slices=10, size=512, geometry=_CT))


def _radiopaedia(folder: Path, rng: np.random.Generator) -> Path:
    return write_radiopaedia(
        folder / "radiopaedia", [draw_chest(rng, slices=40, size=512, geometry=_CT) for _ in range(2)]
    )


def _kaggle(folder: Path, rng: np.random.Generator) -> Path:
    chests = [draw_chest(rng, slices=24, size=512, geometry=_CT) for _ in range(3)]
    return write_kaggle(folder / "kaggle", *chests[:2], pool=chests[2])


def _zenodo(folder: Path, rng: np.random.Generator) -> Path:
    names = ("coronacases_001", "coronacases_002")
    chests = {name: draw_chest(rng, slices=40, size=512, geometry=_CT) for name in names}
    return write_zenodo(folder / "zenodo", chests)


def _ukbiobank(folder: Path, rng: np.random.Generator) -> Path:
    for index in range(2):
        eid = str(1000001 + index)
        cine = short_axis_cine(rng)
        write_ukbiobank_zip(folder / "biobank", eid, cine, rng)
        write_labels(folder / "biobank", eid, cine, annotated="ed_es")
    return folder / "biobank"


def _fibula(folder: Path, rng: np.random.Generator) -> Path:
    write_fibula(folder / "legs", rng, patients=3, annotated=2, shape=(120, 256, 448), spacing=(0.8, 0.8, 3.0))
    return folder / "legs"


def _folder(folder: Path, rng: np.random.Generator) -> Path:
    write_folder(folder / "scans", rng, cases=4, annotated=2, shape=(96, 192, 192))
    return folder / "scans"


CLINICAL: Mapping[str, Callable[[Path, np.random.Generator], Path]] = {
    "oct-chiu": _chiu,
    "oct-ocsc": _ocsc,
    "oct-retouch": _retouch,
    "covid-medseg": _medseg,
    "covid-radiopaedia": _radiopaedia,
    "covid-kaggle": _kaggle,
    "covid-zenodo": _zenodo,
    "ukbiobank": _ukbiobank,
    "fibula": _fibula,
    "folder": _folder,
}
"""Writers by the name of their conversion, as in `nnunet_qa.experiments.demo_sources`."""
