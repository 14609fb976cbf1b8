"""UK Biobank: zips, NIfTI folders and contours to cases of frames, compared with nibabel and pydicom."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import typer
from typer.testing import CliRunner

from nnunet_qa.cli import convert as cli
from nnunet_qa.data.cine_dicom import Acquisition, write_series_zip, write_ukbiobank_zip
from nnunet_qa.data.cine_files import geometry, write_labels, write_nifti
from nnunet_qa.data.cine_phantom import Cine, aortic_cine, short_axis_cine
from nnunet_qa.data.images import Geometry
from nnunet_qa.data.ukbiobank_phantom import LONG_AXIS_CONTOURS, draw_long_axis, write_cvi42, write_long_axis_zip
from nnunet_qa.dataset_conversion.engine import Options
from nnunet_qa.dataset_conversion.ukbiobank import convert, read_stack
from nnunet_qa.dataset_conversion.ukbiobank_files import find_stacks
from nnunet_qa.errors import DatasetError
from tests.dataset_conversion.conftest import contents

pytestmark = pytest.mark.usefixtures("unchecked")


def draw(seed: int = 0) -> Cine:
    rng = np.random.default_rng(seed)
    return short_axis_cine(rng, frames=4, slices=7, shape=(62, 60), spacing=(12.0, 4.0, 4.2))


@pytest.fixture(scope="module")
def cine() -> Cine:
    return draw()


def affine(place: Geometry) -> np.ndarray:
    """As nibabel has it: RAS, computed here from the LPS of DICOM."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(place.direction, (3, 3)) * np.array(place.spacing)
    matrix[:3, 3] = place.origin
    return np.diag([-1, -1, 1, 1]) @ matrix


def check_frames(folder: Path, stack: str, image: np.ndarray, place: Geometry, masks: Mapping[int, np.ndarray]) -> None:
    """Every frame is there once, with the values, position and label of the source."""
    for frame, expected in enumerate(image):
        case = f"{stack}_fr{frame:03d}"
        role = "Tr" if frame in masks else "Un"
        found = nib.load(folder / f"images{role}" / f"{case}_0000.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj).T, expected)
        np.testing.assert_allclose(found.affine, affine(place), atol=2e-4)
        label = folder / "labelsTr" / f"{case}.nii.gz"
        assert label.is_file() == (frame in masks)
        if frame in masks:
            found = nib.load(label)
            np.testing.assert_array_equal(np.asarray(found.dataobj).T, masks[frame])
            np.testing.assert_allclose(found.affine, affine(place), atol=2e-4)


def cases(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False).set_index("case_id")


def report(folder: Path) -> str:
    return (folder / "conversion_report.csv").read_text(encoding="utf-8")


def key_masks(cine: Cine) -> dict[int, np.ndarray]:
    return {frame: cine.mask[frame] for frame in (0, cine.end_systole)}


@pytest.mark.parametrize(("mixed", "manifest"), [(False, "manifest.csv"), (True, "manifest.cvs")])
def test_short_axis_zips_with_contours(tmp_path: Path, raw: Path, cine: Cine, mixed: bool, manifest: str) -> None:
    rng = np.random.default_rng(1)
    zipped = write_ukbiobank_zip(tmp_path / "zips", "1000001", cine, rng, mixed=mixed, manifest=manifest)
    write_cvi42(tmp_path / "xml" / "1000001.cvi42wsx", zipped, cine.mask, frames=[0, cine.end_systole])
    folder = convert(tmp_path / "zips", 131, annotations=tmp_path / "xml")
    check_frames(folder, "1000001_sa", np.rint(cine.image), geometry(cine), key_masks(cine))
    table = cases(folder)
    end = f"1000001_sa_fr{cine.end_systole:03d}"
    assert table.loc["1000001_sa_fr000", ["subject_id", "stack_id", "phase"]].tolist() == [
        "1000001",
        "1000001_sa",
        "ED",
    ]
    assert table.loc[end, ["phase", "phase_from", "frame_index"]].tolist() == ["ES", "volume", str(cine.end_systole)]
    assert (table["phase"] == "").sum() == 2
    assert float(table["frame_time"].iloc[0]) == pytest.approx(cine.frame_time, abs=1e-5)
    assert "left out" not in report(folder)


def test_zips_with_masks_and_a_pool(tmp_path: Path, raw: Path, cine: Cine) -> None:
    other = draw(1)
    for eid, found in (("1", cine), ("2", other)):
        write_ukbiobank_zip(tmp_path / "in put", eid, found, np.random.default_rng(int(eid)))
    write_labels(tmp_path / "in put", "1", cine, annotated="all")
    folder = convert(tmp_path / "in put", 131, scheme="acdc")
    acdc = np.array([0, 3, 2, 1])
    check_frames(folder, "1_sa", np.rint(cine.image), geometry(cine), dict(enumerate(acdc[cine.mask])))
    check_frames(folder, "2_sa", np.rint(other.image), geometry(other), {})
    assert cases(folder)["phase_from"].value_counts().to_dict() == {"": 5, "equal labels": 2, "protocol": 1}


def test_nifti_folders_of_the_usual_converter(tmp_path: Path, raw: Path, cine: Cine) -> None:
    write_nifti(tmp_path / "nii", "7", cine, annotated="ed_es")
    series = sitk.ReadImage(str(tmp_path / "nii" / "7" / "sa.nii.gz"))
    sitk.WriteImage(series[:, :, :, cine.end_systole], str(tmp_path / "nii" / "7" / "sa_ES.nii.gz"))
    folder = convert(tmp_path / "nii", 131)
    check_frames(folder, "7_sa", np.rint(cine.image), geometry(cine), key_masks(cine))
    assert cases(folder).loc[f"7_sa_fr{cine.end_systole:03d}", "phase_from"] == "equal image"


def test_es_without_its_image_is_estimated_and_says_so(tmp_path: Path, raw: Path, cine: Cine) -> None:
    write_nifti(tmp_path / "nii", "7", cine, annotated="ed_es")
    table = cases(convert(tmp_path / "nii", 131))
    found = table[table["phase"] == "ES"]
    assert found["phase_from"].tolist() == ["estimate"]
    assert found["frame_index"].tolist() == [str(cine.end_systole)]


def test_a_volume_with_masks_of_two_phases(tmp_path: Path, raw: Path, cine: Cine) -> None:
    write_nifti(tmp_path / "nii", "7", cine, annotated="ed_es")
    path = tmp_path / "nii" / "7" / "sa.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(path))[:, :, :, 0], str(path))
    folder = convert(tmp_path / "nii", 131)
    check_frames(folder, "7_sa", np.rint(cine.image[:1]), geometry(cine), {0: cine.mask[0]})
    assert 'label_sa_ES.nii.gz,left out,0,"no frame but 0 fits it' in report(folder)


def test_contours_of_later_frames_are_ed_and_es_by_volume(tmp_path: Path, raw: Path, cine: Cine) -> None:
    zipped = write_ukbiobank_zip(tmp_path / "z", "1", cine, np.random.default_rng(1))
    mask = cine.mask.copy()
    mask[3], mask[1] = cine.mask[0], cine.mask[cine.end_systole]
    write_cvi42(tmp_path / "z" / "1.xml", zipped, mask, frames=[1, 3])
    table = cases(convert(tmp_path / "z", 131))
    assert table["phase"].tolist() == ["", "ES", "", "ED"]
    assert table["role"].tolist() == ["unlabelled", "labelled", "unlabelled", "labelled"]


def test_masks_with_turned_axes_come_onto_the_images(tmp_path: Path, raw: Path, cine: Cine) -> None:
    write_ukbiobank_zip(tmp_path / "z", "7", cine, np.random.default_rng(0))
    for path in write_labels(tmp_path / "z", "7", cine, annotated="ed_es"):
        sitk.WriteImage(sitk.PermuteAxes(sitk.ReadImage(str(path))[::-1, :, ::-1], [2, 0, 1]), str(path))
    folder = convert(tmp_path / "z", 131, frames="ed_es")
    np.testing.assert_array_equal(
        np.asarray(nib.load(folder / "labelsTr" / "7_sa_fr000.nii.gz").dataobj).T, cine.mask[0]
    )
    assert len(cases(folder)) == 2


def test_oddities_of_a_zip_are_in_the_report(tmp_path: Path, raw: Path, cine: Cine) -> None:
    image = np.rint(cine.image).astype(np.uint16)
    two = [
        Acquisition(image=part, place=geometry(cine), frame_time=0.1, name=f"CINE_segmented_SAX{end}")
        for part, end in ((image, "_b{}"), (image[:, :1], ""))
    ]
    zipped = write_series_zip(tmp_path / "z" / "1_20209_2_0.zip", "1", two, np.random.default_rng(0))
    write_cvi42(tmp_path / "z" / "1.xml", zipped, cine.mask, frames=[0])
    folder = convert(tmp_path / "z", 131)
    check_frames(folder, "1_sa", image, geometry(cine), {0: cine.mask[0]})
    assert '1_sa,left out,0,"4 images of CINE_segmented_SAX, beside series with' in report(folder)


def test_masks_of_another_place_are_refused_for_their_subject_alone(tmp_path: Path, raw: Path, cine: Cine) -> None:
    write_nifti(tmp_path / "z", "7", cine, annotated="all")
    write_nifti(tmp_path / "z", "8", cine, annotated="ed_es")
    path = tmp_path / "z" / "8" / "label_sa_ED.nii.gz"
    label = sitk.ReadImage(str(path))
    label.SetOrigin([value + 30 for value in label.GetOrigin()])
    sitk.WriteImage(label, str(path))
    folder = convert(tmp_path / "z", 131)
    assert "8_sa,skipped,0" in report(folder)
    assert "lies elsewhere in the patient than its images" in report(folder)
    assert set(cases(folder)["subject_id"]) == {"7"}


def test_aorta_and_long_axis(tmp_path: Path, raw: Path) -> None:
    rng = np.random.default_rng(0)
    aorta = aortic_cine(rng, frames=4, shape=(64, 66), spacing=(6.0, 3.2, 3.4))
    write_ukbiobank_zip(tmp_path / "z", "3", aorta, rng)
    write_labels(tmp_path / "z", "3", aorta, annotated="all")
    folder = convert(tmp_path / "z", 131, view="ao")
    check_frames(folder, "3_ao", np.rint(aorta.image), geometry(aorta), dict(enumerate(aorta.mask)))
    drawn = {chambers: draw_long_axis(rng, chambers=chambers, frames=4, shape=(40, 36)) for chambers in (2, 3, 4)}
    zipped = write_long_axis_zip(tmp_path / "z", "3", [acquisition for acquisition, _ in drawn.values()], rng)
    for chambers in (2, 4):
        acquisition, mask = drawn[chambers]
        write_cvi42(
            tmp_path / "z" / "3" / "work.xml",
            zipped,
            mask,
            frames=[0, 2],
            contours=LONG_AXIS_CONTOURS,
            name=acquisition.name,
        )
        folder = convert(tmp_path / "z", 131 + chambers, view=f"la_{chambers}ch")
        check_frames(folder, f"3_la_{chambers}ch", acquisition.image, acquisition.place, {0: mask[0], 2: mask[2]})
        assert cases(folder).loc[f"3_la_{chambers}ch_fr002", "phase"] == "ES"


def test_rescaled_intensities_and_oblique_places(tmp_path: Path, raw: Path) -> None:
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    turn[:, 2] = np.cross(turn[:, 0], turn[:, 1])
    place = Geometry((1.1, 2.3, 7.0), (12.5, -80.25, 33.0), tuple(turn.ravel().tolist()))
    stored = np.random.default_rng(0).integers(0, 65535, (3, 3, 9, 8)).astype(np.uint16)
    for eid, rescale in (("1", (2.0, -1024.0)), ("2", (0.5, 0.25))):
        acquisition = Acquisition(
            image=stored, place=place, frame_time=0.05, name="CINE_segmented_SAX_b{}", rescale=rescale
        )
        zipped = write_series_zip(tmp_path / "z" / f"{eid}_20209_2_0.zip", eid, [acquisition], np.random.default_rng(0))
        mask = np.zeros(stored.shape, dtype=np.uint8)
        mask[..., 3:6, 2:6] = 1
        write_cvi42(tmp_path / "z" / f"{eid}_work.xml", zipped, mask, frames=[0])
    folder = convert(tmp_path / "z", 131)
    check_frames(folder, "1_sa", stored * 2.0 - 1024, place, {0: mask[0]})
    check_frames(folder, "2_sa", stored * 0.5 + 0.25, place, {0: mask[0]})


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.real_data
def test_real_pixels_come_back_voxel_for_voxel(tmp_path: Path, raw: Path, real_data: Path) -> None:
    folder = real_data / "sunnybrook_cardiac_mr"
    images, labels = (next(folder.rglob(name)) for name in ("images*", "labels*"))
    patient = sorted(path.name[:-10] for path in images.glob("*_ED.nii.gz"))[0]
    image, mask = (
        np.stack([read(part / f"{patient}_{phase}.nii.gz") for phase in ("ED", "ES")]) for part in (images, labels)
    )
    place = {"spacing": (8.0, 1.4, 1.4), "frame_time": 0.4, "view": "sa", "disease": ""}
    real = Cine(image=image, mask=mask, curves={"lv": (mask == 1).sum(axis=(1, 2, 3))}, **place)
    write_ukbiobank_zip(tmp_path / "z", "1", real, np.random.default_rng(0))
    write_labels(tmp_path / "z", "1", real, annotated="ed_es")
    converted = convert(tmp_path / "z", 131)
    check_frames(converted, "1_sa", image, geometry(real), {0: mask[0], 1: mask[1]})


def test_contours_of_other_views_do_no_harm(tmp_path: Path, raw: Path) -> None:
    rng = np.random.default_rng(0)
    drawn = {chambers: draw_long_axis(rng, chambers=chambers, frames=4, shape=(40, 36)) for chambers in (2, 4)}
    zipped = write_long_axis_zip(tmp_path / "z", "3", [acquisition for acquisition, _ in drawn.values()], rng)
    for chambers, (acquisition, mask) in drawn.items():
        path = tmp_path / "z" / "3" / f"{chambers}.xml"
        write_cvi42(path, zipped, mask, frames=[0, 2], contours=LONG_AXIS_CONTOURS, name=acquisition.name)
    strict = Options(strict=True)
    for chambers, (acquisition, mask) in drawn.items():
        folder = convert(tmp_path / "z", 131 + chambers, view=f"la_{chambers}ch", options=strict)
        check_frames(folder, f"3_la_{chambers}ch", acquisition.image, acquisition.place, {0: mask[0], 2: mask[2]})
        assert "left out" not in report(folder)
    path.write_text(re.sub(r'(?<=key=")[0-9.]{9,}(?=")', r"\g<0>9", path.read_text()))
    with pytest.raises(DatasetError, match=r"contours of 2 images that are not in 3_20208_2_0\.zip"):
        convert(tmp_path / "z", 137, view="la_2ch", options=strict)


def test_files_of_subjects_that_are_not_wanted_do_no_harm(tmp_path: Path, raw: Path, cine: Cine) -> None:
    zipped = write_ukbiobank_zip(tmp_path / "z", "1", cine, np.random.default_rng(0))
    write_cvi42(tmp_path / "z" / "1.xml", zipped, cine.mask, frames=[0])
    for name in ("2.cvi42wsx", "3_0.xml", "4/work.xml"):
        write_cvi42(tmp_path / "z" / name, zipped, cine.mask, frames=[0])
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("1\n", encoding="utf-8")
    assert "left out" not in report(convert(tmp_path / "z", 131, subjects=wanted, options=Options(strict=True)))
    wanted.write_text("1\n4\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"work\.xml: belongs to no subject that is here"):
        convert(tmp_path / "z", 132, subjects=wanted, options=Options(strict=True))


def test_contours_are_no_loss_to_a_view_that_knows_none(tmp_path: Path, raw: Path, cine: Cine) -> None:
    zipped = write_ukbiobank_zip(tmp_path / "other", "2", cine, np.random.default_rng(0))
    write_cvi42(tmp_path / "z" / "2" / "work.xml", zipped, cine.mask, frames=[0])
    write_labels(tmp_path / "z", "2", cine, annotated="ed_es")
    rng = np.random.default_rng(0)
    aorta = aortic_cine(rng, frames=4, shape=(64, 66), spacing=(6.0, 3.2, 3.4))
    write_ukbiobank_zip(tmp_path / "z", "1", aorta, rng)
    (tmp_path / "z" / "2" / "label_ao_ED.nii.gz").write_bytes(b"")
    _, found = find_stacks(tmp_path / "z", annotations=tmp_path / "z", view="ao", scheme="ukbb", frames="all")
    assert [(Path(one.name).name, one.bad) for one in found] == [("label_ao_ED.nii.gz", True), ("work.xml", False)]


def test_frames_and_subjects_can_be_chosen(tmp_path: Path, raw: Path, cine: Cine) -> None:
    for eid in ("1", "2", "3"):
        write_nifti(tmp_path / "nii", eid, cine, annotated="all" if eid == "1" else "none")
    wanted = tmp_path / "wanted.csv"
    wanted.write_text("eid,site\n1,a\n3,b # later\n99\n", encoding="utf-8")
    folder = convert(tmp_path / "nii", 131, frames="0,3", subjects=wanted)
    assert sorted(cases(folder).index) == ["1_sa_fr000", "1_sa_fr003", "3_sa_fr000", "3_sa_fr003"]
    assert "99,left out,0,is wanted but not here" in report(folder)
    with pytest.raises(DatasetError, match=r"other settings \(frames\)"):
        convert(tmp_path / "nii", 131, frames="all", subjects=wanted)
    folder = convert(tmp_path / "nii", 131, frames="ed_es", options=Options(overwrite=True))
    assert cases(folder)["phase"].value_counts().to_dict() == {"ED": 3, "ES": 3}


def test_subjects_for_testing(tmp_path: Path, raw: Path, cine: Cine) -> None:
    for eid in ("1", "2", "3"):
        write_nifti(tmp_path / "nii", eid, cine, annotated="none" if eid == "3" else "ed_es")
    folder = convert(tmp_path / "nii", 131, test_subjects=["2,3"])
    roles = cases(folder).groupby("subject_id")["role"].value_counts().to_dict()
    assert roles == {("1", "labelled"): 2, ("1", "unlabelled"): 2, ("2", "test"): 2}
    assert len(list((folder / "labelsTs").iterdir())) == 2
    assert '2_sa: 2 frames,left out,0,"are not annotated, of a subject for testing"' in report(folder)
    assert "3_sa: 4 frames,left out" in report(folder)
    with pytest.raises(DatasetError, match=r"other settings \(test_subjects\)"):
        convert(tmp_path / "nii", 131)
    with pytest.raises(DatasetError, match='no subject "9"'):
        convert(tmp_path / "nii", 131, test_subjects=["9"])


def test_nothing_is_lost_silently(tmp_path: Path, raw: Path, cine: Cine) -> None:
    source = tmp_path / "z"
    zipped = write_ukbiobank_zip(source, "1", cine, np.random.default_rng(0))
    write_nifti(source, "1", cine, annotated="all")
    write_labels(source, "2", cine, annotated="ed_es")
    (source / "Bündel 1.zip").write_bytes(zipped.read_bytes())
    (source / "1_20209_3_0.zip").write_bytes(zipped.read_bytes())
    write_cvi42(source / "nobody.xml", zipped, cine.mask, frames=[0])
    write_cvi42(source / "1" / "work.xml", zipped, cine.mask, frames=[0])
    (tmp_path / "outside.zip").write_bytes(zipped.read_bytes())
    (source / "5_20209_2_0.zip").symlink_to(tmp_path / "outside.zip")
    (source / "ä b_20209_2_0.zip").write_bytes(zipped.read_bytes())
    (source / "b_20209_2_0.zip").write_bytes(zipped.read_bytes())
    (source / "6_20209_2_0.zip").write_bytes(zipped.read_bytes()[:5000])
    text = report(folder := convert(source, 131))
    for line in (
        "1_20209_2_0.zip,left out,0,sa.nii.gz holds the same stack and was taken",
        "label_sa_ED.nii.gz,left out,0,has no image of this view",
        "Bündel 1.zip,left out,0,is not named",
        "has the same name b_sa; rename",
        "nobody.xml,left out,0,belongs to no subject",
        'work.xml,left out,0,"there are masks too, which were taken"',
        "is a symbolic link out of",
        "6_sa,skipped,0,",
    ):
        assert line in text
    _, found = find_stacks(source, annotations=source, view="sa", scheme="ukbb", frames="all")
    assert {Path(one.name).name for one in found if not one.bad} == {"1_20209_2_0.zip", "Bündel 1.zip"}
    assert {"label_sa_ED.nii.gz", "nobody.xml", "5_20209_2_0.zip"} < {Path(one.name).name for one in found if one.bad}
    assert set(cases(folder)["stack_id"]) == {"1_sa", "1_3_0_sa", "b_sa"}
    assert set(cases(folder)["subject_id"]) == {"1", "b"}
    assert "5_" not in "".join(cases(folder).index)


def test_no_identifying_field_reaches_the_output(tmp_path: Path, raw: Path, cine: Cine) -> None:
    acquisition = Acquisition(
        image=np.rint(cine.image).astype(np.uint16), place=geometry(cine), frame_time=0.1, name="CINE_segmented_SAX_b{}"
    )
    zipped = write_series_zip(
        tmp_path / "z" / "77_20209_2_0.zip", "SECRET^NAME", [acquisition], np.random.default_rng(0)
    )
    write_cvi42(tmp_path / "z" / "77.xml", zipped, cine.mask, frames=[0])
    folder = convert(tmp_path / "z", 131)
    for name, content in contents(folder).items():
        content = sitk_text(folder / name) if name.endswith(".nii.gz") else content
        assert not any(secret in content for secret in (b"SECRET", b"20160511", b"2016", b"1.2.826")), name


def sitk_text(path: Path) -> bytes:
    """Everything in the header of a NIfTI file."""
    image = nib.load(path)
    return image.header.binaryblock + b"".join(extension.get_content() for extension in image.header.extensions)


def test_units_can_be_sent_to_other_processes(tmp_path: Path, cine: Cine) -> None:
    write_ukbiobank_zip(tmp_path, "1", cine, np.random.default_rng(0))
    ((unit,), _) = find_stacks(tmp_path, annotations=tmp_path, view="sa", scheme="ukbb", frames="all")
    read_there, content = pickle.loads(pickle.dumps((read_stack, unit.content)))
    found = [case.images[0] for case in read_there(content)]
    np.testing.assert_array_equal(found, np.rint(cine.image))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--view", "sax"], '--view "sax" (did you mean "sa"?): choose from sa, ao'),
        (["--scheme", "acd"], '--scheme "acd" (did you mean "acdc"?)'),
        (["--frames", "0,x"], '--frames "0,x": give all, ed_es, or numbers'),
        (["--subjects", "none.txt"], "none.txt: cannot be read as a list of subjects"),
        (["-a", "nowhere"], "nowhere: no such folder"),
        ([], "no <eid>_20209_2_0.zip or <eid>/sa.nii.gz there"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, raw: Path, arguments: list[str], line: str) -> None:
    app = typer.Typer()
    cli.register(app)
    app.callback()(lambda: None)
    result = CliRunner().invoke(app, ["convert", "ukbiobank", "-i", str(tmp_path), "-d", "131", *arguments])
    assert isinstance(result.exception, DatasetError)
    assert line in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not raw.exists()
