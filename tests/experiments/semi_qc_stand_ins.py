"""The experiment of paper 003 on small hearts, with stand-ins for the commands: they are quick, and what comes out is
known.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from typer.main import get_command

from nnunet_qa.cases import CaseTable
from nnunet_qa.cli.app import app
from nnunet_qa.config import Unit
from nnunet_qa.experiments import runner, semi_qc_curves
from nnunet_qa.experiments.budget import Budget
from nnunet_qa.experiments.semi_qc import Protocol, SemiQCExperiment
from nnunet_qa.files import write_json
from nnunet_qa.quality.curve_classifier import CurveLSTM
from nnunet_qa.quality.curves import SCHEMES
from nnunet_qa.quality.table import write_quality
from tests.small_cine import heart, write_nifti

TINY = Budget(iterations=8, iterations_per_epoch=1, val_iterations_per_epoch=1, features=(4, 8, 16), batch_size=2)
FRAMES = 4
NAME = "Dataset771_Hearts"
KEPT = {"full": 0.75, "half": 0.55, "half_best": 0.7}
"""Part of the true foreground that an arm finds in an average subject; 0.6 for the others."""


def write_hearts(base: Path, *, subjects: int = 8) -> Path:
    """A raw dataset of one acquisition a subject, every frame annotated, the second one ED and the last but one ES."""
    folder = base / "nnUNet_raw" / NAME
    rows: list[dict[str, object]] = []
    for number in range(subjects):
        for frame, labels in enumerate(heart(frames=FRAMES, slices=2, seed=number)):
            case = f"P{number}_fr{frame:03d}"
            write_nifti(folder / "labelsTr" / f"{case}.nii.gz", labels)
            write_nifti(folder / "imagesTr" / f"{case}_0000.nii.gz", labels.astype(np.int16) * 50)
            row = {"case_id": case, "subject_id": f"P{number}", "stack_id": f"P{number}_sa", "frame_index": frame}
            rows.append({**row, "phase": {0: "ED", 2: "ES"}.get(frame, ""), "role": "labelled"})
    CaseTable.from_rows(rows).write(folder / "cases.csv")
    labels = {"background": 0, "lv": 1, "myocardium": 2, "rv": 3}
    about = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", {**about, "numTraining": len(rows)})
    return folder


def experiment_on(source: Path, folder: Path, **changes: Any) -> SemiQCExperiment:
    """The experiment with its settings changed."""
    cine = {"unit": Unit.ACQUISITION, "scheme": SCHEMES["ukbb"], "number": 1, "test_folds": 4}
    return SemiQCExperiment(source=source, folder=folder, protocol=Protocol(**{"budget": TINY, **cine, **changes}))


def chance(*names: str) -> float:
    """A number in [0, 1) that belongs to the names."""
    return zlib.crc32("/".join(names).encode()) % 1000 / 1000


def kept_of(arm: str, case: str) -> float:
    """Part of the true foreground of a case that an arm finds; nothing else is predicted."""
    return min(1.0, KEPT.get(arm, 0.6) + 0.5 * (chance(case[:2]) - 0.5) + 0.1 * chance(arm, case))


def q_of(arm: str, case: str) -> float:
    """Q of a case; it has nothing to do with the Dice."""
    return chance("q", arm, case)


def read(path: Path) -> np.ndarray:
    """A label map `(columns, rows, slices)`."""
    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj)


def predicted(truth: np.ndarray, kept: float) -> np.ndarray:
    """The first voxels of each class, so many as the part says."""
    found = np.zeros_like(truth)
    for value in (1, 2, 3):
        places = np.flatnonzero(truth == value)
        found.flat[places[: round(kept * len(places))]] = value
    return found


def check_options(command: Sequence[str]) -> None:
    """Parse a command of ours as it would be, without running it; unknown options raise."""
    found, arguments = get_command(app), list(command[1:])
    while subcommands := getattr(found, "commands", None):
        found = subcommands[arguments.pop(0)]
    found.make_context(found.name, arguments)


@dataclass
class Commands:
    """Stands in for `run_command`.

    Attributes:
        source: the dataset with all labels.
        ran: every command, with the name of the folder above that of the nnU-Net folders it was given, such as an arm.
    """

    source: Path
    ran: list[tuple[list[str], str]] = field(default_factory=list)

    def __call__(
        self, command: Sequence[str], *, environment: Mapping[str, str], log: Path, lock: int | None = None
    ) -> None:
        base = Path(environment["nnUNet_raw"]).parent
        where = base.parent.name  # the arm, as a rule
        self.ran.append((list(command), where))
        options = dict(itertools.pairwise(command))
        if command[0] == "nnunet-qa":
            check_options(command)
        tool = command[0] if command[0] != "nnunet-qa" else " ".join(command[1:3])
        preprocessed = Path(environment["nnUNet_preprocessed"]) / NAME
        if tool == "nnUNetv2_plan_and_preprocess":
            for file in ("nnUNetPlans", "nnUNetPlansExperiment", "dataset_fingerprint"):
                write_json(preprocessed / f"{file}.json", {"configurations": {"2d": {}}})
        elif tool == "nnUNetv2_train":
            model = f"{options['-tr']}__{options['-p']}__{command[2]}"
            fold = Path(environment["nnUNet_results"]) / NAME / model / "fold_0"
            split = json.loads((preprocessed / "splits_final.json").read_text())[0]
            self._predict(split["val"], fold / "validation", where)
            (fold / "checkpoint_final.pth").write_bytes(b"")
        elif command[1] == "score":
            cases = [path.name.removesuffix("_0000.nii.gz") for path in sorted(Path(options["-i"]).iterdir())]
            self._predict(cases, Path(options["-o"]), where)
            rows = [{"case_id": case, "role": "", "level": "case", "q": q_of(where, case)} for case in cases]
            table = pd.DataFrame(rows).assign(slice_axis=None, slice_index=None)
            write_quality(Path(options["-o"]) / "quality.csv", table)
        elif tool == "crf apply":
            cases = [path.name.removesuffix("_0000.nii.gz") for path in sorted(Path(options["-i"]).iterdir())]
            self._predict(cases, Path(options["-o"]), "crf", kept=0.95)
        elif tool == "discriminator predict":
            cases = [path.name.removesuffix(".nii.gz") for path in Path(options["-p"]).glob("*.nii.gz")]
            codes = [2 * chance("code", case) for case in cases]
            pd.DataFrame({"case_id": cases, "predicted_code": codes}).to_csv(options["-o"], index=False)

    def _predict(self, cases: Sequence[str], output: Path, arm: str, kept: float | None = None) -> None:
        for case in cases:
            path = self.source / "labelsTr" / f"{case}.nii.gz"
            own = nibabel.Nifti1Image.from_filename(path)
            labels = predicted(np.asarray(own.dataobj), kept_of(arm, case) if kept is None else kept)
            output.mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(labels, own.affine, own.header).to_filename(output / path.name)


@contextmanager
def stand_ins(source: Path) -> Iterator[Commands]:
    """The stand-ins in place of the commands, and a curve classifier that is soon fitted."""
    commands = Commands(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_command", commands)
        patch.setattr(semi_qc_curves, "CurveLSTM", partial(CurveLSTM, epochs=2, folds=2, hidden=4))
        patch.setattr(semi_qc_curves, "COPIES", 3)
        yield commands


def run(experiment: SemiQCExperiment, arms: Sequence[str] | None = None, seeds: Sequence[int] = (0,)) -> None:
    """Run cells to their end."""
    experiment.runner.begin()
    for _ in experiment.runner.run(arms, seeds):
        pass
