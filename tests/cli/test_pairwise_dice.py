from __future__ import annotations

from pathlib import Path

import pandas as pd

from nnunet_qa.cli import pairwise_dice
from nnunet_qa.errors import DatasetError
from tests.small import annotate, run_command, tiny_dataset


def test_pairwise_dice(fresh_folders: Path) -> None:
    tiny_dataset(fresh_folders)
    folders = [annotate(fresh_folders / name, "S4_a", "S4_b") for name in ("one", "other")]
    path = fresh_folders / "pairwise_dice.csv"
    result = run_command(pairwise_dice, "-i", folders[0], "-i", folders[1], "-d", 301, "-o", path, "--jobs", 1)
    assert result.exit_code == 0, result.exception
    table = pd.read_csv(path)
    assert table["case_id"].tolist() == ["S4_a", "S4_b"]
    assert table["pairwise_dice"].tolist() == [1.0, 1.0]
    assert "2 cases, mean pairwise Dice 1.000" in result.stderr
    alone = run_command(pairwise_dice, "-i", folders[0], "-d", 301, "-o", path)
    assert isinstance(alone.exception, DatasetError)
