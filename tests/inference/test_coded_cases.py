from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import parallel_config
from skimage.io import imread
from sklearn.metrics import f1_score

from nnunet_qa.config import QALossConfig
from nnunet_qa.errors import DatasetError, ImageError, ModelError, SelectionError
from nnunet_qa.inference import coded_cases
from nnunet_qa.inference.coded_cases import (
    coded_montages,
    dice_codes,
    judge_folder,
    load_for,
    predicted_codes,
    simulated_cases,
)
from nnunet_qa.quality.codes import CodeSource, CodeThresholds
from nnunet_qa.quality.discriminator_file import load
from tests.body import one_thread
from tests.inference.easy_discriminator import write_discriminator
from tests.inference.test_case_montages import Source, source_of
from tests.small import write_tiny

CASES = [f"S{s}_c{c}" for s in range(4) for c in range(2)]
THRESHOLDS = CodeThresholds()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def damaged(source: Source, folder: Path, cases: list[str] = CASES) -> Path:
    """Predictions that are the worse the later the case."""
    rng = np.random.default_rng(0)
    for number, case in enumerate(cases):
        labels = imread(source.raw / "labelsTr" / f"{case}.png")
        wrong = rng.uniform(size=labels.shape) < number / len(cases)
        write_tiny(folder / f"{case}.png", np.where(wrong, 0, labels).astype(np.uint8))
    return folder


def predict(source: Source, discriminator: Path, predictions: Path, **changed: Any) -> pd.DataFrame:
    given: dict[str, Any] = {
        "plans": source.plans,
        "configuration": "2d",
        "dataset_json": source.dataset_json,
        "predictions": predictions,
        "images": source.images(),
        "cases": CASES,
        "settings": QALossConfig(),
    }
    return predicted_codes(discriminator, **{**given, **changed})


@pytest.fixture
def source(planned: dict[str, str]) -> Source:
    return source_of(planned["2d"])


@pytest.fixture
def discriminator(source: Source, planned: dict[str, str], tmp_path: Path) -> Path:
    spec = source.renderer("2d").renderer.specs[0]
    return write_discriminator(tmp_path / "discriminator.pt", spec, ["small", "large"], planned["2d"])


def test_predicted_codes_are_those_of_the_pictures(source: Source, discriminator: Path, tmp_path: Path) -> None:
    predictions = damaged(source, tmp_path / "predictions")
    cases = CASES[::-1]
    table = predict(source, discriminator, predictions, cases=cases)
    assert table.columns.tolist() == ["case_id", "predicted_code"]
    assert table["case_id"].tolist() == cases
    drawer = source.renderer("2d")
    pictures = torch.cat([drawer.pictures(source.files(case, predictions)) for case in cases])
    expected = load(discriminator).predict(pictures)
    assert len(set(expected)) == len(cases)
    np.testing.assert_allclose(table["predicted_code"], expected, atol=1e-5)


def test_views_are_averaged(planned: dict[str, str], tmp_path: Path) -> None:
    source = source_of(planned["3d"])
    settings = QALossConfig(views=(0, 1))
    drawer = source.renderer("3d_fullres", settings)
    path = write_discriminator(tmp_path / "d.pt", drawer.renderer.specs[0], ["small", "large"], planned["3d"])
    about: dict[str, Any] = {"configuration": "3d_fullres", "cases": ["S0_c0"], "predictions": source.raw / "labelsTr"}
    (code,) = predict(source, path, settings=settings, **about)["predicted_code"]
    both = load(path).predict(drawer.pictures(source.files("S0_c0")))
    assert len(both) == 2
    assert code == pytest.approx(both.mean(), abs=1e-5)


def test_discriminators_for_something_else(source: Source, discriminator: Path, tmp_path: Path) -> None:
    predictions = source.raw / "labelsTr"
    spec = load(discriminator).spec
    with pytest.raises(ModelError, match=r"made for dataset Dataset701_Phantom2D, not Dataset009_Other"):
        predict(source, discriminator, predictions, plans={**source.plans, "dataset_name": "Dataset009_Other"})
    other = write_discriminator(tmp_path / "a.pt", spec, ["small", "huge"], source.raw.name)
    with pytest.raises(ModelError, match=r"classes \['small', 'huge'\], not \['small', 'large'\]"):
        predict(source, other, predictions)
    other = write_discriminator(tmp_path / "b.pt", replace(spec, tile=(64, 64)), ["small", "large"], source.raw.name)
    with pytest.raises(ModelError, match=r"montage tile \[64, 64\], not \[48, 64\]"):
        predict(source, other, predictions)
    (tmp_path / "c.pt").write_bytes(discriminator.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"c\.pt"):
        predict(source, tmp_path / "c.pt", predictions)


def test_predictions_that_are_not_there(source: Source, discriminator: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"S0_c0\.png: not found"):
        predict(source, discriminator, tmp_path)


def test_montages_of_codes_from_several_sources(source: Source, tmp_path: Path) -> None:
    files = [source.files(case, source.raw / "labelsTr") for case in CASES[:2]]
    codes = pd.DataFrame(
        {
            "case_id": [CASES[1], CASES[0], CASES[1]],
            "code": [2, 0, 1],
            "source": ["human", "human", "dice"],
            "dice": [np.nan, np.nan, 0.6],
        }
    )
    drawer = source.renderer("2d")
    montages = coded_montages(files, codes, drawer, jobs=1)
    assert montages.case_ids == (CASES[1], CASES[0], CASES[1])
    assert montages.codes.tolist() == [2, 0, 1]
    assert montages.sources == ("human", "human", "dice")
    np.testing.assert_array_equal(montages.dice, [np.nan, np.nan, 0.6])
    expected = [drawer.pictures(files[number])[0] for number in (1, 0, 1)]
    assert torch.equal(montages.pictures, torch.stack(expected))


def test_codes_by_dice(source: Source, tmp_path: Path) -> None:
    predictions = damaged(source, tmp_path)
    files = [source.files(case, predictions) for case in CASES]
    truths = source.raw / "labelsTr"
    how: dict[str, Any] = {"thresholds": CodeThresholds(0.9, 0.6), "source": CodeSource.CROSS_VALIDATION}
    table = dice_codes(files, truths, source.dataset_json, **how)
    for row in table.itertuples():
        pair = [imread(folder / f"{row.case_id}.png").ravel() for folder in (truths, predictions)]
        dice = f1_score(*pair, labels=[1, 2], average="macro", zero_division=1.0)
        assert row.dice == pytest.approx(dice)
        assert row.code == (0 if dice >= 0.9 else 2 if dice < 0.6 else 1)
    assert set(table["code"]) == {0, 1, 2}
    assert set(table["source"]) == {"cross_validation"}


def test_simulated_errors_do_not_depend_on_the_number_of_processes(source: Source) -> None:
    files = [source.files(case) for case in CASES[:3]]
    how: dict[str, Any] = {"thresholds": THRESHOLDS, "per_code": 2}
    drawer = source.renderer("2d")
    assert pickle.loads(pickle.dumps(drawer)) == drawer  # as joblib sends it to processes, which take long to start
    with parallel_config(backend="threading"):
        one, two = (simulated_cases(files, drawer, rng=np.random.default_rng(5), jobs=jobs, **how) for jobs in (1, 2))
    assert torch.equal(one.pictures, two.pictures)
    assert len(one) == 3 * 3 * 2
    assert [THRESHOLDS.code(dice) for dice in one.dice] == one.codes.tolist() == [0, 0, 1, 1, 2, 2] * 3
    assert one.case_ids == tuple(case for case in CASES[:3] for _ in range(6))
    assert set(one.sources) == {"simulated"}


@pytest.fixture
def run(source: Source, discriminator: Path, tmp_path: Path) -> Any:
    """Judge a folder as the command does; gives the table and the cases that were looked at."""
    predictions = damaged(source, tmp_path / "predictions")
    for path in predictions.iterdir():
        os.utime(path, (1, 1))

    def judge(**changed: Any) -> tuple[pd.DataFrame, list[str]]:
        files = [source.files(case, predictions) for case in CASES]
        loaded, drawer = load_for(
            discriminator,
            source.plans,
            "2d",
            source.dataset_json,
            QALossConfig(),
            images=files[0].images,
        )
        seen: list[str] = []
        judged = coded_cases.judged

        def watched(*given: Any, **more: Any) -> Iterator[tuple[str, float]]:
            for case, code in judged(*given, **more):
                seen.append(case)
                yield case, code

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coded_cases, "judged", changed.pop("judged", watched))
            table = judge_folder(tmp_path / "out.csv", discriminator, loaded, drawer, files, **changed)
        return table, seen

    return judge


def test_a_table_of_codes(run: Any, tmp_path: Path) -> None:
    table, seen = run()
    assert seen == table["case_id"].tolist() == CASES
    np.testing.assert_array_equal(table["code"], table["predicted_code"].round().clip(0, 2))
    assert table["model"].str.fullmatch(r"discriminator\.pt [0-9a-f]{12}").all()
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "out.csv"))


def test_a_stopped_run_goes_on(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_cases, "_PAUSE", -1)

    def stops(*_: Any, **__: Any) -> Iterator[tuple[str, float]]:
        yield CASES[2], 0.25
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(judged=stops)
    table, seen = run()
    assert seen == [case for case in CASES if case != CASES[2]]
    assert table.set_index("case_id").loc[CASES[2], "predicted_code"] == 0.25
    later = (tmp_path / "out.csv").stat().st_mtime + 1
    os.utime(tmp_path / "predictions" / f"{CASES[4]}.png", (later, later))
    assert run()[1] == [CASES[4]]
    assert run(overwrite=True)[1] == CASES


def test_codes_of_another_discriminator_are_not_kept(run: Any, tmp_path: Path) -> None:
    run()
    table = pd.read_csv(tmp_path / "out.csv").assign(model="discriminator.pt 000000000000")
    table.to_csv(tmp_path / "out.csv", index=False)
    assert run()[1] == CASES
    (tmp_path / "out.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SelectionError, match=r"out\.csv: is no table of predicted codes"):
        run()


def test_an_image_that_cannot_be_read(source: Source, discriminator: Path, tmp_path: Path) -> None:
    broken = tmp_path / "S0_c0_0000.png"
    broken.write_bytes(b"")
    with pytest.raises(ImageError, match=r"S0_c0_0000\.png: cannot be read"):
        predict(source, discriminator, source.raw / "labelsTr", cases=["S0_c0"], images={"S0_c0": [broken]})
