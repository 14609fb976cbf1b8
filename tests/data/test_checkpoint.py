from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_qa.data.checkpoint import read_checkpoint, read_content, read_tensors
from nnunet_qa.errors import DependencyError, ModelError

# The types that nnUNetTrainer.save_checkpoint leaves in a file.
GOOD: dict[str, Any] = {
    "network_weights": {"a.weight": torch.arange(6.0).reshape(2, 3)},
    "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]},
    "grad_scaler_state": None,
    "logging": {"mean_fg_dice": [np.float32(0.5)], "dice_per_class_or_region": [[np.float64(0.25), np.nan]]},
    "_best_ema": np.float32(0.5),
    "current_epoch": 3,
    "init_args": {"configuration": "2d", "fold": 0, "device": torch.device("cuda"), "more": np.int64(3)},
    "trainer_name": "nnUNetTrainer",
    "inference_allowed_mirroring_axes": (0, 1),
}


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["HARM"],)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_nnunet_writes_is_read(tmp_path: Path, legacy: bool) -> None:
    torch.save(GOOD, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(tmp_path / "a.pth")
    assert (found.trainer, found.configuration) == ("nnUNetTrainer", "2d")
    assert torch.equal(found.weights["a.weight"], GOOD["network_weights"]["a.weight"])


def test_the_whole_content_is_read(tmp_path: Path) -> None:
    extra = {"teacher": {"a": torch.ones(2)}, "teacher_steps": 3, "stopped": "why"}
    torch.save({**GOOD, "nnunet_qa": extra}, tmp_path / "a.pth")
    content = read_content(tmp_path / "a.pth")
    assert list(content) == [*GOOD, "nnunet_qa"]
    assert content["logging"]["mean_fg_dice"] == [0.5]
    assert torch.equal(content["nnunet_qa"].pop("teacher")["a"], torch.ones(2))
    assert content["nnunet_qa"] == {"teacher_steps": 3, "stopped": "why"}
    torch.save([1, 2], tmp_path / "b.pth")
    assert read_content(tmp_path / "b.pth") == {}


def test_names_of_numpy_1_are_read_too(tmp_path: Path) -> None:
    torch.save(GOOD, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "a.pth").read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray" in old
    (tmp_path / "a.pth").write_bytes(old)
    assert read_checkpoint(tmp_path / "a.pth").trainer == "nnUNetTrainer"


def test_nothing_is_unpickled_that_could_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    torch.save({**GOOD, "logging": Harmful()}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"a\.pth: holds posix\.mkdir, which nnU-Net does not write"):
        read_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "harm").exists()  # the trap was a real one


@pytest.mark.parametrize("content", [b"", b"just some text", b"\x80\x02garbage", None])
def test_a_damaged_file(tmp_path: Path, content: bytes | None) -> None:
    torch.save(GOOD, tmp_path / "a.pth")
    half = (tmp_path / "a.pth").read_bytes()[:700]
    (tmp_path / "a.pth").write_bytes(half if content is None else content)
    with pytest.raises(ModelError, match=r"a\.pth: damaged, or no checkpoint"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        {},
        {"state_dict": {"a": torch.zeros(1)}},
        {**GOOD, "network_weights": {}},
        {**GOOD, "network_weights": {"a": 3}},
        {**GOOD, "trainer_name": None},
        {**GOOD, "init_args": [1]},
        {**GOOD, "init_args": {}},
    ],
)
def test_another_file_of_torch(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"a\.pth: no checkpoint that nnU-Net's trainers write"):
        read_checkpoint(tmp_path / "a.pth")


def test_an_old_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(DependencyError, match=r"install torch 2\.6"):
        read_checkpoint(tmp_path / "a.pth")


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name, write in (
        ("torch.pt", torch.save),
        ("pickle.pt", lambda what, to: to.write_bytes(pickle.dumps(what, 2))),
    ):
        write({"weights": Planted(mark)}, tmp_path / name)
        with pytest.raises(ModelError, match=r"touch|getattr|could run code|damaged"):
            read_tensors(tmp_path / name)
        assert not mark.exists()
    pickle.loads((tmp_path / "pickle.pt").read_bytes())
    assert mark.exists(), "the planted code would have run"


def test_a_missing_a_damaged_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    whole, cut, empty, text = (tmp_path / name for name in ("whole.pt", "cut.pt", "empty.pt", "text.pt"))
    torch.save({"a": torch.zeros(1000)}, whole)
    cut.write_bytes(whole.read_bytes()[:-300])
    empty.touch()
    text.write_text("no weights")
    for path in (cut, empty, text):
        with pytest.raises(ModelError, match="is damaged or holds no weights"):
            read_tensors(path)
    with pytest.raises(ModelError, match="No such file"):
        read_tensors(tmp_path / "none.pt")
    assert read_tensors(whole)["a"].shape == (1000,)
