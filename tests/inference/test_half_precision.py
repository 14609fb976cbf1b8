from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.inference.interactive_model import dataset_of, plans_of, with_network


@pytest.mark.parametrize("told", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_bf16": False}, {}])
def test_a_processor_with_bfloat16_computes_clicks_in_it_and_no_other_does(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, bool]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    seen = []

    class Convolution(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x[:, :1])
            seen.append(y.dtype)
            return y

    predictor = with_network(Convolution(1, 2, 1), plans_of([16, 16], spacing=(1.0, 1.0)), dataset_of())
    image = np.arange(256, dtype=np.float32).reshape(1, 1, 16, 16)
    predictor.set_image(image, properties={"spacing": [999, 1, 1]})
    assert set(seen) == {torch.float32}  # nnU-Net's own prediction
    seen.clear()
    predictor.add_click((8, 8), 1)
    assert set(seen) == {torch.bfloat16 if any(told.values()) else torch.float32}
