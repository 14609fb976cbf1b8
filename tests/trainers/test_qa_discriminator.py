"""On which cases a training fits its own discriminator, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from skimage.io import imread, imsave

from nnunet_qa.errors import ModelError, SelectionError
from nnunet_qa.trainers.qa_discriminator import _fully_annotated
from tests.phantom import trainer_of
from tests.trainers.semi import TINY, change, copied, logs, settings, started, write_discriminator


def test_cases_that_label_some_classes_only_are_left_out(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Declared in the raw dataset.json after planning, which nnU-Net's own copy does not know."""
    raw = copied(planned["2d"], tmp_path, monkeypatch)
    for case in ("S0_c0", "S1_c1"):
        path = raw / "labelsTr" / f"{case}.png"
        label = imread(path)
        imsave(path, np.where(label == 2, 0, label).astype(np.uint8), check_contrast=False)
    content = json.loads((raw / "dataset.json").read_text())
    content["labelled_classes"] = {"S0_c0": ["small"], "S1_c1": ["small"]}
    (raw / "dataset.json").write_text(json.dumps(content))
    qa_yaml(settings())
    trainer = trainer_of(planned["2d"], "2d", 0)
    assert trainer._labelled_classes() is not None  # and so the loss is the partial one
    cases = [f"S{subject}_c{case}" for subject in range(4) for case in range(2)]
    assert _fully_annotated(trainer, cases) == [case for case in cases if case not in ("S0_c0", "S1_c1")]
    change(trainer, "labelled_loss", kind="nnunet")
    assert "S0_c0" not in _fully_annotated(trainer, cases)
    with pytest.raises(SelectionError, match=r"every training case labels only some.*qa_loss\.discriminator"):
        _fully_annotated(trainer, ["S0_c0", "S1_c1"])


def test_an_ignore_label_leaves_nothing_to_fit_on() -> None:
    trainer = SimpleNamespace(label_manager=SimpleNamespace(has_ignore_label=True))
    with pytest.raises(SelectionError, match="parts of the annotated cases are to be ignored"):
        _fully_annotated(trainer, ["S0_c0"])  # type: ignore[arg-type]


def test_a_wrong_file_is_refused_before_the_pool_is_preprocessed(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(settings())
    path = write_discriminator(trainer_of(planned["2d"], "2d", 0), tmp_path / "other.pt", dataset="Dataset999_Other")
    qa_yaml(settings(qa_loss={"discriminator": str(path)}))
    trainer = trainer_of(planned["2d"], "2d", 0)
    monkeypatch.setattr(trainer, "_prepare_pool", lambda: pytest.fail("the pool was preprocessed"))
    with pytest.raises(ModelError, match="Dataset999_Other"):
        trainer.on_train_start()


def test_what_the_log_says_of_a_discriminator(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path
) -> None:
    qa_yaml(settings(qa_loss={"simulation": TINY}))
    trainer = trainer_of(planned["2d"], "2d", 0)
    with started(trainer):
        fitted = trainer.discriminator
        fitted.metrics_["validation"] = {"rmse": 0.4, "accuracy": 0.7, "n": 9, "confusion": np.diag([3, 3, 3]).tolist()}
        trainer._say_how_good(fitted, tmp_path)
        assert "RMSE 0.400 (always the mean code: 0.816), accuracy 0.700 on 9 montages" in logs(trainer)
        warned = logs(trainer).count("hardly better than guessing")
        fitted.metrics_["validation"]["rmse"] = 0.8
        trainer._say_how_good(fitted, tmp_path)
        assert logs(trainer).count("hardly better than guessing") == warned + 1


def test_a_discriminator_that_knows_the_validation_cases(
    planned: dict[str, str], results: Path, qa_yaml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa_yaml(settings())
    model = trainer_of(planned["2d"], "2d", 0)
    path = write_discriminator(model, tmp_path / "given.pt")
    qa_yaml(settings(qa_loss={"discriminator": str(path)}))
    trainer = trainer_of(planned["2d"], "2d", 0)
    with started(trainer):
        assert "validation cases of this fold" not in logs(trainer)
        case = trainer.do_split()[1][0]
        real = type(trainer.discriminator)
        parts = pd.DataFrame([{"case_id": case, "subject": "S", "part": "train"}])
        monkeypatch.setattr(
            "nnunet_qa.trainers.qa_semi_trainer.load_fitting",
            lambda *_: _with_parts(trainer.discriminator, parts),
        )
        assert isinstance(trainer._find_discriminator(trainer.renderer), real)
        assert f"it was fitted on 1 validation cases of this fold ({case}, …)" in logs(trainer)


def _with_parts(discriminator: Any, parts: pd.DataFrame) -> Any:
    discriminator.parts_ = parts
    return discriminator


def test_pool_images_wait_for_their_start(planned: dict[str, str], results: Path, qa_yaml: Any) -> None:
    qa_yaml(settings(qa_loss={"simulation": TINY, "start": 0.5, "ramp_up": 0.5, "weight": 1.0}))
    trainer = trainer_of(planned["2d"], "2d", 0)
    trainer.num_epochs = 4
    weights = []
    with started(trainer):
        for epoch in range(4):
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            assert trainer._wants_pool() == (epoch >= 2)
            weights.append(trainer.loss.weight)
            trainer.train_step(next(trainer.dataloader_train))
            assert (trainer._pool_images is not None) == (epoch >= 2)
    assert weights[2] == pytest.approx(np.exp(-5 * 0.25))
    assert weights[3] == pytest.approx(1.0)
