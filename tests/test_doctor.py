from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from typer.testing import CliRunner

from nnunet_qa import doctor, environment
from nnunet_qa.cli import doctor as command
from nnunet_qa.doctor import (
    Check,
    check_device,
    check_external_trainers,
    check_folder,
    check_nnunet,
    check_python,
    check_space,
    check_torch,
    check_trainer,
)
from nnunet_qa.environment import EXT_TRAINER, FOLDERS, external_trainer_folder

OURS = str(external_trainer_folder())
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules, or the errors of importing them, in place of those that are installed."""
    replaced: dict[str, Any] = {}
    real = importlib.import_module

    def give(name: str, package: str | None = None) -> Any:
        if name not in replaced:
            return real(name, package)
        if isinstance(replaced[name], Exception):
            raise replaced[name]
        return replaced[name]

    monkeypatch.setattr(importlib, "import_module", give)
    return replaced


def test_status() -> None:
    assert [Check("a", True, "").status, Check("a", True, "", warning=True).status, Check("a", False, "").status] == [
        "ok",
        "warn",
        "missing",
    ]


def test_ranges_are_those_of_the_package() -> None:
    requirements = [Requirement(line) for line in importlib.metadata.requires("nnunet-qa") or []]
    assert [r.specifier for r in requirements if r.name == "nnunetv2"] == [doctor.NNUNET_RANGE]
    assert importlib.metadata.metadata("nnunet-qa")["Requires-Python"] == str(doctor.PYTHON_RANGE)


@pytest.mark.parametrize(
    ("version", "ok"), [("3.9.18", False), ("3.10.0", True), ("3.11.7", True), ("3.14.0rc1", True)]
)
def test_python(monkeypatch: pytest.MonkeyPatch, version: str, ok: bool) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: version)
    check = check_python()
    assert check.ok == ok
    assert check.text.startswith(version)


@pytest.mark.parametrize(("version", "ok"), [("2.8.0", False), ("2.8.1", True), ("2.8.9", True), ("2.9.0", False)])
def test_nnunet(monkeypatch: pytest.MonkeyPatch, version: str, ok: bool) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    check = check_nnunet()
    assert check.ok == ok
    assert version in check.text
    assert ok or "pip install" in check.text


def test_nnunet_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    check = check_nnunet()
    assert not check.ok
    assert "not installed" in check.text


def test_torch_of_this_installation() -> None:
    check = check_torch()
    assert check.ok, check.text
    assert "with torchvision" in check.text


def test_torch_without_matching_torchvision(imports: dict[str, Any]) -> None:
    imports["torch"] = SimpleNamespace(__version__="2.9.0+cpu")
    imports["torchvision"] = RuntimeError("operator torchvision::nms\ndoes not exist")
    check = check_torch()
    assert not check.ok
    assert "2.9.0+cpu" in check.text
    assert "RuntimeError: operator torchvision::nms does not exist" in check.text
    assert "finds no trainer; install both in the same build" in check.text


def test_no_torch(imports: dict[str, Any]) -> None:
    imports["torch"] = ModuleNotFoundError("No module named 'torch'")
    assert not check_torch().ok
    assert not check_device().ok


def test_folder(tmp_path: Path) -> None:
    assert "not set" in check_folder("nnUNet_raw", {}).text
    assert "not set" in check_folder("nnUNet_raw", {"nnUNet_raw": ""}).text
    absent = check_folder("nnUNet_raw", {"nnUNet_raw": str(tmp_path / "a")})
    assert not absent.ok
    assert f"{tmp_path / 'a'} is not a folder" in absent.text
    assert check_folder("nnUNet_raw", {"nnUNet_raw": str(tmp_path)}) == Check("nnUNet_raw", True, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise OSError(30, "Read-only file system", str(options["dir"]))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check = check_folder("nnUNet_raw", {"nnUNet_raw": str(tmp_path)})
    assert not check.ok
    assert "cannot be written to (Read-only file system)" in check.text


@pytest.mark.parametrize(("free", "warning"), [(4.9e9, True), (5.1e9, False)])
def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, warning: bool) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9e9, 0, free))
    check = check_space("nnUNet_raw", {"nnUNet_raw": str(tmp_path)})
    assert check is not None
    assert (check.ok, check.warning) == (True, warning)
    assert f"{free / 1e9:.1f} GB free" in check.text
    assert check_space("nnUNet_raw", {}) is None
    assert check_space("nnUNet_raw", {"nnUNet_raw": str(tmp_path / "a")}) is None


def test_external_trainers(tmp_path: Path) -> None:
    def look(value: str) -> Check:
        return check_external_trainers({EXT_TRAINER: value})

    assert "not set" in check_external_trainers({}).text
    assert look(OURS).ok
    assert look(f"{tmp_path}{os.pathsep}{OURS}").ok
    assert "lacks the trainers of nnunet-qa" in look(str(tmp_path)).text
    absent = look(f"{tmp_path / 'a'}{os.pathsep}{OURS}")
    assert not absent.ok
    assert f"{tmp_path / 'a'} is not a folder" in absent.text


def test_external_trainers_where_the_package_lacks_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PACKAGE", "nnunet_qa.quality")
    check = check_external_trainers({EXT_TRAINER: str(tmp_path)})
    assert not check.ok
    assert "are not installed" in check.text


def test_trainer_is_found_through_the_external_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(EXT_TRAINER, OURS)
    # The shim makes errors one-line for nnUNetv2_train; what it sets for that must not outlive this test.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    check = check_trainer()
    assert check.ok, check.text
    assert "nnunet_qa.trainers" in check.text
    assert capsys.readouterr().out == ""


def test_trainer_is_not_found_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EXT_TRAINER, raising=False)
    check = check_trainer()
    assert not check.ok
    assert "nnU-Net does not find it" in check.text


DEFINED = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
class PlantedTrainer(nnUNetTrainer):
    pass
"""


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    folder.mkdir()
    (folder / "planted_module.py").write_text(content)
    monkeypatch.setenv(EXT_TRAINER, str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def test_trainer_defined_in_the_external_folder_is_another_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "external", monkeypatch, DEFINED)
    package = tmp_path / "packages" / "planted_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(DEFINED)
    monkeypatch.syspath_prepend(str(package.parent))
    check = check_trainer("PlantedTrainer", package="planted_package")
    assert not check.ok
    assert "nnU-Net finds the one of planted_module, not that of planted_package" in check.text


def test_trainer_that_cannot_be_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The package gives the very class, but the class says that it lives where a worker process cannot find it.
    package = tmp_path / "packages" / "planted_nowhere"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(DEFINED + "PlantedTrainer.__module__ = 'nowhere_at_all'\n")
    monkeypatch.syspath_prepend(str(package.parent))
    plant(tmp_path / "external", monkeypatch, "from planted_nowhere import PlantedTrainer")
    check = check_trainer("PlantedTrainer", package="planted_nowhere")
    assert not check.ok
    assert "cannot be pickled" in check.text


def test_trainer_whose_module_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "external", monkeypatch, "raise ValueError('broken\\nfile')")
    check = check_trainer("PlantedTrainer")
    assert not check.ok
    assert "search for it failed: ValueError: broken file" in check.text


def test_trainer_that_the_package_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "external", monkeypatch, DEFINED)
    check = check_trainer("PlantedTrainer", package="nnunet_qa.errors")
    assert not check.ok
    assert "nnunet_qa.errors does not give it" in check.text


@pytest.mark.parametrize(("count", "more"), [(1, ""), (3, ", and 2 more")])
def test_device_cuda(imports: dict[str, Any], count: int, more: str) -> None:
    properties = SimpleNamespace(name="Some GPU", total_memory=24e9)
    imports["torch"] = SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: True, get_device_properties=lambda number: properties, device_count=lambda: count
        )
    )
    assert check_device() == Check("device", True, f"cuda: Some GPU, 24 GB{more}")


def test_device_cpu(imports: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    imports["torch"] = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 5}, raising=False)
    assert check_device().text.startswith("cpu: 3 cores")


def test_device_with_a_broken_driver(imports: dict[str, Any]) -> None:
    def broken() -> bool:
        raise RuntimeError("driver")

    imports["torch"] = SimpleNamespace(cuda=SimpleNamespace(is_available=broken))
    assert "RuntimeError: driver" in check_device().text


def run() -> Any:
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    return CliRunner().invoke(app, ["doctor"])


def test_command_tells_what_is_missing_and_exits_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv(EXT_TRAINER, OURS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9e9, 0, 1e9))
    result = run()
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 9 + ["warn"] * 3

    monkeypatch.setenv("nnUNet_results", str(tmp_path / ("a" * 300)))
    monkeypatch.delenv(EXT_TRAINER)
    result = run()
    assert result.exit_code == 1
    found = {line.split()[1]: line.split()[0] for line in result.stdout.splitlines()}
    assert [name for name, status in found.items() if status == "missing"] == [
        "nnUNet_results",
        EXT_TRAINER,
        "QAsemiTrainer",
    ]
