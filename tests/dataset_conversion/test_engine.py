from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.dataset_conversion.engine import (
    DONE,
    Case,
    LeftOut,
    Options,
    Unit,
    below,
    convert,
    safe_name,
)
from nnunet_qa.dataset_conversion.report import REPORT, summary
from nnunet_qa.errors import DatasetError, DependencyError, ImageError, StorageError
from tests.phantom import tree


def dataset_of(number: int = 801) -> RawDataset:
    return RawDataset.named(
        number,
        "Engine",
        channel_names=("MRI",),
        labels={"background": 0, "a": 1},
        file_ending=".nii.gz",
        settings={"source": "here"},
    )


def read(content: dict[str, Any]) -> Iterator[Case | LeftOut]:
    """Cases of one subject: two with a label, one of the pool; `bad` fails after the first."""
    subject = content["subject"]
    for index in range(3):
        if index == 1 and content.get("bad"):
            raise ImageError(f"{subject}: is\ndamaged")
        if index == 1 and content.get("odd"):
            raise ZeroDivisionError("a reader's own error")
        rng = np.random.default_rng([int(subject[1:]), index])
        image = rng.integers(0, 100, (2, 8, 8)).astype(np.int16)
        label = (image > 50).astype(np.uint8) if index < 2 else None
        role = Role.LABELLED if index < 2 else Role.UNLABELLED
        yield Case(
            case_id=f"{subject}_{index}",
            role=role,
            images=[image],
            label=label,
            row={"subject_id": subject, "slice_index": index},
        )
    yield LeftOut(f"{subject}_3", "is empty")


def units_of(*subjects: str, **more: Any) -> list[Unit]:
    return [Unit(subject, {"subject": subject, **more}) for subject in subjects]


def ids(folder: Path, name: str) -> list[str]:
    return sorted(path.name.split(".")[0].removesuffix("_0000") for path in (folder / name).iterdir())


def run(units: list[Unit], number: int = 801, **options: Any) -> Path:
    return convert(dataset_of(number), units, read, what="Subjects", options=Options(folds=2, **options))


def test_cases_report_and_table(fresh_folders: Path) -> None:
    folder = convert(
        dataset_of(),
        units_of("S1", "S2", "S3"),
        read,
        what="Subjects",
        options=Options(folds=2),
        left_out=[LeftOut("notes.txt", "is no image")],
    )
    assert ids(folder, "imagesTr") == ids(folder, "labelsTr") == [f"S{s}_{i}" for s in (1, 2, 3) for i in (0, 1)]
    assert ids(folder, "imagesUn") == ["S1_2", "S2_2", "S3_2"]
    frame = CaseTable.read(folder / "cases.csv").frame
    assert frame["case_id"].tolist() == [f"S{s}_{i}" for s in (1, 2, 3) for i in range(3)]
    assert frame["subject_id"].tolist() == [f"S{s}" for s in (1, 2, 3) for _ in range(3)]
    report = pd.read_csv(folder / REPORT, keep_default_na=False)
    assert report[report["status"] == "converted"]["cases"].tolist() == [3, 3, 3]
    assert report[report["status"] == "left out"]["name"].tolist() == ["S1_3", "S2_3", "S3_3", "notes.txt"]
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesUn" / "S2_2_0000.nii.gz")))
    assert np.array_equal(image, np.random.default_rng([2, 2]).integers(0, 100, (2, 8, 8)))
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 6


def test_a_bad_unit_stops_no_other_and_leaves_nothing(
    fresh_folders: Path, unchecked: None, caplog: pytest.LogCaptureFixture
) -> None:
    units = [*units_of("S1"), *units_of("S2", bad=True), *units_of("S3", odd=True), *units_of("S4")]
    folder = run(units)
    assert ids(folder, "imagesTr") == ids(folder, "labelsTr") == ["S1_0", "S1_1", "S4_0", "S4_1"]
    report = pd.read_csv(folder / REPORT, keep_default_na=False).set_index("name")
    assert report.loc["S2"].to_dict() == {"status": "skipped", "cases": 0, "reason": "S2: is damaged"}
    assert report.loc["S3", "reason"] == "ZeroDivisionError: a reader's own error"
    assert summary(folder) == f"2 converted, 2 skipped, 2 left out; see {folder / REPORT}"
    assert "S2: skipped: S2: is damaged" in caplog.text
    # mended, the next run converts it
    run([*units_of("S1", "S2"), *units_of("S3", odd=True), *units_of("S4")])
    assert ids(folder, "imagesTr") == ["S1_0", "S1_1", "S2_0", "S2_1", "S4_0", "S4_1"]


def test_strict_stops_at_the_first(fresh_folders: Path, unchecked: None) -> None:
    with pytest.raises(DatasetError, match=r"^S2: S2: is damaged$"):
        run([*units_of("S1"), *units_of("S2", bad=True), *units_of("S3")], strict=True)


def read_with_notes(content: dict[str, Any]) -> Iterator[Case | LeftOut]:
    """As `read`; bad units leave out something that is wrong with them."""
    yield from read({"subject": content["subject"]})
    if content.get("bad"):
        yield LeftOut(f"{content['subject']}_4", "has no image", bad=True)


def test_strict_stops_at_bad_things_and_at_no_others(fresh_folders: Path, unchecked: None) -> None:
    def run_strict(*units: Unit, bad: bool = False, strict: bool = True) -> Path:
        left_out = [LeftOut("mask.nii", "has no image", bad=bad), LeftOut("notes.txt", "is no image")]
        options = Options(folds=2, strict=strict)
        return convert(dataset_of(), units, read_with_notes, what="", options=options, left_out=left_out)

    with pytest.raises(DatasetError, match=r"^mask\.nii: has no image$"):
        run_strict(*units_of("S1", "S2"), bad=True)
    assert not fresh_folders.joinpath("nnUNet_raw", "Dataset801_Engine").exists()
    with pytest.raises(DatasetError, match=r"^S2_4: has no image$"):
        run_strict(*units_of("S1"), *units_of("S2", bad=True))
    folder = run_strict(*units_of("S1"), *units_of("S2", bad=True), bad=True, strict=False)
    assert pd.read_csv(folder / REPORT)["status"].tolist().count("left out") == 5
    with pytest.raises(DatasetError, match=r"^S2_4: has no image$"):  # what an earlier run has converted counts too
        run_strict(*units_of("S1"), *units_of("S2", bad=True))
    run_strict(*units_of("S1", "S2"))  # whatever else was left out does no harm


def test_nothing_converted_is_an_error_with_the_reason(fresh_folders: Path, unchecked: None) -> None:
    with pytest.raises(DatasetError, match="no case could be converted; the first reason: S2: is damaged"):
        run(units_of("S2", bad=True))


def test_a_full_disk_stops_everything(fresh_folders: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(RawDataset, "write_case", full)
    with pytest.raises(StorageError, match="the disk is full"):
        run(units_of("S1", "S2"))


def test_a_second_run_does_only_what_is_missing(
    fresh_folders: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(units_of("S1", "S2", "S3"))
    done = folder / DONE
    done.write_text(done.read_text() + '{"unit": "S9", "rows": [{"ca')  # cut off by a kill
    (folder / "imagesUn" / "S2_2_0000.nii.gz").unlink()
    written: list[str] = []
    real = RawDataset.write_case

    def spied(self: RawDataset, case_id: str, *more: Any, **options: Any) -> None:
        written.append(case_id)
        real(self, case_id, *more, **options)

    monkeypatch.setattr(RawDataset, "write_case", spied)
    run(units_of("S1", "S2", "S3", "S4"))
    assert written == [f"{subject}_{index}" for subject in ("S2", "S4") for index in range(3)]
    assert len(CaseTable.read(folder / "cases.csv").frame) == 12
    report = pd.read_csv(folder / REPORT)
    assert report[report["status"] == "converted"]["name"].tolist() == ["S1", "S2", "S3", "S4"]
    written.clear()
    run(units_of("S1", "S2", "S3", "S4"))
    assert not written


def read_file(path: Path) -> Iterator[Case]:
    """A case whose role and pixels a file says."""
    role = Role.LABELLED if "mask" in path.read_text() else Role.UNLABELLED
    image = np.full((2, 8, 8), len(path.read_text()), np.int16)
    label = np.ones_like(image) if role is Role.LABELLED else None
    yield Case(case_id=path.stem, role=role, images=[image], label=label, row={"subject_id": path.stem})


def test_a_second_run_follows_what_became_of_the_source(fresh_folders: Path, unchecked: None, tmp_path: Path) -> None:
    for name, text in (("S1", "mask"), ("S2", "image"), ("S3", "mask")):
        (tmp_path / f"{name}.txt").write_text(text)

    def run_files() -> Path:
        units = [Unit(path.stem, {"at": path}) for path in sorted(tmp_path.glob("*.txt"))]
        return convert(dataset_of(), units, lambda found: read_file(found["at"]), what="", options=Options())

    folder = run_files()
    assert (ids(folder, "labelsTr"), ids(folder, "imagesUn")) == (["S1", "S3"], ["S2"])
    (tmp_path / "S2.txt").write_text("image and mask")
    (tmp_path / "S3.txt").unlink()  # withdrawn
    (folder / "imagesTr" / "S9_0000.nii.gz").write_text("")  # of a unit that was killed
    run_files()
    assert ids(folder, "imagesTr") == ids(folder, "labelsTr") == ["S1", "S2"]
    assert ids(folder, "imagesUn") == []
    assert CaseTable.read(folder / "cases.csv").case_ids(Role.LABELLED) == ["S1", "S2"]


@pytest.mark.parametrize("second", [{}, {"bad": True}])
def test_a_unit_that_gives_the_cases_of_another_harms_it_not(
    fresh_folders: Path, unchecked: None, second: dict[str, bool]
) -> None:
    expected = tree(run(units_of("S1")))
    units = [Unit("first", {"subject": "S1"}), Unit("second", {"subject": "S1", **second})]
    folder = run(units, 802)
    for name in (f"{place}/S1_{index}" for place in ("imagesTr", "labelsTr") for index in (0, 1)):
        name = f"{name}{'_0000' if 'images' in name else ''}.nii.gz"
        assert (folder / name).read_bytes() == expected[name]
    report = pd.read_csv(folder / REPORT).set_index("name")
    assert report.loc["first", "status"] == "converted"
    assert report.loc["second", "status"] == "skipped"
    assert second or 'the same case "S1_0" as "first"' in report.loc["second", "reason"]
    with pytest.raises(DatasetError, match=r"^second: "):
        run(units, 803, strict=True)


def test_strict_checks_a_unit_that_is_converted_once_more(fresh_folders: Path, unchecked: None) -> None:
    first = fresh_folders / "nnUNet_raw" / "Dataset801_Engine" / "imagesTr" / "S1_0_0000.nii.gz"
    begun: list[str] = []

    def read_once(content: dict[str, Any]) -> Iterator[Case | LeftOut]:
        if content["subject"] in begun:
            raise ImageError("has gone in between")
        begun.append(content["subject"])
        yield from read(content)
        if content["subject"] == "S2":
            first.unlink()

    with pytest.raises(DatasetError, match=r"^S1: has gone in between$"):
        convert(dataset_of(), units_of("S1", "S2"), read_once, what="", options=Options(folds=2, strict=True))


def test_names_that_are_too_long_or_no_utf8(fresh_folders: Path, unchecked: None) -> None:
    odd = os.fsdecode(b"S1\xff")
    folder = run([Unit(odd, {"subject": "S1"}), Unit("S2", {"subject": "S2"})])
    assert pd.read_csv(folder / REPORT)["name"].tolist()[0] == "S1\\udcff"
    long = safe_name("a" * 300)
    assert 150 < len(long) < 165
    assert long != safe_name("a" * 301)


def ended(content: dict[str, Any]) -> Iterator[Case | LeftOut]:
    """As `read`, but a bad unit ends its process, as the system does where the memory is full."""
    if content.get("bad"):
        os.kill(os.getpid(), signal.SIGKILL)
    yield from read(content)


def test_a_unit_that_ends_its_process_stops_no_other(fresh_folders: Path, unchecked: None) -> None:
    units = [*units_of("S1", "S2"), *units_of("S3", bad=True), *units_of("S4", "S5")]
    folder = convert(dataset_of(), units, ended, what="Subjects", options=Options(folds=2, jobs=2))
    report = pd.read_csv(folder / REPORT).set_index("name")
    assert (
        report.loc[["S1", "S2", "S3", "S4", "S5"], "status"].tolist()
        == ["converted"] * 2 + ["skipped"] + ["converted"] * 2
    )
    assert "enough memory" in report.loc["S3", "reason"]


def test_several_processes_give_the_same_bytes(fresh_folders: Path, unchecked: None) -> None:
    units = units_of(*(f"S{number}" for number in range(1, 7)))
    one, two = run(units, 801), run(units, 802, jobs=2)
    without = ("conversion_units.jsonl",)  # in the order in which they were done
    assert tree(one, without=without) == tree(two, without=without)


def slow(content: dict[str, Any]) -> Iterator[Case | LeftOut]:
    """As `read`; the first process that gets the subject to die on dies while it writes."""
    time.sleep(0.02)
    mark = Path(content["mark"])
    if content["subject"] == "S7" and not mark.exists():
        mark.write_text("")
        whole = sitk.WriteImage

        def cut_off(image: sitk.Image, path: str, **options: Any) -> None:
            whole(image, path, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        sitk.WriteImage = cut_off
    yield from read(content)


def test_dask_gives_the_same_bytes_though_a_worker_is_killed(
    fresh_folders: Path, unchecked: None, tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    units = units_of(*(f"S{number}" for number in range(1, 13)), mark=str(tmp_path / "killed"))
    one = run(units, 801)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, scheduler_port=0
    ) as cluster:
        options = Options(folds=2, dask=cluster.scheduler_address)
        two = convert(dataset_of(802), units, slow, what="Subjects", options=options)
    assert (tmp_path / "killed").exists()
    without = ("conversion_units.jsonl",)
    assert tree(one, without=without) == tree(two, without=without)


def test_no_scheduler_is_one_line(fresh_folders: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("nnunet_qa.dataset_conversion.engine.PATIENCE", 0.5)
    with pytest.raises(DependencyError, match=r"--dask tcp://127.0.0.1:9: no scheduler answers there"):
        run(units_of("S1"), dask="tcp://127.0.0.1:9")


@pytest.mark.parametrize("options", [{"jobs": 0}, {"folds": 1}])
def test_too_few(fresh_folders: Path, unchecked: None, options: dict[str, int]) -> None:
    with pytest.raises(DatasetError, match="give at least 1 process and 2 folds"):
        convert(dataset_of(), units_of("S1"), read, what="", options=Options(**options))


def test_names_and_links(tmp_path: Path) -> None:
    assert safe_name("Müller's leg (2)") == "M_ller_s_leg_2"
    with pytest.raises(DatasetError, match="holds no letter or digit"):
        safe_name("…")
    (tmp_path / "in").mkdir()
    (tmp_path / "out.nii").write_text("")
    (tmp_path / "in" / "a.nii").write_text("")
    (tmp_path / "in" / "b.nii").symlink_to(tmp_path / "in" / "a.nii")
    (tmp_path / "in" / "c.nii").symlink_to(tmp_path / "out.nii")
    assert below(tmp_path / "in" / "b.nii", tmp_path / "in") == tmp_path / "in" / "b.nii"
    with pytest.raises(DatasetError, match=r"c.nii: is a symbolic link out of"):
        below(tmp_path / "in" / "c.nii", tmp_path / "in")
