"""The experiment of paper 004 with stand-ins for the commands: they are quick, and what comes out is known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from nnunet_qa.cli.app import app
from nnunet_qa.config import QAConfig
from nnunet_qa.errors import SelectionError
from nnunet_qa.experiments import runner
from nnunet_qa.experiments.limited_data import DICE, GROUPS, LimitedDataExperiment, Protocol
from nnunet_qa.experiments.limited_data_report import write_report
from nnunet_qa.files import write_json
from tests.experiments.semi_qc_stand_ins import NAME, TINY, chance, check_options, predicted, read, write_hearts

KEPT = {"seg": 0.5, "pretrained": 0.6, "semi": 0.55, "interactive": 0.7, "both": 0.8, "paper": 0.3}
"""Part of the true foreground that a group finds with one patient; more patients find more."""
SIZES = (1, 2, "all")


@dataclass
class Commands:
    """Stands in for `run_command`; `ran` holds every command with the arm it belongs to."""

    source: Path
    name: str = NAME
    ran: list[tuple[list[str], str]] = field(default_factory=list)

    def __call__(
        self, command: Sequence[str], *, environment: Mapping[str, str], log: Path, lock: int | None = None
    ) -> None:
        base = Path(environment["nnUNet_raw"]).parent
        arm = base.parent.name
        self.ran.append((list(command), arm))
        options = dict(itertools.pairwise(command))
        preprocessed = Path(environment["nnUNet_preprocessed"]) / self.name
        if command[0] == "nnunet-qa":
            check_options(command)
        if command[0] == "nnUNetv2_plan_and_preprocess":
            for file in ("nnUNetPlans", "nnUNetPlansExperiment", "dataset_fingerprint"):
                write_json(preprocessed / f"{file}.json", {"configurations": {"2d": {}, "3d_fullres": {}}})
        elif command[0] == "nnUNetv2_train":
            model = f"{options['-tr']}__{options['-p']}__{command[2]}"
            fold = Path(environment["nnUNet_results"]) / self.name / model / "fold_0"
            fold.mkdir(parents=True)
            logged = [0.1, 0.4, 0.3, float("nan"), 0.5, 0.5, 0.2, 0.6]
            torch.save({"logging": {"mean_fg_dice": logged}}, fold / "checkpoint_final.pth")
            (fold / "restored.png").write_bytes(b"picture")
        elif command[0] == "nnUNetv2_predict":
            for path in sorted((self.source / "labelsTr").iterdir()):
                if (Path(options["-i"]) / path.name.replace(".nii.gz", "_0000.nii.gz")).exists():
                    own = nibabel.Nifti1Image.from_filename(path)
                    found = predicted(np.asarray(own.dataobj), self.kept(arm, path.name[:9]))
                    Path(options["-o"]).mkdir(parents=True, exist_ok=True)
                    nibabel.Nifti1Image(found, own.affine, own.header).to_filename(Path(options["-o"]) / path.name)
        elif command[1] == "interact":
            cases = [path.name.removesuffix("_0000.nii.gz") for path in sorted(Path(options["-i"]).iterdir())]
            rows = [
                {"case_id": case, "round": turn, "clicks": 2 * turn, "label": label, "dice": dice + 0.02 * turn + more}
                for case in cases
                for dice in [self.kept(arm, case)]
                for turn in range(int(options["--number"]) + (case != cases[0]))  # the first one is soon content
                for label, more in (("lv", 0.01), ("rv", -0.01))
            ]
            Path(options["-o"]).mkdir(parents=True)
            pd.DataFrame(rows).to_csv(Path(options["-o"]) / "dice.csv", index=False)

    @staticmethod
    def kept(arm: str, case: str) -> float:
        group, size = arm.rsplit("_", 1)
        return KEPT[group] + {"1": 0.0, "2": 0.05, "3": 0.07, "all": 0.1}[size] + 0.05 * (chance(arm, case) - 0.5)


def experiment_on(source: Path, folder: Path, **changes: Any) -> LimitedDataExperiment:
    protocol = Protocol(**{"budget": TINY, "sizes": SIZES, "clicks": 3, "test_folds": 4, **changes})
    return LimitedDataExperiment(source=source, folder=folder, protocol=protocol)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hearts(tmp_path_factory.mktemp("limited"))


@pytest.fixture(scope="module")
def done(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LimitedDataExperiment, Commands]:
    """All arms of two draws, and what they ran."""
    commands = Commands(source)
    experiment = experiment_on(source, tmp_path_factory.mktemp("limited_out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_command", commands)
        experiment.check([0, 1])
        experiment.runner.begin()
        for _ in experiment.runner.run(None, [0, 1]):
            pass
    return experiment, commands


def split_of(experiment: LimitedDataExperiment, arm: str, seed: int) -> dict[str, list[str]]:
    path = experiment.runner.cell(arm, seed).folder / "nnUNet_preprocessed" / NAME / "splits_final.json"
    return json.loads(path.read_text())[0]


def command_of(commands: Commands, arm: str, tool: str) -> list[str]:
    return next(command for command, own in commands.ran if own == arm and tool in command[:2])


def test_all_groups_and_sizes_but_those_that_make_no_sense(done: tuple[LimitedDataExperiment, Commands]) -> None:
    arms = {arm.name for arm in done[0].runner.arms}
    assert arms == {
        "restoration",
        *(f"{group}_{size}" for group in GROUPS for size in SIZES if group != "semi"),
        "semi_2",
    }
    in_3d = experiment_on(done[0].source, done[0].folder, configuration="3d_fullres")
    assert not any(arm.name.startswith("paper") for arm in in_3d.runner.arms)


def test_subsets_are_nested_and_apart_from_test_patients(done: tuple[LimitedDataExperiment, Commands]) -> None:
    experiment, _ = done
    orders = []
    for seed in (0, 1):
        parts = experiment.holdout(seed).parts
        sets = [set(split_of(experiment, f"seg_{size}", seed)["train"]) for size in SIZES]
        assert sets[0] < sets[1] < sets[2] == set(parts.pool)
        assert [len({case[:2] for case in own}) for own in sets] == [1, 2, 5]
        assert not sets[2] & {*parts.validation, *parts.test}
        for group in GROUPS:
            if group != "semi":
                assert split_of(experiment, f"{group}_2", seed) == split_of(experiment, "seg_2", seed)
        orders.append(experiment.patients(seed))
    assert orders[0] != orders[1]


def test_the_others_are_the_pool_of_semi(done: tuple[LimitedDataExperiment, Commands], source: Path) -> None:
    experiment, commands = done
    raw = experiment.runner.cell("semi_2", 0).folder / "nnUNet_raw" / NAME
    annotated = {path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").iterdir()}
    pool = {path.name.removesuffix("_0000.nii.gz") for path in (raw / "imagesUn").iterdir()}
    parts = experiment.holdout(0).parts
    assert annotated == set(split_of(experiment, "seg_2", 0)["train"]) | set(parts.validation)
    assert pool == set(parts.pool) - annotated
    assert command_of(commands, "semi_2", "pool")[1] == "pool"
    everything = experiment.runner.cell("seg_2", 0).folder / "nnUNet_raw" / NAME
    assert not (everything / "imagesUn").exists()


def test_each_group_trains_as_it_says(done: tuple[LimitedDataExperiment, Commands]) -> None:
    experiment, commands = done
    trainers = {
        "seg_1": "QAsemiTrainer",
        "pretrained_1": "QAsemiTrainer",
        "interactive_1": "InteractiveTrainer",
        "both_1": "InteractiveTrainer",
        "semi_2": "QAsemiTrainer",
        "paper_1": "PaperUNetTrainer",
        "restoration": "RestorationTrainer",
    }
    for arm, trainer in trainers.items():
        command = command_of(commands, arm, "nnUNetv2_train")
        assert command[command.index("-tr") + 1] == trainer
        weights = str(experiment.restoration(0).checkpoint)
        assert (weights in command) == (arm in ("pretrained_1", "both_1"))
        config = QAConfig.read(experiment.runner.cell(arm, 0).folder / "qa.yaml")
        assert config.pool.enabled == (arm == "semi_2")
        assert config.training.epochs == TINY.iterations * (2 if arm == "restoration" else 1)
    own_rate = experiment_on(experiment.source, experiment.folder, budget=TINY.model_copy(update={"initial_lr": 0.1}))
    for arm, rate in {"seg": 0.1, "interactive": 0.1, "paper": None, "restoration": None}.items():
        training = own_rate.training(own_rate.runner.cell("seg_1", 0), arm)
        assert yaml.safe_load(training._settings(1))["training"]["initial_lr"] == rate


def test_sections_of_qa_yaml_reach_the_training(source: Path, tmp_path: Path) -> None:
    own = experiment_on(source, tmp_path, interaction={"least": 1}, qa_loss={"weight": 0.3})
    cell = own.runner.cell("seg_1", 0)
    assert own.training(cell, "interactive").settings["interaction"] == {"least": 1}
    assert own.training(cell, "semi").settings["qa_loss"] == {"weight": 0.3}
    assert {"interaction", "qa_loss"} <= set(own.runner.settings)


def test_dice_is_that_of_the_predictions(done: tuple[LimitedDataExperiment, Commands], source: Path) -> None:
    experiment, _ = done
    cell = experiment.runner.cell("seg_1", 0)
    table = pd.read_csv(cell.folder / DICE).set_index("case_id")
    assert sorted(table.index) == sorted(experiment.holdout(0).parts.test)
    for case, row in table.iterrows():
        ours = read(cell.folder / "imagesTs" / f"{case}.nii.gz")
        truth = read(source / "labelsTr" / f"{case}.nii.gz")
        both = [(ours == value, truth == value) for value in (1, 2, 3)]
        assert row["dice"] == pytest.approx(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in both]))
        assert (row["subject_id"], row["clicks"]) == (case[:2], 0)
    clicked = pd.read_csv(experiment.runner.cell("both_all", 1).folder / DICE)
    assert set(clicked["clicks"]) == {0, 1, 2, 3}
    for place, last in ((0, 2), (1, 3)):  # nothing was left to click at the first case after two
        case = sorted(experiment.holdout(1).parts.test)[place]
        own = clicked[clicked["case_id"] == case].set_index("clicks")
        wanted = [Commands.kept("both_all", case) + 0.02 * min(turn, last) for turn in range(4)]
        assert own["dice"].tolist() == pytest.approx(wanted)
        assert own["placed"].tolist() == [2 * min(turn, last) for turn in range(4)]


def test_the_cost_is_what_was_drawn(done: tuple[LimitedDataExperiment, Commands], source: Path) -> None:
    experiment, _ = done
    record = experiment.runner.cell("seg_2", 0).result()
    labels = [read(source / "labelsTr" / f"{case}.nii.gz") for case in split_of(experiment, "seg_2", 0)["train"]]
    assert record["voxels"] == sum(np.count_nonzero(label) for label in labels)
    assert record["slices"] == sum(int((label[..., z] > 0).any()) for label in labels for z in range(label.shape[2]))
    assert (record["patients"], record["cases"]) == (2, 8)


def test_report(done: tuple[LimitedDataExperiment, Commands]) -> None:
    experiment, _ = done
    path = write_report(experiment)
    folder, text = path.parent, path.read_text()
    results = pd.read_csv(folder / "results.csv")
    cases = pd.read_csv(folder / "per_case.csv")
    for name, clicks in (("pretrained", 0), ("both", 1)):
        own = cases[(cases["group"] == name) & (cases["size"] == "2") & (cases["clicks"] == clicks)]
        means = own.groupby("seed")["dice"].mean()
        found = results[(results["group"] == name) & (results["size"] == "2")].set_index("seed")["dice"]
        assert found.to_dict() == pytest.approx(means.to_dict(), abs=1e-5)
        assert f"{means.mean():.3f} ({means.std(ddof=1):.3f}), n=2" in text
    table = pd.read_csv(folder / "comparison.csv").set_index(["size", "arm"])
    assert table.loc[("2", "interactive"), "difference"] > 0.05
    assert table.loc[("2", "paper"), "difference"] < 0
    row = next(line for line in text.splitlines() if line.startswith("| 1 | 0, 1 |"))
    assert row.endswith("| 0.348 | 0.392 | 0.588 |")
    assert "| all (5) |" in text
    assert "The largest fall from one number of clicks to the next is 0.0000." in text
    curves = pd.read_csv(folder / "convergence.csv")
    first = curves[(curves["group"] == "seg") & (curves["size"] == "1") & (curves["seed"] == 0)]
    assert first["best_dice"].tolist() == [0.1, 0.4, 0.4, 0.4, 0.5, 0.5, 0.5, 0.6]
    assert first["step"].tolist() == list(range(1, 9))
    pictures = {"patients.png", "convergence.png", "clicks.png", "restored.png"}
    assert pictures <= {file.name for file in folder.iterdir()}
    assert all(f"]({name})" in text for name in pictures)


def test_a_fall_with_more_clicks_is_told(
    done: tuple[LimitedDataExperiment, Commands], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from nnunet_qa.experiments import limited_data_report

    rows = [("interactive", "1", 1, clicks, 0, dice) for clicks, dice in enumerate((0.5, 0.8, 0.77, 0.9))]
    table = pd.DataFrame(rows, columns=["group", "size", "patients", "clicks", "seed", "dice"])
    assert "one number of clicks to the next is 0.0300." in limited_data_report._clicks(tmp_path, table)


def test_part_of_it_can_be_reported(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_command", Commands(source))
    experiment = experiment_on(source, tmp_path / "out")
    experiment.runner.begin()
    with pytest.raises(SelectionError, match="nothing is done yet"):
        write_report(experiment)
    for _ in experiment.runner.run(["seg_1"], [0]):
        pass
    text = write_report(experiment).read_text()
    assert "Nothing to compare yet." in text
    assert "No interactive model is done yet." in text
    assert "Not done yet." in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "1,9"], "the size 9 needs 10 patients, with one for the pool of semi, but draw 0 has 5"),
        (["--sizes", "5"], "the size 5 needs 6 patients"),
        (["--sizes", "1,one"], '--sizes "1,one": must be different numbers'),
        (["--sizes", "2,2"], '--sizes "2,2": must be different numbers'),
        (["--sizes", "0"], "from 1 up"),
        (["--groups", "seq"], 'unknown group "seq" (did you mean "seg"?)'),
        (["--sizes", "1", "--groups", "semi"], "nothing to run"),
        (["--overwrite", "--report-only"], "give one of them"),
    ],
)
def test_bad_input_is_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(source.parent))
    what = ["experiment", "limited-data", "-d", NAME, "-o", str(tmp_path / "out"), "--test-folds", "4"]
    result = CliRunner().invoke(app, [*what, "-device", "cpu", *options])
    assert isinstance(result.exception, SelectionError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_settings_reach_the_models_that_use_them(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(source.parent))
    commands = Commands(source)
    monkeypatch.setattr(runner, "run_command", commands)
    out, settings = tmp_path / "out", tmp_path / "qa.yaml"
    settings.write_text("interaction: {unclicked: 0.25, least_error: 2, mode: line}")
    what = ["experiment", "limited-data", "-d", NAME, "-o", str(out), "--test-folds", "4", "-device", "cpu"]
    what += ["--sizes", "1", "--groups", "seg,interactive", "--seeds", "0"]
    result = CliRunner().invoke(app, [*what, "--settings", str(settings)])
    assert result.exit_code == 0, (result.exception, result.output)
    written = {path.parent.parent.name: yaml.safe_load(path.read_text()) for path in out.glob("runs/*/seed_0/qa.yaml")}
    assert written["interactive_1"]["interaction"] == {"unclicked": 0.25, "least_error": 2, "mode": "line"}
    assert "interaction" not in written["seg_1"]
    # who tests clicks as who trained
    (interact,) = (command for command, _ in commands.ran if command[:2] == ["nnunet-qa", "interact"])
    options = dict(itertools.pairwise(interact))
    assert (options["--least-error"], options["--mode"]) == ("2", "line")
    # another value would be another experiment, and so would another default
    assert json.loads((out / "experiment.json").read_text())["interaction"]["unclicked"] == 0.25
    result = CliRunner().invoke(app, what)
    assert "interaction" in str(result.exception)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("interaction: {unclickd: 0.2}", 'unknown key "interaction.unclickd" (did you mean "unclicked"?)'),
        ("interaction: {unclicked: 2}", "less than or equal to 1"),
        ("{interaction: {sigma: 1}, pool: {enabled: true}}", "pool: the experiment sets that itself"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(source.parent))
    settings = tmp_path / "qa.yaml"
    settings.write_text(content)
    what = ["experiment", "limited-data", "-d", NAME, "-o", str(tmp_path / "out"), "--settings", str(settings)]
    result = CliRunner().invoke(app, [*what, "--test-folds", "4", "-device", "cpu"])
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()
