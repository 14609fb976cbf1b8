from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage.io import imsave

from nnunet_qa.data.paths import preprocessed_dataset_folder, raw_dataset_folder, read_json, read_plans
from nnunet_qa.data.pool import PreprocessedPool, case_files, pool_folder, pool_images, prepare_pool
from nnunet_qa.errors import DatasetError, ImageError
from tests.phantom import trainer_of, tree


def prepare(
    dataset: str, target: Path, configuration: str, images: dict[str, list[Path]] | None = None, **options: Any
) -> PreprocessedPool:
    source = preprocessed_dataset_folder(dataset)
    dataset_json = read_json(source / "dataset.json")
    if images is None:
        images = pool_images(raw_dataset_folder(dataset), dataset_json)
    plans = options.pop("plans", None) or read_plans(dataset, "nnUNetPlans")
    return prepare_pool(images, target, plans, configuration, dataset_json, **options)


@pytest.mark.parametrize(
    ("kind", "configuration"), [("2d", "2d"), ("3d", "3d_fullres"), ("3d", "2d"), ("3d", "3d_lowres")]
)
def test_a_pool_case_is_what_the_plans_own_preprocessor_makes(
    planned: dict[str, str], tmp_path: Path, kind: str, configuration: str
) -> None:
    plans = read_plans(planned[kind], "nnUNetPlans")
    if configuration == "3d_lowres":
        coarse = [spacing * 1.5 for spacing in plans["configurations"]["3d_fullres"]["spacing"]]
        plans["configurations"]["3d_lowres"] = {
            "inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_3d_lowres", "spacing": coarse,
        }  # fmt: skip
    pool = prepare(planned[kind], tmp_path, configuration, plans=plans)
    assert pool.folder == tmp_path / f"nnUNetPlans_{configuration}_unlabelled"
    raw = raw_dataset_folder(planned[kind])
    dataset_json = read_json(raw / "dataset.json")
    manager = PlansManager(plans)
    dataset = pool.dataset()
    for case, paths in pool_images(raw, dataset_json).items():
        data, _, previous, properties = dataset.load_case(case)
        expected, _, _ = DefaultPreprocessor(verbose=False).run_case(
            [os.fspath(path) for path in paths], None, manager, manager.get_configuration(configuration), dataset_json
        )
        np.testing.assert_array_equal(data[:], expected)
        assert properties["class_locations"] == {}
        assert previous is None


def test_nnunet_recognises_the_folder(planned: dict[str, str], tmp_path: Path) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    pool = prepare(planned["2d"], tmp_path, "2d")
    assert sorted(infer_dataset_class(os.fspath(pool.folder)).get_identifiers(os.fspath(pool.folder))) == list(
        pool.case_ids
    )


def test_what_is_done_is_kept_and_changes_are_noticed(planned: dict[str, str], tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(raw_dataset_folder(planned["2d"]) / "imagesUn", images)
    found = case_files(images, ".png", 1)
    pool = prepare(planned["2d"], tmp_path, "2d", found)
    times = {path.name: path.stat().st_mtime_ns for path in pool.folder.iterdir()}
    prepare(planned["2d"], tmp_path, "2d", found)
    assert {path.name: path.stat().st_mtime_ns for path in pool.folder.iterdir()} == times

    changed = found["P0_c1"][0]
    imsave(changed, np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8), check_contrast=False)
    prepare(planned["2d"], tmp_path, "2d", found)
    again = {path.name: path.stat().st_mtime_ns for path in pool.folder.iterdir()}
    assert {name for name in times if again[name] != times[name]} == {"P0_c1.b2nd", "P0_c1_seg.b2nd", "P0_c1.pkl"}

    del found["P0_c0"]
    assert prepare(planned["2d"], tmp_path, "2d", found).case_ids == ("P0_c1", "P0_c2", "P0_c3")
    assert not list(pool.folder.glob("P0_c0*"))


def test_other_plans_make_the_pool_again_and_other_networks_do_not(planned: dict[str, str], tmp_path: Path) -> None:
    pool = prepare(planned["2d"], tmp_path, "2d")
    time_before = (pool.folder / "P0_c0.pkl").stat().st_mtime_ns
    plans = read_plans(planned["2d"], "nnUNetPlans")
    plans["configurations"]["2d"]["batch_size"] = 77
    prepare(planned["2d"], tmp_path, "2d", plans=plans)
    assert (pool.folder / "P0_c0.pkl").stat().st_mtime_ns == time_before
    plans["configurations"]["2d"]["spacing"] = [2.0, 2.0]
    prepare(planned["2d"], tmp_path, "2d", plans=plans)
    assert pool.dataset().load_case("P0_c0")[0].shape[1:] == (1, 24, 32)


KILLED = """
import sys
from pathlib import Path
from nnunet_qa.data.pool import case_files, prepare_pool
from nnunet_qa.data.paths import read_json
if __name__ == "__main__":
    images, target, plans, dataset_json = map(Path, sys.argv[1:])
    found = case_files(images, ".png", 1)
    prepare_pool(found, target, read_json(plans), "2d", read_json(dataset_json), jobs=1)
"""


def test_a_killed_run_goes_on_to_the_same_files(planned: dict[str, str], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(1)
    for number in range(60):
        imsave(images / f"C{number:03d}_0000.png", rng.integers(0, 255, (48, 64), dtype=np.uint8), check_contrast=False)
    source = preprocessed_dataset_folder(planned["2d"])
    script = tmp_path / "script.py"
    script.write_text(KILLED)

    def command(target: Path) -> list[str]:
        return [
            sys.executable,
            str(script),
            str(images),
            str(target),
            str(source / "nnUNetPlans.json"),
            str(source / "dataset.json"),
        ]

    subprocess.run(command(tmp_path / "undisturbed"), check=True, capture_output=True)
    folder = pool_folder(tmp_path / "killed", "nnUNetPlans_2d")
    counts = []
    for wanted in (1, 25, 59):
        process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(folder.glob("*.pkl"))) < wanted:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts.append(len(list(folder.glob("*.pkl"))))
    assert counts[0] < 60, "the first kill came too late to test anything"
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True)
    killed, undisturbed = tree(tmp_path / "killed"), tree(tmp_path / "undisturbed")
    assert killed.keys() == undisturbed.keys()
    assert killed == undisturbed


def test_two_processes_make_the_same_files_as_one(planned: dict[str, str], tmp_path: Path) -> None:
    one = prepare(planned["2d"], tmp_path / "one", "2d", jobs=1)
    two = prepare(planned["2d"], tmp_path / "two", "2d", jobs=2)
    assert tree(one.folder) == tree(two.folder)


def test_bad_images_are_named_and_leave_nothing_behind(planned: dict[str, str], tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(raw_dataset_folder(planned["2d"]) / "imagesUn", images)
    bad = images / "P0_c2_0000.png"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"P0_c2_0000\.png"):
        prepare(planned["2d"], tmp_path, "2d", case_files(images, ".png", 1))
    assert not list(tmp_path.rglob("*P0_c2*.b2nd"))
    assert not list(tmp_path.glob("*.partial"))


def test_nan_in_the_pool_is_named(planned: dict[str, str], tmp_path: Path) -> None:
    import SimpleITK as sitk

    array = np.random.default_rng(0).normal(size=(16, 32, 40)).astype(np.float32)
    array[3, 4, 5] = np.nan
    path = tmp_path / "X_0000.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    with pytest.raises(ImageError, match=r"X_0000\.nii\.gz.*NaN or infinite"):
        prepare(planned["3d"], tmp_path, "3d_fullres", {"X": [path]})


def test_missing_channels_and_configurations_are_named(planned: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "A_0001.png").touch()
    with pytest.raises(DatasetError, match=r"A_0001\.png; dataset\.json asks for A_0000\.png"):
        case_files(tmp_path, ".png", 1)
    with pytest.raises(DatasetError, match="no such folder"):
        case_files(tmp_path / "nothing", ".png", 1)
    with pytest.raises(DatasetError, match='no configuration "3d_fullres"; found: 2d'):
        prepare(planned["2d"], tmp_path, "3d_fullres")


def test_the_loader_gives_batches_in_this_process_and_in_others_and_closes(
    planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "qa.yaml"
    settings.write_text(json.dumps({"training": {"epochs": 1}}))
    monkeypatch.setenv("nnUNet_qa_config", str(settings))
    for processes in ("0", "1"):
        monkeypatch.setenv("nnUNet_n_proc_DA", processes)
        trainer = trainer_of(planned["2d"], "2d", 0)
        trainer.initialize()
        trainer._prepare_pool()
        with trainer._open_pool_loader(trainer.batch_size) as loader:
            batch = next(loader)
            assert batch["data"].shape == (trainer.batch_size, 1, *trainer.configuration_manager.patch_size)
            assert set(batch["keys"]) <= set(trainer.pool.case_ids)
            running = getattr(loader._batches, "_processes", [])
        with pytest.raises(ValueError, match="closed"):
            next(loader)
        loader.close()
        assert not any(process.is_alive() for process in running)
    assert load_pickle(os.fspath(trainer.pool.folder / "P0_c0.pkl"))["class_locations"] == {}


def test_a_pool_that_dataset_json_refers_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own" / "imagesUn").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("WHERE", str(tmp_path / "other"))
    for path in ("own/imagesUn/c_0000.png", "other/a_0000.png", "other/b_0000.png"):
        (tmp_path / path).touch()
    dataset_json: dict[str, Any] = {"channel_names": {"0": "MR"}, "file_ending": ".png"}
    dataset_json["unlabelled"] = {"b": ["$WHERE/b_0000.png"], "a": ["../other/a_0000.png"]}
    found = pool_images(tmp_path / "own", dataset_json)
    other = tmp_path / "other"
    assert list(found.items()) == [
        ("a", [other / "a_0000.png"]),
        ("b", [other / "b_0000.png"]),
        ("c", [tmp_path / "own" / "imagesUn" / "c_0000.png"]),
    ]
    (other / "b_0000.png").unlink()
    with pytest.raises(DatasetError, match=r'entry "unlabelled" names for the case "b" .*b_0000.png, which is not'):
        pool_images(tmp_path / "own", dataset_json)
    dataset_json["unlabelled"] = {"a": ["../other/a_0000.png"] * 2}
    with pytest.raises(DatasetError, match='for the case "a" 2 files for 1 channels'):
        pool_images(tmp_path / "own", dataset_json)
