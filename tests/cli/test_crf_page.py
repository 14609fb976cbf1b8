"""The commands of docs/crf.md, one after the other as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from nnunet_qa.cli import crf
from nnunet_qa.inference.crf import CRFSettings
from tests.phantom import plan, run, write_dataset
from tests.shifted import shifted_dataset
from tests.small import run_command

PAGE = Path(__file__).parents[2] / "docs" / "crf.md"
NAME = "Dataset101_Heart"
SETTINGS = """
training: {epochs: 1, iterations_per_epoch: 2, val_iterations_per_epoch: 1}
pool: {enabled: false}
"""
MORE = {
    "nnUNetv2_train": ("-device", "cpu"),
    "nnUNetv2_predict": ("-device", "cpu", "-npp", "1", "-nps", "1"),
    "tune": ("--trials", "2", "--jobs", "1"),
    "apply": ("--jobs", "1"),
}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(os.path.expandvars(line)) for block in blocks for line in block.splitlines()]


def ours(words: list[str]) -> None:
    tool, group, command, *arguments = words
    assert (tool, group) == ("nnunet-qa", "crf")
    result = run_command(crf, group, command, *arguments, *MORE[command])
    assert result.exit_code == 0, (arguments, result.exception)


def test_our_commands(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    raw = shifted_dataset(fresh_folders, name=NAME)
    shutil.copytree(raw / "imagesTs", "images")
    model = Path("nnUNet_results", NAME, "QAsemiTrainer__nnUNetPlans__2d", "fold_0")
    model.mkdir(parents=True)
    shutil.move("validation", model)  # what the page's nnUNetv2_train and nnUNetv2_predict leave
    nnunets = [words for words in commands() if words[0] != "nnunet-qa"]
    assert [words[0] for words in nnunets] == ["nnUNetv2_train", "nnUNetv2_predict"]
    assert nnunets[0][-1] == "--npz"
    assert nnunets[1][-1] == "--save_probabilities"
    for words in commands():
        if words[0] == "nnunet-qa":
            ours(words)
    assert Path("refined", "T0_0.nii.gz").is_file()
    assert CRFSettings.read(Path("refined", "crf.json")) == CRFSettings.read(Path("crf.json"))


@pytest.mark.e2e
def test_every_command_with_nnunet_s_own_files(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    raw = fresh_folders / "nnUNet_raw" / write_dataset(101, "Heart", dimensions=3, pool=0, seed=5)
    (raw / "qa.yaml").write_text(SETTINGS)
    plan([101], ["2d"])
    shutil.copytree(raw / "imagesTs", "images")
    for words in commands():
        if words[0] == "nnunet-qa":
            ours(words)
        else:
            run(*words, *MORE[words[0]])
    names = sorted(path.name for path in Path("predictions").glob("*.nii.gz"))
    assert names == sorted(path.name for path in Path("refined").glob("*.nii.gz"))
    assert len(names) == 2
