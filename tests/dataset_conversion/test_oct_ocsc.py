from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import convert as cli
from nnunet_qa.data.phantoms import write_ocsc
from nnunet_qa.dataset_conversion import oct_ocsc
from nnunet_qa.dataset_conversion.engine import DONE, Options
from nnunet_qa.dataset_conversion.oct import Framing
from nnunet_qa.dataset_conversion.report import REPORT
from nnunet_qa.errors import DatasetError
from tests.phantom import tree

WHOLE = Framing(crop=False, size=None, blank_padding=False)


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two stacks with masks right in GT, for tests that change files."""
    folder = tmp_path / "own"
    write_ocsc(
        folder,
        np.random.default_rng(1),
        stacks=["topcon_1", "nidek_2"],
        train=3,
        annotated=2,
        test=1,
        rows=64,
        columns=96,
        severity=1.0,
    )
    return folder


@pytest.fixture(scope="module")
def converted(module_raw: Path, ocsc_source: Path) -> Path:
    return oct_ocsc.convert(ocsc_source, 102, grader="G3")


def test_roles_identifiers_and_files(converted: Path, ocsc_source: Path) -> None:
    table = CaseTable.read(converted / "cases.csv")
    for stack, subject in (("Spectralis_1", "spectralis_1"), ("cirrus_2", "cirrus_2"), ("cirrus_03", "cirrus_3")):
        known = {path.stem for path in (ocsc_source / stack / "train" / "GT" / "G1").iterdir()}
        assert len(known) == 2
        for number in range(1, 5):
            role = Role.LABELLED if f"bscan_{number}" in known else Role.UNLABELLED
            assert f"{subject}_train_bscan_{number:03d}" in table.case_ids(role)
    assert len(table.case_ids(Role.TEST)) == 6
    assert all("_test_bscan_" in case for case in table.case_ids(Role.TEST))
    assert len(list((converted / "imagesTs").iterdir())) == len(list((converted / "labelsTs").iterdir())) == 6
    assert len(list((converted / "imagesUn").iterdir())) == 6
    row = table.frame.set_index("case_id").loc["cirrus_3_train_bscan_002"]
    assert (row["subject_id"], row["site"], row["slice_index"]) == ("cirrus_3", "cirrus", 2)
    assert row["stack_id"] == "cirrus_3_train"
    assert picture(next((converted / "imagesUn").iterdir())).shape == (80, 192)


@pytest.mark.parametrize("grader", ["G1", "g2", "G3"])
def test_graders(ocsc_source: Path, raw: Path, unchecked: None, grader: str) -> None:
    folder = oct_ocsc.convert(ocsc_source, 5, grader=grader, framing=WHOLE)
    labels = sorted((folder / "labelsTr").glob("cirrus_2_*.png"))
    assert len(labels) == 2
    for label in labels:
        name = f"bscan_{int(label.stem[-3:])}.png"
        first, second = (picture(ocsc_source / "cirrus_2" / "train" / "GT" / one / name) > 0 for one in ("G1", "G2"))
        expected = {"G1": first, "G2": second, "G3": first & second}[grader.upper()]
        np.testing.assert_array_equal(picture(label), expected)


def test_a_folder_g3_goes_before_the_overlap(tmp_path: Path, raw: Path, unchecked: None) -> None:
    write_ocsc(
        tmp_path / "in",
        np.random.default_rng(0),
        stacks=["nidek_1", "nidek_2"],
        train=1,
        annotated=1,
        test=0,
        rows=64,
        columns=96,
        graders=("G1", "G2", "G3"),
    )
    mask = np.zeros((64, 96), dtype=np.uint8)
    mask[30, 40] = 1  # 0/1 instead of 0/255
    Image.fromarray(mask).save(tmp_path / "in" / "nidek_1" / "train" / "GT" / "G3" / "bscan_1.png")
    folder = oct_ocsc.convert(tmp_path / "in", 5, grader="G3", framing=WHOLE)
    np.testing.assert_array_equal(picture(folder / "labelsTr" / "nidek_1_train_bscan_001.png"), mask)


def test_a_bscan_of_one_grader_only_is_not_annotated_for_g3(tmp_path: Path, ocsc_source: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(ocsc_source, source)
    path = sorted((source / "cirrus_2" / "train" / "GT" / "G2").iterdir())[0]
    path.unlink()
    stacks = {(one.subject, one.split): one for one in oct_ocsc.find_stacks(source, grader="G3")[0]}
    stack = stacks["cirrus_2", "train"]
    assert int(path.stem[6:]) not in stack.masks
    assert len(stack.masks) == 1


def test_endings_may_differ_and_jpeg_masks_are_cleaned(own: Path, raw: Path, unchecked: None) -> None:
    train = own / "topcon_1" / "train"
    mask_path = max((train / "GT").iterdir(), key=lambda path: int((picture(path) > 0).sum()))
    image_path = train / "Image" / mask_path.name
    image, mask = picture(image_path), picture(mask_path)
    Image.fromarray(image).save(image_path.with_suffix(".TIF"), format="TIFF")
    Image.fromarray(np.stack([mask] * 3, axis=-1)).save(mask_path.with_suffix(".jpg"), quality=90)
    assert (np.asarray(Image.open(mask_path.with_suffix(".jpg")).convert("L")) > 0).sum() > (mask > 0).sum() * 1.3
    image_path.unlink()
    mask_path.unlink()
    folder = oct_ocsc.convert(own, 5, framing=WHOLE)
    case = f"topcon_1_train_bscan_{int(mask_path.stem[6:]):03d}"
    np.testing.assert_array_equal(picture(folder / "imagesTr" / f"{case}_0000.png"), image)
    assert (picture(folder / "labelsTr" / f"{case}.png") != (mask > 0)).sum() <= 0.1 * (mask > 0).sum()


def test_sixteen_bits_are_scaled(own: Path, raw: Path, unchecked: None) -> None:
    path = own / "nidek_2" / "train" / "Image" / "bscan_1.png"
    image = picture(path)
    Image.fromarray(image.astype(np.uint16) * 257).save(path)
    folder = oct_ocsc.convert(own, 5, framing=WHOLE)
    np.testing.assert_array_equal(picture(next(folder.glob("images*/nidek_2_train_bscan_001_0000.png"))), image)


def test_test_subjects_and_unannotated_test_images(
    own: Path, raw: Path, unchecked: None, caplog: pytest.LogCaptureFixture
) -> None:
    write_ocsc(own, np.random.default_rng(2), stacks=["cirrus_9"], train=3, annotated=2, test=1, rows=64, columns=96)
    (own / "nidek_2" / "test" / "GT" / "bscan_1.png").unlink()
    table = CaseTable.read(oct_ocsc.convert(own, 5, test_subjects=["Topcon_1"]) / "cases.csv")
    assert not [case for case in table.case_ids(Role.LABELLED) if case.startswith("topcon_1")]
    assert not [case for case in table.case_ids(Role.UNLABELLED) if case.startswith("topcon_1")]
    assert len([case for case in table.case_ids(Role.TEST) if case.startswith("topcon_1_train")]) == 2
    assert not [case for case in table.case_ids() if case.startswith("nidek_2_test")]
    assert "nidek_2_test: 1 B-scans: left out: have no mask, of a stack for testing" in caplog.text
    assert "topcon_1_train: 1 B-scans: left out: have no mask" in caplog.text


def test_processes_and_a_second_run_give_the_same_files(own: Path, raw: Path, unchecked: None) -> None:
    write_ocsc(own, np.random.default_rng(2), stacks=["cirrus_9"], train=2, annotated=1, test=0, rows=64, columns=96)
    folder = oct_ocsc.convert(own, 5)
    once = tree(folder, without=(DONE,))
    next((folder / "imagesTr").iterdir()).unlink()
    oct_ocsc.convert(own, 5)
    assert tree(folder, without=(DONE,)) == once
    oct_ocsc.convert(own, 5, options=Options(jobs=2, overwrite=True))
    assert tree(folder, without=(DONE,)) == once


def test_what_does_not_match_the_layout(tmp_path: Path, own: Path, ocsc_source: Path, raw: Path) -> None:
    def refused(text: str, source: Path = own, grader: str | None = None) -> None:
        with pytest.raises(DatasetError, match=text) as caught:
            oct_ocsc.convert(source, 9, grader=grader)
        assert "\n" not in str(caught.value)

    refused("no such folder", tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    refused(r"no folder named <vendor>_<n> there; expected", tmp_path / "other")
    refused("--grader G4: choose from G1, G2, G3", grader="G4")
    refused("GT: has the graders G1, G2; choose one with --grader", ocsc_source)
    refused(r"no folder G1 there \(found: no graders\); leave out --grader", grader="G1")
    assert not raw.exists()  # all of this was found before anything was written


def faults(source: Path, number: int = 9) -> dict[str, str]:
    """Reasons of the report, by name, of what was not converted."""
    folder = oct_ocsc.convert(source, number, options=Options(folds=2))
    report = pd.read_csv(folder / REPORT, keep_default_na=False)
    return dict(report.loc[report["status"] != "converted", ["name", "reason"]].to_numpy().tolist())


def test_faulty_stacks_stop_no_other(own: Path, raw: Path, unchecked: None, tmp_path: Path) -> None:
    draw = {"train": 2, "annotated": 1, "test": 0, "rows": 64, "columns": 96}
    write_ocsc(own, np.random.default_rng(2), stacks=["cirrus_7", "cirrus_8", "cirrus_9"], **draw)
    mask = own / "topcon_1" / "train" / "GT" / "bscan_17.png"
    shutil.copy(next(mask.parent.iterdir()), mask)
    shutil.rmtree(own / "nidek_2" / "test" / "Image")
    shutil.rmtree(own / "cirrus_7" / "train")
    image = own / "cirrus_8" / "train" / "Image" / "bscan_2.png"
    shutil.copy(image, image.with_name("bscan_02.png"))
    linked = own / "cirrus_9" / "train" / "Image" / "bscan_1.png"
    linked.rename(tmp_path / "away.png")
    linked.symlink_to(tmp_path / "away.png")
    stack = next(stack for stack in oct_ocsc.find_stacks(own, grader=None)[0] if stack.stack_id == "topcon_1_train")
    assert next(oct_ocsc.read_stack(stack, source=own, framing=WHOLE, test=set())).bad  # the mask
    found = faults(own)
    assert found.pop(str(mask)) == "has no image bscan_17 in Image"
    assert "cirrus_7: has neither a folder train nor test" in found.pop("cirrus_7")
    assert "bscan_2.png: is a second file of B-scan 2 beside bscan_02.png" in found.pop("cirrus_8_train")
    assert "bscan_1.png: is a symbolic link out of" in found.pop("cirrus_9_train")
    assert "nidek_2/test/Image: no bscan_<k>.png" in found.pop("nidek_2_test")
    assert not found
    stacks = set(CaseTable.read(raw / "Dataset009_OCTOptima" / "cases.csv").frame["stack_id"])
    assert stacks == {"topcon_1_train", "topcon_1_test", "nidek_2_train"}
    with pytest.raises(DatasetError, match=r"^cirrus_7: .*has neither"):
        oct_ocsc.convert(own, 10, options=Options(strict=True))


def test_other_names_and_second_folders_have_a_row(own: Path, raw: Path, unchecked: None) -> None:
    shutil.copytree(own / "topcon_1" / "train", own / "topcon_01" / "train")
    shutil.copytree(own / "topcon_1" / "train", own / "cirrus" / "Train")
    (own / "notes").mkdir()
    train = own / "topcon_1" / "train"
    for path in ("Thumbs.db", "Image/copy of bscan_1.png", "GT/G4/bscan_1.png", "GT/notes.txt", ".hidden"):
        (train / path).parent.mkdir(exist_ok=True)
        (train / path).touch()
    folder = oct_ocsc.convert(own, 9)
    found = {name.removeprefix(f"{own}/"): reason for name, reason in faults(own).items()}
    assert found.pop("topcon_1/train").startswith("is a second folder of the stack topcon_1; the other one was taken")
    assert found.pop("cirrus") == found.pop("notes") == "is no folder named <vendor>_<n>"
    others = ("Thumbs.db", "Image/copy of bscan_1.png", "GT/G4", "GT/notes.txt")
    for name in others:
        assert found.pop(f"topcon_1/train/{name}").startswith("has another name or place than <vendor>_<n>/{train")
    assert not found
    _, left_out = oct_ocsc.find_stacks(own, grader=None)
    bad = {one.name.removeprefix(f"{own}/") for one in left_out if one.bad}
    assert bad == {"topcon_1/train", "cirrus", "topcon_1/train/Image/copy of bscan_1.png"}
    assert "topcon_1_train" in set(CaseTable.read(folder / "cases.csv").frame["stack_id"])


@pytest.mark.parametrize(("name", "first"), [("topcon_1/Train", "topcon_1/train"), ("nidek_2/train/IMAGE", "Image")])
def test_a_second_folder_in_other_letters_has_a_row(own: Path, name: str, first: str) -> None:
    (own / name).mkdir()
    taken, left = sorted((own / name, (own / name).parent / Path(first).name))
    _, (found,) = oct_ocsc.find_stacks(own, grader=None)
    assert (found.name, found.bad) == (str(left), True)
    assert f"beside {taken.name}, which was taken" in found.reason


def test_broken_files(own: Path, raw: Path, unchecked: None) -> None:
    mask = sorted((own / "topcon_1" / "train" / "GT").iterdir())[0]
    whole = picture(mask)
    Image.fromarray(whole[:-1]).save(mask)
    reason = faults(own)["topcon_1_train"]
    assert reason.endswith(f"{mask.name}: the mask has shape (63, 96), its image (64, 96); they must be the same")
    Image.fromarray(whole).save(mask)
    image = own / "topcon_1" / "train" / "Image" / "bscan_2.png"
    image.write_bytes(image.read_bytes()[:100])
    assert "bscan_2.png: cannot be read as an image" in faults(own)["topcon_1_train"]
    pixels = np.random.default_rng(0).random((64, 96)).astype(np.float32)
    pixels[0, 0] = np.nan
    image.unlink()
    Image.fromarray(pixels).save(image.with_suffix(".tif"))
    assert "bscan_2.tif: 1 of 6144 intensities are NaN" in faults(own)["topcon_1_train"]


def test_command(ocsc_source: Path, raw: Path, unchecked: None) -> None:
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    arguments = ["convert", "oct-ocsc", "-i", str(ocsc_source), "-d", "40", "--grader", "G1", "--name", "Mine"]
    more = [
        "--test-subjects",
        "cirrus_2",
        "--test-subjects",
        "cirrus_3",
        "--crop-rows",
        "40",
        "--native",
        "--folds",
        "2",
    ]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 0, result.output
    assert " converted, 0 skipped, " in result.output
    folder = raw / "Dataset040_Mine"
    record = json.loads((folder / "conversion.json").read_text())["settings"]
    assert record["grader"] == "G1"
    assert record["test_subjects"] == ["cirrus_2", "cirrus_3"]
    assert set(pd.read_csv(folder / "cases.csv")["crop_rows"]) == {40}
    assert picture(next((folder / "imagesTr").iterdir())).shape == (40, 96)
    assert "nnunet-qa convert oct-ocsc -i" in CliRunner().invoke(app, ["convert", "oct-ocsc", "--help"]).output
