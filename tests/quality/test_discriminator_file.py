from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnunet_qa
from nnunet_qa.errors import ModelError, StorageError
from nnunet_qa.quality.discriminator import Discriminator
from nnunet_qa.quality.discriminator_file import load, save
from tests.body import one_thread
from tests.quality.easy_montages import CLASSES, SPEC, easy_montages

DATASET = "Dataset701_Phantom"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def fitted() -> Discriminator:
    made = Discriminator(SPEC, CLASSES, epochs=2, steps_per_epoch=2, batch_size=6, noise=0.01, seed=3)
    return made.fit(easy_montages())


@pytest.fixture(scope="module")
def saved(fitted: Discriminator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "discriminator.pt"
    return save(fitted, path, dataset=DATASET, about={"codes": {"simulated": 60}})


def changed(saved: Path, folder: Path, **changes: Any) -> Path:
    """A copy with other entries."""
    content = torch.load(saved, weights_only=True)
    path = folder / "changed.pt"
    torch.save({**content, **changes}, path)
    return path


def test_a_loaded_one_gives_the_same_codes_and_knows_the_same(fitted: Discriminator, saved: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    loaded = load(saved, dataset=DATASET, classes=CLASSES, spec=SPEC)
    assert torch.equal(torch.rand(4), expected)
    pictures = easy_montages(9).pictures
    np.testing.assert_array_equal(loaded.predict(pictures), fitted.predict(pictures))
    assert loaded.spec == fitted.spec
    assert loaded.classes == fitted.classes
    assert (loaded.best_epoch_, loaded.metrics_) == (fitted.best_epoch_, fitted.metrics_)
    for name in ("history_", "parts_"):
        assert getattr(loaded, name).equals(getattr(fitted, name)), name
    for name in ("learning_rate", "batch_size", "epochs", "patience", "steps_per_epoch", "noise", "seed"):
        assert getattr(loaded, name) == getattr(fitted, name)
    assert not any(module.training for module in loaded.network_.modules())
    assert not any(parameter.requires_grad for parameter in loaded.network_.parameters())


def test_the_description_lies_beside_it(fitted: Discriminator, saved: Path) -> None:
    description = json.loads(saved.with_suffix(".json").read_text())
    assert description == json.loads(torch.load(saved, weights_only=True)["description"])
    assert description["dataset"] == DATASET
    assert description["classes"] == list(CLASSES)
    assert description["spec"] == SPEC.to_json()
    assert description["nnunet_qa"] == nnunet_qa.__version__
    assert description["metrics"] == fitted.metrics_
    assert description["about"] == {"codes": {"simulated": 60}}
    assert sorted(path.name for path in saved.parent.iterdir()) == ["discriminator.json", "discriminator.pt"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"dataset": "Dataset702_Other"}, "dataset Dataset701_Phantom, not Dataset702_Other"),
        ({"classes": ("a", "c")}, "classes ['a', 'b'], not ['a', 'c']"),
        ({"classes": ("b", "a")}, "classes ['a', 'b'], not ['b', 'a']"),  # the colours would be exchanged
        ({"spec": replace(SPEC, blend=0.5)}, "montage blend 0.4, not 0.5"),
        ({"spec": replace(SPEC, window=(0.0, 1.0))}, "montage window None, not [0.0, 1.0]"),
        (
            {"dataset": "Dataset702_Other", "spec": replace(SPEC, axis=1)},
            "dataset Dataset701_Phantom, not Dataset702_Other; montage axis 0, not 1.",
        ),
    ],
)
def test_one_that_was_made_for_something_else_is_refused(saved: Path, wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as error:
        load(saved, **wanted)
    assert str(error.value).startswith(f"{saved}: was made for {said}")
    load(saved)


class Planted:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_code_in_the_file_is_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = changed(saved, tmp_path, more=Planted(mark))
    with pytest.raises(ModelError, match="could run code; it was not loaded"):
        load(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the planted code would have run"


def test_a_truncated_file_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 10):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.pt: is damaged or holds no weights"):
            load(cut)


def test_other_content_is_refused(saved: Path, tmp_path: Path) -> None:
    description = json.loads(torch.load(saved, weights_only=True)["description"])
    weights = torch.load(saved, weights_only=True)["weights"]

    def described(**changes: Any) -> str:
        return json.dumps({**description, **changes})

    for changes in (
        {"description": None},
        {"description": "{"},
        {"description": described(classes="a")},
        {"description": described(more=1)},
        {"description": described(spec={"blends": 0.4})},
        {"description": described(spec={**description["spec"], "blend": 7.0})},
        {"description": described(settings={"epochs": "many"})},
        {"description": described(settings={"unknown": 1})},
        {"description": described(history=[{"other": 1.0}])},
        {"weights": None},
        {"weights": {**weights, "conv1.weight": torch.zeros(3)}},
        {"weights": {key: value for key, value in weights.items() if key != "fc.bias"}},
    ):
        path = changed(saved, tmp_path, **changes)
        with pytest.raises(ModelError, match="is no discriminator that nnunet-qa wrote, or is damaged"):
            load(path)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="is no discriminator"):
        load(tmp_path / "list.pt")


def test_an_unfitted_one_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not been fitted"):
        save(Discriminator(SPEC, CLASSES), tmp_path / "discriminator.pt", dataset=DATASET, about={})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(
    fitted: Discriminator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "discriminator.pt"
    path.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="the disk is full"):
        save(fitted, path, dataset=DATASET, about={})
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("discriminator.pt", "old")]
