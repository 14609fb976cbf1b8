"""Injection in QAsemiTrainer: rounds, bank, ranking, what is kept over a kill, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from skimage.io import imread

from nnunet_qa.data.bank import JoinedDataset
from nnunet_qa.data.paths import raw_dataset_folder
from nnunet_qa.errors import CaseTableError, DatasetError, SelectionError
from nnunet_qa.quality.table import read_quality
from nnunet_qa.trainers import injection_estimators
from tests.phantom import tree
from tests.trainers.injecting import PLAIN, POOL, Judge, injecting, rename_cases
from tests.trainers.semi import begin_epoch, copied, logs, regions_with_pool, seed, started


def weights(trainer: Any) -> list[torch.Tensor]:
    return [value.clone() for value in trainer.network.state_dict().values()]


def test_the_best_predictions_join_the_training_and_stock_nnunet_predicts(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path
) -> None:
    trainer = injecting(qa_yaml, planned["2d"], number=2)
    trainer.run_training()
    injection = trainer.injection
    assert injection.rounds == 2
    for number in (1, 2):
        ranking = injection.bank.ranking(number)
        assert sorted(ranking["case_id"]) == POOL
        best = ranking.sort_values("q", ascending=False)["case_id"].tolist()[:2]
        assert sorted(best) == injection.bank.cases(number) == sorted(ranking.loc[ranking["chosen"], "case_id"])
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert logged["injected_cases"] == [0, 2, 2]
    assert imread(Path(trainer.output_folder) / "progress.png").shape[0] == 5400 + 2 * 1800
    trainer.perform_actual_validation()
    scores = read_quality(Path(trainer.output_folder) / "quality.csv").set_index("case_id")
    assert sorted(scores.index[scores["injected"].astype(bool)]) == injection.bank.cases(2)
    stock = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"))
    stock.initialize_from_trained_model_folder(str(trainer.output_folder_base), (0,))
    (tmp_path / "stock").mkdir()
    stock.predict_from_files_sequential(str(raw_dataset_folder(planned["2d"]) / "imagesTs"), str(tmp_path / "stock"))
    assert sorted(path.name for path in (tmp_path / "stock").glob("*.png")) == ["T0_c0.png", "T0_c1.png"]


def test_the_loader_draws_pool_cases_with_the_predictions_as_labels(
    planned: dict[str, str], results: Path, qa_yaml: Any
) -> None:
    seed()
    trainer = injecting(qa_yaml, planned["2d"], number=4, sections={**PLAIN, "scoring": {"mirroring": False}})
    with started(trainer):
        begin_epoch(trainer)
        trainer.network.eval()
        with torch.no_grad():
            trainer.network.decoder.seg_layers[-1].bias[2] += 100  # predicts the second class everywhere
        trainer.network.train()
        begin_epoch(trainer, 1)
        own, validation = trainer.get_tr_and_val_datasets()
        assert isinstance(own, JoinedDataset)
        assert [case for case in own.identifiers if case.startswith("P")] == POOL
        assert not any(case.startswith("P") for case in validation.identifiers)
        image, labels, _, properties = own.load_case("P0_c1")
        assert (labels[:] == 2).all()
        pooled = trainer.pool.dataset().load_case("P0_c1")[0]
        assert np.array_equal(image[:], pooled[:])
        assert len(properties["class_locations"][2])
        trainer.oversample_foreground_percent = 1.0
        seen: dict[str, torch.Tensor] = {}
        for _ in range(30):
            batch = next(trainer.dataloader_train)
            seen |= dict(zip(map(str, batch["keys"]), batch["target"][0], strict=True))
        assert {case for case in seen if case.startswith("P")}
        for case, target in seen.items():
            if case.startswith("P"):  # rotation may bring in what lies outside of the image
                assert set(target.unique().tolist()) <= {0, 2}
                assert (target == 2).float().mean() > 0.3
        for _ in range(20):
            keys = map(str, next(trainer.dataloader_val)["keys"])
            assert set(keys) <= set(validation.identifiers)


def test_a_killed_training_keeps_bank_round_and_ranking(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path
) -> None:
    first = injecting(qa_yaml, planned["2d"], number=2)
    with started(first):
        for epoch in (0, 1):
            begin_epoch(first, epoch)
            outputs = [first.train_step(next(first.dataloader_train))]
            first.on_train_epoch_end(outputs)
            with torch.no_grad():
                first.on_validation_epoch_start()
                first.on_validation_epoch_end([first.validation_step(next(first.dataloader_val))])
            checkpoint = Path(first.output_folder) / "checkpoint_latest.pth"
            first.save_checkpoint(str(checkpoint))
            at_checkpoint = first.injection.state() | {"losses": list(first.injection._losses)}
            first.on_epoch_end()
        before = tree(first.injection.bank.round(1))
        begin_epoch(first, 2)  # a second round, of which the checkpoint does not know; then the kill
        assert first.injection.rounds == 2
        first.injection.bank.begin(3)
    second = injecting(qa_yaml, planned["2d"], number=2)
    second.load_checkpoint(str(checkpoint))
    assert second.injection.state() == at_checkpoint
    with started(second):
        assert second.current_epoch == 2
        assert tree(second.injection.bank.round(1)) == before
        own, _ = second.get_tr_and_val_datasets()
        assert [case for case in own.identifiers if case.startswith("P")] == second.injection.bank.cases(1)
        begin_epoch(second, 2)
        assert second.injection.rounds == 2
        assert [path.name for path in sorted(second.injection.bank.folder.iterdir())] == ["round_001", "round_002"]
    third = injecting(qa_yaml, planned["2d"], number=2)
    third.load_checkpoint(str(checkpoint))
    third.injection.bank.round(1).rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"the pseudo-labels of round 1 are missing"):
        third.on_train_start()


def test_subjects_kept_for_validation_are_never_injected(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(planned["2d"], tmp_path / "copy", monkeypatch)
    trainer = injecting(qa_yaml, planned["2d"])
    trainer.initialize()
    training, validation = trainer.do_split()
    rename_cases(
        folder,
        subject_id=lambda case: {"P0_c0": validation[0][:2], "P0_c1": training[0][:2]}.get(case, case[:2]),
    )
    trainer = injecting(qa_yaml, planned["2d"], number=3)
    with started(trainer):
        assert trainer.injection.candidates() == POOL[1:]
        begin_epoch(trainer, 1)
        assert trainer.injection.bank.cases(1) == POOL[1:]
        assert sorted(trainer.injection.bank.ranking(1)["case_id"]) == POOL[1:]
    with pytest.raises(SelectionError, match=r"asks for 4 cases, but the pool has 3 that may"):
        injecting(qa_yaml, planned["2d"], number=4).on_train_start()
    everything = injecting(qa_yaml, planned["2d"], fold="all", number=4)  # has no validation of its own
    assert everything.injection.candidates() == POOL
    rename_cases(folder, subject_id=lambda case: validation[0][:2] if case.startswith("P") else case[:2])
    with pytest.raises(SelectionError, match=r"no pool case may be trained on"):
        injecting(qa_yaml, planned["2d"]).on_train_start()


def test_limits_are_settings(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    trainer = injecting(qa_yaml, planned["2d"])  # half of the pool
    with started(trainer):
        begin_epoch(trainer, 1)
        assert len(trainer.injection.bank.cases(1)) == 2
        ranking = trainer.injection.bank.ranking(1)
    trainer = injecting(qa_yaml, planned["2d"], number=4, per_subject=1)
    with started(trainer):
        begin_epoch(trainer, 1)
        assert len(trainer.injection.bank.cases(1)) == 1
    trainer = injecting(qa_yaml, planned["2d"], number=4, floor=2.0)
    with started(trainer):
        begin_epoch(trainer, 1)
        assert trainer.injection.bank.cases(1) == []
        next(trainer.dataloader_train)
    assert len(ranking) == 4


def test_rounds_end_when_annotated_cases_get_worse(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    trainer = injecting(qa_yaml, planned["2d"], number=2, stop_when_worse=True)
    with started(trainer):
        trainer.logger.local_logger.my_fantastic_logging["val_losses"] += [-0.2, -0.1]  # before the round, after it
        begin_epoch(trainer, 1)
        assert trainer.injection.rounds == 1
        begin_epoch(trainer, 2)
        assert trainer.injection.rounds == 1
        assert "injection: no further rounds: the loss of annotated validation cases was -0.1000 after" in logs(trainer)
        assert trainer.injection.state()["stopped"]
    trainer = injecting(qa_yaml, planned["2d"], number=2, stop_when_worse=True)
    with started(trainer):
        trainer.logger.local_logger.my_fantastic_logging["val_losses"] += [-0.2, -0.3]
        begin_epoch(trainer, 1)
        begin_epoch(trainer, 2)
        assert trainer.injection.rounds == 2


@pytest.mark.parametrize("kind", ["3d", "regions"])
def test_volumes_and_regions(
    planned: dict[str, str],
    results: Path,
    qa_yaml: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    name = planned["3d"]
    if kind == "regions":
        name = regions_with_pool(planned, tmp_path / "copy", monkeypatch)
        with pytest.raises(CaseTableError, match=r'the pool case "P0_c0" is missing'):
            injecting(qa_yaml, name).on_train_start()
        os.remove(raw_dataset_folder(name) / "cases.csv")
    trainer = injecting(qa_yaml, name, "3d_fullres" if kind == "3d" else "2d", number=2)
    with started(trainer):
        begin_epoch(trainer, 1)
        own, _ = trainer.get_tr_and_val_datasets()
        case = trainer.injection.bank.cases(1)[0]
        image, labels, _, properties = own.load_case(case)
        assert labels.shape == (1, *image.shape[1:])
        assert set(np.unique(labels[:])) <= {-1, 0, 1, 2}
        assert list(properties["class_locations"]) == ([(1, 2), 2] if kind == "regions" else [1, 2])
        trainer.train_step(next(trainer.dataloader_train))


def test_the_code_of_the_discriminator_ranks_where_it_is_asked(
    planned: dict[str, str], results: Path, qa_yaml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"qa_loss": {"simulation": {"patches": 4, "per_code": 1, "epochs": 1}}}
    trainer = injecting(qa_yaml, planned["2d"], number=2, weights={"code": 1.0}, sections=tiny)
    with started(trainer):
        codes = iter([1.5, 0.5, 2.0, 1.0])
        monkeypatch.setattr(trainer.discriminator, "predict", lambda pictures: np.full(len(pictures), next(codes)))
        begin_epoch(trainer, 1)
        ranking = trainer.injection.bank.ranking(1).set_index("case_id")
        assert ranking.loc[POOL, "predicted_code"].tolist() == [1.5, 0.5, 2.0, 1.0]
        assert trainer.injection.bank.cases(1) == ["P0_c1", "P0_c3"]
        # a discriminator that is fitted anew still learns from people's labels alone
        assert all(not case.startswith("P") for case in trainer.annotated_training_cases().identifiers)


def test_whole_acquisitions_are_ranked_by_their_curves(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(planned["2d"], tmp_path / "copy", monkeypatch)
    stacks = {"P0_c0": ("A", 1), "P0_c1": ("B", 0), "P0_c2": ("A", 0), "P0_c3": ("B", 1)}
    rename_cases(
        folder,
        stack_id=lambda case: stacks.get(case, ("", 0))[0],
        frame_index=lambda case: str(stacks[case][1]) if case in stacks else "",
    )
    judge = Judge({"A": 0.1, "B": 0.9})
    monkeypatch.setattr(injection_estimators, "load_classifier", lambda path, **made_for: judge)
    own = {"weights": {"curves": 1.0}, "classifier": "some.pt", "unit": "acquisition"}
    own |= {"scheme": "rv=1,myocardium=2", "kind": "area", "end_diastole": "first"}
    trainer = injecting(qa_yaml, planned["2d"], number=1, **own)
    with started(trainer):
        begin_epoch(trainer, 1)
        assert trainer.injection.bank.cases(1) == ["P0_c0", "P0_c2"]
        ranking = trainer.injection.bank.ranking(1).set_index("case_id")
        assert ranking.loc[POOL, "p_erroneous"].tolist() == [0.1, 0.9, 0.1, 0.9]
        first = next(one for one in judge.seen if one.acquisition_id == "A")
        assert first.frames == 2
        labels = [trainer.injection.bank.labels(1, case)[0] for case in ("P0_c2", "P0_c0")]
        assert first.pixels["rv"][:, 0].tolist() == [(frame == 1).sum() for frame in labels]
        assert first.pixels["myocardium"][:, 0].tolist() == [(frame == 2).sum() for frame in labels]
        assert (first.scheme.kind, first.scheme.end_diastole) == ("area", "first")
    with pytest.raises(SelectionError, match=r"asks for 3 acquisitions, but the pool has 2 that"):
        injecting(qa_yaml, planned["2d"], number=3, **own).on_train_start()
