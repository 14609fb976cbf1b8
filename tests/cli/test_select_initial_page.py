"""The commands of docs/select-initial.md, one after the other as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from nnunet_qa.cli import select
from nnunet_qa.data.phantoms import SubjectLook, draw_bscan
from tests.small import run_command, tiny_dataset, write_tiny

PAGE = Path(__file__).parents[2] / "docs" / "select-initial.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_every_command_of_the_page(fresh_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh_folders)
    pool = tuple(f"S{subject:02d}_{number:03d}" for subject in range(12) for number in range(3))
    raw = tiny_dataset(fresh_folders, name="Dataset101_Page", pool=pool, table=False)
    rng = np.random.default_rng(0)
    for number, case in enumerate(pool):
        bscan = draw_bscan(rng, look=SubjectLook.draw(rng, severity=0.5), rows=124, columns=96).image
        # of every three images one is good, one blurred, one noisy
        bscan = ndimage.gaussian_filter(bscan.astype(float), (0.7, 3, 0)[number % 3])
        bscan += rng.normal(size=bscan.shape) * (0, 0, 30)[number % 3]
        bscan = np.clip(bscan, 0, 255).astype(np.uint8)
        for path in (raw / "imagesUn" / f"{case}_0000.png", fresh_folders / "scans" / f"{case}.png"):
            write_tiny(path, bscan)
        write_tiny(fresh_folders / "retina-masks" / f"{case}.png", (bscan > 60).astype(np.uint8))
    written = {}
    for tool, *arguments in commands():
        assert tool == "nnunet-qa"
        assert arguments[0] == "select"
        result = run_command(select, *arguments[1:])
        assert result.exit_code == 0, (arguments, result.exception)
        folder = Path(arguments[arguments.index("-o") + 1])
        assert (folder / "initial_set.png").is_file()
        written[folder.name] = pd.read_csv(folder / "initial_set.csv")
    names = ["initial", "initial-ct", "initial-epsilon", "initial-quantiles", "initial-mask", "initial-scans"]
    assert list(written) == names
    assert all(table["case_id"].tolist() == list(pool) for table in written.values())
    assert written["initial"]["selected"].sum() == 8
    assert written["initial-quantiles"]["selected"].sum() == 10
    assert not np.allclose(written["initial"]["cov"], written["initial-mask"]["cov"])
