from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_qa.data.cine_phantom import aortic_cine, short_axis_cine
from nnunet_qa.errors import CurveError
from nnunet_qa.evaluation import clinical
from nnunet_qa.quality.curves import SCHEMES, Acquisition, LabelScheme, acquisition_of
from tests.small_cine import SPACING, aorta, heart, itk_sizes

KEYS = {"lvedv_ml", "lvesv_ml", "lvsv_ml", "lvef_percent", "lvm_g", "rvedv_ml", "rvesv_ml", "rvsv_ml", "rvef_percent"}


def of(labels: np.ndarray, scheme: str | LabelScheme = "ukbb") -> Acquisition:
    known = SCHEMES[scheme] if isinstance(scheme, str) else scheme
    return acquisition_of(labels, SPACING, known, acquisition_id="S1")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheme", ["ukbb", "acdc"])
def test_measures_of_the_ventricles_are_those_of_simpleitk(scheme: str, seed: int) -> None:
    values = (1, 2, 3) if scheme == "ukbb" else (3, 2, 1)
    labels = heart(seed=seed, frames=10, scheme=values)
    lv, myocardium, rv = (itk_sizes(labels, value) / 1000 for value in values)
    end_systole = lv.argmin()
    end_diastole = 0 if scheme == "ukbb" else lv.argmax()
    assert lv.argmax() != 0
    assert rv.argmin() != end_systole
    found = clinical.measures(of(labels, scheme))
    assert set(found) == KEYS
    expected = {"lvm_g": 1.05 * myocardium[end_diastole]}
    for name, curve in (("lv", lv), ("rv", rv)):
        edv, esv = curve[end_diastole], curve[end_systole]
        expected |= {f"{name}edv_ml": edv, f"{name}esv_ml": esv, f"{name}sv_ml": edv - esv}
        expected[f"{name}ef_percent"] = 100 * (1 - esv / edv)
    assert found == pytest.approx(expected, rel=1e-5)
    assert clinical.phases(of(labels, scheme)) == (end_diastole, end_systole)


def test_measures_of_the_aorta_are_those_of_simpleitk() -> None:
    labels = aorta()
    areas = itk_sizes(labels, 2)
    strain = np.ptp(areas) / areas.min()
    assert strain > 0.1
    found = clinical.measures(of(labels, "ukbb_ao"), pulse_pressure=40)
    assert set(found) == {
        f"{name}_aorta_{measure}"
        for name in ("ascending", "descending")
        for measure in ("max_mm2", "min_mm2", "strain_percent", "distensibility_per_1000_mmhg")
    }
    assert found["descending_aorta_max_mm2"] == pytest.approx(areas.max())
    assert found["descending_aorta_min_mm2"] == pytest.approx(areas.min())
    assert found["descending_aorta_strain_percent"] == pytest.approx(100 * strain)
    assert found["descending_aorta_distensibility_per_1000_mmhg"] == pytest.approx(1000 * strain / 40)
    without = clinical.measures(of(labels, "ukbb_ao"))
    assert without == {name: value for name, value in found.items() if "distensibility" not in name}
    unknown = clinical.measures(of(labels, "ukbb_ao"), pulse_pressure=float("nan"))
    assert np.isnan(unknown["descending_aorta_distensibility_per_1000_mmhg"])
    for wrong in (0.0, -5.0, float("inf")):
        with pytest.raises(CurveError, match=r"S1: the pulse pressure .* mmHg is not above 0"):
            clinical.measures(of(labels, "ukbb_ao"), pulse_pressure=wrong)


def test_true_masks_of_the_cine_phantoms_give_their_true_curves_and_measures() -> None:
    heart_cine = short_axis_cine(np.random.default_rng(1), frames=8, slices=6, shape=(96, 104), spacing=(10, 3, 3))
    aortic = aortic_cine(np.random.default_rng(2), frames=8, shape=(192, 208))
    for cine, scheme in ((heart_cine, "ukbb"), (aortic, "ukbb_ao")):
        acquisition = acquisition_of(cine.mask, cine.spacing, SCHEMES[scheme], acquisition_id="S1")
        for structure, curve in acquisition.curves().items():
            np.testing.assert_allclose(curve, cine.curves[structure], rtol=0.01)
    found = clinical.measures(acquisition_of(heart_cine.mask, heart_cine.spacing, SCHEMES["ukbb"], acquisition_id="S1"))
    lv, myocardium, rv = (itk_sizes(heart_cine.mask, value, spacing=heart_cine.spacing) / 1000 for value in (1, 2, 3))
    end_systole = lv.argmin()
    expected = {"lvm_g": 1.05 * myocardium[0]}
    for name, curve in (("lv", lv), ("rv", rv)):
        expected |= {f"{name}edv_ml": curve[0], f"{name}esv_ml": curve[end_systole]}
        expected |= {f"{name}sv_ml": curve[0] - curve[end_systole]}
        expected[f"{name}ef_percent"] = 100 * (1 - curve[end_systole] / curve[0])
    assert found == pytest.approx(expected, rel=0.01)


def test_absent_structures_give_no_measure() -> None:
    labels = heart()
    only_lv = clinical.measures(of(np.where(labels == 1, 1, 0), LabelScheme.custom("lv=1")))
    assert set(only_lv) == {name for name in KEYS if name.startswith("lv") and name != "lvm_g"}
    rv = np.where(labels == 3, 3, 0)
    only_rv = clinical.measures(of(rv, LabelScheme.custom("rv=3,atrium=4")))
    curve = itk_sizes(rv, 3) / 1000
    assert only_rv == pytest.approx(
        {
            "rvedv_ml": curve.max(),
            "rvesv_ml": curve.min(),
            "rvsv_ml": np.ptp(curve),
            "rvef_percent": 100 * np.ptp(curve) / curve.max(),
        },
        rel=1e-5,
    )
    assert clinical.measures(of(labels, LabelScheme.custom("a=1,b=2,c=3"))) == {}


def test_nothing_labelled_gives_ratios_that_are_not_known() -> None:
    found = clinical.measures(of(np.zeros((3, 1, 4, 4))))
    assert {name for name, value in found.items() if np.isnan(value)} == {"lvef_percent", "rvef_percent"}
    assert {value for value in found.values() if not np.isnan(value)} == {0.0}
    areas = clinical.measures(of(np.zeros((3, 1, 4, 4)), "ukbb_ao"), pulse_pressure=40)
    assert np.isnan(areas["ascending_aorta_strain_percent"])
    assert np.isnan(areas["ascending_aorta_distensibility_per_1000_mmhg"])


def test_without_any_left_ventricle_the_right_one_gives_the_frames() -> None:
    labels = np.where(heart() == 3, 3, 0)
    curve = itk_sizes(labels, 3)
    assert clinical.phases(of(labels)) == (0, curve.argmin())
    assert curve.argmin() != 0


def test_agreement_worked_out_by_hand() -> None:
    found = clinical.bland_altman([2, 4, 9, np.nan, 5], [1, 4, 5, 1, np.nan])  # differences 1, 0, 4
    sd = np.sqrt(((1 - 5 / 3) ** 2 + (5 / 3) ** 2 + (4 - 5 / 3) ** 2) / 2)
    expected = {"bias": 5 / 3, "sd": sd, "lower": 5 / 3 - 1.96 * sd, "upper": 5 / 3 + 1.96 * sd}
    assert found.n == 3
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected)
    one = clinical.bland_altman([3], [1])
    assert (one.bias, one.n) == (2, 1)
    assert np.isnan([one.sd, one.lower, one.upper]).all()


def test_agreement_needs_pairs() -> None:
    with pytest.raises(CurveError, match="no pair of measures is known on both sides"):
        clinical.bland_altman([np.nan, 1], [1, np.nan])
    with pytest.raises(ValueError, match=r"needs pairs of values, found \(2,\) and \(1,\)"):
        clinical.bland_altman([1, 2], [1])


def test_tables_are_compared_by_acquisition(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "acquisition_id,subject_id,frames,lvedv_ml,lvm_g,x\n001,S1,2,10,5,1\n2,S2,2,20,,1\n3,S3,2,9,9,9\n"
    )
    (tmp_path / "b.csv").write_text(
        "acquisition_id,subject_id,frames,lvm_g,lvedv_ml,y\n4,S4,2,1,1,1\n2,S2,2,7,16,1\n001,S1,2,4,8,1\n"
    )
    ours, manual = (clinical.read_measures(tmp_path / f"{name}.csv") for name in "ab")
    found = clinical.compare_measures(ours, manual).set_index("measure")
    assert found.index.tolist() == ["lvedv_ml", "lvm_g"]
    volume = found.loc["lvedv_ml"]
    assert (volume["n"], volume["mean"], volume["manual_mean"], volume["bias"]) == (2, 15, 12, 3)
    assert volume["sd"] == pytest.approx(np.std([10, 20], ddof=1))
    assert volume["bias_sd"] == pytest.approx(np.std([2, 4], ddof=1))
    assert volume["upper"] == pytest.approx(3 + 1.96 * np.std([2, 4], ddof=1))
    assert (found.loc["lvm_g", "n"], found.loc["lvm_g", "bias"]) == (1, 1)
    with pytest.raises(CurveError, match="no acquisition with a measure in common"):
        clinical.compare_measures(ours, manual.drop(index=["2", "001"]))
    with pytest.raises(CurveError, match="no acquisition with a measure in common"):
        clinical.compare_measures(ours[["x"]], manual)


@pytest.mark.parametrize("content", ["subject_id,a\nS1,2\n", "acquisition_id,a\n", "acquisition_id,a\n1,2\n1,3\n"])
def test_a_table_of_measures_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(CurveError, match=r"a\.csv: is no table with one row an acquisition_id"):
        clinical.read_measures(tmp_path / "a.csv")


def test_a_table_without_measures_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("acquisition_id,subject_id,frames\na,S1,2\n")
    assert clinical.read_measures(tmp_path / "a.csv").index.tolist() == ["a"]


@pytest.mark.parametrize("key", ["subject_id", "acquisition_id"])
def test_pulse_pressures_are_read(tmp_path: Path, key: str) -> None:
    (tmp_path / "a.csv").write_text(f"{key},pulse_pressure_mmhg\n0012,45\nb,50.5\n")
    assert clinical.read_pulse_pressures(tmp_path / "a.csv") == {"0012": 45.0, "b": 50.5}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not found; give a CSV with the columns subject_id and pulse_pressure_mmhg"),
        ("", "is not a CSV file that can be read"),
        ("subject_id,mmhg\na,1\n", "needs the columns acquisition_id or subject_id and pulse_pressure_mmhg"),
        ("case,pulse_pressure_mmhg\na,1\n", "needs the columns"),
        ("subject_id,pulse_pressure_mmhg\na,1\nb,\n", 'the pulse pressure "" of "b" is not a number above 0'),
        ("subject_id,pulse_pressure_mmhg\na,-1\n", 'the pulse pressure "-1" of "a" is not'),
        ("subject_id,pulse_pressure_mmhg\na,1\na,2\n", '"a" stands there more than once'),
    ],
)
def test_wrong_pulse_pressures_are_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "a.csv").write_text(content)
    with pytest.raises(CurveError, match=rf"a\.csv: {said}"):
        clinical.read_pulse_pressures(tmp_path / "a.csv")
