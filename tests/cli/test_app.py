from __future__ import annotations

import subprocess
import sys

import pytest

from nnunet_qa import __version__
from nnunet_qa.cli import app as module
from nnunet_qa.cli.device import Device, chosen_device
from nnunet_qa.errors import ModelError

COMMANDS = (
    *("env", "doctor", "convert", "cases", "plans", "pool", "score", "select", "promote", "montage", "body-part"),
    *("discriminator", "evaluate", "transfer", "experiment", "demo"),
)

GROUPS = ("convert", "body-part", "discriminator", "experiment")
"""Groups of commands, whose members have the examples."""


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nnunet-qa", *arguments])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run_main(monkeypatch, command, "--help") == 0
    shown = capsys.readouterr().out
    assert "Usage" in shown
    if command != "doctor":
        assert "xample" in shown or command in ("env", *GROUPS)


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == f"nnunet-qa {__version__}"


def test_a_mistake_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "select", "-q", "/no/such/quality.csv") == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("nnunet-qa: error: /no/such/quality.csv: not found")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nnunet-qa", "--debug", "select", "-q", "/no/such/quality.csv"])
    with pytest.raises(Exception, match="not found"):
        module.main()


def test_a_folder_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "demo", "-o", "/proc/demo", "-device", "cpu") == 2
    assert "/proc/demo" in capsys.readouterr().err


def test_quick_commands_do_not_load_torch() -> None:
    code = (
        "import sys; import nnunet_qa.cli.app as app; sys.argv = ['nnunet-qa', 'env']\n"
        "try: app.main()\nexcept SystemExit: pass\n"
        "assert 'nnunetv2' not in sys.modules and 'torch' not in sys.modules, 'slow'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device(None).type == "cpu"
    with pytest.raises(ModelError, match="use -device cpu"):
        chosen_device(Device.CUDA)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device(None).type == "cuda"
    assert chosen_device(Device.CPU).type == "cpu"
