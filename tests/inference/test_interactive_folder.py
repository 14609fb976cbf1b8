from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.config_limited_data import ClickMode
from nnunet_qa.data.images import Geometry, read_volume, write_image
from nnunet_qa.errors import ClickError, DatasetError, ImageError
from nnunet_qa.inference.interactive import InteractivePredictor
from nnunet_qa.inference.interactive_folder import SimulatedUser, interact_folder
from nnunet_qa.interaction.click_files import Mark
from tests.inference.interactive_model import Painter, dataset_of, plans_of, with_network

GEOMETRY = Geometry((1.0, 1.0, 2.0), (5.0, -6.0, 7.0), (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
SHAPE = (3, 20, 18)


def truth_of(case: str) -> np.ndarray:
    truth = np.zeros(SHAPE, np.uint8)
    truth[0:2, 4:9, 5:10] = 1
    if case == "b":
        truth[:, 12:18, 3:8] = 2
    return truth


def write_cases(folder: Path, *, truths: dict[str, np.ndarray] | None = None) -> tuple[Path, Path]:
    """Two cases whose images say nothing about class 2 and too little about class 1."""
    for case in ("a", "b"):
        truth = truth_of(case)
        image = np.where(truth == 1, 2, -2).astype(np.float32)
        image[0] = -2
        write_image(folder / "images" / f"{case}_0000.nii.gz", image, GEOMETRY)
        write_image(folder / "truths" / f"{case}.nii.gz", (truths or {}).get(case, truth), GEOMETRY)
    return folder / "images", folder / "truths"


def predictor_of(**more: Any) -> tuple[InteractivePredictor, Painter]:
    network = Painter(2)
    return with_network(network, plans_of([16, 16], **more), dataset_of(2)), network


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_a_simulated_user_clicks_once_a_slice_and_round(tmp_path: Path, order: tuple[int, int, int]) -> None:
    images, truths = write_cases(tmp_path)
    predictor, _ = predictor_of(order=order)
    user = SimulatedUser(number=2, least_error=3)
    table = interact_folder(predictor, images, tmp_path / "out", user=user, truths=truths)
    assert table is not None
    clicks = pd.read_csv(tmp_path / "out" / "clicks.csv")
    along = "kji"[order[0]]
    assert not clicks.duplicated(["case_id", "round", along]).any()
    for case, round_, count in table[["case_id", "round", "clicks"]].drop_duplicates().itertuples(index=False):
        assert count == ((clicks["case_id"] == case) & (clicks["round"] <= round_)).sum()
    names = {"background": 0, "class1": 1, "class2": 2}
    for _, click in clicks.iterrows():
        assert names[click["label"]] == truth_of(click["case_id"])[click["k"], click["j"], click["i"]]
        # 90° in the plane: i runs along +y, j along −x
        assert (click["x"], click["y"], click["z"]) == (5 - click["j"], -6 + click["i"], 7 + 2 * click["k"])
    for case in ("a", "b"):
        mask, geometry = read_volume(tmp_path / "out" / f"{case}.nii.gz")
        assert geometry == GEOMETRY
        last = table[(table["case_id"] == case) & (table["label"] == "class1")].iloc[-1]
        both = (mask == 1).sum() + (truth_of(case) == 1).sum()
        assert last["dice"] == pytest.approx(2 * ((mask == 1) & (truth_of(case) == 1)).sum() / both)
    start = table[(table["round"] == 0) & (table["case_id"] == "b")].set_index("label")["dice"]
    assert start.to_dict() == {"class1": pytest.approx(2 / 3), "class2": 0}
    by_round = table.groupby("round")["dice"].mean()
    assert by_round[1] > by_round[0] + 0.1
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]["class2"] == 2


def test_a_line_first_and_nothing_in_what_is_to_be_ignored(tmp_path: Path) -> None:
    ignored = truth_of("b")
    ignored[:, 10:, 10:] = 3
    images, truths = write_cases(tmp_path, truths={"a": np.where(truth_of("a") == 1, 1, 3), "b": ignored})
    predictor, _ = predictor_of()
    predictor.predictor.dataset_json["labels"]["ignore"] = 3
    user = SimulatedUser(number=3, mode=ClickMode.LINE, least_error=0)
    interact_folder(predictor, images, tmp_path / "out", user=user, truths=truths)
    clicks = pd.read_csv(tmp_path / "out" / "clicks.csv")
    first = clicks[clicks["round"] == 1]
    assert first.groupby(["case_id", "label"]).size().to_dict() == {
        ("a", "class1"): 2,
        ("b", "class1"): 2,
        ("b", "class2"): 3,
    }
    assert (first.groupby(["case_id", "label"])["i"].nunique() == 1).all()
    for _, click in clicks.iterrows():
        truth = read_volume(truths / f"{click['case_id']}.nii.gz")[0]
        assert truth[click["k"], click["j"], click["i"]] != 3


def test_clicks_of_files_one_after_the_other_and_resumed(tmp_path: Path) -> None:
    images, truths = write_cases(tmp_path)
    predictor, network = predictor_of()
    marks = {"b": [Mark(at=at, physical=False, label=2, source="b.csv: line 2") for at in ((1, 14, 5), (2, 14, 5))]}
    table = interact_folder(predictor, images, tmp_path / "out", user=marks, truths=truths)
    assert table is not None
    assert table.groupby("case_id")["clicks"].agg(list).to_dict() == {"a": [0, 0], "b": [0, 0, 1, 1, 2, 2]}
    dice = table[(table["case_id"] == "b") & (table["label"] == "class2")]["dice"].to_list()
    assert dice[0] < dice[1] < dice[2]
    assert not predictor._history  # of a batch nobody takes anything back
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}
    network.seen.clear()
    again = interact_folder(predictor, images, tmp_path / "out", user=marks, truths=truths)
    pd.testing.assert_frame_equal(again, table)
    assert not network.seen
    (tmp_path / "out" / "a.nii.gz").unlink()
    more = {**marks, "a": [Mark(at=(0, 0, 0), physical=False, label=1, source="a.csv: line 2")]}
    assert interact_folder(predictor, images, tmp_path / "out", user=more) is None
    assert not (tmp_path / "out" / "dice.csv").exists()
    only = {"a": more["a"], "b": marks["b"]}
    network.seen.clear()
    interact_folder(predictor, images, tmp_path / "out", user=only)
    assert not network.seen
    only["a"] = only["a"][:0]
    interact_folder(predictor, images, tmp_path / "out", user=only)
    assert network.seen  # the clicks of a have changed
    assert read_volume(tmp_path / "out" / "a.nii.gz")[0][0, 0, 0] == 0
    assert files.keys() == {path.name for path in (tmp_path / "out").glob("*.nii.gz")}


def stop_at_the_second_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run predicts one case."""
    set_image, calls = InteractivePredictor.set_image, []

    def stop(*given: Any, **more: Any) -> np.ndarray:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return set_image(*given, **more)

    monkeypatch.setattr(InteractivePredictor, "set_image", stop)


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, truths = write_cases(tmp_path)
    predictor, network = predictor_of()
    with monkeypatch.context() as patched:
        stop_at_the_second_case(patched)
        with pytest.raises(KeyboardInterrupt):
            interact_folder(predictor, images, tmp_path / "out", user={}, truths=truths)
    assert (tmp_path / "out" / "a.nii.gz").is_file()
    assert not (tmp_path / "out" / "clicks.csv").exists()
    network.seen.clear()
    interact_folder(predictor, images, tmp_path / "out", user={}, truths=truths)
    first = len(network.seen)
    assert (tmp_path / "out" / "clicks.csv").read_text() == "case_id,round,label,k,j,i,x,y,z\n"
    predictor.source["folds"] = ["1"]
    with pytest.raises(DatasetError, match=r"holds other predictions \(folds\)"):
        interact_folder(predictor, images, tmp_path / "out", user={}, truths=truths)
    network.seen.clear()
    interact_folder(predictor, images, tmp_path / "out", user={}, truths=truths, overwrite=True)
    assert len(network.seen) == 2 * first


def test_bad_clicks_are_refused_before_anything_is_predicted_or_deleted(tmp_path: Path) -> None:
    images, truths = write_cases(tmp_path)
    predictor, network = predictor_of()
    inside = Mark(at=(1, 0, 0), physical=False, label=1, source="b.csv: line 2")
    outside = Mark(at=(9, 0, 0), physical=False, label=1, source="b.csv: line 3")
    away = Mark(at=(5.0, 6.0, 7.0), physical=True, label=1, source="b.csv: line 3")  # 90° in the plane: i = 12, j = 0
    other = Mark(at=(1, 0, 0), physical=False, label=2, source="b.csv: line 3")
    interact_folder(predictor, images, tmp_path / "out", user={"b": [inside, away]}, truths=truths)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    network.seen.clear()
    for wrong, said in ((outside, "the click at .* outside the image"), (other, "contradicts b.csv: line 2")):
        with pytest.raises(ClickError, match=rf"b\.csv: line 3: {said}"):
            interact_folder(predictor, images, tmp_path / "out", user={"b": [inside, wrong]}, overwrite=True)
    assert not network.seen
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("changed", ["images/a_0000.nii.gz", "truths/a.nii.gz"])
def test_a_case_with_another_image_or_truth_is_predicted_again(tmp_path: Path, changed: str) -> None:
    images, truths = write_cases(tmp_path)
    predictor, network = predictor_of()
    old = interact_folder(predictor, images, tmp_path / "out", user={}, truths=truths)
    passes = len(network.seen)
    array, geometry = read_volume(tmp_path / changed)
    array = np.where(array > 0, 0, array).astype(array.dtype)  # of class 1 nothing is left
    write_image(tmp_path / changed, array, geometry)
    network.seen.clear()
    new = interact_folder(predictor, images, tmp_path / "out", user={}, truths=truths)
    assert len(network.seen) == passes / 2  # of the other case all is as it was
    assert old is not None
    assert new is not None
    kept = old["case_id"] == "b"
    pd.testing.assert_frame_equal(new[kept], old[kept])
    assert new[~kept]["dice"].iloc[0] != old[~kept]["dice"].iloc[0]


def test_another_prediction_of_the_previous_stage_is_noticed(tmp_path: Path) -> None:
    images, stages = write_cases(tmp_path)
    plans = plans_of([4, 16, 16])
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    network = Painter(2, images=3)
    predictor = with_network(network, plans, dataset_of(2))
    for passes in (2, 0):
        network.seen.clear()
        interact_folder(predictor, images, tmp_path / "out", user={}, previous_stage=stages)
        assert bool(network.seen) == bool(passes)
    write_image(stages / "b.nii.gz", truth_of("a"), GEOMETRY)
    network.seen.clear()
    interact_folder(predictor, images, tmp_path / "out", user={}, previous_stage=stages)
    assert network.seen


def test_nothing_of_an_earlier_run_stays_beside_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, truths = write_cases(tmp_path)
    output = tmp_path / "out"
    predictor, _ = predictor_of()
    interact_folder(predictor, images, output, user={}, truths=truths)
    (output / "dice.png").write_bytes(b"of the first run")
    marks = {case: [Mark(at=(0, 0, 0), physical=False, label=1, source="line 2")] for case in ("a", "b")}
    with monkeypatch.context() as patched:
        stop_at_the_second_case(patched)
        with pytest.raises(KeyboardInterrupt):
            interact_folder(predictor, images, output, user=marks, truths=truths)
    for name in ("clicks.csv", "dice.csv", "dice.png"):
        assert not (output / name).exists()
    interact_folder(predictor, images, output, user=marks, truths=truths)
    (output / "dice.png").write_bytes(b"of the second run")
    assert interact_folder(predictor, images, output, user=marks) is None
    assert not (output / "dice.png").exists()
    (images / "a_0000.nii.gz").unlink()
    interact_folder(predictor, images, output, user={}, overwrite=True)
    assert sorted(path.name for path in output.glob("*.nii.gz")) == ["b.nii.gz"]
    assert [path.name for path in (output / ".interact").iterdir()] == ["b.json"]


def test_mistakes(tmp_path: Path) -> None:
    images, truths = write_cases(tmp_path)
    predictor, _ = predictor_of()
    with pytest.raises(DatasetError, match="no image named like case_0000"):
        interact_folder(predictor, truths, tmp_path / "out", user={})
    with pytest.raises(DatasetError, match=r"is not empty and holds no qa_interact\.json"):
        interact_folder(predictor, images, truths, user={})
    for folders, said in (({}, "images"), ({"truths": truths}, "truths"), ({"previous_stage": truths}, "truths")):
        output = tmp_path if said == "images" else truths
        with pytest.raises(DatasetError, match=rf"{said}: lies in .*, where masks are written"):
            interact_folder(predictor, images, output, user={}, **folders)
    write_image(truths / "a.nii.gz", np.zeros((3, 20, 17), np.uint8), GEOMETRY)
    with pytest.raises(ImageError, match=r"a\.nii\.gz: has shape \(3, 20, 17\), its image \(3, 20, 18\)"):
        interact_folder(predictor, images, tmp_path / "out", user=SimulatedUser(), truths=truths)
    write_image(truths / "a.nii.gz", np.full(SHAPE, 7, np.uint8), GEOMETRY)
    with pytest.raises(ImageError, match="label value 7 is not in dataset"):
        interact_folder(predictor, images, tmp_path / "out", user=SimulatedUser(), truths=truths)
    (truths / "b.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"holds no b\.nii\.gz; it needs a label map of every case"):
        interact_folder(predictor, images, tmp_path / "out", user=SimulatedUser(), truths=truths)
