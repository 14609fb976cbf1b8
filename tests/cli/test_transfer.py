"""The command on made-up weights, and the commands of docs/transfer.md as they stand there on phantoms."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_qa.cases import Role
from nnunet_qa.cli import transfer
from nnunet_qa.data.plans import PlansError
from nnunet_qa.data.raw_dataset import RawDataset
from nnunet_qa.data.transfer import TransferError
from nnunet_qa.trainers.one_line_errors import pretrained_weights_error
from tests.data.test_transfer import SOURCE, TARGET, network_of, write_source, write_target
from tests.phantom import BIN, LABELS, draw, plan, run, write_dataset
from tests.small import run_command

PAGE = Path(__file__).parents[2] / "docs" / "transfer.md"
SETTINGS = """
training: {epochs: 1, iterations_per_epoch: 2, val_iterations_per_epoch: 1}
pool: {batches_per_epoch: 1, jobs: 1}
qa_loss: {simulation: {patches: 4, epochs: 1}}
"""


def test_what_is_printed(fresh_folders: Path) -> None:
    model, _ = write_source(fresh_folders, SOURCE, "2d")
    folder = write_target(fresh_folders, TARGET, channels=3)
    chosen = ("--patch-size", "48,64", "--batch-size", 5)
    result = run_command(transfer, "-i", model, "-f", 0, "-d", 101, "-c", "2d", "-o", "FromCT", *chosen)
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    (weights,) = folder.glob("FromCT_from_*.pth")
    assert lines[:2] == [f"plans: {folder / 'FromCT.json'}", f"weights: {weights}"]
    assert "patch size: 44,70 -> 48,64" in lines
    assert "batch size: 7 -> 5" in lines
    train, score = (shlex.split(line) for line in lines[-2:])
    assert train == shlex.split(
        f"nnUNetv2_train 101 2d 0 -tr nnUNetTrainer -p FromCT -pretrained_weights {shlex.quote(str(weights))}"
    )
    assert score[:2] == ["nnunet-qa", "score"]
    assert json.loads((folder / "FromCT.json").read_text())["configurations"]["2d"]["batch_size"] == 5


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        (("-c", "3d_fullres"), TransferError, "weights of a 2D network"),
        (("-c", "2d", "--patch-size", "48x64"), PlansError, '--patch-size "48x64": must be whole numbers'),
        (("-c", "2d", "--patch-size", "50,64"), PlansError, "48,64 would fit"),
    ],
)
def test_mistakes(fresh_folders: Path, more: tuple[str, ...], error: type[Exception], said: str) -> None:
    model, _ = write_source(fresh_folders, SOURCE, "2d")
    write_target(fresh_folders, TARGET)
    result = run_command(transfer, "-i", model, "-f", 0, "-d", 101, "-o", "FromCT", *more)
    assert isinstance(result.exception, error)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"network_weights": {}},
            "weights of another architecture: Key encoder.stages.0.0.convs.0.conv.weight is missing",
        ),
        ({"state_dict": {}}, "no pretrained weights that nnU-Net can load (KeyError: 'network_weights')"),
        ("shape", "the same. `nnunet-qa transfer` makes plans that fit"),
        (None, "the pretrained weights cannot be read (No such file or directory)"),
    ],
)
def test_unfit_weights_given_to_nnunet_itself(tmp_path: Path, content: object, said: str) -> None:
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    if content == "shape":
        content = {"network_weights": network_of(SOURCE, "2d", 3, 3).state_dict()}
    if content is not None:
        torch.save(content, tmp_path / "a.pth")
    with pytest.raises(Exception) as raised:  # noqa: PT011  whatever nnU-Net and torch make of it
        load_pretrained_weights(network_of(SOURCE, "2d", 1, 3), str(tmp_path / "a.pth"))
    line = str(pretrained_weights_error(raised.value, raised.tb))
    assert line.startswith(f"{tmp_path / 'a.pth'}: ")
    assert said in line
    assert "tensor(" not in line
    assert "\n" not in line


def test_errors_from_elsewhere_are_left_alone() -> None:
    with pytest.raises(ValueError, match="elsewhere") as raised:
        raise ValueError("elsewhere")
    assert pretrained_weights_error(raised.value, raised.tb) is None


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(os.path.expandvars(line)) for block in blocks for line in block.splitlines()]


def three_channels(number: int, name: str) -> None:
    rng = np.random.default_rng(7)
    dataset = RawDataset.named(
        number, name, channel_names=("R", "G", "B"), labels=LABELS, file_ending=".nii.gz", settings={}
    )
    dataset.begin()
    rows = []
    for subject in range(4):
        image, label = draw((1, 40, 48), rng)
        image = image.astype(np.float32)
        dataset.write_case(f"S{subject}", Role.LABELLED, [image, image, image], label, geometry=None)
        rows.append({"case_id": f"S{subject}", "subject_id": f"S{subject}", "role": "labelled"})
    dataset.finish(rows, jobs=1, folds=2)


@pytest.mark.e2e
def test_every_command_of_the_page(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    write_dataset(101, "OCT", dimensions=2, pool=2, seed=1)
    three_channels(105, "CT")
    plan([101, 105], ["2d"])
    for name in ("Dataset101_OCT", "Dataset105_CT"):
        (fresh_folders / "nnUNet_raw" / name / "qa.yaml").write_text(SETTINGS)
    run("nnUNetv2_train", "105", "2d", "0", "-tr", "QAsemiTrainer", "-device", "cpu")
    made, trained, scored = commands()
    assert "input channels: 3 -> 1" in run(*made).stdout
    assert "Loading pretrained weights" in run(*trained, "-device", "cpu").stdout
    run(*scored, "-device", "cpu", "--jobs", "1")
    assert (fresh_folders / "predictions" / "quality.csv").is_file()

    unfit = [str(BIN / "nnUNetv2_train"), "101", "2d", "0", "-tr", "QAsemiTrainer", "-device", "cpu"]
    unfit += ["-pretrained_weights", f"nnUNet_results/Dataset105_CT/{Path(made[3]).name}/fold_0/checkpoint_final.pth"]
    done = subprocess.run(unfit, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "checkpoint_final.pth: weights of another architecture: The shape" in done.stderr.splitlines()[-1]
