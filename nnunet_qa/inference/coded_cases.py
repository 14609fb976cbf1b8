"""Whole cases with codes, for the discriminator to learn from, and cases for it to judge (paper 002, section 2.3).

Codes come from people, from the Dice of predictions whose truth is known, or from errors simulated in annotated cases.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_qa.config import QALossConfig
from nnunet_qa.errors import SelectionError
from nnunet_qa.evaluation.per_image import evaluate_images
from nnunet_qa.files import write_csv
from nnunet_qa.inference.case_montages import CaseFiles, CaseRenderer, case_files_of, fitting_renderer
from nnunet_qa.inference.predictor import class_names
from nnunet_qa.progress import track
from nnunet_qa.quality.coded_montages import CodedMontages, simulated_montages
from nnunet_qa.quality.codes import Code, CodeSource, CodeThresholds
from nnunet_qa.quality.discriminator import Discriminator
from nnunet_qa.quality.discriminator_file import load

PREDICTED = "qa_predicted.csv"
_PAUSE = 30  # seconds

S = TypeVar("S")
T = TypeVar("T")


def predicted_codes(
    discriminator_file: Path,
    *,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    predictions: Path,
    images: Mapping[str, Sequence[Path]],
    cases: Sequence[str],
    settings: QALossConfig,
    device: torch.device | str = "cpu",
    jobs: int = 1,
) -> pd.DataFrame:
    """The codes that a discriminator gives to predicted label maps.

    Args:
        discriminator_file: of a training, or of `nnunet-qa discriminator fit`.
        plans: content of the plans file of the dataset.
        configuration: the one that the discriminator was made for.
        dataset_json: content of dataset.json.
        predictions: folder of label maps, `<case><file_ending>`.
        images: channel files of each case.
        cases: the cases to judge.
        settings: views; the window and the number of slices are those of the discriminator.
        device: where the discriminator computes.
        jobs: processes that draw.

    Returns:
        One row a case, in the order of `cases`: `case_id` and `predicted_code`, a float.

    Raises:
        ModelError: the file is missing, damaged, or was made for another dataset, other classes or montages.
        DatasetError: a prediction or image is missing, or the plans lack the configuration.
        ImageError: a file cannot be read, or prediction and image do not fit.
    """
    files = case_files_of(cases, predictions, images, {}, dataset_json["file_ending"])
    discriminator, renderer = load_for(
        discriminator_file, plans, configuration, dataset_json, settings, images=files[0].images, device=device
    )
    return pd.DataFrame(judged(discriminator, renderer, files, jobs=jobs), columns=["case_id", "predicted_code"])


def load_for(
    path: Path,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    settings: QALossConfig,
    *,
    images: Sequence[Path],
    device: torch.device | str = "cpu",
) -> tuple[Discriminator, CaseRenderer]:
    """Read a discriminator and find its montages; arguments and errors as of `predicted_codes` and `case_renderer`."""
    classes = class_names(dataset_json, PlansManager(plans).get_label_manager(dataset_json))
    discriminator = load(path, device=device, dataset=plans["dataset_name"], classes=classes)
    renderer = fitting_renderer(discriminator.spec, plans, configuration, dataset_json, settings, images=images)
    if renderer.renderer.specs[0] != discriminator.spec:
        load(path, spec=renderer.renderer.specs[0])  # names the difference
    return discriminator, renderer


def judged(
    discriminator: Discriminator, renderer: CaseRenderer, files: Sequence[CaseFiles], *, jobs: int
) -> Iterator[tuple[str, float]]:
    """Each case with its predicted code, the mean over views."""
    drawn = _in_parallel(renderer.pictures, files, "judging", jobs)
    for case, pictures in zip(files, drawn, strict=True):
        yield case.case_id, float(discriminator.predict(pictures).mean())


def judge_folder(
    path: Path,
    discriminator_file: Path,
    discriminator: Discriminator,
    renderer: CaseRenderer,
    files: Sequence[CaseFiles],
    *,
    overwrite: bool = False,
    jobs: int = 1,
) -> pd.DataFrame:
    """Judge predictions and write `qa_predicted.csv`, every half minute, so that a run that was stopped goes on.

    What the same discriminator has judged is kept, unless prediction or image are newer than the table.

    Args:
        path: the table.
        discriminator_file: where the discriminator was read from.
        discriminator: what `load_for` gave.
        renderer: what `load_for` gave.
        files: the predictions.
        overwrite: judge all of them again.
        jobs: processes that draw.

    Returns:
        The table, one row a case: `case_id`, `predicted_code`, `code` (the nearest of 0, 1 and 2) and `model`, name and
        start of the SHA-256 of the discriminator's file.

    Raises:
        SelectionError: `path` holds something else.
        ImageError: as `preprocessed_pair`.
        StorageError: the table cannot be written.
    """
    model = f"{discriminator_file.name} {hashlib.sha256(discriminator_file.read_bytes()).hexdigest()[:12]}"
    known = {} if overwrite or not path.is_file() else _judged_before(path, model, files)
    todo = [case for case in files if case.case_id not in known]
    written = time.monotonic()
    for case, code in judged(discriminator, renderer, todo, jobs=jobs) if todo else ():
        known[case] = round(code, 6)
        if time.monotonic() - written > _PAUSE:
            _write_predicted(path, known, model)
            written = time.monotonic()
    return _write_predicted(path, known, model)


def _judged_before(path: Path, model: str, files: Sequence[CaseFiles]) -> dict[str, float]:
    """Codes that a table holds already."""
    try:
        table = pd.read_csv(path, dtype={"case_id": str, "model": str})
        table = table[table["model"] == model]
        found = {str(case): float(code) for case, code in zip(table["case_id"], table["predicted_code"], strict=True)}
    except (OSError, ValueError, KeyError) as error:
        raise SelectionError(
            f"{path}: is no table of predicted codes; name another with -o, or use --overwrite"
        ) from error
    since = path.stat().st_mtime_ns
    current = {case.case_id for case in files if max(_changed(file) for file in (case.labels, *case.images)) < since}
    return {case: code for case, code in found.items() if case in current}


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns


def _write_predicted(path: Path, codes: Mapping[str, float], model: str) -> pd.DataFrame:
    table = pd.DataFrame(sorted(codes.items()), columns=["case_id", "predicted_code"])
    table["code"] = table["predicted_code"].round().clip(min(Code), max(Code)).astype(int)
    table["model"] = model
    write_csv(path, table)
    return table


def coded_montages(
    files: Sequence[CaseFiles], codes: pd.DataFrame, renderer: CaseRenderer, *, jobs: int
) -> CodedMontages:
    """Montages of predictions that have codes.

    Args:
        files: the predictions.
        codes: `case_id`, `code`, `source` and `dice` of each; a case may have codes of several sources.
        renderer: draws the montages.
        jobs: processes that draw.

    Raises:
        ImageError: as `preprocessed_pair`.
    """
    drawn = _in_parallel(renderer.pictures, files, "drawing", jobs)
    pictures = {case.case_id: own for case, own in zip(files, drawn, strict=True)}
    subjects = {case.case_id: case.subject for case in files}
    parts = torch.cat([pictures[case] for case in codes["case_id"]])
    each = codes.loc[codes.index.repeat(len(renderer.renderer.specs))]
    return CodedMontages(
        pictures=parts,
        codes=each["code"].to_numpy(dtype=np.int64),
        dice=each["dice"].to_numpy(dtype=np.float64),
        subjects=tuple(subjects[case] for case in each["case_id"]),
        case_ids=tuple(each["case_id"]),
        sources=tuple(each["source"]),
    )


def dice_codes(
    files: Sequence[CaseFiles],
    truths: Path,
    dataset_json: Mapping[str, Any],
    *,
    thresholds: CodeThresholds,
    source: CodeSource,
) -> pd.DataFrame:
    """Codes of predictions whose truth is known, by the mean Dice over classes of the files as they are.

    Args:
        files: the predictions, all in one folder.
        truths: folder of true label maps of the same names.
        dataset_json: content of dataset.json.
        thresholds: Dice of each code.
        source: what the codes are to be called.

    Returns:
        One row a case: `case_id`, `code`, `source`, `dice`.

    Raises:
        ImageError: a file is missing or cannot be read, or two have different shapes.
    """
    cases = [case.case_id for case in files]
    metrics = evaluate_images(files[0].labels.parent, truths, cases, dataset_json)
    dice = metrics.groupby("case_id", sort=False)["dice"].mean().loc[cases]
    codes = [int(thresholds.code(value)) for value in dice]
    return pd.DataFrame({"case_id": cases, "code": codes, "source": source.value, "dice": dice.to_numpy()})


def simulated_cases(
    files: Sequence[CaseFiles],
    renderer: CaseRenderer,
    *,
    thresholds: CodeThresholds,
    per_code: int,
    rng: np.random.Generator,
    jobs: int,
) -> CodedMontages:
    """Montages of annotated cases whose labels are corrupted to every code.

    Errors and Dice are those of the slices that the montage shows.

    Args:
        files: annotated cases.
        renderer: draws the montages.
        thresholds: Dice of each code.
        per_code: pictures of each code from each case and view.
        rng: source of chance; the result does not depend on `jobs`.
        jobs: processes.

    Raises:
        SelectionError: there is no case in which errors can be simulated.
        ImageError: as `preprocessed_pair`.
    """
    seeds = rng.integers(2**63, size=len(files)).tolist()
    simulate = partial(_simulate, renderer=renderer, thresholds=thresholds, per_code=per_code)
    made = _in_parallel(simulate, list(zip(files, seeds, strict=True)), "simulating errors", jobs)
    return CodedMontages.joined(part for parts in made for part in parts)


def _simulate(
    job: tuple[CaseFiles, int], *, renderer: CaseRenderer, thresholds: CodeThresholds, per_code: int
) -> list[CodedMontages]:
    files, seed = job
    rng = np.random.default_rng(seed)
    how: dict[str, Any] = {"classes": renderer.classes, "thresholds": thresholds, "rng": rng, "per_code": per_code}
    views = zip(renderer.renderer.specs, renderer.patches(files), strict=True)
    return [simulated_montages([patch], spec=spec, **how) for spec, patch in views]


def _in_parallel(function: Callable[[S], T], items: Sequence[S], what: str, jobs: int) -> Iterator[T]:
    """Results in the order of the items, with a progress bar."""
    done: Iterator[T] = Parallel(n_jobs=jobs, return_as="generator")(delayed(function)(item) for item in items)
    return track(done, what, len(items))
