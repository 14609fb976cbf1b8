from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

import nnunet_qa.trainers
from nnunet_qa.errors import ConfigError
from nnunet_qa.experiments.budget import BUDGETS, Budget


@pytest.mark.parametrize("name", ["cpu", "gpu", "paper"])
def test_presets_are_valid_and_survive_json(name: str) -> None:
    budget = Budget.named(name)
    assert budget is BUDGETS[name]
    assert Budget.model_validate(budget.model_dump(mode="json")) == budget
    assert budget.epochs() * budget.iterations_per_epoch == budget.iterations
    assert budget.epochs(2) == 2 * budget.epochs()
    for trainer in (budget.unet, budget.unet_plus_plus):
        assert trainer in nnunet_qa.trainers.__all__


def test_the_papers_preset_trains_sixty_epochs_on_256_by_256() -> None:
    assert BUDGETS["paper"].epochs() == 60
    assert BUDGETS["paper"].image_size == (256, 256)


def test_a_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("iterations: 30\niterations_per_epoch: 10\nval_iterations_per_epoch: 2\nfeatures: [4, 8, 16]\n")
    budget = Budget.named(str(path))
    assert budget.epochs(2) == 6
    assert budget.features == (4, 8, 16)
    assert (budget.initial_lr, budget.batch_size, budget.mirroring) == (None, None, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iteration: 5", r'"iterations": Field required|"iteration": .*did you mean "iterations"'),
        ("batchsize: 4", r'"batchsize": Extra inputs .*did you mean "batch_size"'),
        ("iterations: 31", '"budget": iterations must be a multiple of iterations_per_epoch'),
        ("iterations: 0", '"iterations": Input should be greater than or equal to 1'),
        ("features: [4, x]", r'"features\.1": Input should be a valid integer'),
        ("- 1", '"budget": Input should be'),
        ("", '"budget": Input should be'),
        ("iterations: [", "cannot be read as YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    rest = {"iterations": 30, "iterations_per_epoch": 10, "val_iterations_per_epoch": 2}
    lines = [f"{key}: {value}" for key, value in rest.items() if not text.startswith(f"{key}:")]
    path.write_text("\n".join([text, *lines]) if text and not text.startswith("-") else text)
    with pytest.raises(ConfigError, match=message) as caught:
        Budget.named(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_name_that_is_neither() -> None:
    with pytest.raises(
        ConfigError, match=r'"papr" is no budget \(did you mean "paper"\?\); budgets are cpu, gpu, paper'
    ):
        Budget.named("papr")


def test_a_budget_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        BUDGETS["cpu"].iterations = 1  # type: ignore[misc]
