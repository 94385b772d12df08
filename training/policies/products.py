"""A ReLU MLP whose products oneDNN makes, in float32 on a processor: what all learners' networks are.

PyTorch's own products on a processor go to MKL, which holds processors that are not Intel's to AVX2. oneDNN,
which PyTorch ships beside it, takes what the processor has, and applies the ReLU while the result is in
registers. On an AMD processor with AVX-512 the networks of BatchRL-MTF's step take 1.4 times as long by plain
layers at widths of 256, and 1.8 times at the BCQ reference's. PyTorch reaches it through a private function,
``torch.ops.mkldnn._linear_pointwise``: a test says of which release it is known to do what is asked of it
here.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_FEWEST = 8  # columns: for fewer, its set-up costs more than it saves


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """x [..., i] · weightᵀ [i, o] + bias [o], then ReLU where asked for; nothing for autograd is kept."""
    if ONEDNN and x.is_cpu and x.dtype == torch.float32 and weight.shape[0] >= _FEWEST:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y


class _MLP(torch.autograd.Function):
    """A ReLU MLP of x [B, i] and parameters W, b, W, b, …, with its gradients made by :func:`product` too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        inputs = [x]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(product(inputs[-1], weight, bias, relu=True))
        ctx.save_for_backward(*inputs, *weights)
        return product(inputs[-1], weights[-1], biases[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layers = len(ctx.saved_tensors) // 2
        inputs, weights = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
        of_x, learnt = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        gradient = gradient.contiguous()  # the mean over a batch hands down one number with a stride of 0
        of_parameters: list[Tensor | None] = []
        for at in reversed(range(layers)):
            of_parameters += (
                [gradient.sum(0), product(gradient.t(), inputs[at].t())] if learnt else [None, None]
            )
            if at > 0 or of_x:
                gradient = product(gradient, weights[at].t())
            if at > 0:  # the input is what a ReLU let through
                gradient = torch.ops.aten.threshold_backward(gradient, inputs[at], 0.0)
        return (gradient if of_x else None, *reversed(of_parameters))


def mlp(x: Tensor, layers: Sequence[nn.Linear], fixed: bool = False) -> Tensor:
    """A ReLU MLP of x [..., i] to [..., o]; the last layer is linear.

    ``fixed``: gradients reach x alone, at half the price. (Autograd does not tell a function which of
    them are asked for.)
    """
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    if fixed:
        parameters = [p.detach() for p in parameters]
    if torch.is_grad_enabled():
        y: Tensor = _MLP.apply(x.flatten(0, -2), *parameters)  # type: ignore[no-untyped-call]  # PyTorch's
        return y.unflatten(0, x.shape[:-1])
    for at in range(0, len(parameters), 2):
        x = product(x, parameters[at], parameters[at + 1], relu=at + 2 < len(parameters))
    return x
