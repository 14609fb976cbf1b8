"""Clicks in files: 3D Slicer's markups (`.mrk.json`) and CSV, in mm or in voxels.

A file is read into `Mark`s, which know neither image nor voxel; `on_grid` places them.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_qa.errors import ClickError, nearest
from nnunet_qa.evaluation.segmentation import BACKGROUND, IGNORE
from nnunet_qa.interaction.clicks import Click
from nnunet_qa.interaction.grid import Grid

MARKUPS, TABLE = ".mrk.json", ".csv"
OBJECT = "object"
"""What a click on the only class of a dataset may be called."""
PHYSICAL, VOXEL, PIXEL = ("x", "y", "z"), ("k", "j", "i"), ("j", "i")
_NUMBERED = re.compile(r"[-_ ]?\d+$")
_SIGNS = {"LPS": (1.0, 1.0, 1.0), "RAS": (-1.0, -1.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A click as a file has it.

    Attributes:
        at: x, y, z in mm (LPS), or the voxel's k, j, i; j, i alone in a picture.
        physical: which of the two.
        label: 0 for background, else the label value.
        source: file and point, for error texts.
    """

    at: tuple[float, ...]
    physical: bool
    label: int
    source: str


def label_names(labels: Mapping[str, Any]) -> dict[str, int]:
    """What a click may be called, from the `labels` entry of a dataset.json without regions.

    The ignore label is none; with one class, `object` means that class.

    >>> label_names({"background": 0, "mandible": 1})
    {'background': 0, 'mandible': 1, 'object': 1}
    """
    names = {name: int(value) for name, value in labels.items() if name != IGNORE}
    classes = [value for value in names.values() if value != 0]
    extra = {BACKGROUND: 0, **({OBJECT: classes[0]} if len(classes) == 1 else {})}
    return {**names, **{name: value for name, value in extra.items() if name not in names}}


def find_marks(source: Path, cases: Collection[str], labels: Mapping[str, Any]) -> dict[str, list[Mark]]:
    """The clicks of each case; a case without a file has none.

    Args:
        source: a folder with one `<case>.mrk.json` or `<case>.csv` a case; or one such file; or one CSV with a column
            `case_id`. A CSV that is given itself may have any name where there is only one case.
        cases: identifiers of the cases that there are.
        labels: the `labels` entry of dataset.json.

    Raises:
        ClickError: nothing is there, a file belongs to no case or cannot be read, or two belong to the same.
    """
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if _ending(path) and not path.name.startswith("."))
    else:
        files = [source]
    if not source.exists() or not files:
        raise ClickError(f"{source}: no clicks there; give a {MARKUPS} or {TABLE} file, or a folder of such files")
    names = label_names(labels)
    found: dict[str, list[Mark]] = {}
    for path in files:
        for case, marks in _marks_by_case(path, cases, names, named=path == source).items():
            if case not in cases:
                raise ClickError(
                    f"{path}: holds clicks of the case {case}, of which there is no image{nearest(case, cases)}; "
                    "call the file as its case, or give the images of these clicks"
                )
            if case in found:
                raise ClickError(f"{path}: the case {case} has another file of clicks in {source}; keep one of them")
            found[case] = marks
    return found


def on_grid(marks: Iterable[Mark], grid: Grid) -> list[Click]:
    """Place clicks in an image; a voxel that is clicked twice with one label counts once.

    Raises:
        ClickError: a click lies outside, two on one voxel contradict each other, or one has no slice in a volume.
    """
    clicks: dict[tuple[int, ...], Click] = {}
    sources: dict[tuple[int, ...], str] = {}
    for mark in marks:
        if len(mark.at) < 3 and grid.shape[0] > 1:
            raise ClickError(f"{mark.source}: needs k beside j and i, for the image has {grid.shape[0]} slices")
        position = grid.voxel(mark.at) if mark.physical else (0, 0, *map(int, mark.at))[-3:]
        if not grid.holds(position):
            shown = ", ".join(f"{at:g}" for at in mark.at)
            raise ClickError(
                f"{mark.source}: the click at ({shown}) is voxel {position} (z, y, x), outside the image of "
                f"{grid.shape} voxels; is it a click in another image?"
            )
        if position in clicks and clicks[position].label != mark.label:
            raise ClickError(
                f"{mark.source}: contradicts {sources[position]}: voxel {position} (z, y, x) cannot belong to "
                f"labels {clicks[position].label} and {mark.label}; remove one of the two clicks"
            )
        clicks.setdefault(position, Click(position, mark.label))
        sources.setdefault(position, mark.source)
    return list(clicks.values())


def read_markups(path: Path, names: Mapping[str, int]) -> list[Mark]:
    """Read the control points of 3D Slicer's markups; points without a place (not "defined") are left out.

    What a point belongs to is said by its label or description or by the name of its list, with or without a number at
    the end: Slicer numbers points as `mandible-1`.

    Args:
        path: `.mrk.json`.
        names: see `label_names`.

    Raises:
        ClickError: the file is missing, no JSON, no markups, or a point belongs to no known class.
    """
    try:
        lists = json.loads(_text(path))["markups"]
        return [mark for markups in lists for mark in _control_points(path, markups, names)]
    except json.JSONDecodeError as error:
        raise ClickError(f"{path}: not valid JSON ({error}); save the markups again in 3D Slicer") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ClickError(f"{path}: not a file of markups as 3D Slicer writes it ({error!r}); save it again") from error


def _control_points(path: Path, markups: Mapping[str, Any], names: Mapping[str, int]) -> list[Mark]:
    system = markups.get("coordinateSystem", "LPS")
    units = markups.get("coordinateUnits", "mm")
    if system not in _SIGNS or units != "mm":
        raise ClickError(f"{path}: coordinates must be LPS or RAS in mm, found {system} in {units}")
    marks = []
    for number, point in enumerate(markups["controlPoints"], 1):
        if point.get("positionStatus", "defined") != "defined" or point.get("position") is None:
            continue
        source = f"{path}: point {number}"
        texts = [str(given) for given in (point.get("label"), point.get("description"), markups.get("name")) if given]
        known = [name for text in texts for name in (text, _NUMBERED.sub("", text)) if name in names]
        if not known:
            raise ClickError(
                f"{source}: {' / '.join(texts) or 'without label'} is no class; label points with one of "
                f"{', '.join(names)}"
            )
        at = tuple(float(mm) * sign for mm, sign in zip(point["position"], _SIGNS[system], strict=True))
        marks.append(Mark(at=_finite(at, source), physical=True, label=names[known[0]], source=source))
    return marks


def read_table(path: Path, names: Mapping[str, int]) -> dict[str, list[Mark]]:
    """Read a CSV of clicks: `k, j, i` (voxel; `j, i` in a picture) or `x, y, z` (mm, LPS), and `label`.

    A label is a name or a label value. Lines without any entry are left out. Where voxel and mm are given, as in the
    table that `nnunet-qa interact` writes, the voxel counts.

    Args:
        path: `.csv`.
        names: see `label_names`.

    Returns:
        The clicks by `case_id`; all under an empty name where there is no such column.

    Raises:
        ClickError: the file is missing or no CSV, lacks a column, or a row is not what it should be.
    """
    found, rows = _rows(path)
    columns = next((some for some in (VOXEL, PHYSICAL, PIXEL) if {*some} <= {*found}), None)
    if columns is None or "label" not in found:
        raise ClickError(
            f"{path}: needs the columns label and x, y, z (mm) or k, j, i; found {', '.join(found) or 'none'}"
        )
    values = {str(value): value for value in names.values()}
    marks: dict[str, list[Mark]] = {}
    for source, row in rows.items():
        label = names.get(row["label"], values.get(row["label"]))
        if label is None:
            raise ClickError(f'{source}: "{row["label"]}" is no label; known: {", ".join(names)}')
        try:
            at = _finite(tuple(float(row[column]) for column in columns), source)
        except ValueError as error:
            raise ClickError(f"{source}: {', '.join(columns)} must be numbers ({error})") from error
        if columns != PHYSICAL and any(index % 1 for index in at):
            raise ClickError(f"{source}: {', '.join(columns)} must be whole numbers, found {at}")
        mark = Mark(at=at, physical=columns == PHYSICAL, label=label, source=source)
        marks.setdefault(row.get("case_id", ""), []).append(mark)
    return marks


def _rows(path: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The names of the columns of a CSV, and its rows by file and line."""
    table = csv.reader(io.StringIO(_text(path)), skipinitialspace=True)
    rows: dict[str, dict[str, str]] = {}
    try:
        names = next((row for row in table if any(row)), [])
        for row in table:
            source = f"{path}: line {table.line_num}"
            if len(row) > len(names):
                raise ClickError(f"{source}: has {len(row)} fields for {len(names)} columns; correct the line")
            if any(row):
                rows[source] = dict(itertools.zip_longest(names, row, fillvalue=""))
    except csv.Error as error:
        raise ClickError(f"{path}: cannot be read as CSV: {error}") from error
    return names, rows


def _marks_by_case(
    path: Path, cases: Collection[str], names: Mapping[str, int], *, named: bool
) -> dict[str, list[Mark]]:
    ending = _ending(path)
    if not ending:
        raise ClickError(f"{path}: clicks are read from {MARKUPS} and {TABLE} files")
    own = path.name.removesuffix(ending)
    if ending == MARKUPS:
        return {own: read_markups(path, names)}
    table = read_table(path, names)
    if "" not in table:
        return table
    if len(table) > 1:
        raise ClickError(f"{path}: case_id is empty in some rows; fill it in")
    # the only image needs no name where the user says which file is meant
    return {next(iter(cases)) if named and len(cases) == 1 else own: table[""]}


def _ending(path: Path) -> str:
    return next((ending for ending in (MARKUPS, TABLE) if path.name.endswith(ending)), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark first
    except FileNotFoundError as error:
        raise ClickError(f"{path}: not found") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ClickError(f"{path}: cannot be read: {error}") from error


def _finite(at: tuple[float, ...], source: str) -> tuple[float, ...]:
    if not all(math.isfinite(value) for value in at):
        raise ClickError(f"{source}: the position {at} is not finite")
    return at
