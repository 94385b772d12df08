"""Matrix products of the learners' layers, by the fastest kernel that the device has for them.

PyTorch's own CPU products go to MKL, which holds processors that are not Intel's to AVX2. oneDNN, which
PyTorch ships beside it, generates code for what the processor has: on an AMD processor with AVX-512 it does
the products of a training step in half the time, and those in bfloat16 in a quarter
(``tests/benchmarks/learner.py`` measures both). It also applies the ReLU while the result is in registers.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import List, Optional, TypeVar, Union  # noqa: UP035

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.contract.settings import LearnerSettings

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_Number = Union[int, float, complex]  # noqa: UP007
Function = TypeVar("Function", bound=Callable)


def training_dtype(settings: LearnerSettings, device: torch.device) -> torch.dtype:
    """What ``batchrl_mtf.precision`` is on this device; int8 is for some of the products of bfloat16."""
    chosen = settings.batchrl_mtf.precision
    if chosen == "auto":
        chosen = "bfloat16" if _multiplies_bfloat16(device) else "float32"
    return torch.float32 if chosen == "float32" else torch.bfloat16


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it does so in hardware, and so faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _ONEDNN and torch.cpu._is_avx512_bf16_supported()


def compiled(function: Function) -> Function:
    """A function of tensors that runs without the interpreter, and so without its lock.

    Two lanes of a step (:mod:`training.policies.lanes`) would otherwise wait for each other between any two
    operations. It must be what ``torch.jit`` understands of Python. PyTorch names ``torch.compile`` as its
    successor, which needs a C++ compiler on the machine; without ``torch.jit`` the function runs as it is.
    """
    if not _ONEDNN or not hasattr(torch.jit, "script"):
        return function
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)


def product(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, relu: bool = False) -> Tensor:  # noqa: UP045
    """x [..., i] · weightᵀ [i, o] + bias [o], then ReLU where asked for; nothing for autograd is kept."""
    return _product(x, weight, bias, relu)


def times(a: Tensor, b: Tensor) -> Tensor:
    """a [i, j] · b [j, k]; nothing for autograd is kept."""
    if a.dtype == torch.float32:
        return _product(a, b.t(), None, False)
    return torch.mm(a, b)  # of bfloat16 it is oneDNN's, too


def plus_product(base: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """base [..., o] + x [..., i] · weightᵀ [i, o], in the place of ``base``; nothing for autograd is kept."""
    return base.addmm_(x, weight.t())


def _by_pytorch(x: Tensor, weight: Tensor, bias: Optional[Tensor], relu: bool) -> Tensor:  # noqa: UP045
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y


def _by_onednn(x: Tensor, weight: Tensor, bias: Optional[Tensor], relu: bool) -> Tensor:  # noqa: UP045
    # for fewer columns, oneDNN's set-up costs more than it saves
    if not x.is_cpu or weight.shape[0] < 8 or not (x.dtype == torch.float32 or x.dtype == torch.bfloat16):
        return _by_pytorch(x, weight, bias, relu)
    none = torch.jit.annotate(List[Optional[_Number]], [])  # noqa: UP006, UP045
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", none, "")


_product = _by_onednn if _ONEDNN else _by_pytorch


class _MLP(torch.autograd.Function):
    """A ReLU MLP of x [B, i] and parameters W, b, W, b, …, with its gradients made by :func:`product` too."""

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        inputs = [x]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(product(inputs[-1], weight, bias, relu=True))
        ctx.save_for_backward(*inputs, *weights)
        return product(inputs[-1], weights[-1], biases[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layers = len(ctx.saved_tensors) // 2
        inputs, weights = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
        of_x, learnt = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        gradient = gradient.contiguous()  # the mean over a batch hands down one number with a stride of 0
        of_parameters: list[Tensor | None] = []
        for at in reversed(range(layers)):
            if learnt:
                of_parameters += [gradient.sum(0), product(gradient.t(), inputs[at].t())]
            if at > 0 or of_x:
                gradient = product(gradient, weights[at].t())
            if at > 0:  # the input is what a ReLU let through
                gradient = torch.ops.aten.threshold_backward(gradient, inputs[at], 0.0)
        of_parameters = of_parameters if learnt else [None] * 2 * layers
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
        return _MLP.apply(x.flatten(0, -2), *parameters).unflatten(0, x.shape[:-1])
    for at in range(0, len(parameters), 2):
        x = product(x, parameters[at], parameters[at + 1], relu=at + 2 < len(parameters))
    return x
