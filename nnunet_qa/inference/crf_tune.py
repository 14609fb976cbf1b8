"""Settings of the CRF chosen on validation cases, with what they gain on cases that did not choose them.

The best of many drawn settings looks better than it is on the cases that chose it. So each subject is also refined with
the settings that are best for all the others, and that gain is reported beside the first.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.existing import read_dataset_json
from nnunet_qa.data.images import check_label_values, check_same_grid, label_values
from nnunet_qa.data.paths import raw_dataset_folder
from nnunet_qa.data.splits import pseudo_labelled
from nnunet_qa.errors import CRFError, DatasetError
from nnunet_qa.evaluation.failure_detection import bootstrap_interval
from nnunet_qa.evaluation.segmentation import foreground_classes, ignore_value, overlaps
from nnunet_qa.files import write_csv
from nnunet_qa.inference.crf import CRFSettings, Mode, labels_of, library, refine
from nnunet_qa.inference.crf_folder import CaseReader, CRFCase, probability_files
from nnunet_qa.progress import track

LEVEL = 0.95
COLUMNS = ("trial", "settings", "case_id", "files", "dice")
"""Columns of the table of trials, then `dice_<class>`; `files` changes when the case's files do."""
_ITERATIONS = (2, 5, 10)
_RANGES = {
    "gaussian_sd": (0.5, 5.0),
    "gaussian_weight": (0.1, 10.0),
    "bilateral_sd": (2.0, 40.0),
    "intensity_sd": (0.01, 0.5),
    "bilateral_weight": (0.1, 10.0),
}
"""Least and most of what is drawn, evenly on a logarithmic scale; distances in pixels."""
_DISTANCES = ("gaussian_sd", "bilateral_sd")
_SAVE_EVERY = 5.0  # seconds
_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class TuningCase(CRFCase):
    """A case whose truth is known.

    Attributes:
        subject_id: whose it is.
        label: file of its label map.
    """

    subject_id: str
    label: Path

    @property
    def files(self) -> str:
        """Size and time of probabilities and label map, which tell whether a result is out of date."""
        states = [os.stat(path) for path in (self.probabilities, self.label)]
        return " ".join(f"{state.st_size}-{state.st_mtime_ns}" for state in states)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What the tuning chose.

    Attributes:
        settings: the best of the trials by the mean Dice of the cases; those of trial 0, which do nothing, where no
            other is better.
        cases: number of cases.
        subjects: number of subjects.
        trials: number of trials, the one that does nothing included.
        dice_before: mean Dice of the unrefined predictions over classes and cases.
        gain: of the chosen settings on the cases that chose them.
        held_out_gain: mean gain of each subject's cases with the settings that are best for all other subjects; NaN
            for one subject.
        held_out_interval: its 95 % bootstrap interval over subjects; NaN for one subject.
    """

    settings: CRFSettings
    cases: int
    subjects: int
    trials: int
    dice_before: float
    gain: float
    held_out_gain: float
    held_out_interval: tuple[float, float]

    def as_json(self) -> dict[str, Any]:
        """The settings, flat, and under `tuned` where they come from."""
        figures = {name: getattr(self, name) for name in ("dice_before", "gain", "held_out_gain")}
        figures |= dict(zip(("held_out_gain_low", "held_out_gain_high"), self.held_out_interval, strict=True))
        about: dict[str, Any] = {name: getattr(self, name) for name in ("cases", "subjects", "trials")}
        about |= {name: round(value, 6) if np.isfinite(value) else None for name, value in figures.items()}
        return {**self.settings.model_dump(mode="json"), "tuned": about}


def tuning_cases(dataset: str, folders: Iterable[Path]) -> list[TuningCase]:
    """The cases of which there are probabilities, with the images and labels of the dataset's annotated cases.

    Args:
        dataset: number or name of a raw dataset.
        folders: of `<case_id>.npz`, such as `fold_0/validation` of a training with `--npz`.

    Raises:
        DatasetError: there is no such dataset or folder, or a case stands in two folders.
        CRFError: a case is not annotated by people in this dataset, so it must not choose settings: a test case, one
            of the pool, or a pseudo-label.
        CaseTableError: cases.csv cannot be read.
    """
    raw = raw_dataset_folder(dataset)
    annotated = get_filenames_of_train_images_and_targets(str(raw), read_dataset_json(raw))
    path = raw / CASES
    table = CaseTable.read(path) if path.is_file() else None
    refused = _not_for_tuning(table)
    subjects = table.subjects() if table is not None else {}
    cases: dict[str, TuningCase] = {}
    for folder in folders:
        for case, file in probability_files(folder).items():
            if case in cases:
                raise DatasetError(
                    f'{file}: the case "{case}" is in {cases[case].probabilities.parent} too; remove one'
                )
            what = refused.get(case) or (None if case in annotated else "no annotated case of the dataset")
            if what is not None:
                raise CRFError(
                    f"{file}: is {what}, and settings are chosen on validation cases only; give fold_X/validation of a "
                    "training with --npz"
                )
            cases[case] = TuningCase(
                case_id=case,
                subject_id=subjects.get(case, case),
                probabilities=file.absolute(),
                images=tuple(Path(image) for image in annotated[case]["images"]),
                label=Path(annotated[case]["label"]),
            )
    return [cases[case] for case in sorted(cases)]


def _not_for_tuning(table: CaseTable | None) -> dict[str, str]:
    """What is wrong with the cases whose labels are none of validation, by case."""
    if table is None:
        return {}
    frame = table.frame
    refused = dict.fromkeys(frame["case_id"][frame["role"] == Role.TEST.value], "a test case")
    return refused | dict.fromkeys(pseudo_labelled(table), "a pseudo-label")


def drawn_settings(rng: np.random.Generator, *, mode: Mode, pixel: float) -> CRFSettings:
    """Draw settings.

    Args:
        rng: where from.
        mode: of the settings.
        pixel: mm within the slice, by which the ranges of distances are multiplied.
    """
    drawn = {name: float(np.exp(rng.uniform(*np.log(limits)))) for name, limits in _RANGES.items()}
    scaled = {name: value * (pixel if name in _DISTANCES else 1) for name, value in drawn.items()}
    rounded = {name: float(f"{value:.3g}") for name, value in scaled.items()}
    return CRFSettings(mode=mode, iterations=int(rng.choice(_ITERATIONS)), **rounded)


def tune(
    cases: Sequence[TuningCase],
    *,
    reader: CaseReader,
    labels: dict[str, Any],
    trials: int,
    seed: int,
    mode: Mode,
    state: Path,
    jobs: int = 1,
) -> Tuned:
    """Try random settings on all cases; a run that was stopped goes on, and one with more trials only adds to it.

    Args:
        cases: at least one.
        reader: for the cases of the dataset.
        labels: the entry of its dataset.json.
        trials: how many settings are drawn, beside the one that does nothing.
        seed: trial n draws from `numpy.random.default_rng([seed, n])`.
        mode: of all settings.
        state: table of the trials, see `COLUMNS`.
        jobs: processes.

    Raises:
        CRFError: as `CaseReader`.
        DependencyError: pydensecrf2 is not installed.
        ImageError: a file cannot be read, or a label map does not fit its image.
        StorageError: the table could not be written.
    """
    library()
    pixel = _pixel(cases, reader)
    wanted = [CRFSettings(mode=mode, gaussian_weight=0, bilateral_weight=0)]
    wanted += [drawn_settings(np.random.default_rng([seed, n]), mode=mode, pixel=pixel) for n in range(1, trials + 1)]
    texts = [settings.model_dump_json() for settings in wanted]
    files = {case.case_id: case.files for case in cases}
    rows = _known(state, texts, files)
    done = {(row["trial"], row["case_id"]) for row in rows}
    left = [(case, n) for case in cases for n in range(len(wanted)) if (n, case.case_id) not in done]
    calls = (delayed(_dice)(case, files[case.case_id], wanted[n], reader, labels, n) for case, n in left)
    saved = time.monotonic()
    try:
        for row in track(Parallel(n_jobs=jobs, return_as="generator")(calls), "trying settings", len(left)):
            rows.append({**row, "settings": texts[row["trial"]], "files": files[row["case_id"]]})
            if time.monotonic() - saved > _SAVE_EVERY:
                _save(state, rows)
                saved = time.monotonic()
    finally:
        if len(rows) > len(done):
            _save(state, rows)
    frame = pd.DataFrame(rows).pivot(index="case_id", columns="trial", values="dice")
    subjects = {case.case_id: case.subject_id for case in cases}
    return choose(frame, subjects=[subjects[case] for case in frame.index], settings=wanted, seed=seed)


def choose(frame: pd.DataFrame, *, subjects: Sequence[str], settings: Sequence[CRFSettings], seed: int) -> Tuned:
    """Choose the trial of highest mean Dice, the first of several.

    Args:
        frame: Dice, one row a case and one column a trial; trial 0 does nothing.
        subjects: of the rows.
        settings: of the trials.
        seed: of the bootstrap.
    """
    dice, groups = frame.to_numpy(dtype=np.float64), np.array(subjects)
    gains = dice - dice[:, :1]
    best = int(gains.mean(axis=0).argmax())
    held_out = np.full(len(groups), np.nan)
    if len(set(subjects)) > 1:
        for subject in set(subjects):
            own = groups == subject
            held_out[own] = gains[own, int(gains[~own].mean(axis=0).argmax())]
    interval = bootstrap_interval(
        lambda ours, theirs: float(np.mean(ours - theirs)),
        held_out,
        np.zeros(len(groups)),
        subjects=list(subjects),
        rng=np.random.default_rng(seed),
        resamples=_RESAMPLES,
        level=LEVEL,
    )
    return Tuned(
        settings=settings[best],
        cases=len(groups),
        subjects=len(set(subjects)),
        trials=len(settings),
        dice_before=float(dice[:, 0].mean()),
        gain=float(gains[:, best].mean()),
        held_out_gain=float(held_out.mean()),
        held_out_interval=interval,
    )


def _pixel(cases: Sequence[TuningCase], reader: CaseReader) -> float:
    """Median distance of pixels within a slice, in mm."""
    steps = [reader.image(case.images)[1]["spacing"][-2:] for case in track(cases, "reading spacings", len(cases))]
    return float(np.median(np.array(steps, dtype=np.float64)))


def _known(state: Path, texts: Sequence[str], files: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of an earlier run that still hold: same settings, same files."""
    if not state.is_file():
        return []
    try:
        table = pd.read_csv(state, dtype={"case_id": str, "settings": str, "files": str}, float_precision="round_trip")
    except (OSError, ValueError) as error:
        raise CRFError(f"{state}: cannot be read as a table of trials: {error}; delete it") from error
    if missing := [column for column in COLUMNS if column not in table.columns]:
        raise CRFError(f'{state}: is no table of trials, the column "{missing[0]}" is missing; choose another -o')
    return [
        row
        for row in table.to_dict("records")
        if row["trial"] < len(texts)
        and row["settings"] == texts[row["trial"]]
        and row["files"] == files.get(row["case_id"])
    ]


def _save(state: Path, rows: Sequence[dict[str, Any]]) -> None:
    table = pd.DataFrame(rows)
    order = [*COLUMNS, *(column for column in table.columns if column not in COLUMNS)]
    write_csv(state, table[order].sort_values(["trial", "case_id"]))


@functools.lru_cache(maxsize=1)
def _read(case: TuningCase, _files: str, reader: CaseReader) -> tuple[np.ndarray, np.ndarray, list[float], np.ndarray]:
    """Probabilities, image, spacing and label map; the trials of a case come one after the other."""
    probabilities, image, properties = reader.case(case)
    label = reader.image([case.label])[0][0]
    check_same_grid(image[0], label, str(case.label))
    return probabilities, image, [float(step) for step in properties["spacing"]], label


def _dice(
    case: TuningCase, files: str, settings: CRFSettings, reader: CaseReader, labels: dict[str, Any], trial: int
) -> dict[str, Any]:
    probabilities, image, spacing, truth = _read(case, files, reader)
    check_label_values(truth, label_values(labels), str(case.label))
    predicted = labels_of(refine(probabilities, image, spacing=spacing, settings=settings))
    found = overlaps(predicted, truth, classes=foreground_classes(labels), ignore=ignore_value(labels))
    dice = {name: count.dice() for name, count in found.items()}
    return {
        "trial": trial,
        "case_id": case.case_id,
        "dice": float(np.mean(list(dice.values()))),
        **{f"dice_{name}": value for name, value in dice.items()},
    }
