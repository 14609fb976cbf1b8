from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_qa.errors import CurveError, StorageError
from nnunet_qa.quality.curves import SCHEMES, LabelScheme, acquisition_of
from nnunet_qa.reports import clinical_figures as module
from nnunet_qa.reports.clinical_figures import bland_altman_picture, curve_picture, measure_label
from tests.reports.drawn import remember_figures
from tests.small_cine import SPACING, aorta, heart, itk_sizes


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return remember_figures(monkeypatch, module)


def test_the_curves_of_a_heart_show_end_diastole_and_end_systole(tmp_path: Path, drawn: list[Figure]) -> None:
    labels = heart()
    acquisition = acquisition_of(labels, SPACING, SCHEMES["acdc"], acquisition_id="S1_sa", frame_time=0.05)
    path = curve_picture(tmp_path / "a.png", acquisition)
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = drawn[0].axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    for value, name in ((1, "rv"), (2, "myocardium"), (3, "lv")):
        np.testing.assert_allclose(lines[name].get_ydata(), itk_sizes(labels, value) / 1000, rtol=1e-6)
        np.testing.assert_allclose(lines[name].get_xdata(), 50 * np.arange(6))
    lv = itk_sizes(labels, 3)
    marks = {text.get_text(): text.xy[0] for text in axes.texts}  # type: ignore[attr-defined]
    assert marks == pytest.approx({"ED": 50 * lv.argmax(), "ES": 50 * lv.argmin()})
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (ms)", "volume (mL)")
    first, second = axes.get_title().splitlines()
    assert first == "S1_sa"
    assert f"LVEF {100 * np.ptp(lv) / lv.max():.0f} %" in second
    assert axes.get_ylim()[0] == 0


def test_the_curves_of_an_aorta_show_the_strain(tmp_path: Path, drawn: list[Figure]) -> None:
    labels = aorta()
    acquisition = acquisition_of(labels, SPACING, SCHEMES["ukbb_ao"], acquisition_id="S1_ao")
    curve_picture(tmp_path / "a.png", acquisition, heading="one aorta")
    axes = drawn[0].axes[0]
    areas = itk_sizes(labels, 1)
    strain = 100 * np.ptp(areas) / areas.min()
    assert axes.get_title().startswith(f"one aorta\nascending aorta strain {strain:.0f} %, descending aorta strain")
    assert not axes.texts
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("frame", "area (mm²)")


def test_series_without_anything_or_of_unknown_structures_are_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    for name, scheme in (("a", SCHEMES["ukbb"]), ("b", LabelScheme.custom(",".join(f"s{n}={n}" for n in range(1, 8))))):
        acquisition = acquisition_of(np.zeros((3, 2, 4, 4)), SPACING, scheme, acquisition_id=name)
        curve_picture(tmp_path / f"{name}.png", acquisition)
    assert [figure.axes[0].get_title().splitlines()[0] for figure in drawn] == ["a", "b"]


def test_bland_altman_shows_pairs_bias_and_limits(tmp_path: Path, drawn: list[Figure]) -> None:
    ours, manual = [100.0, 120.0, np.nan, 90.0], [98.0, 121.0, 4.0, 85.0]
    bland_altman_picture(tmp_path / "a.png", ours, manual, measure="lvedv_ml")
    axes = drawn[0].axes[0]
    points, *levels = axes.lines
    np.testing.assert_allclose(points.get_xdata(), [99, 120.5, 87.5])
    np.testing.assert_allclose(points.get_ydata(), [2, -1, 5])
    spread = 1.96 * np.std([2, -1, 5], ddof=1)
    np.testing.assert_allclose([line.get_ydata()[0] for line in levels], [2, 2 - spread, 2 + spread, 0])
    assert axes.get_title() == "LVEDV, n = 3"
    assert axes.get_ylabel() == "ours − manual (mL)"
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["bias 2.00 mL", f"limits of agreement {2 - spread:.2f} to {2 + spread:.2f} mL"]


def test_one_pair_has_a_bias_alone_and_none_is_refused(tmp_path: Path, drawn: list[Figure]) -> None:
    bland_altman_picture(tmp_path / "a.png", [3.0], [2.0], measure="lvef_percent", heading="LVEF of one")
    assert drawn[0].axes[0].get_title() == "LVEF of one, n = 1"
    assert len(drawn[0].axes[0].lines) == 3
    with pytest.raises(CurveError, match="no pair of measures"):
        bland_altman_picture(tmp_path / "b.png", [np.nan], [2.0], measure="lvef_percent")
    assert not (tmp_path / "b.png").exists()
    with pytest.raises(StorageError):
        bland_altman_picture(tmp_path / "a.png" / "c.png", [3.0], [2.0], measure="lvm_g")


@pytest.mark.parametrize(
    ("measure", "label"),
    [
        ("lvm_g", ("LVM", "g")),
        ("rvef_percent", ("RVEF", "%")),
        ("descending_aorta_strain_percent", ("descending aorta strain", "%")),
        ("ascending_aorta_distensibility_per_1000_mmhg", ("ascending aorta distensibility", "10⁻³ mmHg⁻¹")),
        ("dice", ("dice", "")),
    ],
)
def test_measures_have_names_and_units(measure: str, label: tuple[str, str]) -> None:
    assert measure_label(measure) == label
