"""The commands and the example of docs/montage.md, one after the other as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nnunet_qa.cli import montage
from nnunet_qa.quality.codes import read_codes
from tests.small import run_command, write_tiny

PAGE = Path(__file__).parents[2] / "docs" / "montage.md"
CASES = ("pt_100", "pt_109")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_every_command_of_the_page(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    rng = np.random.default_rng(0)
    for case in CASES:
        image = rng.integers(-1000, 1000, (20, 16, 12)).astype(np.int16)
        write_tiny(Path(f"nnUNet_raw/Dataset101_HeadNeck/imagesTs/{case}_0000.nii.gz"), image)
        write_tiny(Path(f"predictions/{case}.nii.gz"), (image > 500).astype(np.uint8))
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "mandible": 1}, "file_ending": ".nii.gz"}
    Path("predictions/dataset.json").write_text(json.dumps(described))
    sizes = {}
    for line in (line for block in blocks("bash") for line in block.splitlines()):
        tool, command, *arguments = shlex.split(line)
        assert (tool, command) == ("nnunet-qa", "montage")
        result = run_command(montage, *arguments, "--jobs", 1)  # processes take seconds to start
        assert result.exit_code == 0, (arguments, result.exception)
        folder = Path(arguments[arguments.index("-o") + 1])
        assert sorted(path.name for path in folder.iterdir()) == [f"{case}.png" for case in CASES]
        with Image.open(folder / "pt_100.png") as picture:
            sizes[folder.name] = picture.size
    assert list(sizes) == ["montages", "montages-1024", "sagittal"]
    assert sizes["montages"][1] > sizes["montages-1024"][1]  # the legend
    assert sizes["sagittal"] == (4 * 52, 3 * 256)  # slices of 18 × 0.5 mm by 22 × 2 mm, with their frame


def test_the_table_of_codes_can_be_read(tmp_path: Path) -> None:
    (table,) = blocks("csv")
    (tmp_path / "qa_codes.csv").write_text(table)
    codes: pd.DataFrame = read_codes(tmp_path / "qa_codes.csv", CASES)
    assert codes["code"].tolist() == [0, 2]


def test_the_example_runs() -> None:
    (example,) = blocks("python")
    exec(example, {})
