"""The same part of the body from many scans: slabs between two body-part scores (paper 002, section 2.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from nnunet_qa.data.images import Geometry, check_same_grid, write_image
from nnunet_qa.data.paths import read_json
from nnunet_qa.data.slab import SlabSpec, cut_slab
from nnunet_qa.data.slice_stack import read_scan, slices_of
from nnunet_qa.errors import DatasetError, ImageError, SelectionError
from nnunet_qa.files import clear, remove_leftovers, write_csv, write_json
from nnunet_qa.progress import track
from nnunet_qa.quality.body_part import BodyPartRegressor
from nnunet_qa.quality.body_part_file import load
from nnunet_qa.quality.slice_scores import slab_range

TABLE, SETTINGS = "slabs.csv", "slabs.json"
COLUMNS = ("case_id", "from_mm", "to_mm", "covered", "slices", "left_out")
"""`from_mm` and `to_mm` are the ends of the slab as coordinates of the patient (LPS); `covered` is the share of the
range of scores that lies in the scan; `slices` is how many slices of the slab are not background; `left_out` says why
there is no slab, and is missing where there is one."""


@dataclass(frozen=True, kw_only=True)
class SlabWish:
    """Which part of the body, and on which grid.

    Attributes:
        low: score at which the slab begins.
        high: score at which it ends.
        min_covered: a scan that holds a smaller share of that range is left out, in [0, 1].
        grid: see `SlabSpec`.

    Raises:
        SelectionError: the scores are in the wrong order, or spacing or size are not above 0.
    """

    low: float = -6.0
    high: float = 6.0
    min_covered: float = 0.9
    grid: SlabSpec = field(default_factory=SlabSpec)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise SelectionError(f"a slab goes from a lower score to a higher one, not from {self.low} to {self.high}")
        if not (min(self.grid.spacing) > 0 and min(self.grid.size) > 0):
            raise SelectionError(
                f"spacing and size of a slab must be above 0, found {self.grid.spacing} and {self.grid.size}"
            )


def extract_slabs(
    images: Mapping[str, Sequence[Path]],
    *,
    file_ending: str,
    model: Path,
    output: Path,
    wish: SlabWish,
    labels: Path | None = None,
    overwrite: bool = False,
    jobs: int = 1,
    show_progress: bool = True,
) -> pd.DataFrame:
    """Write the slab of each scan into `output/images`, those of label maps into `output/labels`, and `TABLE`.

    A run that was stopped goes on where it was. Scans that do not hold the range are left out, and the table says so.

    Args:
        images: files of each case, one a channel; the first is scored.
        file_ending: of images and label maps.
        model: file of a fitted regressor.
        output: folder.
        wish: which part.
        labels: folder of label maps, `<case_id><file_ending>`.
        overwrite: do everything again.
        jobs: processes.
        show_progress: draw a bar on the standard error stream.

    Returns:
        The table, see `COLUMNS`.

    Raises:
        ModelError: the model cannot be used.
        ImageError: a file cannot be read, is no volume, holds NaN, or a label map does not fit its image.
        DatasetError: a label map is missing, or the folder holds slabs that were made in another way.
        SelectionError: no scan holds the range.
        StorageError: a file could not be written.
    """
    regressor = load(model)
    cases = {
        case: _Case(
            case_id=case,
            images=tuple((path.absolute(), output.absolute() / "images" / path.name) for path in paths),
            label=_label(case, file_ending, labels, output),
        )
        for case, paths in images.items()
    }
    known = _begin(output, _settings(model, wish), overwrite=overwrite)
    rows = {row["case_id"]: row for row in known if row["case_id"] in cases and cases[row["case_id"]].is_done(row)}
    left = [case for name, case in cases.items() if name not in rows]
    found = Parallel(n_jobs=jobs, return_as="generator")(delayed(_extract)(case, regressor, wish) for case in left)
    for row in track(found, "extracting", len(left)) if show_progress else found:
        rows[row["case_id"]] = row
        write_csv(output / TABLE, _table(rows, cases).round(3))
    table = _table(rows, cases)
    if table["left_out"].notna().all():
        raise SelectionError(
            f"no scan holds enough of the scores {wish.low:g} to {wish.high:g} ({table['left_out'].iloc[0]}); "
            "choose another range or a smaller --min-covered"
        )
    return table


@dataclass(frozen=True, kw_only=True)
class _Case:
    """Files of one case, each with where it goes."""

    case_id: str
    images: tuple[tuple[Path, Path], ...]
    label: tuple[Path, Path] | None

    def is_done(self, row: Mapping[str, Any]) -> bool:
        """Whether its slabs are there; a scan that was left out is looked at again, for its file may be another now."""
        targets = [target for _, target in (*self.images, *([self.label] if self.label else []))]
        return pd.isna(row["left_out"]) and all(target.is_file() for target in targets)


def _table(rows: Mapping[str, Mapping[str, Any]], cases: Iterable[str]) -> pd.DataFrame:
    table = pd.DataFrame([rows[case] for case in cases if case in rows], columns=list(COLUMNS))
    return table.astype({"slices": "Int64"})


def _label(case: str, ending: str, labels: Path | None, output: Path) -> tuple[Path, Path] | None:
    if labels is None:
        return None
    name = f"{case}{ending}"
    if not (labels / name).is_file():
        raise DatasetError(f"{labels / name}: not found; with --labels every image needs a label map there")
    return labels.absolute() / name, output.absolute() / "labels" / name


def _settings(model: Path, wish: SlabWish) -> dict[str, Any]:
    spec = {name: list(value) for name, value in asdict(wish.grid).items()}
    range_ = {"from": wish.low, "to": wish.high, "min_covered": wish.min_covered}
    return {**range_, **spec, "model": hashlib.sha256(model.read_bytes()).hexdigest()}


def _begin(output: Path, settings: dict[str, Any], *, overwrite: bool) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same settings; one with others is refused, or deleted with `overwrite`."""
    mark = output / SETTINGS
    if not mark.is_file() and output.is_dir() and any(output.iterdir()):
        raise DatasetError(
            f"{output}: is not empty and holds no {SETTINGS}, so nothing is written there; choose another"
        )
    if mark.is_file() and overwrite:
        clear(output, mark)
    elif mark.is_file():
        for key, value in read_json(mark).items():
            if settings.get(key) != value:
                raise DatasetError(
                    f'{output}: holds slabs made with "{key}" {value}, not {settings.get(key)}; choose another folder, '
                    "or replace them with --overwrite"
                )
    write_json(mark, settings)
    for folder in ("images", "labels"):
        remove_leftovers(output / folder)
    if not (output / TABLE).is_file():
        return []
    return pd.read_csv(output / TABLE, dtype={"case_id": str, "left_out": str}).to_dict("records")


def _extract(case: _Case, regressor: BodyPartRegressor, wish: SlabWish) -> dict[str, Any]:
    first = case.images[0][0]
    array, geometry = read_scan(first)
    try:
        stack = slices_of(array, geometry, case.case_id, regressor.spec)
        found = slab_range(regressor.predict(stack), stack.depth, low=wish.low, high=wish.high)
    except (ImageError, SelectionError) as error:
        return {"case_id": case.case_id, "left_out": str(error)}
    if found.covered < wish.min_covered:
        return {
            "case_id": case.case_id,
            "covered": found.covered,
            "left_out": f"only {found.covered:.0%} of the scores {wish.low:g} to {wish.high:g} lie in the scan",
        }
    place: dict[str, Any] = {"axis": regressor.spec.axis, "start": found.start, "end": found.end, "spec": wish.grid}
    for source, target in case.images:
        channel = array if source == first else _same_grid(source, array, geometry)
        write_image(target, *cut_slab(channel, geometry, **place))
    if case.label is not None:
        label = _same_grid(case.label[0], array, geometry)
        write_image(case.label[1], *cut_slab(label, geometry, **place, is_label=True))
    ends = np.interp([found.start, found.end], stack.depth, stack.positions)
    return {
        "case_id": case.case_id,
        "from_mm": ends[0],
        "to_mm": ends[1],
        "covered": found.covered,
        "slices": int(wish.grid.filled(found.end - found.start).sum()),
    }


def _same_grid(path: Path, image: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Another channel or the label map of an image."""
    array, other = read_scan(path)
    check_same_grid(image, array, str(path))
    for name in ("spacing", "origin", "direction"):
        here, there = getattr(other, name), getattr(geometry, name)
        if not np.allclose(here, there, atol=0.01):
            raise ImageError(f"{path}: has {name} {here}, its image {there}; they must be the same")
    return array
