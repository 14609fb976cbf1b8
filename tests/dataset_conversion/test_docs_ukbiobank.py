"""The conversion commands of docs/convert-ukbiobank.md, run on phantoms."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from nnunet_qa.cli import convert as cli
from nnunet_qa.data import cine_subjects
from nnunet_qa.data.cine_dicom import write_ukbiobank_zip
from nnunet_qa.data.cine_files import write_labels
from nnunet_qa.data.cine_phantom import aortic_cine, short_axis_cine

PAGE = Path(__file__).parents[2] / "docs" / "convert-ukbiobank.md"


def test_the_pages_commands_run(tmp_path: Path, raw: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    heart = short_axis_cine(rng, frames=3, slices=7, shape=(62, 60), spacing=(12.0, 4.0, 4.2))
    for cine in (heart, aortic_cine(rng, frames=3, shape=(64, 66), spacing=(6.0, 3.2, 3.4))):
        write_ukbiobank_zip(tmp_path / "ukbb", "1", cine, rng)
        write_labels(tmp_path / "ukbb_labels", "1", cine, annotated="all")
    monkeypatch.setattr(cine_subjects.Recipe, "draw", lambda recipe, index: heart)  # whole ones take seconds
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = "\n".join(blocks).replace("/data/", f"{tmp_path}/").replace("-np 4", "-np 1")
    (code,) = re.findall(r'python -c "\n(.*?)"\n', text, flags=re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    commands = [line for line in text.splitlines() if line.startswith("nnunet-qa convert")]
    assert len(commands) == 3
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output or result.exception
    assert len(list(raw.glob("Dataset13[123]_*/dataset.json"))) == 3
