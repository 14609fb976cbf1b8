from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nnunet_qa.cli import select
from nnunet_qa.errors import DatasetError, NnunetQAError, SelectionError
from nnunet_qa.quality.image_quality import METRICS, image_quality
from tests.small import run_command, tiny_dataset, tiny_label, write_tiny

POOL = tuple(f"S{number // 3}_{number % 3}" for number in range(30))


@pytest.fixture
def raw(fresh_folders: Path) -> Path:
    return tiny_dataset(fresh_folders, labelled=("T1_a", "T2_a", "T3_a"), pool=POOL)


def read(output: Path) -> pd.DataFrame:
    return pd.read_csv(output / "initial_set.csv")


def test_the_pool_of_a_dataset(raw: Path, tmp_path: Path) -> None:
    result = run_command(select, "initial", "-d", 301, "--target-size", 4, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    table = read(tmp_path / "out")
    assert table["case_id"].tolist() == list(POOL)
    assert table["subject_id"].tolist() == [case[:2] for case in POOL]
    assert table["selected"].sum() == 4
    expected = image_quality(np.asarray(Image.open(raw / "imagesUn" / "S0_0_0000.png"))[None])
    for metric in METRICS:
        assert table[metric][0] == pytest.approx(getattr(expected, metric)[0], rel=1e-6)
    assert Image.open(tmp_path / "out" / "initial_set.png").size[0] > 600
    assert "Initial set" in result.stdout
    for case in table["case_id"]:
        assert (case in result.stdout) == table["selected"][table["case_id"] == case].item()
    assert "4 of 30 images" in result.stderr
    assert "Measuring 30 cases of 1 channel each in " in result.stderr


def test_numbered_slices_are_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(5):
        write_tiny(tmp_path / "scans" / f"slice_{number:04d}.png", rng.integers(0, 255, (6, 8)).astype(np.uint8))
    result = run_command(select, "initial", "-i", tmp_path / "scans", "--quantiles", 1, 1, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    assert "Measuring 5 cases of 1 channel each in " in result.stderr
    assert read(tmp_path / "out")["case_id"].tolist() == [f"slice_{number:04d}" for number in range(5)]


def test_offset_and_median_window(tmp_path: Path) -> None:
    hu = np.random.default_rng(0).integers(-900, 900, (5, 1, 9, 12)).astype(np.int16)
    for number in range(5):
        write_tiny(tmp_path / "ct" / f"c{number}.nii.gz", hu[number])
    options = ("-i", tmp_path / "ct", "--quantiles", 1, 1, "--median-size", 5, "-o", tmp_path / "out")
    assert "down to -" in str(run_command(select, "initial", *options).exception)
    result = run_command(select, "initial", *options, "--offset", 1024)
    assert result.exit_code == 0, result.exception
    expected = [image_quality(image + 1024, median_size=5).psnr_inv[0] for image in hu]
    assert read(tmp_path / "out")["psnr_inv"].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_channel_too_many_is_named(raw: Path, tmp_path: Path) -> None:
    shutil.copy(raw / "imagesUn" / "S0_0_0000.png", raw / "imagesUn" / "S0_0_0001.png")
    result = run_command(select, "initial", "-d", 301, "-o", tmp_path / "out")
    assert isinstance(result.exception, DatasetError)
    assert "the case S0_0 has S0_0_0000.png, S0_0_0001.png; dataset.json asks for" in str(result.exception)


def test_imagestr_without_a_pool(fresh_folders: Path) -> None:
    tiny_dataset(fresh_folders, labelled=POOL, pool=(), table=False)
    result = run_command(select, "initial", "-d", 301, "-o", fresh_folders / "out", "--epsilon", 0)
    assert result.exit_code == 0, result.exception
    assert read(fresh_folders / "out")["subject_id"].tolist() == list(POOL)
    assert read(fresh_folders / "out")["epsilon"].tolist() == [0] * 30


def test_labels_of_the_training_cases(raw: Path, tmp_path: Path) -> None:
    options = ("--roi", "labels", "--label", 2, "--quantiles", 1, 1)
    result = run_command(select, "initial", "-d", 301, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.exception
    table = read(tmp_path / "out")
    assert table["case_id"].tolist() == ["T1_a", "T2_a", "T3_a"]
    image = np.asarray(Image.open(raw / "imagesTr" / "T2_a_0000.png"))
    assert table["roi_mean"][1] == pytest.approx(image[tiny_label("T2_a") == 2].mean(), rel=1e-6)


def test_a_folder_with_masks_channel_and_processes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = {}
    for case in POOL[:8]:
        for channel in range(2):
            picture = rng.integers(0, 255, (6, 8)).astype(np.uint8)
            write_tiny(tmp_path / "images" / f"{case}_000{channel}.nii.gz", picture)
        masks[case] = tiny_label(case)
        write_tiny(tmp_path / "masks" / f"{case}.nii.gz", masks[case])
    result = run_command(
        select, "initial", "-i", tmp_path / "images", "--roi", "mask", "--masks", tmp_path / "masks",
        "--channel", 1, "--jobs", 2, "--definition", "reference_code", "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    table = read(tmp_path / "out")
    assert table["roi_mean"][7] == pytest.approx(picture[masks[POOL[7]] > 0].mean(), rel=1e-6)
    assert table["blurriness_lowest"].notna().all()
    assert "Measuring 8 cases of 2 channels each in " in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "either a dataset with -d or a folder of images with -i"),
        (("-d", "301", "-i", "images"), "either a dataset with -d"),
        (("-d", "301", "--target-size", "30"), "30 images were asked for, but only"),
        (("-d", "301", "--quantiles", "0.01", "0.01"), "none of the 30 images passes both thresholds"),
        (("-d", "301", "--channel", "1"), "has no channel 1; it has 1"),
        (("-d", "301", "--roi", "mask"), "needs a folder of masks"),
        (("-d", "301", "--roi", "labels", "--label", "7"), "is empty"),
        (("-i", "missing"), "no such folder"),
    ],
)
def test_one_line_and_no_file(raw: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    result = run_command(select, "initial", *options, "-o", tmp_path / "out")
    assert isinstance(result.exception, NnunetQAError)
    assert said in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_a_constant_image_is_named(raw: Path, tmp_path: Path) -> None:
    write_tiny(raw / "imagesUn" / "S3_1_0000.png", np.full((6, 8), 3, dtype=np.uint8))
    result = run_command(select, "initial", "-d", 301, "-o", tmp_path / "out")
    assert 'the case "S3_1" is constant' in str(result.exception)


def test_a_dataset_without_images(raw: Path, tmp_path: Path) -> None:
    for folder in ("imagesTr", "imagesUn"):
        shutil.rmtree(raw / folder)
    result = run_command(select, "initial", "-d", 301, "-o", tmp_path / "out")
    assert isinstance(result.exception, DatasetError)
    assert "neither imagesUn nor imagesTr" in str(result.exception)


def test_the_group_and_its_own_options() -> None:
    shown = run_command(select, "--help").output
    assert "initial" in shown
    assert "--threshold" in shown
    for arguments, said in (
        ((), "give the scores with -q"),
        (("-n", 3, "initial", "-o", "x"), "behind the subcommand"),
    ):
        result = run_command(select, *arguments)
        assert isinstance(result.exception, SelectionError)
        assert said in str(result.exception)
