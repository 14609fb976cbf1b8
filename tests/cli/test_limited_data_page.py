"""The commands of docs/limited-data.md as they stand there, with stand-ins for nnU-Net's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nnunet_qa.cli.app import app
from nnunet_qa.experiments import runner
from nnunet_qa.experiments.limited_data import GROUPS
from tests.experiments.semi_qc_stand_ins import write_hearts
from tests.experiments.test_limited_data import Commands

PAGE = Path(__file__).parents[2] / "docs" / "limited-data.md"


def test_every_command_of_the_page(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) == 3
    source = write_hearts(fresh_folders)  # too few subjects for all that the page runs
    (fresh_folders / "nnUNet_raw" / "Dataset114_Mandible").symlink_to(source)
    monkeypatch.setattr(runner, "run_command", Commands(source, "Dataset114_Mandible"))
    whole, first, report = commands
    result = CliRunner().invoke(app, [*whole[1:], "-device", "cpu"])
    assert "the size 5 needs 6 patients, with one for the pool of semi" in str(result.exception)
    result = CliRunner().invoke(app, [*first[1:], "-device", "cpu"])
    assert result.exit_code == 0, (result.exception, result.output)
    runs = fresh_folders / "mandible" / "runs"
    assert {path.name for path in runs.iterdir()} == {"seg_1", "seg_3", "interactive_1", "interactive_3"}
    result = CliRunner().invoke(app, [*report[1:], "-device", "cpu"])
    assert result.exit_code == 0, (result.exception, result.output)
    assert "Table 1: Dice on test patients" in result.output
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(GROUPS)
