"""docs/restoration.md: its commands, one after the other as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from tests.phantom import plan, run, write_dataset

PAGE = Path(__file__).parents[2] / "docs" / "restoration.md"
SETTINGS = """
training: {epochs: 2, iterations_per_epoch: 1, val_iterations_per_epoch: 1}
pool: {batches_per_epoch: 1, jobs: 1}
scoring: {every_epoch: false, final: false}
qa_loss: {enabled: false}
"""
MORE = {"nnUNetv2_train": ("-device", "cpu"), "nnUNetv2_preprocess": ("-np", "2")}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.e2e
def test_every_command_of_the_page(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    raw = fresh_folders / "nnUNet_raw"
    write_dataset(101, "Aorta", dimensions=2, pool=2, seed=5)
    write_dataset(105, "Large", dimensions=2, pool=2, seed=6)
    scans = raw / "Dataset102_Scans"
    scans.mkdir()
    (raw / write_dataset(103, "Source", dimensions=2, pool=3, seed=7) / "imagesUn").rename(scans / "imagesUn")
    (scans / "dataset.json").write_text(blocks("json")[0])
    plan([101, 105], ["2d"])
    (fresh_folders / "qa.yaml").write_text(SETTINGS)
    monkeypatch.setenv("nnUNet_qa_config", str(fresh_folders / "qa.yaml"))
    for line in (line for block in blocks("bash") for line in block.splitlines()):
        words = shlex.split(os.path.expandvars(line))
        run(*words, *MORE.get(words[0], ()))
    found = sorted((fresh_folders / "nnUNet_results").glob("*/RestorationTrainer__*/fold_*/restoration.json"))
    images = [json.loads(path.read_text())["images"] for path in found]
    assert [(one["annotated"], one["pool"]) for one in images] == [(8, 2), (0, 3), (8, 2)]
    for path in found:
        for name in ("restored.png", "checkpoint_half.pth", "checkpoint_final.pth"):
            assert (path.parent / name).is_file()
