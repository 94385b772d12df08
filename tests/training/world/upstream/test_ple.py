"""The network's shapes and its sharing: what a task may and may not be moved by."""

import torch

from training.world.upstream.ple import PLE


def network() -> PLE:
    torch.manual_seed(0)
    return PLE([4, 9], 3, 2, embedding=4, experts=2, layers=2, hidden=8, dropout=0.0)


def inputs(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 4, (n, 2)), torch.randn(n, 3)


def test_one_output_a_task_and_each_row_on_its_own() -> None:
    ple = network().eval()
    categories, numbers = inputs()
    out = ple(categories, numbers)
    assert out.shape == (6, 2)
    torch.testing.assert_close(ple(categories[2:3], numbers[2:3]), out[2:3])


def test_a_task_moves_its_own_and_the_shared_experts_of_the_last_layer_only() -> None:
    ple = network()
    ple(*inputs())[:, 0].sum().backward()
    first, last = (layer.weight.grad.abs().sum(dim=(1, 2)) for layer in ple.layers)
    assert (last > 0).tolist() == [True, False, True]  # task 0, task 1, shared
    assert (first > 0).all()  # the shared slice of the layer below mixes all experts


def test_a_gate_is_a_convex_mixture_of_experts() -> None:
    ple = network()
    layer = ple.layers[0]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(2.0)
    x = torch.randn(5, layer.weight.shape[1])
    torch.testing.assert_close(layer(x), torch.full((3, 5, 8), 2.0))
