from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnunet_qa
from nnunet_qa.errors import ModelError
from nnunet_qa.quality.curve_classifier import CurveLSTM
from nnunet_qa.quality.curve_classifier_file import KINDS, load, save
from nnunet_qa.quality.curve_estimator import CurveEstimator
from nnunet_qa.quality.curve_logistic import CurveLogistic
from nnunet_qa.quality.curve_rules import CurveRules
from tests.body import one_thread
from tests.quality.easy_curves import hearts


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def fitted() -> dict[str, CurveEstimator]:
    """One of each kind."""
    own = {"structures": ("rv", "lv"), "weight": 0.6, "least_sensitivity": 0.9, "folds": 2, "seed": 4}
    lstm = CurveLSTM(hidden=4, epochs=1, frames=10, sizes=True, slices=True, batch_size=8, learning_rate=0.01, **own)
    return {one.kind: one.fit(*hearts(20)) for one in (lstm, CurveLogistic(**own), CurveRules(**own))}


@pytest.fixture(scope="module")
def saved(fitted: dict[str, CurveEstimator], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with one file of each kind."""
    folder = tmp_path_factory.mktemp("saved")
    for kind, one in fitted.items():
        save(one, folder / f"{kind}.pt", about={"labels": "qc_labels.csv"})
    return folder


@pytest.mark.parametrize("kind", [*KINDS])
def test_a_loaded_one_judges_the_same_and_knows_the_same(
    fitted: dict[str, CurveEstimator], saved: Path, kind: str
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    loaded, one = load(saved / f"{kind}.pt", structures=("lv", "myocardium", "rv"), measured="volume"), fitted[kind]
    assert torch.equal(torch.rand(4), expected)
    assert type(loaded) is type(one)
    unseen, erroneous = hearts(10, seed=1)
    np.testing.assert_array_equal(loaded.predict_proba(unseen), one.predict_proba(unseen))
    assert loaded.judge(unseen, erroneous) == one.judge(unseen, erroneous)
    for name in ("structures_", "measured_", "threshold_", "metrics_"):
        assert getattr(loaded, name) == getattr(one, name), name
    assert loaded.settings() == one.settings()


def test_the_description_lies_beside_it(fitted: dict[str, CurveEstimator], saved: Path) -> None:
    description = json.loads((saved / "lstm.json").read_text())
    assert description == json.loads(torch.load(saved / "lstm.pt", weights_only=True)["description"])
    assert description["nnunet_qa"] == nnunet_qa.__version__
    assert (description["kind"], description["structures"], description["measured"]) == ("lstm", ["rv", "lv"], "volume")
    assert description["settings"] == {
        **{"weight": 0.6, "folds": 2, "seed": 4, "frames": 10, "sizes": True, "hidden": 4, "epochs": 1},
        **{"batch_size": 8, "learning_rate": 0.01, "least_sensitivity": 0.9, "slices": True},
    }
    assert description["threshold"] == fitted["lstm"].threshold_
    assert description["metrics"] == fitted["lstm"].metrics_
    assert description["about"] == {"labels": "qc_labels.csv"}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"structures": ("lv",)}, "was made for curves of rv, lv, but there is none of rv. Name another file"),
        ({"measured": "area"}, "was made for curves of volume, not of area. "),
        ({"structures": ("a",), "measured": "area"}, "but there is none of rv, lv; curves of volume, not of area"),
    ],
)
def test_one_for_other_curves_is_refused(saved: Path, wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as error:
        load(saved / "lstm.pt", **wanted)
    assert said in str(error.value)
    assert str(saved / "lstm.pt") in str(error.value)


class Planted:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_code_in_the_file_is_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    content = torch.load(saved / "lstm.pt", weights_only=True)
    torch.save({**content, "more": Planted(mark)}, tmp_path / "planted.pt")
    with pytest.raises(ModelError, match="could run code; it was not loaded"):
        load(tmp_path / "planted.pt")
    assert not mark.exists()
    torch.load(tmp_path / "planted.pt", weights_only=False)
    assert mark.exists(), "the planted code would have run"


def test_damaged_files_are_refused(saved: Path, tmp_path: Path) -> None:
    whole = (saved / "lstm.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"cut\.pt: is damaged"):
        load(tmp_path / "cut.pt")
    with pytest.raises(ModelError, match=r"none\.pt: cannot be read"):
        load(tmp_path / "none.pt")


@pytest.mark.parametrize("kind", ["lstm", "logistic"])
def test_other_content_is_refused(saved: Path, tmp_path: Path, kind: str) -> None:
    content = torch.load(saved / f"{kind}.pt", weights_only=True)
    description = json.loads(content["description"])
    first = next(iter(content["weights"]))

    def described(**changes: Any) -> dict[str, Any]:
        return {**content, "description": json.dumps({**description, **changes})}

    for other in (
        [1],
        {**content, "description": None},
        {**content, "description": "{"},
        described(kind="forest"),
        described(more=1),
        described(structures=[]),
        described(structures=["lv"]),
        described(measured="length"),
        described(threshold=float("nan")),
        described(settings={"folds": 0}),
        described(settings={"unknown": 1}),
        {**content, "weights": None},
        {**content, "weights": {}},
        {**content, "weights": {**content["weights"], first: torch.zeros(3)}},
    ):
        torch.save(other, tmp_path / "other.pt")
        with pytest.raises(ModelError, match="is no curve classifier that nnunet-qa wrote, or is damaged"):
            load(tmp_path / "other.pt")


def test_an_unfitted_one_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not been fitted"):
        save(CurveRules(), tmp_path / "rules.pt", about={})
    assert not list(tmp_path.iterdir())
