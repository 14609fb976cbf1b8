from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from nnunet_qa.cases import CaseTable
from nnunet_qa.data.images import read_volume
from nnunet_qa.errors import CRFError, DatasetError, DependencyError, ImageError
from nnunet_qa.inference import crf_tune
from nnunet_qa.inference.crf import CRFSettings, Mode, labels_of, refine
from nnunet_qa.inference.crf_folder import CaseReader
from nnunet_qa.inference.crf_tune import Tuned, choose, drawn_settings, tune, tuning_cases
from tests.shifted import GEOMETRY, shifted_dataset

SETTINGS = [CRFSettings(iterations=number + 1) for number in range(4)]


@pytest.fixture
def base(fresh_folders: Path) -> Path:
    shifted_dataset(fresh_folders)
    return fresh_folders


def run(base: Path, **changes: Any) -> Tuned:
    content = json.loads((base / "nnUNet_raw" / "Dataset401_Squares" / "dataset.json").read_text())
    arguments: dict[str, Any] = {
        "reader": CaseReader.of(content, "dataset.json"),
        "labels": content["labels"],
        "trials": 12,
        "seed": 3,
        "mode": Mode.VOLUME,
        "state": base / "trials.csv",
    }
    return tune(tuning_cases("401", [base / "validation"]), **(arguments | changes))


def test_settings_are_chosen_by_the_mean_dice(base: Path) -> None:
    tuned = run(base)
    table = pd.read_csv(base / "trials.csv")
    assert len(table) == 13 * 8
    raw = base / "nnUNet_raw" / "Dataset401_Squares"
    expected = {}
    for case, text in (("S0_1", tuned.settings.model_dump_json()), ("S3_0", table["settings"][0])):
        with np.load(base / "validation" / f"{case}.npz") as content:
            probabilities = content["probabilities"]
        image = read_volume(raw / "imagesTr" / f"{case}_0000.nii.gz")[0][None]
        truth = read_volume(raw / "labelsTr" / f"{case}.nii.gz")[0]
        settings = CRFSettings.model_validate_json(text)
        predicted = labels_of(refine(probabilities, image, spacing=GEOMETRY.spacing[::-1], settings=settings))
        expected[case, text] = f1_score(truth.ravel(), predicted.ravel())
    for (case, text), value in expected.items():
        (found,) = table["dice"][(table["case_id"] == case) & (table["settings"] == text)]
        assert found == pytest.approx(value)
    means = table.groupby("trial")["dice"].mean()
    assert means.idxmax() == table["trial"][table["settings"] == tuned.settings.model_dump_json()].iloc[0]
    assert tuned.dice_before == pytest.approx(means[0])
    assert tuned.gain == pytest.approx(means.max() - means[0])
    assert tuned.gain > 0.05
    assert 0 < tuned.held_out_gain <= tuned.gain
    assert (tuned.cases, tuned.subjects, tuned.trials) == (8, 4, 13)


def test_a_stopped_run_goes_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(base, state=base / "whole.csv")
    seen: list[tuple[str, int]] = []
    real = crf_tune._dice

    def counted(case: Any, files: str, settings: Any, reader: Any, labels: Any, trial: int, limit: int = 30) -> Any:
        if len(seen) == limit:
            raise KeyboardInterrupt
        seen.append((case.case_id, trial))
        return real(case, files, settings, reader, labels, trial)

    monkeypatch.setattr(crf_tune, "_dice", counted)
    with pytest.raises(KeyboardInterrupt):
        run(base)
    assert len(pd.read_csv(base / "trials.csv")) == 30
    monkeypatch.setattr(crf_tune, "_dice", lambda *arguments: counted(*arguments, limit=10**6))
    assert run(base) == whole
    assert len(seen) == len(set(seen)) == 13 * 8
    (base / "validation" / "S1_0.npz").touch()  # may hold something else now
    run(base)
    assert seen[104:] == [("S1_0", trial) for trial in range(13)]
    more = run(base, trials=14)
    assert more.trials == 15
    assert len(seen) == 13 * 9 + 2 * 8
    pd.testing.assert_frame_equal(
        pd.read_csv(base / "trials.csv").query("trial < 13")[["trial", "settings", "case_id", "dice"]],
        pd.read_csv(base / "whole.csv")[["trial", "settings", "case_id", "dice"]],
    )


def test_several_processes_find_the_same(base: Path) -> None:
    assert run(base, jobs=2, trials=3, state=base / "two.csv") == run(base, trials=3)


def test_the_choice_by_hand() -> None:
    """Subject a is best with trial 1, b and c are best with trial 2."""
    frame = pd.DataFrame(
        [[0.5, 0.875, 0.625, 0.5], [0.5, 0.875, 0.625, 0.5], [0.5, 0.625, 0.875, 0.5], [0.5, 0.375, 0.625, 0.5]],
        index=["a0", "a1", "b0", "c0"],
    )
    tuned = choose(frame, subjects=["a", "a", "b", "c"], settings=SETTINGS, seed=0)
    assert tuned.settings == SETTINGS[1]  # gains in eighths: 3 + 3 + 1 - 1 and 1 + 1 + 3 + 1, equal, so the first
    assert tuned.gain == pytest.approx(0.75 / 4)
    assert tuned.dice_before == pytest.approx(0.5)
    # the best without a is trial 2 (4 against 0), without b trial 1 (5 against 3), without c trial 1 (7 against 5)
    assert tuned.held_out_gain == pytest.approx((1 + 1 + 1 - 1) / 8 / 4)
    low, high = tuned.held_out_interval
    assert -0.125 <= low < 0.0625 < high <= 0.125
    assert tuned.as_json()["tuned"]["held_out_gain"] == pytest.approx(0.0625)


def test_what_helps_nobody_is_not_chosen() -> None:
    frame = pd.DataFrame([[0.5, 0.4, 0.5, 0.3], [0.5, 0.6, 0.5, 0.3]])
    tuned = choose(frame, subjects=["a", "a"], settings=SETTINGS, seed=0)
    assert tuned.settings == SETTINGS[0]
    assert (tuned.gain, tuned.subjects) == (0, 1)
    assert tuned.as_json()["tuned"]["held_out_gain"] is None


def test_draws_lie_in_their_ranges_and_follow_the_pixel() -> None:
    draws = [drawn_settings(np.random.default_rng([0, n]), mode=Mode.SLICES, pixel=2.0) for n in range(300)]
    assert draws[:3] == [drawn_settings(np.random.default_rng([0, n]), mode=Mode.SLICES, pixel=2.0) for n in range(3)]
    distances = np.array([one.bilateral_sd for one in draws])
    assert 4 <= distances.min() < 5
    assert 70 < distances.max() <= 80
    assert 15 < np.median(distances) < 21  # of a logarithmic scale
    assert {one.iterations for one in draws} == {2, 5, 10}
    assert {one.mode for one in draws} == {Mode.SLICES}


def refused(base: Path, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as caught:
        tuning_cases("401", [base / "validation"])
    assert said in str(caught.value)


def test_only_people_s_labels_outside_the_test_set_choose(base: Path) -> None:
    raw = base / "nnUNet_raw" / "Dataset401_Squares"
    shutil.copy(base / "predictions" / "T0_0.npz", base / "validation")
    refused(base, CRFError, "T0_0.npz: is a test case, and settings are chosen on validation cases only")
    shutil.move(base / "validation" / "T0_0.npz", base / "validation" / "X.npz")
    refused(base, CRFError, "X.npz: is no annotated case of the dataset")
    (base / "validation" / "X.npz").unlink()
    table = CaseTable.read(raw / "cases.csv").frame
    table["label_source"] = np.where(table["case_id"] == "S2_0", "pseudo", "human")
    CaseTable(table).write(raw / "cases.csv")
    refused(base, CRFError, "S2_0.npz: is a pseudo-label")


def test_a_dataset_that_refers_to_its_images(base: Path) -> None:
    """As `nnunet-qa inject` writes it: the `dataset` entry of dataset.json says where images and labels lie."""
    raw = base / "nnUNet_raw" / "Dataset401_Squares"
    target = base / "nnUNet_raw" / "Dataset402_Other"
    target.mkdir()
    content = json.loads((raw / "dataset.json").read_text())
    content["dataset"] = {
        "S1_0": {
            "images": ["../Dataset401_Squares/imagesTr/S1_0_0000.nii.gz"],
            "label": "../Dataset401_Squares/labelsTr/S1_0.nii.gz",
        }
    }
    (target / "dataset.json").write_text(json.dumps(content))
    (base / "one").mkdir()
    shutil.copy(base / "validation" / "S1_0.npz", base / "one")
    (case,) = tuning_cases("402", [base / "one"])
    assert case.label == raw / "labelsTr" / "S1_0.nii.gz"
    assert case.images == (raw / "imagesTr" / "S1_0_0000.nii.gz",)
    assert case.subject_id == "S1_0"
    with pytest.raises(CRFError, match=r"S0_0\.npz: is no annotated case"):
        tuning_cases("402", [base / "validation"])


def test_without_the_library_nothing_is_read_or_written(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    monkeypatch.setattr(CaseReader, "image", never)
    with pytest.raises(DependencyError, match="needs pydensecrf2"):
        run(base)
    assert not (base / "trials.csv").exists()


def test_bad_input(base: Path) -> None:
    with pytest.raises(DatasetError, match=r'the case "S0_0" is in .*validation too'):
        tuning_cases("401", [base / "validation", shutil.copytree(base / "validation", base / "again")])
    (base / "trials.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CRFError, match='is no table of trials, the column "trial" is missing'):
        run(base)
    (base / "trials.csv").unlink()
    label = base / "nnUNet_raw" / "Dataset401_Squares" / "labelsTr" / "S0_0.nii.gz"
    label.unlink()
    with pytest.raises((ImageError, FileNotFoundError), match=r"S0_0\.nii\.gz"):
        run(base)
