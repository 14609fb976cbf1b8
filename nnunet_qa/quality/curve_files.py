"""From label files to curves, and the tables of curves: what `nnunet-qa curves` reads and writes (paper 003).

A series is one file of four axes, or one file a frame with a case table that says which frames belong together. Only
the pixel counts of a series are kept, so memory does not grow with the number of subjects.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from nnunet_qa.cases import CaseTable
from nnunet_qa.data.images import NATURAL_ENDINGS, read_picture
from nnunet_qa.data.nifti_series import LabelSeries, read_nifti_series
from nnunet_qa.data.volume_series import read_volume_series
from nnunet_qa.errors import CurveError, NnunetQAError, nearest
from nnunet_qa.evaluation.clinical import measures
from nnunet_qa.files import replacing
from nnunet_qa.progress import track
from nnunet_qa.quality.curves import UNITS, Acquisition, LabelScheme, acquisition_of, count_pixels
from nnunet_qa.quality.pulse_pressure import with_pressures

FILE_NAME, CURVES, MEASURES = "acquisitions.jsonl", "curves.csv", "measures.csv"
ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", *NATURAL_ENDINGS)
"""Endings of label files."""
_COLUMNS = ("acquisition_id", "subject_id", "structure", "frame_index", "time_s", "value", "unit")
_SAME_SPACING = 1e-3  # relative: headers round

Spacing = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class _Frame:
    index: int
    case_id: str
    path: Path | None


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where a series comes from: one file of four axes, or its frames."""

    acquisition_id: str
    subject_id: str
    series: Path | None = None
    frames: tuple[_Frame, ...] = ()


def read_acquisitions(
    source: Path | Sequence[Path],
    *,
    scheme: LabelScheme,
    cases: CaseTable | None = None,
    pattern: str = "*",
    spacing: Spacing | None = None,
    jobs: int = 1,
    failed: Callable[[NnunetQAError], None] | None = None,
    show_progress: bool = True,
) -> Iterator[Acquisition]:
    """Read the series of a folder, one at a time, in the order of their names.

    A file is called by its name without the ending, one in a folder below `source` by `<that folder>_<name>`, where
    `label_` in front of the name is left out, and then the folder is its subject: `1000001/label_sa.nii.gz` is
    `1000001_sa` of subject `1000001`.

    Args:
        source: a folder of label files, or the files themselves.
        scheme: which label value is which structure.
        cases: where frames are files of their own, what says by `stack_id` (`subject_id` where that is empty) and
            `frame_index` which belong together. An acquisition of which no file is there is passed over. Series of four
            axes find their subject in it by their `stack_id`.
        pattern: which files of the folder, `*/label_sa.nii.gz` for those of subfolders.
        spacing: (z, y, x) in mm, for files that state none.
        jobs: processes.
        failed: called with what is wrong with an acquisition, which is then left out; without it, that is raised.
        show_progress: draw a bar on the standard error stream.

    Raises:
        CurveError: there is no file, two have one name, or one is not in the case table; and for a single acquisition,
            frames that are missing, repeated or of different shape or spacing, no spacing, one frame only, or a label
            value that the scheme does not know.
        ImageError: a file cannot be read.
    """
    sources = _sources(_label_files(source, pattern), cases)
    calls = (delayed(_attempt)(one, scheme, spacing) for one in sources)
    results: Iterable[Acquisition | NnunetQAError] = Parallel(n_jobs=jobs, return_as="generator")(calls)
    return _good(track(results, "reading", len(sources)) if show_progress else results, failed)


def _good(
    results: Iterable[Acquisition | NnunetQAError], failed: Callable[[NnunetQAError], None] | None
) -> Iterator[Acquisition]:
    for result in results:
        if isinstance(result, Acquisition):
            yield result
        elif failed is None:
            raise result
        else:
            failed(result)


def _label_files(source: Path | Sequence[Path], pattern: str) -> dict[str, Path]:
    """Files by name, absolute, for joblib's processes stay in the folder where they were started."""
    if not isinstance(source, Path):
        named = [(_stem(path), path) for path in source]
    elif source.is_dir():
        found = [path for path in source.glob(pattern) if path.is_file() and not path.name.startswith(".")]
        named = [(_name(path, source), path) for path in found if path.name.endswith(ENDINGS)]
    else:
        raise CurveError(f"{source}: no such folder; give a folder of label files")
    if not named:
        hint = "give --pattern, such as */label_sa.nii.gz"
        raise CurveError(f"{source}: holds no label file that fits {pattern} ({', '.join(ENDINGS)}); {hint}")
    files: dict[str, Path] = {}
    for name, path in sorted(named):
        if name in files:
            raise CurveError(f'{path}: is called "{name}" as {files[name]} is; keep one of them, or narrow --pattern')
        files[name] = path.absolute()
    return files


def _name(path: Path, folder: Path) -> str:
    return _stem(path) if path.parent == folder else f"{path.parent.name}_{_stem(path).removeprefix('label_')}"


def _stem(path: Path) -> str:
    return next((path.name.removesuffix(ending) for ending in ENDINGS if path.name.endswith(ending)), path.stem)


def _sources(files: Mapping[str, Path], cases: CaseTable | None) -> list[_Source]:
    """What the files are: series of their own, or frames that the case table puts together."""
    if cases is None:
        return [
            _Source(acquisition_id=name, subject_id=name if name == _stem(path) else path.parent.name, series=path)
            for name, path in files.items()
        ]
    table = cases.frame.assign(stack=cases.frame["case_id"].map(cases.acquisitions()))
    by_frame = table[table["frame_index"].notna()]
    stack_of = dict(zip(by_frame["case_id"], by_frame["stack"], strict=True))
    subjects = {key: row.subject_id for row in table.itertuples() for key in (row.case_id, row.stack)}
    for name, path in files.items():
        if name not in subjects:
            raise CurveError(
                f'{path}: "{name}" is neither a case nor a stack of the case table{nearest(name, subjects)}; give the '
                "table of this dataset"
            )
    sources = [
        _Source(acquisition_id=name, subject_id=subjects[name], series=path)
        for name, path in files.items()
        if name not in stack_of
    ]
    wanted = {stack_of[name] for name in files if name in stack_of}
    for stack, rows in by_frame[by_frame["stack"].isin(wanted)].groupby("stack"):
        frames = tuple(
            _Frame(index=int(row.frame_index), case_id=row.case_id, path=files.get(row.case_id))
            for row in rows.sort_values("frame_index").itertuples()
        )
        sources.append(_Source(acquisition_id=str(stack), subject_id=subjects[stack], frames=frames))
    return sorted(sources, key=lambda source: source.acquisition_id)


def _attempt(source: _Source, scheme: LabelScheme, spacing: Spacing | None) -> Acquisition | NnunetQAError:
    try:
        if source.series is None:
            return _from_frames(source, scheme, spacing)
        file = _read(source.series)
        return acquisition_of(
            file.labels,
            _spacing(source.series, file, spacing),
            scheme,
            acquisition_id=source.acquisition_id,
            subject_id=source.subject_id,
            frame_time=file.frame_time,
        )
    except NnunetQAError as error:
        return error


def _from_frames(source: _Source, scheme: LabelScheme, spacing: Spacing | None) -> Acquisition:
    """Put together what lies in one file a frame; the first frame says what shape and spacing the others must have."""
    first: tuple[tuple[int, ...], Spacing] | None = None
    counts = []
    for path in _complete(source):
        file = _read(path)
        shape, found = file.labels.shape, _spacing(path, file, spacing)
        first = first or (shape, found)
        if len(file.labels) != 1:
            raise CurveError(f"{path}: has {len(file.labels)} frames, but the case table calls it one frame")
        if shape != first[0]:
            raise CurveError(
                f"{path}: has the shape {shape[1:]}, the first frame of {source.acquisition_id} {first[0][1:]}; all "
                "frames of a series need the same"
            )
        if not np.allclose(found, first[1], rtol=_SAME_SPACING, atol=0):
            raise CurveError(
                f"{path}: has the spacing {_sizes(found)}, the first frame of {source.acquisition_id} "
                f"{_sizes(first[1])}; all frames of a series need the same"
            )
        counts.append(count_pixels(file.labels[0], scheme, name=str(path)))
    assert first is not None
    return Acquisition(
        acquisition_id=source.acquisition_id,
        subject_id=source.subject_id,
        pixels={structure: np.stack([count[structure] for count in counts]) for structure in scheme.values},
        spacing=first[1],
        scheme=scheme,
    )


def _complete(source: _Source) -> list[Path]:
    """The files of all frames, of which none may be missing; see `check_frames`."""
    check_frames(source.acquisition_id, [frame.index for frame in source.frames])
    paths = []
    for frame in source.frames:
        if frame.path is None:
            raise CurveError(
                f"{source.acquisition_id}: frame {frame.index} is missing: there is no label file of the case "
                f"{frame.case_id}; predict all frames of the series"
            )
        paths.append(frame.path)
    return paths


def check_frames(name: str, indices: Sequence[int | None]) -> None:
    """Refuse an acquisition whose frames are not numbered 0, 1, 2, …, in whatever order they stand.

    Args:
        name: of the acquisition, for the error text.
        indices: `frame_index` of each of its cases, None where the case table has none.

    Raises:
        CurveError: a frame has no number, is there more than once or is missing, or there are fewer than two.
    """
    numbers = sorted(index for index in indices if index is not None)
    if len(numbers) < len(indices):
        raise CurveError(f"{name}: a frame has no number; give frame_index for each of its cases in the case table")
    for expected, index in enumerate(numbers):
        if index < expected:
            raise CurveError(
                f"{name}: frame {index} is there more than once; correct frame_index (or stack_id) in the case table"
            )
        if index > expected:
            raise CurveError(
                f"{name}: frame {expected} is missing in the case table (the next is {index}); a series needs all "
                "frames from 0"
            )
    if len(numbers) < 2:
        raise CurveError(
            f"{name}: has {len(numbers)} frame(s), which make no curve; give the whole series with its frame_index"
        )


def _read(path: Path) -> LabelSeries:
    if path.name.endswith((".nii", ".nii.gz")):
        return read_nifti_series(path)
    if path.name.endswith(NATURAL_ENDINGS):
        return LabelSeries(labels=read_picture(path)[None, None], spacing=None, frame_time=None)
    return read_volume_series(path)


def _spacing(path: Path, file: LabelSeries, given: Spacing | None) -> Spacing:
    spacing = file.spacing or given
    if spacing is None:
        raise CurveError(f"{path}: states no spacing, so pixels cannot be turned into mL or mm²; give --spacing Z Y X")
    return spacing


def _sizes(spacing: Spacing) -> str:
    return " × ".join(f"{size:g}" for size in spacing) + " mm"


def write_curves(
    folder: Path,
    acquisitions: Iterable[Acquisition],
    *,
    pulse_pressures: Mapping[str, float] | None = None,
    without_pressure: Callable[[str], None] | None = None,
) -> int:
    """Write what was read, one acquisition after the other, so that memory does not grow with their number.

    `acquisitions.jsonl` holds all of it, one acquisition a line, for `read_curves`; `curves.csv` one row a structure
    and frame; `measures.csv` one row an acquisition with its clinical measures, empty where not defined. All three
    appear when the last acquisition is written.

    Args:
        folder: where to.
        acquisitions: of one label scheme.
        pulse_pressures: mmHg by acquisition or subject, for distensibility.
        without_pressure: called with the name of an acquisition of which `pulse_pressures` has none.

    Returns:
        How many acquisitions were written.

    Raises:
        CurveError: there is no acquisition, one of another label scheme than the first, or no pulse pressure of any.
        StorageError: a file could not be written.
    """
    source = iter(acquisitions)
    first = next(source, None)
    if first is None:
        raise CurveError(f"{folder}: nothing was written, for no acquisition could be read")
    written = 0
    with ExitStack() as stack:
        lines, curves, rows = (
            stack.enter_context(stack.enter_context(replacing(folder / name)).open("w", encoding="utf-8", newline=""))
            for name in (FILE_NAME, CURVES, MEASURES)
        )
        curve_table, measure_table = csv.writer(curves), None
        curve_table.writerow(_COLUMNS)
        source = chain([first], source)
        for acquisition, pressure in with_pressures(source, pulse_pressures, missing=without_pressure):
            if acquisition.scheme != first.scheme:
                raise CurveError(
                    f'{acquisition.acquisition_id}: has the label scheme "{acquisition.scheme.name}", the others '
                    f'"{first.scheme.name}"; write them to folders of their own'
                )
            lines.write(json.dumps(_as_json(acquisition)) + "\n")
            curve_table.writerows(_curve_rows(acquisition))
            row = _measure_row(acquisition, pressure)
            if measure_table is None:
                measure_table = csv.DictWriter(rows, list(row))
                measure_table.writeheader()
            measure_table.writerow(row)
            written += 1
    return written


def read_curves(path: Path) -> list[Acquisition]:
    """What `write_curves` wrote to a folder, or its `acquisitions.jsonl`, without loss.

    Raises:
        CurveError: the file is missing or damaged.
    """
    path = path / FILE_NAME if path.is_dir() else path
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise CurveError(f"{path}: not found; `nnunet-qa curves` writes it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CurveError(f"{path}: cannot be read: {error}") from error
    acquisitions = []
    for number, line in enumerate(lines, start=1):
        try:
            acquisitions.append(_from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CurveError(f"{path}: line {number} is no acquisition that `nnunet-qa curves` wrote") from error
    return acquisitions


def _as_json(acquisition: Acquisition) -> dict[str, Any]:
    return {
        "acquisition_id": acquisition.acquisition_id,
        "subject_id": acquisition.subject_id,
        "spacing": acquisition.spacing,
        "frame_time": acquisition.frame_time,
        "scheme": {**asdict(acquisition.scheme), "values": dict(acquisition.scheme.values)},
        "pixels": {structure: counts.tolist() for structure, counts in acquisition.pixels.items()},
    }


def _from_json(content: dict[str, Any]) -> Acquisition:
    return Acquisition(
        acquisition_id=content["acquisition_id"],
        subject_id=content["subject_id"],
        pixels={name: np.array(counts, dtype=np.int64) for name, counts in content["pixels"].items()},
        spacing=tuple(content["spacing"]),
        scheme=LabelScheme(**content["scheme"]),
        frame_time=content["frame_time"],
    )


def _curve_rows(acquisition: Acquisition) -> Iterator[tuple[object, ...]]:
    unit, time = UNITS[acquisition.scheme.kind], acquisition.frame_time
    for structure, curve in acquisition.curves().items():
        for index, value in enumerate(curve.tolist()):
            seconds = "" if time is None else round(index * time, 6)
            yield (
                *(acquisition.acquisition_id, acquisition.subject_id, structure, index),
                *(seconds, round(value, 6), unit),
            )


def _measure_row(acquisition: Acquisition, pressure: float | None) -> dict[str, object]:
    """Identifiers and measures; with a pulse pressure, though it be NaN, also the columns that need one."""
    row: dict[str, object] = {
        "acquisition_id": acquisition.acquisition_id,
        "subject_id": acquisition.subject_id,
        "frames": acquisition.frames,
    }
    found = measures(acquisition, pulse_pressure=pressure)
    return row | {name: "" if np.isnan(value) else round(value, 6) for name, value in found.items()}
