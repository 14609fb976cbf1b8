"""What all conversion scripts share: many subjects to one raw dataset, in parallel, none stopping the others.

A script finds its units (a subject's file or folder) without opening them, and reads one unit as a stream of `Case`s.
The engine writes the cases, keeps what is done, and reports what was left out and why.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from nnunet_qa.cases import Role
from nnunet_qa.data.images import Geometry
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.dataset_conversion.fingerprint import fingerprint
from nnunet_qa.dataset_conversion.report import CONVERTED, LEFT_OUT, REPORT, SKIPPED, summary, utf8, write_report
from nnunet_qa.errors import DatasetError, DependencyError, NnunetQAError, StorageError
from nnunet_qa.progress import track

logger = logging.getLogger(__name__)

DONE = "conversion_units.jsonl"
"""In the raw dataset: what later runs need not do again."""
PATIENCE = 30
"""Seconds in which a Dask scheduler has to answer."""
ENDED = "its process was ended from outside; is there enough memory?"
_LONGEST = 150  # letters of a name, as file systems take 255 bytes with all that is added to it
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Unit:
    """What one process converts at a time, as a rule a subject.

    Attributes:
        name: for the report; no two units have the same.
        content: whatever the script needs to read it, such as paths; it can be pickled.
    """

    name: str
    content: Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case to be written; see `RawDataset.write_case`.

    Attributes:
        case_id: identifier, see `safe_name`.
        role: labelled, unlabelled or test.
        images: one array a channel.
        label: label values on the same grid.
        geometry: position of a volume in the patient.
        row: further columns of cases.csv (`subject_id`, `stack_id`, `slice_index`, …).
    """

    case_id: str
    role: Role
    images: Sequence[np.ndarray]
    label: np.ndarray | None = None
    geometry: Geometry | None = None
    row: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """Something that is no case, such as an empty slice; the rest is converted.

    Attributes:
        name: for the report.
        reason: why it is left out.
        bad: whether something is wrong with it that costs an image or an annotation (a mask without an image, NaN, a
            link out of the source), so that `--strict` stops at it; files of another kind do no harm.
    """

    name: str
    reason: str
    bad: bool = False


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to convert.

    Attributes:
        jobs: processes.
        dask: address of a Dask scheduler, such as `tcp://host:8786`; then its workers do the work.
        folds: cross-validation folds, grouped by subject.
        strict: stop at the first unit that cannot be converted, and at the first bad thing that is left out.
        overwrite: delete an earlier conversion first.
    """

    jobs: int = 1
    dask: str | None = None
    folds: int = 5
    strict: bool = False
    overwrite: bool = False


@dataclass
class _Outcome:
    """What came of a unit: rows for the case table, what was left out, why it failed, and what its files were.

    `bad` is the first thing left out that `--strict` stops at.
    """

    unit: str
    files: str = ""
    rows: list[dict[str, object]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    bad: str | None = None
    failure: str | None = None

    def check(self) -> None:
        """Raise what `--strict` stops at."""
        if self.failure is not None:
            raise DatasetError(f"{self.unit}: {self.failure}")
        if self.bad is not None:
            raise DatasetError(self.bad)


def safe_name(text: str) -> str:
    """A case identifier from any text: letters, digits, `-` and `_`; a long one is cut and ends in a digest.

    Raises:
        DatasetError: nothing is left of the text.

    >>> safe_name("left leg (Größe 2).nii")
    'left_leg_Gr_e_2_nii'
    """
    name = _UNSAFE.sub("_", text).strip("_")
    if not name:
        raise DatasetError(f'"{text}" holds no letter or digit to name a case by; rename it')
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}_{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]}"
    return name


def below(path: Path, source: Path) -> Path:
    """The path, if it lies below the source after links are followed.

    Raises:
        DatasetError: a symbolic link leads out of the source.
    """
    if not path.resolve().is_relative_to(source.resolve()):
        raise DatasetError(f"{path}: is a symbolic link out of {source}; copy the file there")
    return path


def convert(
    dataset: RawDataset,
    units: Sequence[Unit],
    read: Callable[[Any], Iterator[Case | LeftOut]],
    *,
    what: str,
    options: Options,
    left_out: Iterable[LeftOut] = (),
) -> Path:
    """Begin or resume a dataset, convert all units, and finish it.

    A unit that cannot be read leaves no case behind; it is named in `conversion_report.csv`, and the next run tries it
    again. The next run also converts units anew whose source files have changed, and deletes the cases of units that
    are gone.

    Args:
        dataset: where to.
        units: what to convert; none stands twice.
        read: reads the content of one unit; with several processes it is pickled.
        what: text of the progress bar.
        options: processes, folds, strictness.
        left_out: what was left out while the units were looked for.

    Returns:
        The dataset's folder.

    Raises:
        DatasetError: see `RawDataset.begin` and `RawDataset.finish`; with `strict`, what is wrong with a unit or with
            what was left out; or no unit could be converted.
        DependencyError: Dask is not installed or the scheduler does not answer.
        StorageError: the disk is full or read-only.
    """
    if options.jobs < 1 or options.folds < 2:
        raise DatasetError(f"--jobs {options.jobs} and --folds {options.folds}: give at least 1 process and 2 folds")
    left_out = list(left_out)
    if options.strict:
        _check(left_out)
    dataset.begin(overwrite=options.overwrite)
    files = {unit.name: fingerprint(unit.content) for unit in units}
    outcomes = {outcome.unit: outcome for outcome in _known(dataset)}  # the last line of a unit counts
    outcomes = {name: outcome for name, outcome in outcomes.items() if outcome.files == files.get(name)}
    missing = [unit for unit in units if unit.name not in outcomes]
    if options.strict:
        for outcome in outcomes.values():
            outcome.check()
    with (dataset.folder / DONE).open("a", encoding="utf-8") as done:
        done.write("\n")  # a kill may have cut off the last line
        for outcome in track(_running(missing, partial(_convert_one, dataset, read), options), what, len(missing)):
            if options.strict:
                outcome.check()
            outcome.files = files[outcome.unit]
            outcomes[outcome.unit] = outcome
            if outcome.failure is None:
                done.write(json.dumps(vars(outcome)) + "\n")
                done.flush()
    ordered = _settle(dataset, units, outcomes, partial(_convert_one, dataset, read), strict=options.strict)
    write_report(dataset.folder, _report_of(ordered, left_out))
    logger.info("%s", summary(dataset.folder))
    _finish(dataset, ordered, options)
    return dataset.folder


def _finish(dataset: RawDataset, outcomes: Sequence[_Outcome], options: Options) -> None:
    """Case table, dataset.json and folds; without a single case it is an error."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    if not rows:
        first = next((outcome.failure for outcome in outcomes if outcome.failure), "nothing was found")
        raise DatasetError(f"{dataset.folder / REPORT}: no case could be converted; the first reason: {first}")
    dataset.remove_others(rows)
    dataset.finish(rows, jobs=options.jobs, folds=options.folds)


def _check(left_out: Iterable[LeftOut]) -> None:
    """Raise the first thing left out that `--strict` stops at."""
    for found in left_out:
        if found.bad:
            raise DatasetError(f"{found.name}: {found.reason}")


def _running(units: Sequence[Unit], work: Callable[[Unit], _Outcome], options: Options) -> Iterator[_Outcome]:
    """Outcomes as they come."""
    if options.dask is None:
        yield from _in_processes(units, work, options.jobs)
        return
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise DependencyError('--dask needs Dask; run `pip install "nnunet-qa[dask]"`') from error
    try:
        client = Client(options.dask, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise DependencyError(f"--dask {options.dask}: no scheduler answers there ({error})") from error
    with client:
        # not pure: a unit that failed in an earlier run is tried again
        futures = dict(zip(client.map(work, units, pure=False, retries=3), units, strict=True))
        for future in as_completed(list(futures)):
            try:
                outcome = future.result()
            except KilledWorker:
                outcome = _Outcome(futures[future].name, failure=ENDED)
            yield outcome
            del futures[future]
            future.release()


def _in_processes(units: Sequence[Unit], work: Callable[[Unit], _Outcome], jobs: int) -> Iterator[_Outcome]:
    """Outcomes from `jobs` processes; where one dies, what was under way is tried again, each unit alone."""
    rest = list(units)
    while rest:
        begun: dict[str, Unit] = {}
        calls = (begun.setdefault(unit.name, unit) for unit in rest)
        finished: set[str] = set()
        try:
            runs = Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(work)(unit) for unit in calls)
            for outcome in runs:
                finished.add(outcome.unit)
                yield outcome
        except BrokenProcessPool:
            for name, unit in begun.items():
                if name not in finished:
                    yield _alone(unit, work)
        rest = [unit for unit in rest if unit.name not in begun]


def _alone(unit: Unit, work: Callable[[Unit], _Outcome]) -> _Outcome:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as executor:
        try:
            return executor.submit(work, unit).result()
        except BrokenProcessPool:
            return _Outcome(unit.name, failure=ENDED)


def _convert_one(dataset: RawDataset, read: Callable[[Any], Iterator[Case | LeftOut]], unit: Unit) -> _Outcome:
    """Write the cases of a unit; where it fails, take away those that were written."""
    outcome = _Outcome(unit.name)
    written: list[Case] = []
    try:
        for found in read(unit.content):
            if isinstance(found, LeftOut):
                outcome.left_out.append((found.name, found.reason))
                if found.bad and outcome.bad is None:
                    outcome.bad = f"{found.name}: {found.reason}"
                continue
            written.append(found)
            dataset.write_case(found.case_id, found.role, found.images, found.label, geometry=found.geometry)
            written[-1] = _without_pixels(found)
            row = {key: utf8(value) if isinstance(value, str) else value for key, value in found.row.items()}
            outcome.rows.append({"case_id": found.case_id, "role": found.role.value, **row})
    except StorageError:
        raise
    except Exception as error:  # whatever a damaged file makes a reader raise, it must not stop the other units
        for case in written:
            _remove(dataset, case)
        reason = str(error) if isinstance(error, NnunetQAError) else f"{type(error).__name__}: {error}"
        return _Outcome(unit.name, failure=" ".join(reason.split()))
    return outcome


def _without_pixels(case: Case) -> Case:
    """What is needed to remove a case again; its pixels would fill the memory."""
    return Case(case_id=case.case_id, role=case.role, images=())


def _remove(dataset: RawDataset, case: Case) -> None:
    for path in (*dataset.image_paths(case.case_id, case.role), dataset.label_path(case.case_id, case.role)):
        with contextlib.suppress(OSError):  # what cannot be deleted stays no case: it is in no table
            path.unlink(missing_ok=True)


def _known(dataset: RawDataset) -> Iterator[_Outcome]:
    """Units that an earlier run has converted and whose cases are still there; a unit may stand more than once."""
    path = dataset.folder / DONE
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            outcome = _Outcome(**json.loads(line))
            there = _is_there(dataset, outcome)
        except (ValueError, TypeError, KeyError):
            continue  # cut off by a kill
        if there:
            yield outcome


def _is_there(dataset: RawDataset, outcome: _Outcome) -> bool:
    """Whether all files of a unit's cases are there."""
    cases = [(str(row["case_id"]), Role(row["role"])) for row in outcome.rows]
    return all(dataset.has_case(case, role, labelled=role is Role.LABELLED) for case, role in cases)


def _settle(
    dataset: RawDataset,
    units: Sequence[Unit],
    outcomes: dict[str, _Outcome],
    work: Callable[[Unit], _Outcome],
    *,
    strict: bool,
) -> list[_Outcome]:
    """A unit that repeats a case of an earlier one fails; the earlier one, overwritten, is converted anew."""
    owners: dict[object, Unit] = {}
    overwritten: set[str] = set()
    for unit in units:
        names = [row["case_id"] for row in outcomes[unit.name].rows]
        repeated = [name for name in names if name in owners]
        if not repeated:
            owners.update(dict.fromkeys(names, unit))
            continue
        overwritten |= {owners[name].name for name in repeated}
        first = owners[repeated[0]].name
        reason = f'gives the same case "{repeated[0]}" as "{first}"; rename one of them'
        if strict:
            raise DatasetError(f"{unit.name}: {reason}")
        outcomes[unit.name] = _Outcome(unit.name, failure=reason)
    for unit in units:  # a unit that failed has taken its cases away, and with them those of another of the same name
        if unit.name in overwritten or not _is_there(dataset, outcomes[unit.name]):
            outcomes[unit.name] = work(unit)
            if strict:
                outcomes[unit.name].check()
    return [outcomes[unit.name] for unit in units]


def _report_of(outcomes: Sequence[_Outcome], left_out: Iterable[LeftOut]) -> Iterator[tuple[str, str, int, str]]:
    """Rows for `write_report`."""
    for outcome in outcomes:
        status = CONVERTED if outcome.failure is None else SKIPPED
        yield outcome.unit, status, len(outcome.rows), outcome.failure or ""
        yield from ((name, LEFT_OUT, 0, reason) for name, reason in outcome.left_out)
    yield from ((found.name, LEFT_OUT, 0, found.reason) for found in left_out)
