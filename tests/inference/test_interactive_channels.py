from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_qa.environment import external_trainer_folder
from nnunet_qa.errors import ModelError
from nnunet_qa.inference.interactive import InteractivePredictor
from nnunet_qa.interaction.click_maps import CHECKPOINT_KEY
from tests.inference.interactive_model import CPU, dataset_of, plans_of, write_interactive_model


@pytest.fixture(autouse=True)
def _external(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(external_trainer_folder()))


def test_folds_of_different_clicks_are_refused(tmp_path: Path) -> None:
    model = write_interactive_model(tmp_path, plans_of([16, 16]), dataset_of(), folds=2)
    path = model / "fold_1" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    content[CHECKPOINT_KEY]["sigma"] = 3.0
    torch.save(content, path)
    with pytest.raises(ModelError, match=r"fold_0 was trained with clicks of sigma 2.0, but 3.0 in fold_1"):
        InteractivePredictor.from_model(model, device=CPU)
    assert InteractivePredictor.from_model(model, folds=("1",), device=CPU).channels.sigma == 3


def test_models_without_clicks_are_refused(tmp_path: Path) -> None:
    plans = plans_of([16, 16])
    model = write_interactive_model(tmp_path, plans, dataset_of())
    with pytest.raises(ModelError, match=r"fold_3.*not found"):
        InteractivePredictor.from_model(model, folds=("3",), device=CPU)
    path = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=True)
    plain = {key: value for key, value in content.items() if key != CHECKPOINT_KEY}
    for wrong, said in (
        ({**plain, "trainer_name": "nnUNetTrainer"}, "a model of nnUNetTrainer, which knows no clicks"),
        ({**content, "trainer_name": "NoTrainer"}, "the model cannot be loaded"),
    ):
        torch.save(wrong, path)
        with pytest.raises(ModelError, match=said):
            InteractivePredictor.from_model(model, device=CPU)
    with pytest.raises(ModelError, match="no trained model"):
        InteractivePredictor.from_model(tmp_path, device=CPU)
