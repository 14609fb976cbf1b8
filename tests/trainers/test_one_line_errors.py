from __future__ import annotations

import pytest
import torch

from nnunet_qa.trainers.one_line_errors import pretrained_weights_error


def load_pretrained_weights(fname: str, error: Exception) -> None:
    """Named as nnU-Net's function, by which it is known."""
    raise error


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_want_of_memory_is_not_blamed_on_the_file(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        load_pretrained_weights("a.pth", error)
    assert pretrained_weights_error(raised.value, raised.tb) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "No permission", "a.pth"), "the pretrained weights cannot be read (No permission)"),
        (OSError("stale handle"), "the pretrained weights cannot be read (stale handle)"),
        (RuntimeError("no zip. More"), "no pretrained weights that nnU-Net can load (RuntimeError: no zip)"),
    ],
)
def test_what_cannot_be_read_and_what_cannot_be_loaded(error: Exception, said: str) -> None:
    with pytest.raises(type(error)) as raised:
        load_pretrained_weights("a.pth", error)
    assert str(pretrained_weights_error(raised.value, raised.tb)) == f"a.pth: {said}"
