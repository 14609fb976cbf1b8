from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nnunet_qa import environment
from nnunet_qa.cli import env as command
from nnunet_qa.data import paths
from nnunet_qa.environment import (
    EXT_TRAINER,
    FOLDERS,
    export_lines,
    external_trainer_folder,
    has_external_trainer,
    proposed_values,
    set_up,
    with_external_trainer,
)
from nnunet_qa.errors import DependencyError

OURS = str(external_trainer_folder())


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*FOLDERS, EXT_TRAINER):
        # Set first, so that what the tested code sets is taken away again afterwards.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def run(*arguments: str) -> tuple[str, str]:
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    result = CliRunner().invoke(app, ["env", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def evaluated(lines: str, variable: str) -> str:
    """What a POSIX shell has in a variable after `eval "$(…)"`."""
    script = f'eval "$(printf %s {shlex.quote(lines)})"; printf %s "${variable}"'
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout


def test_names_are_those_that_the_rest_of_the_package_uses() -> None:
    import nnunetv2.paths as nnunet

    known = (nnunet.nnUNet_raw, nnunet.nnUNet_preprocessed, nnunet.nnUNet_results, nnunet.nnUNet_extTrainer)
    assert (*FOLDERS, EXT_TRAINER) == tuple(path.env_var_name for path in known)
    assert (paths.RAW, paths.PREPROCESSED, paths.RESULTS) == FOLDERS


def test_folder_holds_the_shim_and_nothing_else_that_nnunet_would_import() -> None:
    assert [path.name for path in Path(OURS).glob("*.py")] == ["nnunet_qa_trainers.py"]


def test_setup_ships_the_shim(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    root = Path(__file__).parent.parent
    names = ("setup.py", "nnunet_qa/__init__.py", "nnunet_qa/py.typed", "trainers", "dataset_conversion/__init__.py")
    for name in names:
        source, target = root / name, tmp_path / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "built")],
        cwd=tmp_path / "copy",
        check=True,
        capture_output=True,
    )
    built = tmp_path / "built" / "nnunet_qa"
    assert (built / "trainers" / "external" / "nnunet_qa_trainers.py").is_file()
    assert (built / "trainers" / "qa_semi_trainer.py").is_file()
    assert (built / "dataset_conversion" / "__init__.py").is_file()
    assert (built / "py.typed").is_file()


def test_folder_is_found_without_importing_the_trainers() -> None:
    code = (
        "import sys; from nnunet_qa.environment import external_trainer_folder as find; print(find());"
        "sys.exit('torch' in sys.modules or 'nnunet_qa.trainers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.strip() == OURS


def test_an_installation_without_trainers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PACKAGE", "nnunet_qa.quality")
    with pytest.raises(DependencyError, match="not installed; run `pip install"):
        external_trainer_folder()


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (None, OURS),
        ("", OURS),
        ("/a", f"/a{os.pathsep}{OURS}"),
        (f"/a{os.pathsep}{os.pathsep}/b", f"/a{os.pathsep}/b{os.pathsep}{OURS}"),
        (OURS, OURS),
        (f"{OURS}{os.pathsep}/a", f"{OURS}{os.pathsep}/a"),
        (f"{OURS}/", f"{OURS}/"),
        (f"{OURS}/../external", f"{OURS}/../external"),
        (f"{OURS}2", f"{OURS}2{os.pathsep}{OURS}"),
    ],
)
def test_our_folder_stands_once_after_what_was_there(present: str | None, expected: str) -> None:
    assert with_external_trainer(present) == expected
    assert with_external_trainer(expected) == expected


def test_a_link_to_our_folder_counts_and_an_empty_entry_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(OURS)
    assert has_external_trainer(str(tmp_path / "link"))
    monkeypatch.chdir(OURS)
    assert not has_external_trainer(os.pathsep)
    assert has_external_trainer(".")


def test_set_up_sets_the_variable_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    set_up()
    assert os.environ[EXT_TRAINER] == OURS
    monkeypatch.setenv(EXT_TRAINER, "/a")
    set_up()
    set_up()
    assert os.environ[EXT_TRAINER] == f"/a{os.pathsep}{OURS}"


def test_what_is_set_is_kept_and_the_rest_proposed(tmp_path: Path) -> None:
    present = {"nnUNet_raw": "/data/raw", "nnUNet_results": "", EXT_TRAINER: "/a"}
    assert proposed_values(present, base=tmp_path) == {
        "nnUNet_raw": "/data/raw",
        "nnUNet_preprocessed": str(tmp_path / "nnUNet_preprocessed"),
        "nnUNet_results": str(tmp_path / "nnUNet_results"),
        EXT_TRAINER: f"/a{os.pathsep}{OURS}",
    }
    assert list(proposed_values(present)) == ["nnUNet_raw", EXT_TRAINER]


def test_base_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert proposed_values({}, base=Path("here/.."))["nnUNet_raw"] == str(tmp_path / "nnUNet_raw")
    assert proposed_values({}, base=Path("~/nnunet"))["nnUNet_raw"] == "/home/me/nnunet/nnUNet_raw"


@pytest.mark.parametrize("value", ["/a b/raw", "/it's", "/$HOME/`id`", '/"x";y', "/é"])
def test_a_shell_reads_back_what_was_meant(value: str) -> None:
    assert evaluated("\n".join(export_lines({"nnUNet_raw": value})), "nnUNet_raw") == value


def test_command_prints_export_lines_alone(tmp_path: Path) -> None:
    base = tmp_path / "my data"
    out, err = run("--base", str(base))
    assert [line.split("=")[0] for line in out.splitlines()] == [f"export {name}" for name in (*FOLDERS, EXT_TRAINER)]
    for name in FOLDERS:
        assert evaluated(out, name) == str(base / name)
    assert evaluated(out, EXT_TRAINER) == OURS
    created = shlex.split(err.strip().partition("mkdir -p ")[2])
    assert created == [str(base / name) for name in FOLDERS]
    assert not base.exists()
    for folder in created:
        Path(folder).mkdir(parents=True)
    assert run("--base", str(base)) == (out, "")


def test_command_without_base_names_what_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    out, err = run()
    assert out == f"export nnUNet_raw={tmp_path}\nexport {EXT_TRAINER}={OURS}\n"
    assert err.startswith("not set: nnUNet_preprocessed, nnUNet_results;")
    assert "mkdir" not in err
