"""The commands of docs/curves.md, one after the other as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from nnunet_qa.cases import CaseTable
from nnunet_qa.cli import curves
from tests.small import run_command
from tests.small_cine import aorta, heart, write_nifti

PAGE = Path(__file__).parents[2] / "docs" / "curves.md"
SUBJECTS = ("1000001", "1000002")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_every_command_of_the_page(
    fresh_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(fresh_folders)
    raw = fresh_folders / "nnUNet_raw" / "Dataset111_Cine"
    raw.mkdir()
    (raw / "dataset.json").write_text("{}")
    rows: list[dict[str, object]] = []
    for seed, subject in enumerate(SUBJECTS):
        for index, labels in enumerate(heart(seed=seed)):
            case = f"{subject}_sa_fr{index:03d}"
            row = {"case_id": case, "subject_id": subject, "stack_id": f"{subject}_sa", "frame_index": index}
            rows.append({**row, "role": "test"})
            write_nifti(Path("predictions") / f"{case}.nii.gz", labels)
        write_nifti(Path("annotated") / subject / "label_sa.nii.gz", heart(seed=seed + 5))
        write_nifti(Path("annotated") / subject / "label_ao.nii.gz", aorta(seed=seed))
        labels = heart(seed=seed, scheme=(1, 5, 0))
        write_nifti(Path("others") / f"{subject}.nii.gz", labels)
        write_nifti(Path("slices") / f"{subject}.nii.gz", labels[:, :1] % 5)
    CaseTable.from_rows(rows).write(raw / "cases.csv")
    (pressures,) = blocks("csv")
    Path("pressures.csv").write_text(pressures)
    written = {}
    for block in blocks("bash"):
        for line in block.splitlines():
            tool, command, *arguments = shlex.split(line)
            assert (tool, command) == ("nnunet-qa", "curves")
            fewer = ("--jobs", 1) if "--jobs" in arguments else ()
            result = run_command(curves, *arguments, *fewer)
            assert result.exit_code == 0, (line, result.exception, result.stderr)
            folder = arguments[arguments.index("-o") + 1]
            written[folder] = pd.read_csv(Path(folder) / "measures.csv")
    assert list(written) == ["curves", "manual", "compared", "aorta", "own", "areas"]
    assert all(len(table) == 2 for table in written.values())
    assert written["manual"]["acquisition_id"].tolist() == ["1000001_sa", "1000002_sa"]
    agreement = pd.read_csv("compared/agreement.csv")
    assert set(agreement["n"]) == {2}
    for name in agreement["measure"]:
        assert Path(f"compared/figures/bland_altman_{name}.png").is_file()
    assert Path("curves/figures/1000001_sa.png").is_file()
    assert written["aorta"]["ascending_aorta_distensibility_per_1000_mmhg"].notna().all()
    explained = PAGE.read_text(encoding="utf-8")
    for table in (written["curves"], written["aorta"]):
        for column in table.columns[3:]:
            ending = re.sub("^(ascending|descending)_aorta", "", column)
            assert f"{ending}`" in explained, column
    (script,) = blocks("python")
    exec(compile(script, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out
    assert "1000001_sa [" in printed
    assert f"{written['curves']['lvef_percent'].iloc[0]:.3f}" in printed
