"""The conversion commands of docs/convert-retouch.md, run on phantoms."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import typer
from typer.testing import CliRunner

from nnunet_qa.cli import convert as cli
from nnunet_qa.data.retouch_phantom import write_retouch

PAGE = Path(__file__).parents[2] / "docs" / "convert-retouch.md"


def test_the_pages_commands_run(tmp_path: Path, raw: Path, unchecked: None) -> None:
    write_retouch(tmp_path / "RETOUCH", np.random.default_rng(0), rows=64, columns=64, bscans=1, pool=1)
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = "\n".join(blocks).replace("/data/", f"{tmp_path}/")
    (code,) = re.findall(r'python -c "\n(.*?)"\n', text, flags=re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    commands = [line.replace("-np 4", "-np 1") for line in text.splitlines() if line.startswith("nnunet-qa convert")]
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output or result.exception
    assert [path.parent.name for path in sorted(raw.glob("*/dataset.json"))] == [
        "Dataset104_OCTRetouch",
        "Dataset105_OCTRetouch3D",
        "Dataset106_Phantoms",
    ]
    assert len(list((raw / "Dataset104_OCTRetouch" / "imagesTs").iterdir())) == 2
