from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

import nnunet_qa.data.inject as module
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.inject import Injected, inject
from nnunet_qa.data.pool import pool_images
from nnunet_qa.data.splits import write_splits
from nnunet_qa.errors import CaseTableError, DatasetError, ImageError, StorageError
from tests.small import NAME, annotate, snapshot, tiny_dataset, tiny_label, write_tiny

TARGET = "Dataset401_Tiny"
POOL = ("S1_b", "S4_a", "S4_b")


def ranking(*cases: str, model: str = "fold_0", score: float = 0.875) -> pd.DataFrame:
    return pd.DataFrame({"case_id": cases, "score": score, "model": model, "estimator": "q"})


def run(base: Path, *cases: str, source: str = NAME, target: str = TARGET, **options: Any) -> Injected:
    arguments = {"predictions": base / "predictions", "ranking": ranking(*cases), **options}
    return inject(
        base / "nnUNet_raw" / source,
        base / "nnUNet_raw" / target,
        arguments.pop("ranking"),
        arguments.pop("predictions"),
        source_preprocessed=base / "nnUNet_preprocessed" / source,
        target_preprocessed=base / "nnUNet_preprocessed" / target,
        **arguments,
    )


@pytest.fixture
def base(fresh_folders: Path) -> Path:
    """Annotated S1_a, S2_a, S3_a; in the pool S1_b, S4_a and S4_b, all predicted."""
    tiny_dataset(fresh_folders, test=("S9_a",))
    annotate(fresh_folders / "predictions", *POOL)
    return fresh_folders


def content(base: Path, target: str = TARGET) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((base / "nnUNet_raw" / target / "dataset.json").read_text())
    return found


def test_the_new_dataset_refers_to_the_images_and_holds_the_pseudo_labels(base: Path) -> None:
    before = snapshot(base / "nnUNet_raw")
    done = run(base, "S4_a", "S1_b")
    assert (done.human, done.pseudo, done.pool) == (3, 2, 1)
    found, raw = content(base), base / "nnUNet_raw" / TARGET
    assert found["numTraining"] == 5
    assert found["dataset"]["S1_a"] == {
        "images": [f"../{NAME}/imagesTr/S1_a_0000.png"],
        "label": f"../{NAME}/labelsTr/S1_a.png",
    }
    assert found["dataset"]["S4_a"] == {
        "images": [f"../{NAME}/imagesUn/S4_a_0000.png"],
        "label": "labelsPseudo/S4_a.png",
    }
    assert found["unlabelled"] == {"S4_b": [f"../{NAME}/imagesUn/S4_b_0000.png"]}
    for case in ("S4_a", "S1_b"):
        assert (raw / "labelsPseudo" / f"{case}.png").read_bytes() == (
            base / "predictions" / f"{case}.png"
        ).read_bytes()
    files = sorted(path.name for path in raw.rglob("*") if path.is_file())
    assert files == ["S1_b.png", "S4_a.png", "cases.csv", "dataset.json", "injection.json", "splits_final.json"]
    after = snapshot(base / "nnUNet_raw")
    assert {name: data for name, data in after.items() if TARGET not in name} == before


def test_nnunet_finds_every_file_and_our_pool_the_rest(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(base, "S4_a")
    moved = base / "elsewhere"
    (base / "nnUNet_raw").rename(moved)  # with everything in it
    monkeypatch.chdir("/")
    found = get_filenames_of_train_images_and_targets(str(moved / TARGET))
    assert sorted(found) == ["S1_a", "S2_a", "S3_a", "S4_a"]
    assert all(Path(path).is_file() for entry in found.values() for path in (*entry["images"], entry["label"]))
    left = pool_images(moved / TARGET, json.loads((moved / TARGET / "dataset.json").read_text()))
    assert left == {case: [moved / NAME / "imagesUn" / f"{case}_0000.png"] for case in ("S1_b", "S4_b")}


def test_the_case_table_says_where_labels_come_from(base: Path) -> None:
    path = base / "nnUNet_raw" / NAME / "cases.csv"
    CaseTable(CaseTable.read(path).frame.assign(stack_id="x", crop="12")).write(path)
    run(base, "S4_a", round_number=3)
    frame = CaseTable.read(base / "nnUNet_raw" / TARGET / "cases.csv").frame.set_index("case_id")
    names = ["role", "label_source", "pseudo_model", "pseudo_estimator", "pseudo_score", "pseudo_round"]
    assert frame.loc["S4_a", names].tolist() == ["labelled", "pseudo", "fold_0", "q", "0.875", "3"]
    assert frame.loc["S2_a", names].tolist() == ["labelled", "human", "", "", "", ""]
    assert frame.loc["S4_b", names].tolist() == ["unlabelled", "", "", "", "", ""]
    assert frame.loc["S9_a", names].tolist() == ["test", "", "", "", "", ""]
    assert (frame["stack_id"] == "x").all()
    assert (frame["crop"] == "12").all()
    record = json.loads((base / "nnUNet_raw" / TARGET / "injection.json").read_text())
    assert {key: record[key] for key in ("source", "round", "model")} == {"source": NAME, "round": 3, "model": "fold_0"}


def test_people_alone_validate_and_a_fold_never_trains_on_a_subject_that_it_validates(base: Path) -> None:
    done = run(base, "S1_b", "S4_a")
    written = [base / "nnUNet_preprocessed" / TARGET, base / "nnUNet_raw" / TARGET]
    assert [json.loads((folder / "splits_final.json").read_text()) for folder in written] == [done.splits] * 2
    assert done.splits is not None
    assert sorted(case for fold in done.splits for case in fold["val"]) == ["S1_a", "S2_a", "S3_a"]
    for fold in done.splits:
        assert ("S1_b" in fold["train"]) == ("S1_a" not in fold["val"])
        assert "S4_a" in fold["train"]


def test_the_folds_of_the_source_are_kept(base: Path) -> None:
    own = [{"train": ["S1_a"], "val": ["S2_a"]}, {"train": ["S3_a", "S2_a"], "val": ["S1_a"]}]
    write_splits(base / "nnUNet_preprocessed" / NAME, own)
    assert run(base, "S1_b", "S4_b").splits == [
        {"train": ["S1_a", "S1_b", "S4_b"], "val": ["S2_a"]},
        {"train": ["S2_a", "S3_a", "S4_b"], "val": ["S1_a"]},
    ]
    write_splits(base / "nnUNet_preprocessed" / NAME, [{"train": ["S4_a"], "val": ["S2_a"]}])
    with pytest.raises(DatasetError, match='fold 0 names the case "S4_a", which is not annotated'):
        run(base, "S1_b", target="Dataset402_Tiny")


def test_one_annotated_subject_has_no_folds(fresh_folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    tiny_dataset(fresh_folders, labelled=("S1_a",), pool=("S2_a",))
    annotate(fresh_folders / "predictions", "S2_a")
    assert run(fresh_folders, "S2_a").splits is None
    assert "no folds written" in caplog.text
    assert not (fresh_folders / "nnUNet_raw" / TARGET / "splits_final.json").exists()


def test_a_second_round_on_top_of_the_first_keeps_its_pseudo_labels(base: Path) -> None:
    run(base, "S1_b")
    write_tiny(base / "round_2" / "S4_b.png", tiny_label("other"))
    given = {"predictions": base / "round_2", "ranking": ranking("S4_b", model="injected")}
    done = run(base, source=TARGET, target="Dataset402_Again", round_number=2, **given)
    assert (done.human, done.pseudo, done.pool) == (3, 2, 1)
    shutil.rmtree(base / "nnUNet_raw" / TARGET)  # the later dataset needs only the first source
    found = get_filenames_of_train_images_and_targets(str(base / "nnUNet_raw" / "Dataset402_Again"))
    assert all(Path(path).is_file() for entry in found.values() for path in (*entry["images"], entry["label"]))
    assert content(base, "Dataset402_Again")["dataset"]["S1_a"]["label"] == f"../{NAME}/labelsTr/S1_a.png"
    frame = CaseTable.read(base / "nnUNet_raw" / "Dataset402_Again" / "cases.csv").frame.set_index("case_id")
    assert frame.loc[["S1_b", "S4_b"], ["pseudo_model", "pseudo_round"]].values.tolist() == [
        ["fold_0", "1"],
        ["injected", "2"],
    ]
    assert done.splits is not None
    assert sorted(case for fold in done.splits for case in fold["val"]) == ["S1_a", "S2_a", "S3_a"]


def test_images_elsewhere_keep_their_absolute_path_and_settings_come_along(base: Path, tmp_path: Path) -> None:
    raw = base / "nnUNet_raw" / NAME
    away = tmp_path / "away"
    away.mkdir()
    entries = {}
    for case in ("S1_a", "S2_a", "S3_a"):
        for folder, name in (("imagesTr", f"{case}_0000.png"), ("labelsTr", f"{case}.png")):
            (raw / folder / name).rename(away / name)
        entries[case] = {"images": [str(away / f"{case}_0000.png")], "label": str(away / f"{case}.png")}
    found = content(base, NAME)
    (raw / "dataset.json").write_text(json.dumps({**found, "dataset": entries, "licence": "mine"}))
    (raw / "qa.yaml").write_text("training: {epochs: 3}\n")
    run(base, "S4_a")
    assert {case: content(base)["dataset"][case] for case in entries} == entries
    assert content(base)["licence"] == "mine"
    assert (base / "nnUNet_raw" / TARGET / "qa.yaml").read_text() == "training: {epochs: 3}\n"


def test_without_a_case_table(fresh_folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    tiny_dataset(fresh_folders, table=False)
    annotate(fresh_folders / "predictions", "S4_a")
    run(fresh_folders, "S4_a")
    assert "every case counts as a subject of its own" in caplog.text
    table = CaseTable.read(fresh_folders / "nnUNet_raw" / TARGET / "cases.csv")
    assert table.case_ids(Role.LABELLED) == ["S1_a", "S2_a", "S3_a", "S4_a"]


@pytest.mark.parametrize(
    ("cases", "error", "text"),
    [
        (("S4_c",), DatasetError, r'the case "S4_c" of the ranking is not in its pool .did you mean "S4_'),
        (("S1_a",), DatasetError, '"S1_a" of the ranking is a training case already'),
        (("S4_a", "S4_b"), DatasetError, r"predictions/S4_b\.png: not found; give the folder"),
        (("S1_b",), ImageError, r"S1_b\.png: has shape"),
    ],
)
def test_mistakes_leave_nothing(base: Path, cases: tuple[str, ...], error: type[Exception], text: str) -> None:
    (base / "predictions" / "S4_b.png").unlink()
    write_tiny(base / "predictions" / "S1_b.png", np.zeros((4, 4), np.uint8))
    before = snapshot(base)
    with pytest.raises(error, match=text):
        run(base, *cases)
    assert snapshot(base) == before
    assert sorted(path.name for path in (base / "nnUNet_raw").iterdir()) == [NAME]


def test_other_mistakes(base: Path) -> None:
    raw = base / "nnUNet_raw"
    with pytest.raises(DatasetError, match="is the source itself"):
        run(base, "S4_a", target=NAME)
    tiny_dataset(base, name="Dataset402_Mine")
    with pytest.raises(DatasetError, match="was not written by an injection"):
        run(base, "S4_a", target="Dataset402_Mine", overwrite=True)
    preprocessed = base / "nnUNet_preprocessed" / TARGET
    preprocessed.mkdir()
    (preprocessed / "nnUNetPlans.json").touch()
    with pytest.raises(DatasetError, match=r"data of another dataset of this name \(nnUNetPlans.json\)"):
        run(base, "S4_a")
    (preprocessed / "nnUNetPlans.json").unlink()
    (raw / NAME / "promote.json").write_text("{}")
    with pytest.raises(DatasetError, match="promotion of cases was interrupted"):
        run(base, "S4_a")
    (raw / NAME / "promote.json").unlink()
    (raw / NAME / "labelsTr" / "S2_a.png").unlink()
    with pytest.raises(DatasetError, match=r"labelsTr/S2_a\.png: not found"):
        run(base, "S4_a")
    table = CaseTable.read(raw / NAME / "cases.csv")
    table.with_role(["S4_a"], Role.TEST).write(raw / NAME / "cases.csv")
    with pytest.raises(CaseTableError, match='"S4_a" is a test case'):
        run(base, "S4_a")
    CaseTable(table.frame[table.frame["case_id"] != "S4_b"]).write(raw / NAME / "cases.csv")
    with pytest.raises(CaseTableError, match=r'cases\.csv: the case "S4_b" is missing'):
        run(base, "S4_a")
    shutil.copy(raw / NAME / "imagesTr" / "S1_a_0000.png", raw / NAME / "imagesUn")
    with pytest.raises(DatasetError, match='case "S1_a" is a training case and in the pool'):
        run(base, "S4_a")


def test_replacing_needs_the_word_and_leaves_nothing_of_the_old(base: Path) -> None:
    run(base, "S4_a")
    preprocessed = base / "nnUNet_preprocessed" / TARGET
    (preprocessed / "gt_segmentations").mkdir()
    before = snapshot(base)
    with pytest.raises(DatasetError, match="or replace it with --force"):
        run(base, "S4_b")
    assert snapshot(base) == before
    run(base, "S4_b", overwrite=True)
    assert [path.name for path in (base / "nnUNet_raw" / TARGET / "labelsPseudo").iterdir()] == ["S4_b.png"]
    assert sorted(path.name for path in preprocessed.iterdir()) == ["dataset.json", "splits_final.json"]
    assert sorted(path.name for path in (base / "nnUNet_raw").iterdir()) == [NAME, TARGET]


@pytest.mark.parametrize("moment", ["copyfile", "replace", "second replace"])
def test_a_failure_leaves_no_half_and_the_rerun_succeeds(
    base: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """As if the disk were full while labels are copied, or the process stopped between the two renames."""
    again = moment == "second replace"
    if again:
        run(base, "S4_b")
    replace, calls = os.replace, []

    def fail(*arguments: Any, **_: Any) -> None:
        calls.append(arguments)
        if again and (Path(arguments[0]).name != f".partial-{TARGET}"):
            replace(*arguments)
            return
        if moment == "replace" and Path(arguments[0]).name != f".partial-{TARGET}":
            replace(*arguments)
            return
        raise OSError(28, "No space left on device", str(arguments[-1]))

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil if moment == "copyfile" else module.os, moment.split()[-1], fail)
        with pytest.raises(StorageError, match="the disk is full"):
            run(base, "S4_a", overwrite=again)
    assert calls
    assert not (base / "nnUNet_raw" / TARGET).exists()
    run(base, "S4_a")
    assert content(base)["numTraining"] == 4
    assert sorted(path.name for path in (base / "nnUNet_raw").iterdir()) == [NAME, TARGET]


def test_a_killed_run_is_cleared_away(base: Path) -> None:
    left = base / "nnUNet_raw" / f".partial-{TARGET}" / "labelsPseudo"
    left.mkdir(parents=True)
    (left / "stranger.png").touch()
    (left.parent / "dataset.json").touch()
    run(base, "S4_a")
    assert [path.name for path in (base / "nnUNet_raw" / TARGET / "labelsPseudo").iterdir()] == ["S4_a.png"]


def test_an_empty_prediction_is_refused(base: Path) -> None:
    write_tiny(base / "predictions" / "S4_b.png", np.zeros((6, 8), np.uint8))
    before = snapshot(base)
    with pytest.raises(ImageError, match=r"predictions/S4_b\.png: is empty, .* delete its case from the ranking$"):
        run(base, "S4_a", "S4_b")
    assert snapshot(base) == before


def test_a_subject_who_is_tested_is_never_trained_on(base: Path) -> None:
    path = base / "nnUNet_raw" / NAME / "cases.csv"
    rows = CaseTable.read(path).frame
    CaseTable(rows.assign(subject_id=rows["subject_id"].replace("S9", "S4"))).write(path)
    with pytest.raises(CaseTableError, match=r'cases\.csv: "S4_a" is a test case, or its subject has one'):
        run(base, "S4_a")
    assert run(base, "S1_b").pseudo == 1
