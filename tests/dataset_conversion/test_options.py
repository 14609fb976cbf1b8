"""What all conversion commands have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from nnunet_qa.cli import convert as cli
from nnunet_qa.dataset_conversion.options import Strict
from nnunet_qa.dataset_conversion.script import tell

COMMON = {
    "number": (["-d", "--dataset"], None),
    "jobs": (["-np", "--jobs"], 1),
    "dask": (["--dask"], None),
    "folds": (["--folds"], 5),
    "strict": (["--strict"], False),
    "overwrite": (["--overwrite"], False),
    "test_subjects": (["--test-subjects"], None),
}


def test_strict_says_that_it_stops_at_what_is_left_out() -> None:
    assert "or is left out at the cost of an image or a mask" in Strict.__metadata__[0].help


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_common_options(name: str) -> None:
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    found = {option.name: option for option in typer.main.get_command(app).commands["convert"].commands[name].params}
    for option, (names, default) in COMMON.items():
        assert found[option].opts == names
        assert not found[option].secondary_opts
        assert found[option].default in (default, [])
        assert found[option].help
        assert found[option].required == (option == "number")


def test_a_command_tells_what_it_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ("S1,converted,3,", "S2,converted,1,", "a,left out,0,is empty", "S3,skipped,0,is damaged")
    (tmp_path / "conversion_report.csv").write_text("\n".join(("name,status,cases,reason", *rows)), encoding="utf-8")
    tell(tmp_path)
    expected = f"Wrote {tmp_path}: 2 converted, 1 skipped, 1 left out; see {tmp_path / 'conversion_report.csv'}\n"
    assert capsys.readouterr().out == expected
