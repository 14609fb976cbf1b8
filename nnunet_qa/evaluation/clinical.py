"""Clinical measures of a cine series, and how well two ways of measuring them agree.

Ventricles: SV = EDV − ESV, EF = SV/EDV·100, LV mass = ED myocardium volume·1.05 g/mL. Aorta: strain and distensibility
(paper 003, semiQCSeg, Table 3). Agreement after Bland and Altman (1986, The Lancet 327).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from nnunet_qa.errors import CurveError

MYOCARDIAL_DENSITY = 1.05
"""g/mL."""
PULSE_PRESSURE = "pulse_pressure_mmhg"
_KEYS = ("acquisition_id", "subject_id")
_LIMIT = 1.96  # standard deviations within which 95 % of normally distributed differences lie


class Scheme(Protocol):
    """What the measures need of a `nnunet_qa.quality.curves.LabelScheme`."""

    @property
    def kind(self) -> str:
        """Either "volume" or "area"."""

    @property
    def end_diastole(self) -> str:
        """Either "first" or "largest"."""


class Cycle(Protocol):
    """What the measures need of a `nnunet_qa.quality.curves.Acquisition`."""

    @property
    def acquisition_id(self) -> str:
        """Name for errors."""

    @property
    def scheme(self) -> Scheme:
        """What the curves are."""

    def curves(self) -> Mapping[str, np.ndarray]:
        """`(frames,)` of each structure, mL or mm²."""


def measures(acquisition: Cycle, *, pulse_pressure: float | None = None) -> dict[str, float]:
    """The clinical measures that the structures of a series allow.

    Args:
        acquisition: a series of volumes or of areas.
        pulse_pressure: systolic less diastolic pressure in mmHg, for distensibility; NaN where it is not known.

    Returns:
        Of volumes, for `lv` and `rv`, `<structure>edv_ml`, `…esv_ml`, `…sv_ml` and `…ef_percent`, both ventricles at
        the frames of `phases`; with `myocardium` also `lvm_g`. Of areas, for every structure, `<structure>_max_mm2`,
        `…_min_mm2`, `…_strain_percent` = (max − min)/min·100 and, with a pulse pressure,
        `…_distensibility_per_1000_mmhg` (10⁻³ mmHg⁻¹) = (max − min)/(min·pulse pressure)·1e3. A ratio to nothing is
        NaN; an absent structure has no key.

    Raises:
        CurveError: the pulse pressure is not above 0.
    """
    if pulse_pressure is not None and (pulse_pressure <= 0 or np.isinf(pulse_pressure)):
        raise CurveError(f"{acquisition.acquisition_id}: the pulse pressure {pulse_pressure} mmHg is not above 0")
    curves = acquisition.curves()
    if acquisition.scheme.kind == "area":
        return {
            f"{structure}_{name}": value
            for structure, curve in curves.items()
            for name, value in _area_measures(curve, pulse_pressure).items()
        }
    end_diastole, end_systole = phases(acquisition)
    found: dict[str, float] = {}
    for structure in ("lv", "rv"):
        if structure in curves:
            edv, esv = float(curves[structure][end_diastole]), float(curves[structure][end_systole])
            found |= {
                f"{structure}edv_ml": edv,
                f"{structure}esv_ml": esv,
                f"{structure}sv_ml": edv - esv,
                f"{structure}ef_percent": _ratio(edv - esv, edv) * 100,
            }
        if structure == "lv" and "myocardium" in curves:
            found["lvm_g"] = float(curves["myocardium"][end_diastole]) * MYOCARDIAL_DENSITY
    return found


def phases(acquisition: Cycle) -> tuple[int, int]:
    """Frames of end-diastole and end-systole, 0-based.

    End-systole is the smallest volume of the left ventricle, end-diastole its largest or, where the scheme says so,
    the first frame. Where no left ventricle is labelled at all the right one stands in; without either both are 0.
    """
    curves = acquisition.curves()
    guide = next((curves[name] for name in ("lv", "rv") if name in curves and curves[name].any()), None)
    if guide is None:
        return 0, 0
    first = acquisition.scheme.end_diastole == "first"
    return 0 if first else int(np.argmax(guide)), int(np.argmin(guide))


def _area_measures(curve: np.ndarray, pulse_pressure: float | None) -> dict[str, float]:
    largest, smallest = float(curve.max()), float(curve.min())
    strain = _ratio(largest - smallest, smallest)
    found = {"max_mm2": largest, "min_mm2": smallest, "strain_percent": strain * 100}
    if pulse_pressure is not None:
        found["distensibility_per_1000_mmhg"] = strain / pulse_pressure * 1e3
    return found


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def read_pulse_pressures(path: Path) -> dict[str, float]:
    """Pulse pressures in mmHg from a CSV with the columns `acquisition_id` or `subject_id` and `pulse_pressure_mmhg`.

    Raises:
        CurveError: the file is missing or no CSV, lacks a column, or holds a value that is not above 0, or an
            acquisition or subject twice.
    """
    table = _read_csv(path, "give a CSV with the columns subject_id and " + PULSE_PRESSURE)
    key = next((name for name in _KEYS if name in table.columns), None)
    if key is None or PULSE_PRESSURE not in table.columns:
        raise CurveError(f"{path}: needs the columns {' or '.join(_KEYS)} and {PULSE_PRESSURE}")
    values = pd.to_numeric(table[PULSE_PRESSURE], errors="coerce")
    wrong = ~((values > 0) & np.isfinite(values))
    if wrong.any():
        name, value = table.loc[wrong, [key, PULSE_PRESSURE]].iloc[0]
        raise CurveError(f'{path}: the pulse pressure "{value}" of "{name}" is not a number above 0')
    if table[key].duplicated().any():
        raise CurveError(f'{path}: "{table[key][table[key].duplicated()].iloc[0]}" stands there more than once')
    return dict(zip(table[key], values.astype(float), strict=True))


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How two ways of measuring agree, in the unit of the measure.

    Attributes:
        bias: mean of ours − manual.
        sd: standard deviation of the differences (n − 1); NaN for one pair.
        lower: bias − 1.96 SD, the lower limit of agreement.
        upper: bias + 1.96 SD.
        n: pairs.
    """

    bias: float
    sd: float
    lower: float
    upper: float
    n: int


def bland_altman(ours: Sequence[float] | np.ndarray, manual: Sequence[float] | np.ndarray) -> Agreement:
    """Bias and limits of agreement of pairs of values.

    Args:
        ours: one value a series.
        manual: the values to compare them with, in the same order. Pairs with a NaN do not count.

    Raises:
        ValueError: the numbers of values differ.
        CurveError: no pair is left.

    >>> bland_altman([2.0, 4.0, 6.0], [1.0, 4.0, 5.0]).n
    3
    """
    first, second = known_pairs(ours, manual)
    if not len(first):
        raise CurveError("no pair of measures is known on both sides, so there is no agreement to state")
    differences = first - second
    bias = float(differences.mean())
    sd = _sd(differences)
    return Agreement(bias=bias, sd=sd, lower=bias - _LIMIT * sd, upper=bias + _LIMIT * sd, n=len(differences))


def known_pairs(
    ours: Sequence[float] | np.ndarray, manual: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs without NaN, as float64.

    Raises:
        ValueError: the numbers of values differ.
    """
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(manual, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"needs pairs of values, found {first.shape} and {second.shape}")
    known = np.isfinite(first) & np.isfinite(second)
    return first[known], second[known]


def read_measures(path: Path) -> pd.DataFrame:
    """The measures of a `measures.csv`, one row an acquisition, which is the index.

    Raises:
        CurveError: the file is missing or no CSV, has no acquisitions or one of them twice.
    """
    table = _read_csv(path, "`nnunet-qa curves` writes it")
    if "acquisition_id" not in table.columns or table.empty or table["acquisition_id"].duplicated().any():
        raise CurveError(f"{path}: is no table with one row an acquisition_id; `nnunet-qa curves` writes one")
    table = table.set_index("acquisition_id").drop(columns=["subject_id", "frames"], errors="ignore")
    return table.apply(pd.to_numeric, errors="coerce")


def compare_measures(ours: pd.DataFrame, manual: pd.DataFrame) -> pd.DataFrame:
    """Agreement of two tables of `read_measures` on the acquisitions that are in both.

    Returns:
        One row a measure that both have: `measure`, `n`, `mean` and `sd` of ours, `manual_mean` and `manual_sd` over
        the same acquisitions, then the `bias`, its `bias_sd`, `lower` and `upper` of `Agreement`.

    Raises:
        CurveError: no acquisition or no known value of a measure is in both.
    """
    both = ours.index.intersection(manual.index, sort=True)
    rows: list[dict[str, object]] = []
    for name in ours.columns.intersection(manual.columns, sort=False):
        first, second = known_pairs(ours.loc[both, name], manual.loc[both, name])
        if len(first):
            found = bland_altman(first, second)
            row: dict[str, object] = {"measure": name, "n": found.n}
            row |= {"mean": first.mean(), "sd": _sd(first), "manual_mean": second.mean(), "manual_sd": _sd(second)}
            row |= {"bias": found.bias, "bias_sd": found.sd, "lower": found.lower, "upper": found.upper}
            rows.append(row)
    if not rows:
        raise CurveError(
            "the two tables of measures have no acquisition with a measure in common; give those of the same series"
        )
    return pd.DataFrame(rows)


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _read_csv(path: Path, hint: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise CurveError(f"{path}: not found; {hint}") from error
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise CurveError(f"{path}: is not a CSV file that can be read: {error}") from error
