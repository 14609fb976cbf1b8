"""The commands of docs/evaluate-codes.md, one after the other as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.cli import evaluate
from tests.small import annotate, run_command, tiny_dataset, tiny_label, write_tiny

PAGE = Path(__file__).parents[2] / "docs" / "evaluate-codes.md"
CASES = tuple(f"S{number:02d}_001" for number in range(1, 9))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_every_command_of_the_page(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    tiny_dataset(fresh_folders, name="Dataset101_Page", test=CASES)
    annotate(fresh_folders / "labelsTs", *CASES)
    (described,) = blocks("csv")
    header, *rows = described.splitlines()
    for arm, wrong in (("supervised", 6), ("qa_loss", 2)):
        for number, case in enumerate(CASES):
            label = tiny_label(case)
            write_tiny(Path(arm) / f"{case}.png", np.zeros_like(label) if number < wrong else label)
        more = [f"{case},{2 * (number < wrong - 2)},MK," for number, case in enumerate(CASES[2:])]
        (Path(arm) / "qa_codes.csv").write_text("\n".join([header, *rows, *more]))
    for block in blocks("bash"):
        for line in block.splitlines():
            tool, command, *arguments = shlex.split(line)
            assert (tool, command) == ("nnunet-qa", "evaluate")
            fewer_processes = ("--jobs", 1) if "-gt" in arguments else ()
            result = run_command(evaluate, *arguments, *fewer_processes)
            assert result.exit_code == 0, (line, result.exception, result.stderr)
    people, dice = (json.loads(Path(folder, "codes.json").read_text()) for folder in ("by_people", "by_dice"))
    assert (people["source"], dice["source"]) == ("human", "dice")
    assert people["counts"]["qa_loss"] == {"success": 7, "minor errors": 0, "failure": 1}
    assert dice["counts"]["qa_loss"] == {"success": 6, "minor errors": 0, "failure": 2}
    assert dice["counts"]["supervised"] == {"success": 2, "minor errors": 0, "failure": 6}
    (test,) = dice["tests"]
    assert (test["success_gained"], test["p_success"]) == (4, 2 / 2**4)
    assert dice["about"]["success from Dice"] == "0.9"
    for folder in ("by_people", "by_dice"):
        assert len(pd.read_csv(Path(folder, "codes.csv"))) == 8
        assert Path(folder, "codes.png").is_file()
        assert Path(folder, "codes.md").is_file()
