from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from skimage.io import imsave
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from nnunet_qa.errors import DatasetError, ImageError, SelectionError
from nnunet_qa.evaluation.per_image import METRICS, evaluate_images, image_metrics, summarise_images

FLUID = {"fluid": (1,)}
TWO = {"one": (1,), "any": (1, 2)}
REFERENCES = {
    "precision": precision_score,
    "recall": recall_score,
    "jaccard": jaccard_score,
    "dice": f1_score,
    "accuracy": accuracy_score,
}
DATASET = {"labels": {"background": 0, "fluid": 1}, "file_ending": ".png"}


@pytest.mark.parametrize("ignore", [None, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_ratio_is_that_of_scikit_learn(seed: int, ignore: int | None) -> None:
    rng = np.random.default_rng(seed)
    prediction, truth = rng.integers(0, 3, (4, 6, 5)), rng.integers(0, 4, (4, 6, 5))
    counts = truth != ignore if ignore is not None else np.ones(truth.shape, bool)
    rows = image_metrics(prediction, truth, classes=TWO, ignore=ignore)
    assert [row["class"] for row in rows] == ["one", "any"]
    for row in rows:
        predicted, real = (np.isin(array[counts], TWO[row["class"]]) for array in (prediction, truth))
        for name, reference in REFERENCES.items():
            assert row[name] == pytest.approx(reference(real, predicted)), name
        assert row["tn"] == (~predicted & ~real).sum()
        assert row["tp"] + row["fp"] + row["fn"] + row["tn"] == counts.sum()
        assert row["foreground"] is True


@pytest.mark.parametrize(
    ("prediction", "truth", "ratio", "accuracy", "foreground"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], 1, 1, False),
        ([1, 0, 0, 0], [0, 0, 0, 0], 0, 0.75, False),
        ([0, 0, 0, 0], [1, 0, 0, 0], 0, 0.75, True),
        ([0, 1, 0, 0], [1, 0, 0, 0], 0, 0.5, True),
    ],
)
def test_where_a_side_is_empty(
    prediction: list[int], truth: list[int], ratio: float, accuracy: float, foreground: bool
) -> None:
    (row,) = image_metrics(np.array(prediction), np.array(truth), classes=FLUID)
    assert [row[name] for name in METRICS] == [ratio] * 4 + [accuracy]
    assert row["foreground"] is foreground


def test_an_image_that_is_all_ignored_says_nothing_wrong() -> None:
    (row,) = image_metrics(np.array([1, 0]), np.array([2, 2]), classes=FLUID, ignore=2)
    assert [row[name] for name in METRICS] == [1] * 5
    assert row["tn"] == 0


def frame_of(images: dict[str, tuple[list[int], list[int]]], classes: dict[str, tuple[int, ...]]) -> pd.DataFrame:
    rows = [
        {"case_id": case, "subject_id": "S", **row}
        for case, (prediction, truth) in images.items()
        for row in image_metrics(np.array(prediction), np.array(truth), classes=classes)
    ]
    return pd.DataFrame(rows)


def test_the_three_averages_by_hand() -> None:
    images = {
        "a": ([1, 1, 0, 0], [1, 0, 0, 0]),  # Dice 2/3, accuracy 3/4
        "b": ([0, 0, 0, 0], [1, 1, 1, 0]),  # 0, 1/4
        "c": ([0, 0, 0, 0], [0, 0, 0, 0]),  # 1, 1
    }
    fluid, mean = summarise_images(frame_of(images, FLUID)).to_dict("records")
    assert (fluid["class"], fluid["images"], fluid["images_foreground"]) == ("fluid", 3, 2)
    assert fluid["dice"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert fluid["dice_foreground"] == pytest.approx(1 / 3)
    assert fluid["dice_pooled"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 3))
    assert fluid["accuracy"] == pytest.approx((0.75 + 0.25 + 1) / 3)
    assert fluid["accuracy_pooled"] == pytest.approx(8 / 12)
    assert fluid["precision_pooled"] == pytest.approx(1 / 2)
    assert fluid["recall_foreground"] == pytest.approx(1 / 2)
    assert mean == {**fluid, "class": "mean"}


def test_the_mean_over_classes_leaves_out_a_class_that_no_image_holds() -> None:
    images = {"a": ([1, 0, 0], [1, 0, 0]), "b": ([2, 0, 0], [1, 1, 0]), "c": ([0, 0, 0], [0, 0, 0])}
    one, two, mean = summarise_images(frame_of(images, {"one": (1,), "two": (2,)})).to_dict("records")
    assert (two["images_foreground"], mean["images_foreground"]) == (0, 2)
    assert np.isnan(two["dice_foreground"])
    assert mean["dice_foreground"] == one["dice_foreground"] == pytest.approx(0.5)
    assert mean["dice"] == pytest.approx((one["dice"] + two["dice"]) / 2) == pytest.approx(2 / 3)


def test_wrong_tables() -> None:
    frame = frame_of({"a": ([1], [1]), "b": ([1], [1])}, TWO)
    with pytest.raises(SelectionError, match='the case "b" must have one row of each class'):
        summarise_images(frame.iloc[:-1])
    with pytest.raises(SelectionError, match='the case "a" must have one row of each class'):
        summarise_images(pd.concat([frame, frame.iloc[:1]]))
    with pytest.raises(SelectionError, match='the case "b" must have one row of each class'):
        summarise_images(frame.assign(**{"class": [*frame["class"][:3], "one"]}))
    with pytest.raises(SelectionError, match="no image to summarise"):
        summarise_images(frame.iloc[:0])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    for folder in ("predictions", "truths"):
        (tmp_path / folder).mkdir()
        for case in ("a", "b", "c"):
            imsave(tmp_path / folder / f"{case}.png", rng.integers(0, 2, (9, 7)).astype(np.uint8), check_contrast=False)
    return tmp_path / "predictions", tmp_path / "truths"


def test_files_of_the_wanted_cases(folders: tuple[Path, Path]) -> None:
    from PIL import Image

    table = evaluate_images(*folders, ["c", "a"], DATASET)
    assert table["case_id"].tolist() == ["c", "a"]
    for case, dice in zip(table["case_id"], table["dice"], strict=True):
        predicted, real = (np.asarray(Image.open(folder / f"{case}.png")).ravel() for folder in folders)
        assert dice == pytest.approx(f1_score(real, predicted))


def test_volumes(tmp_path: Path) -> None:
    truth, prediction = np.zeros((3, 4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8)
    truth[1, 1:3], prediction[1, 2:4] = 1, 1
    for folder, array in (("p", prediction), ("t", truth)):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / folder / "v.nii.gz"))
    dataset = {**DATASET, "file_ending": ".nii.gz"}
    (row,) = evaluate_images(tmp_path / "p", tmp_path / "t", ["v"], dataset).to_dict("records")
    assert (row["tp"], row["fp"], row["fn"], row["tn"]) == (5, 5, 5, 45)


def test_wrong_files(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ImageError, match=r"d\.png: not found"):
        evaluate_images(*folders, ["a", "d"], DATASET)
    imsave(folders[0] / "a.png", np.zeros((3, 3), np.uint8), check_contrast=False)
    with pytest.raises(ImageError, match=r"a\.png: has shape \(3, 3\), the truth"):
        evaluate_images(*folders, ["a"], DATASET)
    imsave(folders[0] / "b.png", np.full((9, 7), 4, np.uint8), check_contrast=False)
    with pytest.raises(ImageError, match=r"b\.png: label value 4 is not in dataset\.json"):
        evaluate_images(*folders, ["b"], DATASET)
    with pytest.raises(DatasetError, match='the entry "labels" is missing'):
        evaluate_images(*folders, ["c"], {"file_ending": ".png"})
