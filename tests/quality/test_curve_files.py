from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.data.images import Geometry, write_image
from nnunet_qa.errors import CurveError, ImageError, NnunetQAError
from nnunet_qa.evaluation.clinical import measures
from nnunet_qa.quality.curve_files import check_frames, read_acquisitions, read_curves, write_curves
from nnunet_qa.quality.curves import SCHEMES, Acquisition, LabelScheme, acquisition_of
from tests.data.test_volume_series import write_header
from tests.small_cine import FRAME_TIME, SPACING, aorta, heart, write_nifti

UKBB = SCHEMES["ukbb"]


def of(labels: np.ndarray, name: str = "a", **more: object) -> Acquisition:
    return acquisition_of(labels, SPACING, UKBB, acquisition_id=name, **more)  # type: ignore[arg-type]


def read(source: Path | list[Path], **more: object) -> list[Acquisition]:
    return list(read_acquisitions(source, scheme=UKBB, show_progress=False, **more))  # type: ignore[arg-type]


def assert_same(found: Acquisition, expected: Acquisition, *, exactly: bool = False) -> None:
    assert (found.acquisition_id, found.subject_id) == (expected.acquisition_id, expected.subject_id)
    assert found.scheme == expected.scheme
    assert list(found.pixels) == list(expected.pixels)
    for structure, counts in expected.pixels.items():
        np.testing.assert_array_equal(found.pixels[structure], counts)
        assert found.pixels[structure].dtype == np.int64
    tolerance = 0 if exactly else 1e-6
    np.testing.assert_allclose(found.spacing, expected.spacing, rtol=tolerance)
    times = [np.nan if one.frame_time is None else one.frame_time for one in (found, expected)]
    np.testing.assert_allclose(*times, rtol=tolerance)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Frame cases of the stacks `S1_sa` and `S2`, whose stack_id is empty, and another stack without any file."""
    rows: list[dict[str, object]] = []
    for subject, stack, seed in (("S1", "S1_sa", 1), ("S2", "", 2), ("S3", "S3_sa", 3)):
        for index, labels in enumerate(heart(seed=seed, frames=12)):
            case = f"{subject}_fr{11 - index:03d}"  # so that the order of names is not that of frames
            rows.append(
                {"case_id": case, "subject_id": subject, "stack_id": stack, "frame_index": index, "role": "test"}
            )
            if subject != "S3":
                write_nifti(tmp_path / "frames" / f"{case}.nii.gz", labels)
    CaseTable.from_rows(rows).write(tmp_path / "cases.csv")
    return tmp_path


def table(folder: Path, **changes: object) -> CaseTable:
    """The case table, with the frame_index of a case changed."""
    cases = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False)
    for case, index in changes.items():
        cases.loc[cases["case_id"] == case, "frame_index"] = str(index)
    cases.to_csv(folder / "cases.csv", index=False)
    return CaseTable.read(folder / "cases.csv")


def test_series_of_four_axes_in_one_folder(tmp_path: Path) -> None:
    for name, seed in (("b", 2), ("a", 1)):
        write_nifti(tmp_path / f"{name}.nii.gz", heart(seed=seed))
    (tmp_path / "dataset.json").write_text("{}")
    first, second = read(tmp_path)
    assert_same(first, of(heart(seed=1), "a", frame_time=FRAME_TIME))
    assert_same(second, of(heart(seed=2), "b", frame_time=FRAME_TIME))
    (alone,) = read([tmp_path / "b.nii.gz"])
    assert_same(alone, second)


def test_series_in_the_folders_of_their_subjects(tmp_path: Path) -> None:
    for subject in ("1000002", "1000001"):
        write_nifti(tmp_path / subject / "label_sa.nii.gz", heart(seed=int(subject)))
        write_nifti(tmp_path / subject / "label_sa_ED.nii.gz", heart()[0])
    found = read(tmp_path, pattern="*/label_sa.nii.gz")
    assert [(one.acquisition_id, one.subject_id) for one in found] == [
        ("1000001_sa", "1000001"),
        ("1000002_sa", "1000002"),
    ]
    assert_same(found[1], of(heart(seed=1000002), "1000002_sa", subject_id="1000002", frame_time=FRAME_TIME))


@pytest.mark.parametrize("jobs", [1, 2])
def test_frames_are_put_together_by_the_case_table(frames: Path, jobs: int) -> None:
    second, first = read(frames / "frames", cases=table(frames), jobs=jobs)[::-1]
    assert_same(first, of(heart(seed=1, frames=12), "S1_sa", subject_id="S1"))
    assert_same(second, of(heart(seed=2, frames=12), "S2"))


def test_series_of_four_axes_find_their_subject_in_the_case_table(frames: Path) -> None:
    write_nifti(frames / "series" / "S3_sa.nii.gz", heart())
    (found,) = read(frames / "series", cases=table(frames))
    assert (found.acquisition_id, found.subject_id) == ("S3_sa", "S3")


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".nii"])
def test_other_formats(frames: Path, ending: str) -> None:
    for index, labels in enumerate(heart(seed=3, frames=12)):
        geometry = Geometry(SPACING[::-1], (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        write_image(frames / "other" / f"S3_fr{11 - index:03d}{ending}", labels, geometry)
    (found,) = read(frames / "other", cases=table(frames))
    assert_same(found, of(heart(seed=3, frames=12), "S3_sa", subject_id="S3"))


def test_pictures_need_a_spacing_to_be_given(tmp_path: Path) -> None:
    labels = aorta()
    rows = [{"case_id": f"ao_{index}", "subject_id": "S1", "frame_index": index, "role": "test"} for index in range(8)]
    for index, (frame,) in enumerate(labels):
        write_image(tmp_path / f"ao_{index}.png", frame)
    cases = CaseTable.from_rows(rows)
    with pytest.raises(CurveError, match=r"ao_0\.png: states no spacing, so pixels .* give --spacing Z Y X"):
        read(tmp_path, cases=cases)
    (found,) = read_acquisitions(
        tmp_path, scheme=SCHEMES["ukbb_ao"], cases=cases, spacing=(6.0, 2.0, 1.5), show_progress=False
    )
    np.testing.assert_allclose(found.curve("ascending_aorta"), (labels == 1).sum(axis=(1, 2, 3)) * 3.0)


def test_a_file_without_spacing_is_refused_or_takes_the_given_one(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", heart())
    content = bytearray(path.read_bytes())
    content[80:92] = bytes(12)
    path.write_bytes(content)
    with pytest.raises(CurveError, match=r"a\.nii: states no spacing"):
        read(tmp_path)
    assert read(tmp_path, spacing=(1.0, 2.0, 3.0))[0].spacing == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_formats_without_spacing_are_refused_or_take_the_given_one(tmp_path: Path, ending: str) -> None:
    labels = heart()
    write_header(tmp_path / f"a{ending}", labels)
    with pytest.raises(CurveError, match=rf"a\{ending}: states no spacing, so pixels .* give --spacing Z Y X"):
        read(tmp_path)
    (found,) = read(tmp_path, spacing=SPACING)
    assert_same(found, of(labels), exactly=True)
    assert found.frame_time is None


def test_missing_and_repeated_frames_are_named(frames: Path) -> None:
    (frames / "frames" / "S1_fr008.nii.gz").unlink()
    with pytest.raises(CurveError, match="S1_sa: frame 3 is missing: there is no label file of the case S1_fr008;"):
        read(frames / "frames", cases=table(frames))
    with pytest.raises(CurveError, match="S1_sa: frame 1 is there more than once; correct frame_index"):
        read(frames / "frames", cases=table(frames, S1_fr009=1))
    with pytest.raises(CurveError, match=r"S1_sa: frame 2 is missing in the case table \(the next is 3\)"):
        read(frames / "frames", cases=table(frames, S1_fr009=30))


def test_frames_are_numbered_from_0() -> None:
    check_frames("a", [2, 0, 1])  # in any order
    for indices, said in (
        ([0, 1, 1, 2], "frame 1 is there more than once"),
        ([1, 2], r"frame 0 is missing in the case table \(the next is 1\)"),
        ([0, 3], r"frame 1 is missing in the case table \(the next is 3\)"),
        ([0, None, 1], "a frame has no number; give frame_index"),
        ([0], r"has 1 frame\(s\), which make no curve"),
        ([], r"has 0 frame\(s\)"),
    ):
        with pytest.raises(CurveError, match=f"^a: {said}"):
            check_frames("a", indices)


def test_frames_that_differ_are_named(frames: Path) -> None:
    path = frames / "frames" / "S2_fr005.nii.gz"
    labels = heart()[0]
    write_nifti(path, labels[:, :-1])
    with pytest.raises(
        CurveError, match=r"S2_fr005\.nii\.gz: has the shape \(3, 39, 44\), the first frame of S2 \(3, 40"
    ):
        read(frames / "frames", cases=table(frames))
    write_nifti(path, labels, spacing=(8.0, 1.5, 1.3))
    with pytest.raises(
        CurveError, match=r"S2_fr005.*has the spacing 8 × 1.5 × 1.3 mm, the first frame of S2 8 × 1.5 × 1"
    ):
        read(frames / "frames", cases=table(frames))
    write_nifti(path, heart())
    with pytest.raises(CurveError, match=r"S2_fr005\.nii\.gz: has 6 frames, but the case table calls it one frame"):
        read(frames / "frames", cases=table(frames))
    write_nifti(path, labels + 5)
    with pytest.raises(CurveError, match=r"S2_fr005\.nii\.gz: label value 5, 6, 7, 8 is not in the label scheme"):
        read(frames / "frames", cases=table(frames))


def test_one_bad_acquisition_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in "abde":
        write_nifti(tmp_path / f"{name}.nii.gz", heart(seed=ord(name)))
    write_nifti(tmp_path / "b.nii.gz", heart()[:1])
    write_nifti(tmp_path / "c.nii.gz", heart()[0])
    (tmp_path / "d.nii.gz").write_bytes((tmp_path / "d.nii.gz").read_bytes()[:-100])
    failures: list[NnunetQAError] = []
    for jobs in (1, 2):
        failures.clear()
        assert [one.acquisition_id for one in read(tmp_path, failed=failures.append, jobs=jobs)] == ["a", "e"]
        assert [type(failure) for failure in failures] == [CurveError, CurveError, ImageError]
        for name, failure, said in zip("bcd", failures, ("one frame", "one frame", "cannot be read"), strict=True):
            assert name in str(failure).split(":")[0]
            assert said in str(failure)
    with pytest.raises(CurveError, match="b: has one frame only"):
        read(tmp_path)


def test_what_is_wrong_with_the_folder_is_said_before_anything_is_read(frames: Path) -> None:
    for source, more, said in (
        (frames / "nowhere", {}, "no such folder"),
        (frames, {}, r"holds no label file that fits \*"),
        (frames / "frames", {"pattern": "*.mha"}, r"holds no label file that fits \*\.mha"),
    ):
        with pytest.raises(CurveError, match=said):
            read_acquisitions(source, scheme=UKBB, **more)  # type: ignore[arg-type]
    cases = table(frames)
    write_nifti(frames / "frames" / "S1_fr12.nii.gz", heart()[0])
    with pytest.raises(
        CurveError, match=r'"S1_fr12" is neither a case nor a stack of the case table \(did you mean "S1'
    ):
        read_acquisitions(frames / "frames", scheme=UKBB, cases=cases)
    write_nifti(frames / "frames" / "S1_fr12.nii", heart()[0])
    with pytest.raises(CurveError, match='is called "S1_fr12" as '):
        read_acquisitions(frames / "frames", scheme=UKBB)


def test_what_is_written_is_read_again_without_loss(tmp_path: Path) -> None:
    acquisitions = [
        of(heart(seed=1), "a", subject_id="S1", frame_time=1 / 3),
        acquisition_of(heart(seed=2, frames=3, slices=2), (1 / 3, 0.1, 7.0), UKBB, acquisition_id="b"),
    ]
    assert write_curves(tmp_path, iter(acquisitions)) == 2
    for path in (tmp_path, tmp_path / "acquisitions.jsonl"):
        for found, expected in zip(read_curves(path), acquisitions, strict=True):
            assert_same(found, expected, exactly=True)
    custom = acquisition_of(
        heart(), SPACING, LabelScheme.custom("rv=3,lv=1,wall=2", end_diastole="first"), acquisition_id="c"
    )
    write_curves(tmp_path, [custom])
    assert_same(read_curves(tmp_path)[0], custom, exactly=True)


def test_the_tables_hold_curves_and_measures(tmp_path: Path) -> None:
    timed, other = of(heart(seed=1), "a", subject_id="S1", frame_time=0.05), of(heart(seed=2), "b")
    write_curves(tmp_path, [timed, other])
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert len(curves) == 2 * 3 * 6
    assert set(curves["unit"]) == {"mL"}
    rows = curves[(curves["acquisition_id"] == "a") & (curves["structure"] == "rv")]
    np.testing.assert_allclose(rows["value"], timed.curve("rv"), atol=1e-6)
    np.testing.assert_allclose(rows["time_s"], 0.05 * np.arange(6))
    assert rows["frame_index"].tolist() == list(range(6))
    assert set(rows["subject_id"]) == {"S1"}
    assert curves.loc[curves["acquisition_id"] == "b", "time_s"].isna().all()
    table = pd.read_csv(tmp_path / "measures.csv", index_col="acquisition_id")
    for acquisition in (timed, other):
        row = table.loc[acquisition.acquisition_id]
        assert (row["subject_id"], row["frames"]) == (acquisition.subject_id, 6)
        for name, value in measures(acquisition).items():
            assert row[name] == pytest.approx(value, abs=1e-6)


def test_distensibility_takes_the_pressure_of_the_acquisition_or_the_subject(tmp_path: Path) -> None:
    series = [
        acquisition_of(aorta(seed=3), SPACING, SCHEMES["ukbb_ao"], acquisition_id=name, subject_id=subject)
        for name, subject in (("a", "S1"), ("b", "S2"), ("c", "S3"))
    ]
    write_curves(tmp_path, series, pulse_pressures={"S1": 50.0, "b": 25.0, "S2": 1.0})
    column = pd.read_csv(tmp_path / "measures.csv")["ascending_aorta_distensibility_per_1000_mmhg"]
    curve = series[0].curve("ascending_aorta")
    expected = (curve.max() - curve.min()) / curve.min() / 50 * 1e3
    np.testing.assert_allclose(column, [expected, 2 * expected, np.nan], rtol=1e-6)
    assert set(pd.read_csv(tmp_path / "curves.csv")["unit"]) == {"mm²"}


def test_a_run_that_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    write_curves(tmp_path, [of(heart(), "old")])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken() -> Iterator[Acquisition]:
        yield of(heart(seed=1), "new")
        raise ImageError("broken")

    with pytest.raises(ImageError):
        write_curves(tmp_path, broken())
    with pytest.raises(CurveError, match='b: has the label scheme "ukbb_ao", the others "ukbb"'):
        write_curves(
            tmp_path,
            [of(heart()), acquisition_of(aorta(), SPACING, SCHEMES["ukbb_ao"], acquisition_id="b")],
        )
    with pytest.raises(CurveError, match="nothing was written, for no acquisition could be read"):
        write_curves(tmp_path, [])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_file_of_curves_is_named(tmp_path: Path) -> None:
    with pytest.raises(CurveError, match=r"acquisitions\.jsonl: not found; `nnunet-qa curves` writes it"):
        read_curves(tmp_path)
    write_curves(tmp_path, [of(heart(), "a"), of(heart(), "b")])
    path = tmp_path / "acquisitions.jsonl"
    first, second = path.read_text().splitlines()
    content = json.loads(second)
    for wrong in (
        second[:-9],
        "[]",
        "{}",
        json.dumps(content | {"scheme": {"name": "x"}}),
        json.dumps(content | {"pixels": {"lv": [1]}}),
    ):
        path.write_text(f"{first}\n{wrong}\n")
        with pytest.raises(CurveError, match="line 2 is no acquisition"):
            read_curves(tmp_path)
