"""Matrix products of the learners' layers, by the fastest kernel that the device has for them.

PyTorch's own CPU products go to MKL, which holds processors that are not Intel's to AVX2. oneDNN, which
PyTorch ships beside it, generates code for what the processor has: on an AMD processor with AVX-512 it does
the products of a training step in half the time, and those in bfloat16 in a quarter
(``tests/benchmarks/learner.py`` measures both). It also applies the ReLU while the result is in registers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.contract.settings import LearnerSettings

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_LEAST_COLUMNS = 8  # of a result: for fewer, oneDNN's set-up costs more than it saves
_TYPES = (torch.float32, torch.bfloat16)


def target_dtype(settings: LearnerSettings, device: torch.device) -> torch.dtype:
    """What ``learner.target_precision`` is on this device."""
    chosen = settings.target_precision
    if chosen == "auto":
        chosen = "bfloat16" if _multiplies_bfloat16(device) else "float32"
    return torch.bfloat16 if chosen == "bfloat16" else torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it does so in hardware, and so faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _ONEDNN and torch.cpu._is_avx512_bf16_supported()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """x [..., i] · weightᵀ [i, o] + bias [o], then ReLU where asked for; nothing for autograd is kept."""
    if _ONEDNN and x.device.type == "cpu" and x.dtype in _TYPES and len(weight) >= _LEAST_COLUMNS:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y


class _Linear(torch.autograd.Function):
    """:func:`product` of a matrix, with its gradients made by the same products."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        y = product(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        if y is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0.0)
        gradient = gradient.contiguous()  # the mean over a batch hands down one number with a stride of 0
        return (
            product(gradient, weight.t()) if of_x else None,
            product(gradient.t(), x.t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
            None,
        )


def layer(x: Tensor, linear: nn.Linear, relu: bool) -> Tensor:
    """One layer of an MLP on x [..., i]: linear(x), then ReLU where asked for."""
    if not torch.is_grad_enabled():
        return product(x, linear.weight, linear.bias, relu)
    y = _Linear.apply(x.flatten(0, -2), linear.weight, linear.bias, relu)
    return y.unflatten(0, x.shape[:-1])


def mlp(x: Tensor, layers: nn.ModuleList) -> Tensor:
    """A ReLU MLP of x [..., i] to [..., o]; the last layer is linear."""
    for linear in layers[:-1]:
        x = layer(x, linear, relu=True)
    return layer(x, layers[-1], relu=False)
