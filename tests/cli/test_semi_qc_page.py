"""The commands of docs/semi-qc.md as they stand there, with stand-ins for nnU-Net's and fewer draws."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nnunet_qa.cases import CaseTable
from nnunet_qa.cli.app import app
from nnunet_qa.experiments import semi_qc_measures, semi_qc_report
from nnunet_qa.experiments.semi_qc import SemiQCExperiment
from tests.experiments.semi_qc_stand_ins import experiment_on, stand_ins, write_hearts

PAGE = Path(__file__).parents[2] / "docs" / "semi-qc.md"


def test_every_command_of_the_page(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    for name in ("arms_picture", "change_picture", "contours_picture"):
        monkeypatch.setattr(semi_qc_report, name, lambda *_, **__: None)
    monkeypatch.setattr(semi_qc_measures, "bland_altman_picture", lambda *_, **__: None)
    begun: dict[str, SemiQCExperiment] = {}

    def checked(experiment: SemiQCExperiment, seeds: list[int], arms: list[str] | None = None) -> None:
        begun[experiment.folder.name] = experiment

    monkeypatch.setattr(SemiQCExperiment, "check", checked)
    source = write_hearts(fresh_folders)
    for number in (113, 115):
        (fresh_folders / "nnUNet_raw" / f"Dataset{number}_Hearts").symlink_to(source)
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        assert command[:3] == ["nnunet-qa", "experiment", "semi-qc"]
    # nothing is run: what the options mean is looked at
    monkeypatch.setattr("nnunet_qa.cli.experiment_parts.run_cells", lambda *_, **__: None)
    for command in commands[:2]:
        result = CliRunner().invoke(app, command[1:])
        assert "nothing is done yet" in str(result.exception), result.output
    hearts, hippocampus = begun["hearts"].protocol, begun["hippocampus"].protocol
    assert hearts.scheme is not None
    assert (dict(hearts.scheme.values), hearts.unit.value, hearts.number) == ({"lv": 1}, "acquisition", 4)
    assert (hippocampus.scheme, hippocampus.configuration, hippocampus.validation_subjects) == (None, "3d_fullres", 5)
    # the report of an experiment that is done
    experiment = experiment_on(source, fresh_folders / "hearts", number=1)
    with stand_ins(source):
        experiment.runner.begin()
        list(experiment.runner.run(["half", "half_oracle"], [0]))
    (experiment.folder / "experiment.json").unlink()  # it has other settings than the page
    result = CliRunner().invoke(app, commands[2][1:])
    assert result.exit_code == 0, (result.exception, result.output)
    report = (fresh_folders / "hearts" / "report" / "README.md").read_text(encoding="utf-8")
    for title in re.findall(r"^- \*\*([^*]+)\*\*", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        assert f"## {title}" in report
    arms = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert arms == [arm.name for arm in experiment.runner.arms]
    assert CaseTable.read(source / "cases.csv").case_ids()


@pytest.mark.parametrize(
    ("more", "kind", "end_diastole"),
    [([], "volume", "largest"), (["--kind", "area", "--end-diastole", "first"], "area", "first")],
)
def test_a_scheme_of_your_own(
    fresh_folders: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], kind: str, end_diastole: str
) -> None:
    begun: list[SemiQCExperiment] = []
    monkeypatch.setattr(SemiQCExperiment, "check", lambda experiment, *_: begun.append(experiment))
    monkeypatch.setattr("nnunet_qa.cli.experiment_parts.run_cells", lambda *_, **__: None)
    write_hearts(fresh_folders, subjects=1)
    command = ["experiment", "semi-qc", "-d", "771", "-o", "out", "--scheme", "aorta=1", "--unit", "acquisition"]
    CliRunner().invoke(app, [*command, *more])
    assert begun[0].protocol.settings()["scheme"] == {
        "name": "custom",
        "values": {"aorta": 1},
        "kind": kind,
        "end_diastole": end_diastole,
    }


def test_what_contradicts_itself_is_one_line(fresh_folders: Path) -> None:
    command = ["experiment", "semi-qc", "-d", "115", "-o", "out"]
    for more, said in (
        (["--report-only", "--overwrite"], "--overwrite deletes what --report-only reports"),
        (["--scheme", "acdc", "--end-diastole", "first"], '"acdc" has its own kind and end-diastole; leave out end_'),
        (["--scheme", "lv=1", "--kind", "areas"], 'unknown kind of curve "areas"; choose volume or area'),
        (["--kind", "area"], "--kind and --end-diastole say more of a label scheme; give --scheme too"),
        (["--scheme", "ukb"], 'unknown label scheme "ukb" (did you mean "ukbb"?)'),
        (["--success", "0.3"], "success 0.3, failure 0.5"),
    ):
        result = CliRunner().invoke(app, [*command, *more])
        assert said in str(result.exception)
    assert not (fresh_folders / "out").exists()
