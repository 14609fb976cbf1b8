"""Phantoms of every layout that a conversion script reads, for the demo: how they are written and converted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_qa.data.cine_dicom import write_ukbiobank_zip
from nnunet_qa.data.cine_files import write_labels
from nnunet_qa.data.cine_phantom import short_axis_cine
from nnunet_qa.data.covid_phantom import draw_chest, write_kaggle, write_medseg, write_radiopaedia, write_zenodo
from nnunet_qa.data.fibula_phantom import write_fibula
from nnunet_qa.data.folder_phantom import write_folder
from nnunet_qa.data.phantoms import write_chiu, write_ocsc
from nnunet_qa.data.retouch_phantom import write_retouch


@dataclass(frozen=True)
class DemoSource:
    """One layout.

    Attributes:
        name: of the dataset, after its number.
        write: draws the subjects into a folder that is given, and returns what to convert.
        convert: options of `nnunet-qa convert` beside input, dataset and name.
        tests: whether some cases are kept for testing.
    """

    name: str
    write: Callable[[Path, np.random.Generator], Path]
    convert: tuple[str, ...] = ()
    tests: bool = False


def _chiu(folder: Path, rng: np.random.Generator) -> Path:
    """Six subjects, each annotated in part; the last two are for testing."""
    write_chiu(folder, rng, subjects=6, rows=248, columns=384, bscans=12, annotated=8, severity=0.7)
    return folder / "2015_BOE_Chiu"


def _ocsc(folder: Path, rng: np.random.Generator) -> Path:
    write_ocsc(folder / "OCSC", rng, rows=248, columns=384, severity=0.7)
    return folder / "OCSC"


def _retouch(folder: Path, rng: np.random.Generator) -> Path:
    write_retouch(folder / "RETOUCH", rng)
    return folder / "RETOUCH"


def _medseg(folder: Path, rng: np.random.Generator) -> Path:
    return write_medseg(folder / "medseg", [draw_chest(rng) for _ in range(4)], pool=draw_chest(rng))


def _radiopaedia(folder: Path, rng: np.random.Generator) -> Path:
    return write_radiopaedia(folder / "radiopaedia", [draw_chest(rng) for _ in range(5)])


def _kaggle(folder: Path, rng: np.random.Generator) -> Path:
    chests = [draw_chest(rng, slices=12) for _ in range(3)]
    return write_kaggle(folder / "kaggle", *chests[:2], pool=chests[2])


def _zenodo(folder: Path, rng: np.random.Generator) -> Path:
    names = ("coronacases_001", "coronacases_002", "coronacases_003", "radiopaedia_10_85902_1")
    return write_zenodo(folder / "zenodo", {name: draw_chest(rng) for name in names})


def _ukbiobank(folder: Path, rng: np.random.Generator) -> Path:
    """Four hearts in zips; the masks of three lie beside them as the usual converter names them."""
    for index in range(4):
        eid = str(1000001 + index)
        cine = short_axis_cine(rng, frames=6, slices=7, shape=(64, 72), spacing=(10.0, 4.0, 4.0))
        write_ukbiobank_zip(folder / "biobank", eid, cine, rng)
        if index < 3:
            write_labels(folder / "biobank", eid, cine, annotated="ed_es")
    return folder / "biobank"


def _fibula(folder: Path, rng: np.random.Generator) -> Path:
    write_fibula(folder / "legs", rng)
    return folder / "legs"


def _folder(folder: Path, rng: np.random.Generator) -> Path:
    write_folder(folder / "scans", rng)
    return folder / "scans"


SOURCES = {
    "oct-chiu": DemoSource("OCTPhantom", _chiu, ("--test-subjects", "S05,S06"), tests=True),
    "oct-ocsc": DemoSource("OCSCPhantom", _ocsc, tests=True),
    "oct-retouch": DemoSource("RetouchPhantom", _retouch),
    "covid-medseg": DemoSource("MedSegPhantom", _medseg),
    "covid-radiopaedia": DemoSource("RadiopaediaPhantom", _radiopaedia),
    "covid-kaggle": DemoSource("KagglePhantom", _kaggle),
    "covid-zenodo": DemoSource("ZenodoPhantom", _zenodo),
    "ukbiobank": DemoSource("HeartPhantom", _ukbiobank),
    "fibula": DemoSource("FibulaPhantom", _fibula, ("--test-subjects", "p01"), tests=True),
    "folder": DemoSource("FolderPhantom", _folder, ("--images", "images/*.nii.gz", "--masks", "masks/*_seg.nii.gz")),
}
"""Layouts by the name of their conversion."""
