from __future__ import annotations

import numpy as np
import pytest
import torch

from nnunet_qa.networks.curve_lstm import CurveNetwork


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def written_out(network: CurveNetwork, curves: np.ndarray) -> float:
    """The logit of one acquisition `(frames, curves)`, in NumPy, from the equations of Hochreiter and Schmidhuber."""
    weights = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    values = (curves - weights["mean"]) / weights["scale"]
    values = np.maximum(values @ weights["dense.weight"].T + weights["dense.bias"], 0)
    for layer in range(3):
        state = cell = np.zeros(weights["output.weight"].shape[1])
        states = []
        for value in values:
            gates = weights[f"lstm.weight_ih_l{layer}"] @ value + weights[f"lstm.bias_ih_l{layer}"]
            gates = gates + weights[f"lstm.weight_hh_l{layer}"] @ state + weights[f"lstm.bias_hh_l{layer}"]
            enter, forget, new, leave = np.split(gates, 4)
            cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
            state = sigmoid(leave) * np.tanh(cell)
            states.append(state)
        values = np.array(states)
    return float(values.mean(axis=0) @ weights["output.weight"][0] + weights["output.bias"][0])


def test_a_dense_layer_then_three_layers_then_one_output() -> None:
    torch.manual_seed(0)
    network = CurveNetwork(2, hidden=5)
    assert network.lstm.num_layers == 3
    curves = np.random.default_rng(0).uniform(0, 1, (4, 7, 2))
    network.standardise(torch.from_numpy(curves[:3]).float())
    with torch.no_grad():
        found = network(torch.from_numpy(curves).float())
    assert found.shape == (4,)
    np.testing.assert_allclose(found.numpy(), [written_out(network, one) for one in curves], atol=1e-5)


def test_curves_are_standardised_and_a_constant_one_stays_finite() -> None:
    curves = np.random.default_rng(1).uniform(0, 1, (6, 5, 2)).astype(np.float32)
    curves[:, :, 1] = 1
    network = CurveNetwork(2, hidden=3)
    network.standardise(torch.from_numpy(curves))
    np.testing.assert_allclose(network.mean, curves.reshape(-1, 2).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(network.scale, [curves[..., 0].std(), 1], rtol=1e-5)
    assert {"mean", "scale"} <= set(network.state_dict())  # so that a file keeps them


def test_sizes_below_one_are_refused() -> None:
    for arguments in ({"curves": 0}, {"curves": 1, "hidden": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            CurveNetwork(**arguments)
