from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.cli import curves
from nnunet_qa.errors import CaseTableError, CurveError, NnunetQAError, SelectionError
from tests.small import run_command
from tests.small_cine import aorta, heart, itk_sizes, write_nifti


@pytest.fixture
def series(tmp_path: Path) -> Path:
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        write_nifti(tmp_path / "series" / f"{name}.nii.gz", heart(seed=seed))
    return tmp_path


def test_curves_measures_and_figures(series: Path) -> None:
    result = run_command(curves, "-i", series / "series", "--scheme", "ukbb", "-o", series / "out", "--figures")
    assert result.exit_code == 0, result.exception
    measures = pd.read_csv(series / "out" / "measures.csv", index_col=0)
    assert measures["lvedv_ml"].tolist() == pytest.approx(
        [itk_sizes(heart(seed=seed), 1)[0] / 1000 for seed in (1, 2, 3)], rel=1e-5
    )
    assert f"{measures['lvedv_ml'].mean():.2f}" in result.stdout
    names = {path.name for path in (series / "out").iterdir()}
    assert names == {"measures.csv", "curves.csv", "acquisitions.jsonl", "figures"}
    assert {path.name for path in (series / "out" / "figures").iterdir()} == {"a.png", "b.png", "c.png"}
    assert f"Wrote {series / 'out' / 'acquisitions.jsonl'}" in result.stderr


def test_what_cannot_be_read_is_named_at_the_end_and_the_rest_is_written(series: Path) -> None:
    write_nifti(series / "series" / "a.nii.gz", heart()[:1])
    write_nifti(series / "series" / "b.nii.gz", heart() + 4)
    result = run_command(curves, "-i", series / "series", "--scheme", "ukbb", "-o", series / "out")
    assert isinstance(result.exception, CurveError)
    assert str(result.exception) == "2 of 3 acquisitions were left out; see the lines above"
    first, second = (line for line in result.stderr.splitlines() if line.startswith("left out: "))
    assert "a: has one frame only" in first
    assert "b: label value 4, 5, 6, 7 is not in the label scheme" in second
    assert pd.read_csv(series / "out" / "measures.csv")["acquisition_id"].tolist() == ["c"]
    for path in (series / "series").glob("c*"):
        path.unlink()
    result = run_command(curves, "-i", series / "series", "--scheme", "ukbb", "-o", series / "none")
    assert isinstance(result.exception, CurveError)
    assert "nothing was written" in str(result.exception)
    assert result.stderr.count("left out: ") == 2
    assert not (series / "none").exists()


def test_frames_of_a_dataset(fresh_folders: Path) -> None:
    raw = fresh_folders / "nnUNet_raw" / "Dataset111_Cine"
    rows: list[dict[str, object]] = []
    for index, labels in enumerate(heart()):
        case = f"S1_sa_fr{index:03d}"
        rows.append({"case_id": case, "subject_id": "S1", "stack_id": "S1_sa", "frame_index": index, "role": "test"})
        write_nifti(fresh_folders / "predictions" / f"{case}.nii.gz", labels)
    raw.mkdir()
    (raw / "dataset.json").write_text("{}")
    arguments = ("-i", fresh_folders / "predictions", "--scheme", "ukbb", "-o", fresh_folders / "out")
    missing = run_command(curves, *arguments, "-d", 111)
    assert isinstance(missing.exception, CaseTableError)
    CaseTable.from_rows(rows).write(raw / "cases.csv")
    for option in (("-d", 111), ("--cases", raw / "cases.csv")):
        assert run_command(curves, *arguments, *option).exit_code == 0
        (row,) = pd.read_csv(fresh_folders / "out" / "measures.csv").to_dict("records")
        assert (row["acquisition_id"], row["subject_id"], row["frames"]) == ("S1_sa", "S1", 6)
        assert row["rvedv_ml"] == pytest.approx(itk_sizes(heart(), 3)[0] / 1000, rel=1e-5)


def test_agreement_with_manual_labels(series: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("d", 4)):
        labels = heart(seed=seed)
        labels[:, 0, :20] = 0  # half of the first slice was left out by hand
        write_nifti(series / "by_hand" / f"{name}.nii.gz", labels)
    for folder, more in (("by_hand", ()), ("series", ("--against", series / "by_hand_out"))):
        out = series / f"{folder}_out"
        result = run_command(curves, "-i", series / folder, "--scheme", "ukbb", "-o", out, *more)
        assert result.exit_code == 0, result.exception
    table = pd.read_csv(out / "agreement.csv").set_index("measure")
    differences = []
    for seed in (1, 2):
        labels = heart(seed=seed)
        cut = labels.copy()
        cut[:, 0, :20] = 0
        differences.append((itk_sizes(labels, 1)[0] - itk_sizes(cut, 1)[0]) / 1000)
    assert table.loc["lvedv_ml", "bias"] == pytest.approx(np.mean(differences), rel=1e-4)
    assert table.loc["lvedv_ml", "bias_sd"] == pytest.approx(np.std(differences, ddof=1), rel=1e-3)
    pictures = {path.name for path in (out / "figures").iterdir()}
    assert pictures == {f"bland_altman_{measure}.png" for measure in table.index}
    assert "limits of agreement" in result.stdout


def test_a_scheme_of_your_own_and_pulse_pressures(tmp_path: Path) -> None:
    write_nifti(tmp_path / "S1" / "ao.nii.gz", aorta())
    (tmp_path / "p.csv").write_text("subject_id,pulse_pressure_mmhg\nS1,40\n")
    result = run_command(
        curves,
        *("-i", tmp_path, "--pattern", "*/ao.nii.gz", "--scheme", "one=1,two=2", "--kind", "area"),
        *("--pulse-pressure", tmp_path / "p.csv", "-o", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.exception
    (row,) = pd.read_csv(tmp_path / "out" / "measures.csv").to_dict("records")
    areas = itk_sizes(aorta(), 2)
    assert row["acquisition_id"] == "S1_ao"
    assert row["two_distensibility_per_1000_mmhg"] == pytest.approx(1e3 * np.ptp(areas) / areas.min() / 40, rel=1e-5)


def test_series_without_a_pulse_pressure_are_counted(tmp_path: Path) -> None:
    for subject in ("S1", "S2", "S3"):
        write_nifti(tmp_path / "ao" / f"{subject}.nii.gz", aorta())
    given = ("-i", tmp_path / "ao", "--scheme", "ukbb_ao", "--pulse-pressure", tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("subject_id,pulse_pressure_mmhg\nS2,40\n")
    result = run_command(curves, *given, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert "2 of 3 acquisitions have no pulse pressure, such as S1\n" in result.stderr
    table = pd.read_csv(tmp_path / "out" / "measures.csv")
    assert table["ascending_aorta_distensibility_per_1000_mmhg"].notna().tolist() == [False, True, False]
    (tmp_path / "p.csv").write_text("subject_id,pulse_pressure_mmhg\n0001,40\n")
    result = run_command(curves, *given, "-o", tmp_path / "none")
    assert isinstance(result.exception, CurveError)
    assert str(result.exception) == (
        '--pulse-pressure: the file is of "0001", none of any series here, such as "S3" of the subject "S3"; name them '
        "alike"
    )
    assert list((tmp_path / "none").iterdir()) == []


def test_end_diastole_and_spacing_are_options(series: Path) -> None:
    path = series / "series" / "a.nii"
    (series / "series" / "a.nii.gz").unlink()
    content = bytearray(write_nifti(path, heart()).read_bytes())
    content[80:92] = bytes(12)
    path.write_bytes(content)
    found = {}
    for when in ("first", "largest"):
        result = run_command(
            curves,
            *("-i", series / "series", "--pattern", "a.*", "--scheme", "lv=1,wall=2,rv=3", "--end-diastole", when),
            *("--spacing", 10, 2, 3, "-o", series / "out"),
        )
        assert result.exit_code == 0, result.exception
        found[when] = pd.read_csv(series / "out" / "measures.csv")["lvedv_ml"].iloc[0]
    volumes = (heart() == 1).sum(axis=(1, 2, 3)) * 0.06
    assert found == pytest.approx({"first": volumes[0], "largest": volumes.max()})


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("--scheme", "ukb"), SelectionError, 'unknown label scheme "ukb" (did you mean "ukbb"?)'),
        (("--scheme", "lv=x"), SelectionError, '"lv=x" is not structure=value'),
        (
            ("--scheme", "lv=1", "--kind", "areas"),
            SelectionError,
            'unknown kind of curve "areas"; choose volume or area',
        ),
        (
            ("--scheme", "ukbb", "--kind", "area"),
            SelectionError,
            'the label scheme "ukbb" has its own kind and end-diastole; leave out kind',
        ),
        (("--scheme", "ukbb", "--pattern", "x*"), CurveError, "holds no label file that fits x*"),
        (("--scheme", "ukbb", "--against", "no"), CurveError, "no/measures.csv: not found"),
        (("--scheme", "ukbb", "--pulse-pressure", "no.csv"), CurveError, "no.csv: not found"),
    ],
)
def test_wrong_options_are_one_line(
    series: Path, arguments: tuple[str, ...], error: type[NnunetQAError], said: str
) -> None:
    result = run_command(curves, "-i", series / "series", "-o", series / "out", *arguments)
    assert type(result.exception) is error
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (series / "out").exists()
