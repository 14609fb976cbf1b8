"""The conversion commands of docs/convert-oct.md, run on phantoms."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import typer
from typer.testing import CliRunner

from nnunet_qa.cli import convert as cli
from nnunet_qa.data.phantoms import write_chiu, write_ocsc

PAGE = Path(__file__).parents[2] / "docs" / "convert-oct.md"


def blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_pages_commands_run(tmp_path: Path, raw: Path, unchecked: None) -> None:
    rng = np.random.default_rng(0)
    write_chiu(tmp_path, rng, subjects=10, rows=40, columns=64, bscans=3, annotated=2)
    write_ocsc(
        tmp_path / "OCSC",
        rng,
        stacks=["cirrus_1", "nidek_2"],
        train=2,
        annotated=1,
        test=1,
        rows=40,
        columns=64,
        graders=("G1", "G2"),
    )
    text = "\n".join(blocks()).replace("/data/", f"{tmp_path}/")
    for code in re.findall(r'python -c "\n(.*?)"\n', text, flags=re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), {})
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    commands = [line for line in text.splitlines() if line.startswith("nnunet-qa convert")]
    assert len(commands) == 3
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output or result.exception
    assert len(list(raw.glob("Dataset10[123]_*/dataset.json"))) == 3
