"""What an injection refuses at the start, and what it leaves alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.errors import CaseTableError, ConfigError, CurveError, DatasetError, ModelError, SelectionError
from nnunet_qa.quality.curve_classifier_file import save
from nnunet_qa.quality.curve_rules import CurveRules
from nnunet_qa.trainers import injection_estimators
from tests.phantom import trainer_of, tree
from tests.quality.easy_curves import heart
from tests.trainers.injecting import Judge, injecting, rename_cases
from tests.trainers.semi import begin_epoch, copied, logs, started

CURVES: dict[str, Any] = {
    "weights": {"curves": 1.0},
    "classifier": "some.pt",
    "unit": "acquisition",
    "scheme": "lv=1,rv=2",
}


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({"P0_c1": 2}, r"A: frame 1 is missing"),
        ({"P0_c1": 0}, r"A: frame 0 is there more than once"),
        ({"P0_c0": None, "P0_c1": None}, r"A: "),
    ],
)
def test_series_with_missing_or_repeated_frames_are_refused_at_the_start(
    planned: dict[str, str],
    results: Path,
    qa_yaml: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    frames: dict[str, int | None],
    message: str,
) -> None:
    folder = copied(planned["2d"], tmp_path / "copy", monkeypatch)
    places: dict[str, int | None] = {"P0_c0": 0, "P0_c1": 1, "P0_c2": 0, "P0_c3": 1} | frames
    rename_cases(
        folder,
        stack_id=lambda case: {"P0_c0": "A", "P0_c1": "A", "P0_c2": "B", "P0_c3": "B"}.get(case, ""),
        frame_index=lambda case: "" if places.get(case) is None else str(places[case]),
    )
    monkeypatch.setattr(injection_estimators, "load_classifier", lambda path, **made_for: Judge({}))
    with pytest.raises(CurveError, match=message):
        injecting(qa_yaml, planned["2d"], **CURVES).on_train_start()


def test_a_classifier_for_other_curves_is_refused_at_the_start(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = tmp_path / "rules.pt"
    save(
        CurveRules.without_labels([heart("a", np.random.default_rng(0))]), classifier, about={}
    )  # of lv, myocardium and rv
    made = {**CURVES, "classifier": str(classifier)}
    with pytest.raises(ModelError, match=r"rules\.pt: was made for curves of"):
        injecting(qa_yaml, planned["2d"], **made).on_train_start()
    monkeypatch.setattr(injection_estimators, "load_classifier", lambda path, **made_for: Judge({}))
    with pytest.raises(CurveError, match=r'"lv=1" does not know the label 2'):
        injecting(qa_yaml, planned["2d"], **{**made, "scheme": "lv=1"}).on_train_start()
    with pytest.raises(SelectionError, match=r'"ukb".*did you mean "ukbb"'):
        injecting(qa_yaml, planned["2d"], **{**made, "scheme": "ukb"}).on_train_start()


def test_a_named_scheme_is_given_no_other_kind_or_end_diastole(
    planned: dict[str, str], results: Path, qa_yaml: Any
) -> None:
    own = {**CURVES, "scheme": "acdc", "kind": "area", "end_diastole": "first"}
    with pytest.raises(SelectionError, match=r'"acdc" has its own kind and end-diastole; leave out kind and end_dias'):
        injecting(qa_yaml, planned["2d"], **own).on_train_start()


@pytest.mark.parametrize("curves", [False, True])
@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("P0", r'cases\.csv: the frame "P0_c2" of the acquisition "A" has no image in the pool \(imagesUn\); put it'),
        ("T0", r'cases\.csv: the frame "P0_c2" of the acquisition "A" is of another subject, whom this fold'),
    ],
)
def test_series_of_which_frames_may_not_be_trained_on_are_refused_at_the_start(
    planned: dict[str, str],
    results: Path,
    qa_yaml: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    curves: bool,
    subject: str,
    message: str,
) -> None:
    folder = copied(planned["2d"], tmp_path / "copy", monkeypatch)
    frames = {"P0_c0": 0, "P0_c1": 1, "P0_c2": 2}
    rename_cases(
        folder,
        subject_id=lambda case: subject if case == "P0_c2" else case[:2],
        stack_id=lambda case: "A" if case in frames else "",
        frame_index=lambda case: str(frames.get(case, "")),
        role=lambda case: {"T": "test", "P": "unlabelled"}.get(case[0], "labelled"),
    )
    if subject == "P0":
        (folder / "imagesUn" / "P0_c2_0000.png").unlink()
    monkeypatch.setattr(injection_estimators, "load_classifier", lambda path, **made_for: Judge({}))
    with pytest.raises(CaseTableError, match=message):
        injecting(qa_yaml, planned["2d"], **(CURVES if curves else {"unit": "acquisition"})).on_train_start()


def test_tested_subjects_and_cases_that_are_not_unlabelled_are_no_candidates(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(planned["2d"], tmp_path / "copy", monkeypatch)
    rename_cases(
        folder,
        subject_id=lambda case: "T0" if case == "P0_c0" else case[:2],
        role=lambda case: {"T": "test", "P": "test" if case == "P0_c1" else "unlabelled"}.get(case[0], "labelled"),
    )
    trainer = injecting(qa_yaml, planned["2d"])
    trainer.initialize()
    assert trainer.injection.candidates() == []  # P0 has a test case now, and so has P0_c0's subject T0
    rename_cases(folder, subject_id=lambda case: f"own_{case}" if case in ("P0_c2", "P0_c3") else case[:2])
    trainer = injecting(qa_yaml, planned["2d"])
    trainer.initialize()
    assert trainer.injection.candidates() == ["P0_c2", "P0_c3"]


def test_a_chosen_case_that_has_left_the_pool_is_told_at_the_start(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(planned["2d"], tmp_path / "copy", monkeypatch)
    trainer = injecting(qa_yaml, planned["2d"], number=4)
    with started(trainer):
        begin_epoch(trainer, 1)
    (folder / "imagesUn" / "P0_c2_0000.png").unlink()
    second = injecting(qa_yaml, planned["2d"], number=2)
    second.injection.load_state(trainer.injection.state())
    with pytest.raises(DatasetError, match=r"the case P0_c2 was chosen in this round and may no longer"):
        second.on_train_start()


def test_a_start_by_mistake_leaves_the_bank(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    trainer = injecting(qa_yaml, planned["2d"], number=2)
    with started(trainer):
        begin_epoch(trainer, 1)
        before = tree(trainer.injection.bank.folder)
    with started(injecting(qa_yaml, planned["2d"], number=2)):
        assert tree(trainer.injection.bank.folder) == before


def test_pseudo_labels_of_another_training_teach_no_discriminator(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(planned["2d"], tmp_path / "copy", monkeypatch)
    trainer = injecting(qa_yaml, planned["2d"])
    trainer.initialize()
    training, _ = trainer.do_split()
    rename_cases(folder, label_source=lambda case: "pseudo" if case == training[0] else "human")
    trainer = injecting(qa_yaml, planned["2d"])
    trainer.initialize()
    assert trainer.get_tr_and_val_datasets()[0].identifiers == sorted(training)
    assert trainer.annotated_training_cases().identifiers == sorted(set(training) - {training[0]})


def test_trainers_that_do_not_inject_say_so(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    injecting(qa_yaml, planned["2d"])
    trainer = trainer_of(planned["2d"], "2d", 0, name="MeanTeacherTrainer")
    assert "injection: enabled in qa.yaml and left out: MeanTeacherTrainer does not inject" in logs(trainer)
    assert "left out: there is no pool" in logs(injecting(qa_yaml, planned["regions"]))


def test_what_does_not_go_together_is_refused(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"names \"code\", but without the QA loss"):
        injecting(qa_yaml, planned["2d"], weights={"code": 1.0}).on_train_start()
    folder = copied(planned["2d"], tmp_path / "copy", monkeypatch)
    os.remove(folder / "cases.csv")
    with pytest.raises(CaseTableError, match=r"injection of acquisitions needs cases\.csv"):
        injecting(qa_yaml, planned["2d"], unit="acquisition").on_train_start()


def test_without_a_pool_nothing_is_injected(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    trainer = injecting(qa_yaml, planned["regions"])
    assert not trainer.injects
    assert "injected_cases" not in trainer.logger.local_logger.my_fantastic_logging
    with started(trainer):
        begin_epoch(trainer, 1)
    assert not (Path(trainer.output_folder) / "pseudo_labels").exists()


def test_a_ranking_is_a_table_that_people_can_read(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    trainer = injecting(qa_yaml, planned["2d"], number=2)
    with started(trainer):
        begin_epoch(trainer, 1)
        table = pd.read_csv(trainer.injection.bank.round(1) / "ranking.csv")
        assert {"rank", "case_id", "subject_id", "q", "score", "chosen"} <= set(table.columns)
        assert table["rank"].tolist() == [1, 2, 3, 4]
        assert table["score"].is_monotonic_decreasing
