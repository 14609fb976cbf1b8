from __future__ import annotations

import re
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import typer
from PIL import Image
from typer.testing import CliRunner

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.cli import convert as cli
from nnunet_qa.data.fibula_phantom import write_fibula
from nnunet_qa.data.folder_phantom import write_folder
from nnunet_qa.data.paths import read_json
from nnunet_qa.dataset_conversion import folder as script
from nnunet_qa.dataset_conversion.engine import Options
from nnunet_qa.dataset_conversion.folder_options import Labels, Pattern
from nnunet_qa.errors import DatasetError, ImageError

DOCS = Path(__file__).parents[2] / "docs"
VOLUMES = {"images": "images/*.nii.gz", "masks": "masks/*_seg.nii.gz"}
STRAIGHT = np.eye(3).ravel().tolist()


def save(path: Path, array: np.ndarray, direction: list[float] = STRAIGHT, origin: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((origin, 2.0, 3.0))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize(
    "turn", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]])]
)
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_come_back(turn: np.ndarray, ending: str, tmp_path: Path, raw: Path, unchecked: None) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 2000, size=(4, 6, 8)).astype(np.int16)
    mask = rng.choice([0, 3, 5, 9], size=image.shape).astype(np.uint8)
    for name in ("a", "b"):
        save(tmp_path / "in" / "ct" / f"{name}{ending}", image, turn.ravel().tolist())
        save(tmp_path / "in" / "t2" / f"{name}_t2{ending}", image + 1, turn.ravel().tolist())
    save(tmp_path / "in" / "m" / f"a_seg{ending}", mask, turn.ravel().tolist())
    folder = script.convert(
        tmp_path / "in", 7, images=f"CT=ct/*{ending}", masks=f"m/*_seg{ending}", channels=[f"T2=t2/*_t2{ending}"],
        labels=["lesion=9", "organ=5,3"],
    )  # fmt: skip
    affine = np.diag([-1, -1, 1, 1.0]) @ np.block(
        [[turn @ np.diag([0.5, 0.75, 3.0]), np.array([[0.0], [2], [3]])], [np.zeros((1, 3)), np.ones((1, 1))]]
    )
    expected = {
        "imagesTr/a_0000": image, "imagesTr/a_0001": image + 1, "imagesUn/b_0001": image + 1,
        "labelsTr/a": np.array([0, 0, 0, 2, 0, 2, 0, 0, 0, 1])[mask],
    }  # fmt: skip
    for name, values in expected.items():
        found = nibabel.load(folder / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), values.T)
        np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    content = read_json(folder / "dataset.json")
    assert content["channel_names"] == {"0": "CT", "1": "T2"}
    assert content["labels"] == {"background": 0, "lesion": 1, "organ": 2}


@pytest.mark.parametrize(("ending", "kind"), [(".png", np.uint8), (".tif", np.uint16), (".bmp", np.uint8)])
def test_pictures_come_back(ending: str, kind: type, tmp_path: Path, raw: Path, unchecked: None) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, np.iinfo(kind).max, size=(16, 24)).astype(kind)
    mask = (rng.random(image.shape) > 0.5).astype(np.uint8) * 255
    names = ["it's 1", "größe 2", "three"]
    for name in names:
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "in" / f"{name}{ending}")
    Image.fromarray(mask).save(tmp_path / "in" / "it's 1.gt.png")
    Image.fromarray(mask).save(tmp_path / "in" / "größe 2.gt.png")
    folder = script.convert(tmp_path / "in", 7, images=f"*{ending}", masks="*.gt.png")
    out = ".tif" if ending == ".tif" else ".png"
    assert CaseTable.read(folder / "cases.csv").case_ids() == ["gr_e_2", "it_s_1", "three"]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "imagesTr" / f"gr_e_2_0000{out}")), image)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "labelsTr" / f"it_s_1{out}")), mask // 255)
    assert (folder / "imagesUn" / f"three_0000{out}").is_file()


def test_subjects_roles_and_what_is_left_out(tmp_path: Path, raw: Path, unchecked: None) -> None:
    source = tmp_path / "in"
    image = np.zeros((2, 6, 8), np.int16)
    mask = (np.arange(96).reshape(image.shape) % 2).astype(np.uint8)
    for name in ("s1/a", "s1/b", "s2/a", "s2/b", "s3/a", "s3/b", "x/a"):
        save(source / f"{name}.nii", image)
    for name in ("s1/a", "s1/b", "s2/a", "s3/a", "s9/a"):
        save(source / f"{name}_m.mha", mask)
    save(source / "s3" / "b_m.mha", mask[:, :, :4])
    (source / "s4").mkdir()
    (source / "s4" / "a.nii").symlink_to(tmp_path / "outside.nii")
    save(tmp_path / "outside.nii", image)
    folder = script.convert(
        source, 7, images="*/*.nii", masks="*/*_m.mha", subject_regex=r"^(s\d)/", test_subjects=["s2"],
        options=Options(folds=2),
    )  # fmt: skip
    table = CaseTable.read(folder / "cases.csv")
    assert table.case_ids(Role.LABELLED) == ["s1_a", "s1_b", "s3_a", "s3_b"]
    assert table.case_ids(Role.TEST) == ["s2_a"]
    assert table.subjects()["s1_b"] == "s1"
    report = pd.read_csv(folder / "conversion_report.csv").set_index("name")["reason"].fillna("").to_dict()
    assert "kept for testing" in report["s2/b.nii"]
    assert "does not match --subject-regex" in report["x/a.nii"]
    assert "without an image" in report["s9/a_m.mha"]
    assert "symbolic link" in report["s4/a.nii"]
    assert report["s1/a.nii"] == ""
    assert not (tmp_path / "nnunet" / "nnUNet_raw" / "outside.nii").exists()


def test_bad_images_are_reported_and_strict_stops(tmp_path: Path, raw: Path, unchecked: None) -> None:
    paths = write_folder(tmp_path, np.random.default_rng(0), cases=6, annotated=6, shape=(4, 8, 8))
    mask = tmp_path / "masks" / "case_02_seg.nii.gz"
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(mask))) * 7
    save(mask, values)
    paths[2].write_bytes(paths[2].read_bytes()[:-40])
    save(tmp_path / "masks" / "case_04_seg.nii.gz", values // 7, origin=0.3)
    save(tmp_path / "t2" / "case_05.nii.gz", values)
    folder = script.convert(tmp_path, 7, **VOLUMES)
    report = pd.read_csv(folder / "conversion_report.csv").set_index("name")["reason"].fillna("").to_dict()
    assert "holds the value 7, which no label names; add --label" in report["images/case_02.nii.gz"]
    assert "truncated" in report["images/case_03.nii.gz"]
    assert "another grid" in report["images/case_04.nii.gz"]
    assert report["images/case_01.nii.gz"] == report["images/case_06.nii.gz"] == ""
    with pytest.raises(DatasetError, match=r"case_02.nii.gz: .*the value 7"):
        script.convert(tmp_path, 8, **VOLUMES, options=Options(strict=True))
    patterns = [Pattern.parse("images/*.nii.gz", name="image"), Pattern.parse("T2=t2/*.nii.gz")]
    units, left_out = script.find_cases(tmp_path, patterns, Pattern.parse("masks/*_seg.nii.gz", name="mask"))
    assert [one.name[-9:-7] for one in left_out] == ["01", "02", "03", "04", "06"]
    assert 'no file of the channel "T2"' in left_out[0].reason
    assert all(one.bad for one in left_out)
    with pytest.raises(ImageError, match=r"t2.case_05.nii.gz: lies on another grid than the first channel"):
        list(script.read_case(units[0].content, labels=Labels.parse([])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "/images/*.nii.gz"}, "give the folder with -i"),
        ({"masks": "../*.nii.gz"}, "give the folder with -i"),
        ({"images": "scans/*.nii.gz"}, "no file fits --images"),
        ({"channels": ["t2/*.nii.gz"]}, "give NAME=GLOB"),
        ({"channels": ["image=t2/*.nii.gz"]}, "the same name"),
        ({"channels": ["T2=t2/*.nii.gz"]}, "no image makes a case"),
        ({"labels": ["lesion"]}, "give NAME=VALUE"),
        ({"labels": ["a=1", "a=2"]}, '"a" twice'),
        ({"labels": ["a=1", "b=1"]}, "already belongs"),
        ({"labels": ["background=1"]}, "the background alone"),
        ({"subject_regex": "("}, "not a regular expression"),
        ({"test_subjects": ["case_09"]}, 'no subject "case_09"'),
        ({"images": "**/*.*", "masks": "none"}, "is a picture and"),
    ],
)
def test_options_that_do_not_fit(change: dict[str, object], message: str, tmp_path: Path, raw: Path) -> None:
    write_folder(tmp_path / "in", np.random.default_rng(0), cases=2, annotated=2, shape=(4, 8, 8))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "in" / "more.png")
    with pytest.raises(DatasetError, match=message) as caught:
        script.convert(tmp_path / "in", 7, **{**VOLUMES, **change})
    assert "\n" not in str(caught.value)
    assert not raw.exists()


def test_labels() -> None:
    labels = Labels.parse(["ignore=255", "organ=1", "background=9"])
    assert labels.names == {"background": 0, "organ": 1, "ignore": 2}
    np.testing.assert_array_equal(labels.of(np.array([[0, 1, 9, 255]]), "m"), [[0, 1, 0, 2]])
    binary = Labels.parse([])
    np.testing.assert_array_equal(binary.of(np.array([0, 255], np.uint8), "m"), [0, 1])
    np.testing.assert_array_equal(binary.of(np.array([0.0, 1.0]), "m"), [0, 1])
    for wrong in ([0, 1, 255], [0, 2], [0.5, 1.0]):
        with pytest.raises(ImageError, match="no label names"):
            binary.of(np.array(wrong), "m")


def test_stars_stand_for_the_same_text(tmp_path: Path) -> None:
    for name in ("a/1/x.png", "a/1/2/x.png", "x.png", "b[1].png", "b1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = Pattern.parse("**/?.png", name="i").files(tmp_path)
    assert set(found) == {("", "x"), ("a/1/", "x"), ("a/1/2/", "x")}
    assert set(Pattern.parse("b[[]*].png", name="i").files(tmp_path)) == {("[", "1")}
    assert set(Pattern.parse("[a-c][0-9].png", name="i").files(tmp_path)) == {("b", "1")}


@pytest.mark.parametrize("page", ["convert-folder.md", "convert-fibula.md"])
def test_the_pages_commands_run(page: str, tmp_path: Path, raw: Path, unchecked: None) -> None:
    rng = np.random.default_rng(0)
    write_folder(tmp_path / "spleen", rng, cases=2, annotated=1, shape=(4, 8, 8))
    write_fibula(tmp_path / "fibula", rng, patients=2, annotated=2)
    for number, name in enumerate(("eye1_l", "eye1_r", "eye2_l", "eye3_l")):
        for folder, ending in (("scans", "png"), ("drusen", "tif")):
            (tmp_path / "eyes" / folder).mkdir(parents=True, exist_ok=True)
            picture = np.full((8, 8), 255 if folder == "drusen" else number, np.uint8)
            Image.fromarray(picture).save(tmp_path / "eyes" / folder / f"{name}.{ending}")
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    text = "\n".join(blocks).replace("/data/", f"{tmp_path}/")
    for code in re.findall(r'python -c "\n(.*?)"\n', text, flags=re.DOTALL):
        exec(compile(code, page, "exec"), {})
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    commands = [line for line in text.splitlines() if line.startswith("nnunet-qa convert")]
    assert len(commands) == (3 if "folder" in page else 2)
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output or result.exception
    assert len(list(raw.glob("Dataset1*/dataset.json"))) == len(commands)


@pytest.mark.real_data
def test_real_hippocampi_come_back(real_data: Path, raw: Path, unchecked: None) -> None:
    base = real_data / "hippocampus_mr"
    folder = script.convert(
        base, 7, images="MR=images/hippocampus_0[01]?.nii.gz", masks="labels/hippocampus_0[01]?.nii.gz",
        labels=["posterior=2", "anterior=1"],
    )  # fmt: skip
    cases = CaseTable.read(folder / "cases.csv").case_ids(Role.LABELLED)
    assert len(cases) >= 2
    for case in cases:
        number = case.replace("_", "")
        image, label = (nibabel.load(base / kind / f"hippocampus_0{number}.nii.gz") for kind in ("images", "labels"))
        found = nibabel.load(folder / "imagesTr" / f"{case}_0000.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(image.dataobj))
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)
        mask = np.asarray(nibabel.load(folder / "labelsTr" / f"{case}.nii.gz").dataobj)
        np.testing.assert_array_equal(mask, np.array([0, 2, 1])[np.asarray(label.dataobj).astype(int)])


def test_links_make_no_second_subject_and_no_loop(tmp_path: Path) -> None:
    for name in ("a/1", "b/2"):
        save(tmp_path / f"{name}.nii.gz", np.zeros((2, 3, 4), np.uint8))
    (tmp_path / "a" / "0.nii.gz").symlink_to(tmp_path / "a" / "1.nii.gz")
    (tmp_path / "again").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    for glob in ("**/*.nii.gz", "*/*.nii.gz"):
        units, left_out = script.find_cases(tmp_path, [Pattern("CT", glob)], Pattern("mask", "*_seg.nii.gz"))
        assert [unit.name for unit in units] == ["a/1.nii.gz", "b/2.nii.gz"]
        reasons = {one.name: one.reason for one in left_out}
        assert reasons["a/0.nii.gz"] == "is the same file as 1.nii.gz"
        assert "linked folder" in reasons["again"]
        assert {one.name for one in left_out if one.bad} == set(reasons) - {"a/0.nii.gz"}


def test_a_relative_source_is_found_from_another_working_folder(
    tmp_path: Path, raw: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("images/a", "masks/a_seg"):
        save(tmp_path / "in" / f"{name}.nii.gz", np.ones((2, 3, 4), np.uint8))
    real = script.engine.convert

    def elsewhere(*arguments: object, **options: object) -> Path:
        monkeypatch.chdir("/")
        return real(*arguments, **options)

    monkeypatch.setattr(script.engine, "convert", elsewhere)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_raw", "raw")
    folder = script.convert(Path("in"), 7, **VOLUMES)
    assert folder == tmp_path / "raw" / "Dataset007_Folder"
    assert (folder / "labelsTr" / "a.nii.gz").is_file()
