from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_qa.errors import ModelError
from nnunet_qa.quality.body_part import BodyPartRegressor
from nnunet_qa.quality.body_part_file import load, save
from tests.body import SPEC, stacks


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[BodyPartRegressor, Path]:
    regressor = BodyPartRegressor(SPEC, features=(4, 6), steps=30, learning_rate=1e-2, seed=5).fit(stacks(3))
    path = tmp_path_factory.mktemp("model") / "body_part.pt"
    save(regressor, path)
    return regressor, path


def test_what_was_saved_scores_the_same(saved: tuple[BodyPartRegressor, Path]) -> None:
    regressor, path = saved
    state = torch.get_rng_state()
    loaded = load(path)
    assert torch.equal(torch.get_rng_state(), state)
    (volume,) = stacks(1, seed=3)
    np.testing.assert_array_equal(loaded.predict(volume), regressor.predict(volume))
    assert loaded.spec == regressor.spec
    assert loaded.settings() == regressor.settings()
    assert loaded.scale_ == regressor.scale_
    assert loaded.cases_ == ["c0", "c1", "c2"]


def test_the_description_beside_it_is_for_people(saved: tuple[BodyPartRegressor, Path]) -> None:
    regressor, path = saved
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["cases"] == ["c0", "c1", "c2"]
    assert described["body_part"] == {"size": 16, "field_of_view": 256.0, "window": [-175.0, 275.0], "axis": "z"}
    assert "3 training scans" in described["scale"]["meaning"]
    content = torch.load(path, weights_only=True)
    assert json.loads(content["description"]) == described
    assert content["weights"].keys() == regressor.network_.state_dict().keys()


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Code(), "description": "{}"}, "body_part.pt")
    with pytest.raises(ModelError, match=r"body_part.pt: holds .* which could run code"):
        load(Path("body_part.pt"))
    assert not Path("ran").exists()
    torch.load("body_part.pt", weights_only=False)
    assert Path("ran").exists()  # so it would have


def test_files_that_are_something_else(saved: tuple[BodyPartRegressor, Path], tmp_path: Path) -> None:
    _, path = saved
    content = torch.load(path, weights_only=True)
    described = json.loads(content["description"])
    wrong = tmp_path / "wrong.pt"
    for change in (
        [1, 2],
        {"weights": content["weights"]},
        {**content, "description": "no JSON"},
        {**content, "description": json.dumps({**described, "classes": 3})},
        {**content, "description": json.dumps({**described, "body_part": {"size": "large"}})},
        {**content, "description": json.dumps({**described, "settings": {"kernels": 3}})},
        {**content, "weights": {"a": torch.ones(2)}},
        {**content, "weights": 3},
    ):
        torch.save(change, wrong)
        with pytest.raises(ModelError, match=r"wrong.pt: is no body-part model"):
            load(wrong)
    wrong.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match=r"wrong.pt: is damaged"):
        load(wrong)
    wrong.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ModelError, match=r"wrong.pt"):
        load(wrong)
    with pytest.raises(ModelError, match=r"none.pt: cannot be read: No such file"):
        load(tmp_path / "none.pt")
