"""Tiny raw datasets for tests of file handling: a few pictures or volumes of noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import typer
from typer.testing import CliRunner, Result

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.images import Geometry, write_image

NAME = "Dataset301_Tiny"
GEOMETRY = Geometry((0.5, 0.5, 2.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def write_tiny(path: Path, array: np.ndarray, geometry: Geometry | None = GEOMETRY, *, exactly: bool = False) -> None:
    """Write an array as picture or volume, by the ending."""
    picture = path.name.endswith((".png", ".bmp", ".tif"))
    write_image(path, array if picture or exactly or array.ndim == 3 else array[None], None if picture else geometry)


def tiny_dataset(
    base: Path,
    *,
    name: str = NAME,
    labelled: tuple[str, ...] = ("S1_a", "S2_a", "S3_a"),
    pool: tuple[str, ...] = ("S1_b", "S4_a", "S4_b"),
    test: tuple[str, ...] = (),
    ending: str = ".png",
    channels: int = 1,
    table: bool = True,
    labels: dict[str, object] | None = None,
) -> Path:
    """A raw dataset below `base/nnUNet_raw`; the first two letters of a case are its subject."""
    folder = base / "nnUNet_raw" / name
    rng = np.random.default_rng(0)
    for cases, images in ((labelled, "imagesTr"), (pool, "imagesUn"), (test, "imagesTs")):
        for case in cases:
            for channel in range(channels):
                picture = rng.integers(0, 255, (6, 8)).astype(np.uint8)
                write_tiny(folder / images / f"{case}_{channel:04d}{ending}", picture)
    for case in labelled:
        write_tiny(folder / "labelsTr" / f"{case}{ending}", tiny_label(case))
    content = {
        "channel_names": {str(number): f"c{number}" for number in range(channels)},
        "labels": labels or {"background": 0, "fluid": 1, "drusen": 2},
        "numTraining": len(labelled),
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=4) + "\n")
    if table:
        roles = {Role.LABELLED: labelled, Role.UNLABELLED: pool, Role.TEST: test}
        rows = [
            {"case_id": case, "subject_id": case[:2], "role": role.value}
            for role, some in roles.items()
            for case in some
        ]
        CaseTable.from_rows(rows).write(folder / "cases.csv")
    return folder


def tiny_label(case: str) -> np.ndarray:
    """A label map that differs from case to case."""
    return np.random.default_rng(sum(map(ord, case))).integers(0, 3, (6, 8)).astype(np.uint8)


def annotate(folder: Path, *cases: str, ending: str = ".png") -> Path:
    """A folder with labels of these cases."""
    for case in cases:
        write_tiny(folder / f"{case}{ending}", tiny_label(case))
    return folder


def snapshot(*folders: Path) -> dict[str, bytes]:
    """Every file below the folders, with its bytes."""
    return {
        f"{folder.name}/{path.relative_to(folder)}": path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_command(module: object, *arguments: object) -> Result:
    """Run one command of the command line, as its module registers it."""
    app = typer.Typer()
    module.register(app)  # type: ignore[attr-defined]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])
