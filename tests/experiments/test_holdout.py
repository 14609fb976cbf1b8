from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage.io import imread

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.journal import fcntl
from nnunet_qa.data.paths import raw_dataset_folder
from nnunet_qa.data.splits import check_splits
from nnunet_qa.errors import DatasetError
from nnunet_qa.experiments import runner
from nnunet_qa.experiments.budget import Budget
from nnunet_qa.experiments.holdout import Holdout, Parts, part_subjects
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.files import write_json
from tests.phantom import write_dataset

TINY: dict[str, Any] = {"iterations": 2, "iterations_per_epoch": 1, "val_iterations_per_epoch": 1}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Annotated phantoms of four subjects with two cases each; their own test cases have no part in this."""
    base = tmp_path_factory.mktemp("holdout")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (base / name).mkdir()
            patch.setenv(name, str(base / name))
        yield {
            "2d": raw_dataset_folder(write_dataset(741, "Pictures", dimensions=2, pool=0, seed=4)),
            "3d": raw_dataset_folder(write_dataset(742, "Volumes", dimensions=3, pool=0, seed=5)),
        }


def parts_of(source: Path) -> Parts:
    table = CaseTable.read(source / "cases.csv")
    subjects = table.subjects()
    return part_subjects({case: subjects[case] for case in table.case_ids(Role.LABELLED)}, seed=1, test_folds=4)


def holdout(source: Path, folder: Path, configuration: str = "2d", **budget: Any) -> Holdout:
    return Holdout(source, folder, parts_of(source), configuration, Budget(**TINY, **budget))


def pretend(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Instead of a command: plans that name two configurations."""
    if command[0] == "nnUNetv2_plan_and_preprocess":
        name = next(Path(environment["nnUNet_raw"]).iterdir()).name
        plans = Path(environment["nnUNet_preprocessed"]) / name / "nnUNetPlans.json"
        write_json(plans, {"configurations": {"2d": {}, "3d_fullres": {}}})


@pytest.fixture(scope="module")
def prepared(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Holdout]:
    """Pictures, planned by nnU-Net's own commands with smaller networks; volumes, whose commands are not run."""
    made = {
        "2d": holdout(sources["2d"], tmp_path_factory.mktemp("pictures"), features=(4, 8, 16)),
        "3d": holdout(sources["3d"], tmp_path_factory.mktemp("volumes"), "3d_fullres"),
    }
    made["2d"].prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_command", lambda command, environment, **_: pretend(command, environment))
        made["3d"].prepare()
    return made


def without_ending(folder: Path, ending: str) -> list[str]:
    return sorted(path.name.removesuffix(ending) for path in folder.iterdir())


@pytest.mark.parametrize(("kind", "ending"), [("2d", ".png"), ("3d", ".nii.gz")])
def test_the_parts_are_linked_as_a_dataset_of_their_own(prepared: dict[str, Holdout], kind: str, ending: str) -> None:
    made, parts = prepared[kind], prepared[kind].parts
    annotated = sorted([*parts.pool, *parts.validation])
    assert (len(annotated), len(parts.test)) == (6, 2)
    assert without_ending(made.raw / "imagesTr", f"_0000{ending}") == annotated
    assert without_ending(made.raw / "labelsTr", ending) == annotated
    assert without_ending(made.raw / "imagesTs", f"_0000{ending}") == sorted(parts.test)
    assert without_ending(made.raw / "labelsTs", ending) == sorted(parts.test)
    for case in annotated:
        assert (made.raw / "imagesTr" / f"{case}_0000{ending}").resolve() == made.images(case)[0].resolve()
        assert (made.raw / "labelsTr" / f"{case}{ending}").resolve() == made.label(case).resolve()
    for case in parts.test:
        link = made.raw / "labelsTs" / f"{case}{ending}"
        assert link.read_bytes() == (made.source / "labelsTr" / f"{case}{ending}").read_bytes()
    assert json.loads((made.raw / "dataset.json").read_text())["numTraining"] == 6
    table = CaseTable.read(made.raw / "cases.csv")
    assert table.case_ids(Role.LABELLED) == annotated
    assert table.case_ids(Role.TEST) == sorted(parts.test)
    assert table.subjects() == {case: case[:2] for case in [*annotated, *parts.test]}


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_images_and_labels_are_read_as_they_are(prepared: dict[str, Holdout], kind: str) -> None:
    made = prepared[kind]
    case = made.parts.test[0]
    for found, path in ((made.image(case), made.images(case)[0]), (made.labels(made.label(case)), made.label(case))):
        expected = imread(path) if kind == "2d" else sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        assert found.ndim == int(kind[0])
        np.testing.assert_array_equal(found, expected)


def test_plans_and_data_know_nothing_of_the_test_subjects(prepared: dict[str, Holdout]) -> None:
    made = prepared["2d"]
    folder = made.folder / "nnUNet_preprocessed" / made.source.name
    fingerprint = json.loads((folder / "dataset_fingerprint.json").read_text())
    assert len(fingerprint["shapes_after_crop"]) == 6
    assert made.plans == "nnUNetPlansExperiment"
    plans = json.loads((folder / f"{made.plans}.json").read_text())["configurations"][made.configuration]
    assert plans["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8, 16]
    data = {path.name.removesuffix(".pkl") for path in (folder / plans["data_identifier"]).glob("*.pkl")}
    assert data == {*made.parts.pool, *made.parts.validation}


def test_what_has_been_prepared_is_kept(prepared: dict[str, Holdout], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_command", lambda *_, **__: pytest.fail("a command was run again"))
    made = prepared["2d"]
    before = {path: path.lstat().st_mtime_ns for path in made.raw.rglob("*")}
    made.prepare()
    assert {path: path.lstat().st_mtime_ns for path in made.raw.rglob("*")} == before


def test_a_cell_trains_fold_0_on_its_own_cases(prepared: dict[str, Holdout], tmp_path: Path) -> None:
    made = prepared["2d"]
    name, chosen = made.source.name, [made.parts.pool[2], made.parts.pool[0]]
    first = Cell("first", 0, tmp_path / "first", {})
    for _ in range(2):  # a cell that was stopped does it again
        made.populate(first, chosen)
    own = first.folder / "nnUNet_preprocessed" / name
    splits = json.loads((own / "splits_final.json").read_text())
    assert splits == [{"train": sorted(chosen), "val": list(made.parts.validation)}]
    check_splits(splits, made.cases.subjects(), "here")
    assert not (made.folder / "nnUNet_preprocessed" / name / "splits_final.json").exists()
    assert (own / f"{made.plans}.json").resolve().parent == (made.folder / "nnUNet_preprocessed" / name).resolve()
    assert (own / "nnUNetPlans_2d" / f"{chosen[0]}.pkl").is_file()
    raw = first.folder / "nnUNet_raw" / name
    assert raw.resolve() == made.raw.resolve()
    assert not {*made.parts.test} & set(without_ending(raw / "imagesTr", "_0000.png"))
    assert (first.folder / "nnUNet_results").is_dir()

    (own / "nnUNetPlansTransfer.json").write_text("{}")
    second = Cell("second", 0, tmp_path / "second", {})
    made.populate(second, [], first)
    later = second.folder / "nnUNet_preprocessed" / name
    assert (later / "nnUNetPlansTransfer.json").resolve() == (own / "nnUNetPlansTransfer.json").resolve()
    assert json.loads((later / "splits_final.json").read_text())[0]["train"] == []
    assert json.loads((own / "splits_final.json").read_text()) == splits
    assert not (later / "splits_final.json").is_symlink()


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands are noted instead of run."""
    ran: list[list[str]] = []

    def note(command: Sequence[str], *, environment: Mapping[str, str], **_: object) -> None:
        ran.append(list(command))
        pretend(command, environment)

    monkeypatch.setattr(runner, "run_command", note)
    return ran


def test_each_size_of_the_budget_reaches_the_plans(
    sources: dict[str, Path], tmp_path: Path, commands: list[list[str]]
) -> None:
    size = {"features": (4, 8, 16), "batch_size": 3, "patch_size": (32, 48), "image_size": (40, 56)}
    holdout(sources["2d"], tmp_path / "a", **size).prepare()
    plan, plans, preprocess = commands
    assert plan[:5] == ["nnUNetv2_plan_and_preprocess", "-d", "741", "-c", "2d"]
    assert plans[:2] == ["nnunet-qa", "plans"]
    options = dict(zip(plans[2::2], plans[3::2], strict=True))
    assert options.pop("-o") == "nnUNetPlansExperiment"
    assert options == {
        "-d": "741",
        "-c": "2d",
        "--features": "4,8,16",
        "--batch-size": "3",
        "--patch-size": "32,48",
        "--image-size": "40,56",
    }
    assert preprocess[:7] == ["nnUNetv2_preprocess", "-d", "741", "-c", "2d", "-plans_name", "nnUNetPlansExperiment"]
    commands.clear()
    holdout(sources["2d"], tmp_path / "b").prepare()
    assert [command[0] for command in commands] == ["nnUNetv2_plan_and_preprocess"]
    assert holdout(sources["2d"], tmp_path / "b").plans == "nnUNetPlans"


def test_links_of_a_killed_run_are_made_anew(
    sources: dict[str, Path], tmp_path: Path, commands: list[list[str]]
) -> None:
    made = holdout(sources["2d"], tmp_path)
    left = made.raw / "imagesTr" / f"{made.parts.test[0]}_0000.png"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    made.prepare()
    assert not left.exists()


def test_a_case_without_an_image_is_named(sources: dict[str, Path], tmp_path: Path, commands: list[list[str]]) -> None:
    parts = Parts(("S0_c0", "S9_c9"), ("S1_c0",), ("S2_c0",))
    made = Holdout(sources["2d"], tmp_path, parts, "2d", Budget(**TINY))
    with pytest.raises(DatasetError, match=r"the case S9_c9 of cases\.csv has no image in imagesTr"):
        made.prepare()


def test_parts_stay_those_of_the_first_run(sources: dict[str, Path], tmp_path: Path, commands: list[list[str]]) -> None:
    made = holdout(sources["2d"], tmp_path)
    made.prepare()
    other = replace(made, parts=replace(made.parts, pool=made.parts.pool[1:]))
    with pytest.raises(DatasetError, match=r"cases\.csv: parts the subjects otherwise than when"):
        other.prepare()
    made.prepare()


def test_parts_of_an_earlier_version_are_the_same(
    sources: dict[str, Path], tmp_path: Path, commands: list[list[str]]
) -> None:
    made = holdout(sources["2d"], tmp_path)
    made.prepare()
    path = tmp_path / "parts.json"
    content = json.loads(path.read_text())
    assert content.pop("unlabelled") == []
    write_json(path, content)
    made.prepare()


@pytest.mark.parametrize(("kind", "ending"), [("2d", ".png"), ("3d", ".nii.gz")])
def test_labels_of_unlabelled_cases_are_nowhere(
    sources: dict[str, Path], tmp_path: Path, commands: list[list[str]], kind: str, ending: str
) -> None:
    source = sources[kind]
    whole, subjects = parts_of(source), CaseTable.read(source / "cases.csv").subjects()
    parts = whole.with_labelled(2, subjects, np.random.default_rng(0))
    made = Holdout(source, tmp_path, parts, "2d", Budget(**TINY), jobs=2)
    made.prepare()
    assert len(parts.unlabelled) == len(whole.pool) - 2 > 0
    assert without_ending(made.raw / "imagesUn", f"_0000{ending}") == sorted(parts.unlabelled)
    for case in parts.unlabelled:
        image = made.raw / "imagesUn" / f"{case}_0000{ending}"
        assert image.read_bytes() == (source / "imagesTr" / image.name).read_bytes()
    annotated = [*parts.pool, *parts.validation]
    assert without_ending(made.raw / "labelsTr", ending) == sorted(annotated)
    holding = {path.name.removesuffix(ending) for path in made.raw.rglob(f"labels*/*{ending}")}
    assert holding == {*annotated, *parts.test}
    truths = {(source / "labelsTr" / f"{case}{ending}").resolve() for case in parts.unlabelled}
    assert not truths & {path.resolve() for path in tmp_path.rglob("*")}
    table = CaseTable.read(made.raw / "cases.csv")
    assert table.case_ids(Role.UNLABELLED) == sorted(parts.unlabelled)
    assert table.case_ids(Role.LABELLED) == sorted(annotated)
    assert json.loads((made.raw / "dataset.json").read_text())["numTraining"] == len(annotated)
    assert commands[-1] == ["nnunet-qa", "pool", "-d", made.number, "-c", "2d", "-p", "nnUNetPlans", "--jobs", "2"]


def test_a_configuration_that_is_not_planned(
    sources: dict[str, Path], tmp_path: Path, commands: list[list[str]]
) -> None:
    with pytest.raises(DatasetError, match=r'no configuration "3d_fulres" .*\(did you mean "3d_fullres"\?\)'):
        holdout(sources["2d"], tmp_path, "3d_fulres").prepare()


def test_volumes_in_tiff_keep_their_spacing(tmp_path: Path, commands: list[list[str]]) -> None:
    source = tmp_path / "Dataset743_Tiff"
    cases = [f"S{subject}_a" for subject in range(3)]
    for folder, end in (("imagesTr", "_0000.tif"), ("labelsTr", ".tif")):
        (source / folder).mkdir(parents=True)
        for number, case in enumerate(cases):
            tifffile.imwrite(source / folder / f"{case}{end}", np.full((5, 6, 7), number, np.uint8))
            (source / folder / f"{case}.json").write_text(json.dumps({"spacing": [3.0, 0.5, 0.5 + number]}))
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "numTraining": 3}
    content |= {"file_ending": ".tif", "overwrite_image_reader_writer": "Tiff3DIO"}
    (source / "dataset.json").write_text(json.dumps(content))
    rows = [{"case_id": case, "subject_id": case[:2], "role": "labelled"} for case in cases]
    pd.DataFrame(rows).to_csv(source / "cases.csv", index=False)
    made = Holdout(source, tmp_path / "out", Parts(("S0_a",), ("S1_a",), ("S2_a",)), "3d_fullres", Budget(**TINY))
    made.prepare()
    for number, images, labels in ((1, "imagesTr", "labelsTr"), (2, "imagesTs", "labelsTs")):
        expected = [3.0, 0.5, 0.5 + number]
        image, properties = Tiff3DIO().read_images([os.fspath(made.raw / images / f"S{number}_a_0000.tif")])
        assert properties["spacing"] == expected
        assert Tiff3DIO().read_seg(os.fspath(made.raw / labels / f"S{number}_a.tif"))[1]["spacing"] == expected
        np.testing.assert_array_equal(made.image(f"S{number}_a"), image[0])


@pytest.mark.skipif(fcntl is None, reason="this system has no such lock")
def test_two_processes_prepare_one_after_the_other(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace.txt"

    def slow(command: Sequence[str], *, environment: Mapping[str, str], **_: object) -> None:
        with trace.open("a") as file:
            file.write(f"{command[0]}\n")
        time.sleep(0.3)
        pretend(command, environment)

    monkeypatch.setattr(runner, "run_command", slow)
    made = holdout(sources["2d"], tmp_path / "out")
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=made.prepare) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert trace.read_text().splitlines() == ["nnUNetv2_plan_and_preprocess"]


def test_images_that_dataset_json_names_elsewhere_are_found_without_starting_processes(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / sources["2d"].name
    source.mkdir()
    content = json.loads((sources["2d"] / "dataset.json").read_text())
    image = next((sources["2d"] / "imagesTr").iterdir())
    entry = {"images": [os.path.relpath(image, source)], "label": "labels/here.png"}
    write_json(source / "dataset.json", {**content, "dataset": {"one": entry}})
    before = set(multiprocessing.active_children())
    holdout = Holdout(source, tmp_path / "out", Parts(("one",), (), ()), "2d", Budget(**TINY))
    np.testing.assert_array_equal(holdout.image("one"), imread(image))
    assert holdout.label("one") == source / "labels" / "here.png"
    assert set(multiprocessing.active_children()) == before  # they would keep the locks of a run that is killed
    with pytest.raises(DatasetError, match=r"labels/here.png: not found; the experiment needs a label"):
        holdout.prepare()
