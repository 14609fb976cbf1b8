from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.io import imread

from nnunet_qa.errors import CRFError, DatasetError, DependencyError, ImageError, NnunetQAError
from nnunet_qa.inference import crf_folder
from nnunet_qa.inference.crf import CRFSettings, Mode, labels_of, refine
from nnunet_qa.inference.crf_folder import apply_folder
from tests.shifted import save_probabilities, shifted_dataset

SETTINGS = CRFSettings(
    gaussian_sd=2, gaussian_weight=1, bilateral_sd=12, intensity_sd=0.15, bilateral_weight=5, iterations=10
)


def apply(base: Path, folder: Path, **changes: Any) -> int:
    arguments: dict[str, Any] = {
        "dataset_json": json.loads((folder / "dataset.json").read_text()),
        "source": "dataset.json",
        "settings": SETTINGS,
    }
    return apply_folder(base / "predictions", folder / "imagesTs", base / "refined", **(arguments | changes))


def overlap_of(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first * second).sum()) / float(first.sum() + second.sum())


@pytest.mark.parametrize("mode", Mode)
def test_masks_lie_where_the_images_do(tmp_path: Path, mode: Mode) -> None:
    folder = shifted_dataset(tmp_path)
    settings = SETTINGS.model_copy(update={"mode": mode})
    assert apply(tmp_path, folder, settings=settings) == 1
    mask = sitk.ReadImage(str(tmp_path / "refined" / "T0_0.nii.gz"))
    image = sitk.ReadImage(str(folder / "imagesTs" / "T0_0_0000.nii.gz"))
    for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(mask, name)() == getattr(image, name)()
    array = sitk.GetArrayFromImage(mask)
    assert array.dtype == np.uint8
    with np.load(tmp_path / "predictions" / "T0_0.npz") as content:
        before = content["probabilities"]
    intensities = sitk.GetArrayFromImage(image)[None]
    expected = labels_of(refine(before, intensities, spacing=(8.0, 2.0, 1.5), settings=settings))
    np.testing.assert_array_equal(array, expected)
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTs" / "T0_0.nii.gz")))
    assert overlap_of(before.argmax(0), truth) < 0.9
    assert overlap_of(array, truth) > 0.97
    assert json.loads((tmp_path / "refined" / "dataset.json").read_text())["labels"] == {"background": 0, "square": 1}


def test_without_the_library_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shifted_dataset(tmp_path)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(DependencyError, match="needs pydensecrf2"):
        apply(tmp_path, folder)
    assert not (tmp_path / "refined").exists()
    assert apply(tmp_path, folder, settings=CRFSettings(gaussian_weight=0, bilateral_weight=0)) == 1


def test_pictures(tmp_path: Path) -> None:
    folder = shifted_dataset(tmp_path, ending=".png")
    apply(tmp_path, folder)
    mask, truth = imread(tmp_path / "refined" / "T0_0.png"), imread(folder / "labelsTs" / "T0_0.png")
    assert mask.shape == truth.shape
    assert overlap_of(mask, truth) > 0.97


def test_a_second_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shifted_dataset(tmp_path)
    for source, target in ((folder / "imagesTs", "_0000.nii.gz"), (tmp_path / "predictions", ".npz")):
        (source / f"T1_0{target}").write_bytes((source / f"T0_0{target}").read_bytes())
    seen: list[str] = []
    real = crf_folder._apply

    def killed(case: Any, *rest: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(case.case_id)
        real(case, *rest)

    monkeypatch.setattr(crf_folder, "_apply", killed)
    with pytest.raises(KeyboardInterrupt):
        apply(tmp_path, folder)
    monkeypatch.setattr(crf_folder, "_apply", lambda case, *rest: (seen.append(case.case_id), real(case, *rest)))
    assert apply(tmp_path, folder) == 2
    assert apply(tmp_path, folder) == 2
    assert seen == ["T0_0", "T1_0"]
    os.utime(tmp_path / "predictions" / "T0_0.npz", (2**31, 2**31))  # predicted again
    apply(tmp_path, folder)
    assert seen == ["T0_0", "T1_0", "T0_0"]
    other = SETTINGS.model_copy(update={"iterations": 3})
    with pytest.raises(DatasetError, match="made with other settings"):
        apply(tmp_path, folder, settings=other)
    apply(tmp_path, folder, settings=other, overwrite=True)
    assert sorted(seen[3:]) == ["T0_0", "T1_0"]
    assert CRFSettings.read(tmp_path / "refined" / "crf.json") == other


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = shifted_dataset(tmp_path)
    before = (tmp_path / "predictions" / "T0_0.npz").read_bytes()
    with pytest.raises(DatasetError, match=r"is not empty and holds no crf\.json"):
        apply_folder(
            tmp_path / "predictions",
            folder / "imagesTs",
            tmp_path / "predictions",
            dataset_json=json.loads((folder / "dataset.json").read_text()),
            source="dataset.json",
            settings=SETTINGS,
        )
    assert (tmp_path / "predictions" / "T0_0.npz").read_bytes() == before


def spoil(path: Path, array: Any) -> None:
    path.unlink()
    save_probabilities(path, array)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ("regions", CRFError, 'dataset.json: declares regions ("both"), which overlap'),
        ("classes", CRFError, "has shape (2, 3, 28, 28); expected probabilities of 3 labels with the background"),
        ("no_ending", DatasetError, 'dataset.json: the entry "file_ending" is missing'),
        ("cut", CRFError, "T0_0.npz: cannot be read (cut off?)"),
        ("key", CRFError, 'holds no array "probabilities"'),
        ("pickle", CRFError, "T0_0.npz: cannot be read"),
        ("logits", CRFError, "no probabilities that sum to 1"),
        ("nan", CRFError, "no probabilities that sum to 1"),
        ("shape", CRFError, "T0_0.npz: has shape (2, 28, 28), the image"),
        ("no_image", DatasetError, 'imagesTs: holds no image of the case "T0_0" (T0_0_0000.nii.gz)'),
        ("cut_image", ImageError, "T0_0_0000.nii.gz: "),
        ("empty", DatasetError, "predictions: holds no probabilities (.npz)"),
    ],
)
def test_what_cannot_be_refined_is_one_line(tmp_path: Path, wrong: str, error: type[NnunetQAError], said: str) -> None:
    folder = shifted_dataset(tmp_path)
    content = json.loads((folder / "dataset.json").read_text())
    file, image = tmp_path / "predictions" / "T0_0.npz", folder / "imagesTs" / "T0_0_0000.nii.gz"
    good = np.full((2, 3, 28, 28), 0.5, np.float32)
    match wrong:
        case "regions":
            content["labels"] = {"background": 0, "both": [1, 2], "inner": 2}
        case "classes":
            content["labels"] = {"background": 0, "a": 1, "b": 2, "ignore": 3}
        case "no_ending":
            del content["file_ending"]
        case "cut":
            file.write_bytes(file.read_bytes()[:300])
        case "key":
            np.savez(file, softmax=good)
        case "pickle":
            np.savez(file, probabilities=np.array([{}], dtype=object))
        case "logits":
            spoil(file, good * 7)
        case "nan":
            spoil(file, good * np.nan)
        case "shape":
            spoil(file, good[:, :2])
        case "no_image":
            image.unlink()
        case "cut_image":
            image.write_bytes(image.read_bytes()[:400])
        case "empty":
            file.unlink()
    with pytest.raises(error) as caught:
        apply(tmp_path, folder, dataset_json=content)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
