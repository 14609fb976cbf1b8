"""The commands of docs/select-and-promote.md, one after the other as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import cases, evaluate, promote, select
from nnunet_qa.quality.table import write_quality
from tests.small import annotate, run_command, tiny_dataset, tiny_label, write_tiny

PAGE = Path(__file__).parents[2] / "docs" / "select-and-promote.md"
MODULES = {"cases": cases, "evaluate": evaluate, "promote": promote, "select": select}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_every_command_of_the_page(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    pool = tuple(f"S0{subject}_00{number}" for subject in (4, 5) for number in (1, 2, 3))
    truths = ("S07_001", "S08_001")
    raw = tiny_dataset(
        fresh_folders,
        name="Dataset101_Page",
        labelled=("S01_001", "S02_001", "S03_001"),
        pool=pool,
        test=truths,
        table=False,
    )
    annotate(fresh_folders / "annotated", "S04_001", "S05_002")
    annotate(fresh_folders / "labelsTs", *truths)
    rows = [
        {"case_id": case, "role": "unlabelled", "level": "case", "slice_axis": None, "slice_index": None, "q": 0.1 * n}
        for n, case in enumerate(pool)
    ]
    write_quality(fresh_folders / "predictions" / "quality.csv", pd.DataFrame(rows))
    seen = []
    for tool, command, *arguments in commands():
        if tool != "nnunet-qa":  # nnU-Net's own, which the page only points to
            assert [tool, command, *arguments] == ["nnUNetv2_preprocess", "-d", "101", "-c", "2d"]
            continue
        if command == "evaluate":
            scores = [{**row, "case_id": case} for row, case in zip(rows, truths, strict=False)]
            write_quality(fresh_folders / "predictions" / "quality.csv", pd.DataFrame(scores))
            for case in truths:
                write_tiny(fresh_folders / "predictions" / f"{case}.png", np.minimum(tiny_label(case), 1))
        result = run_command(MODULES[command], *arguments)
        assert result.exit_code == 0, (command, arguments, result.exception)
        seen.append(command)
    assert seen == ["cases", "select", "promote", "promote", "promote", "evaluate"]
    queue = pd.read_csv(fresh_folders / "predictions" / "queue.csv")
    assert queue["case_id"].tolist() == ["S04_001", "S04_002", "S05_001", "S05_002"]
    assert CaseTable.read(raw / "cases.csv").case_ids(Role.LABELLED)[3:] == ["S04_001", "S05_002"]
    assert (fresh_folders / "predictions" / "evaluation.md").is_file()
