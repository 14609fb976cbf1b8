"""The conversion commands of docs/convert-covid.md, run on phantoms."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import typer
from typer.testing import CliRunner

from nnunet_qa.cli import convert as cli
from nnunet_qa.data.covid_phantom import write_kaggle, write_medseg, write_radiopaedia, write_zenodo
from tests.dataset_conversion.covid_sets import chest, voxels

PAGE = Path(__file__).parents[2] / "docs" / "convert-covid.md"


def test_the_pages_commands_run(tmp_path: Path, raw: Path, unchecked: None) -> None:
    write_medseg(tmp_path / "medseg", [chest(0)], pool=chest(1, slices=1))
    write_radiopaedia(tmp_path / "radiopaedia", [chest(0)])
    write_kaggle(tmp_path / "kaggle", chest(0), chest(1), pool=chest(2, slices=1))
    write_zenodo(tmp_path / "zenodo", {"coronacases_001": chest(0)})
    page = PAGE.read_text(encoding="utf-8").replace("/data/", f"{tmp_path}/")
    text = "\n".join(re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL))
    for code in re.findall(r'python -c "\n(.*?)"\n', text, flags=re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), {})
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    commands = [line for line in text.splitlines() if line.startswith("nnunet-qa convert")]
    assert len(commands) == 5
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output or result.exception
    assert len(list(raw.glob("Dataset12[1-5]_*/dataset.json"))) == 5
    paper = voxels(raw / "Dataset123_CovidKaggle" / "imagesTr" / "medseg_slice002_0000.nii.gz")
    assert paper.shape == (1, 256, 256)
    np.testing.assert_array_equal(np.unique(paper[0, :8]), -1024)
