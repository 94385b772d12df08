"""Forward and backward passes of ReLU MLPs, written out, and the parameters that they learn.

A step of BatchRL-MTF is some forty products of a few tens of microseconds. Beside them autograd's graph, a
gradient tensor and an optimiser's turn for every parameter would take as long again. So the step is written
as its equations and their derivatives: :class:`Flat` holds all parameters of a module in one vector, with
their gradient, their copy in the precision of the products, and an Adam that is one call;
:class:`Net` is one of the module's MLPs as views of these, for the functions that run it forward and back.
They keep to what :func:`training.policies.products.compiled` takes. Autograd sees nothing of it.
"""

import contextlib
import copy
import mmap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.policies.products import plus_product, product, times

_ALIGNED = 32  # entries between the starts of two parameters, so that none straddles a cache line
_LARGE = 1 << 21  # bytes of a large page
_ADAM = {  # of torch.optim.Adam
    "beta1": 0.9,
    "beta2": 0.999,
    "weight_decay": 0.0,
    "eps": 1e-8,
    "amsgrad": False,
    "maximize": False,
    "grad_scale": None,
    "found_inf": None,
}


class Net(NamedTuple):
    """One ReLU MLP, its last layer linear: W [o, i] and b [o] of each layer, in the products' precision."""

    weights: list[Tensor]
    biases: list[Tensor]
    exact_weight: Tensor  # of the last layer, in float32
    exact_bias: Tensor
    gradients: list[Tensor]  # where those of W, b, W, b, … belong; empty where nothing is learnt
    exact_gradients: list[Tensor]  # and those in float32, which may be the same


def hidden(net: Net, x: Tensor) -> list[Tensor]:
    """The input of every layer: x [B, i] and what each hidden layer makes of it."""
    inputs = [x]
    for at in range(len(net.weights) - 1):
        inputs.append(product(inputs[-1], net.weights[at], net.biases[at], relu=True))
    return inputs


class Room(NamedTuple):
    """For a first layer's many rows: numbers in the products' precision, and the same as integers.

    ReLU is the same of a number and of the integer that a bfloat16's bits are, and of integers it takes a
    sixth of the time. ``torch.jit`` knows no view in another type, so there are both.
    """

    numbers: Tensor
    integers: Tensor


def room(count: int, dtype: torch.dtype, device: torch.device) -> Room:
    numbers = torch.empty(count, dtype=dtype, device=device)
    return Room(numbers, numbers.view(torch.int16) if dtype == torch.bfloat16 else numbers)


def hidden_of_each(net: Net, s: Tensor, x: Tensor, room: Room) -> Tensor:
    """The last layer's input [M · n, h] for n x of each state: s [M, d], x [M · n, w].

    As in :class:`training.policies.networks.StateMLP` the first layer's part of s is computed once a state.
    What is returned may lie in ``room``, which must have M · n · o numbers for o outputs of that layer.
    """
    rows, d, weight = x.shape[0], s.shape[1], net.weights[0]
    count = rows * weight.shape[0]
    if len(net.weights) == 1:
        return torch.cat([s.repeat_interleave(rows // s.shape[0], dim=0), x], dim=1)
    of_state = product(s, weight[:, :d].contiguous(), net.biases[0])
    h = room.numbers[:count].view(rows, -1)
    h.view(s.shape[0], -1, h.shape[1]).copy_(of_state[:, None])
    h = plus_product(h, x, weight[:, d:])
    room.integers[:count].relu_()
    for at in range(1, len(net.weights) - 1):
        h = product(h, net.weights[at], net.biases[at], relu=True)
    return h


def out(net: Net, h: Tensor) -> Tensor:
    """The last layer [B, o] of the last input, in float32: bfloat16 would round a Q of 25 to eighths."""
    return product(h.float(), net.exact_weight, net.exact_bias)


def rough_out(net: Net, h: Tensor) -> Tensor:
    """The same in the products' precision: for the many candidates, which are drawn at random anyhow."""
    return product(h, net.weights[-1], net.biases[-1])


def back(net: Net, gradient: Tensor, inputs: list[Tensor], learn: bool = True) -> Tensor:
    """From the loss's gradient float32[B, o] by the output, to that by the first layer before its ReLU.

    ``inputs`` are :func:`hidden`'s. With ``learn`` every parameter's gradient is written where it belongs.
    """
    gradient = gradient.to(inputs[0].dtype)
    for layer in range(len(net.weights)):
        at = len(net.weights) - 1 - layer
        if learn:
            if gradient.dtype == torch.float32:
                net.gradients[2 * at].copy_(times(gradient.t(), inputs[at]))
            else:
                torch.mm(gradient.t(), inputs[at], out=net.gradients[2 * at])
            torch.sum(gradient, [0], out=net.gradients[2 * at + 1])
        if at > 0:
            weight = net.weights[at]
            gradient = gradient * weight if weight.shape[0] == 1 else times(gradient, weight)
            # the input is what a ReLU let through
            gradient = torch.ops.aten.threshold_backward(gradient, inputs[at], 0.0)
    return gradient


def by_input(net: Net, gradient: Tensor, beside: int) -> Tensor:
    """From what :func:`back` returns, to the gradient float32[B, i − beside] by x from ``beside`` on."""
    # a copy: oneDNN takes weights with gaps by a kernel that is a hundred times slower
    return times(gradient, net.weights[0][:, beside:].contiguous()).float()


class Learnt(NamedTuple):
    """One MLP's parameters [p] in a row, beside all that its Adam needs."""

    values: Tensor
    low: Tensor
    gradient: Tensor
    exact_gradient: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor  # []


class Flat:
    """All parameters of a module, which become views of one float32 vector, ``values``.

    In bfloat16 the passes run on a rounded copy, renewed by :meth:`refresh` after every change, and leave
    rounded gradients; ``values``, and Adam's moments, are float32 and gather what rounding would lose.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, lr: float | None = None) -> None:
        """The module's parameters must be those of its MLPs. Without ``lr`` nothing is learnt (a target)."""
        self.module, self.dtype, self.lr = module, dtype, lr
        nets = [net for net in module.modules() if isinstance(getattr(net, "layers", None), nn.ModuleList)]
        parameters = [[p for layer in net.layers for p in (layer.weight, layer.bias)] for net in nets]
        places, end = [], 0
        for own in parameters:
            places.append([])
            for parameter in own:
                places[-1].append((end, parameter.shape))
                end += -(-parameter.numel() // _ALIGNED) * _ALIGNED
        device = parameters[0][0].device
        self.values = _zeros(end, torch.float32, device)
        rounded = dtype != torch.float32
        self.low = _zeros(end, dtype, device) if rounded else self.values
        if lr is not None:
            self.gradient = _zeros(end, dtype, device)
            self.exact_gradient = _zeros(end, torch.float32, device) if rounded else self.gradient
            self.moments = {name: _zeros(end, torch.float32, device) for name in ("mean", "square")}
            self.steps = torch.zeros(len(nets), device=self.values.device)  # of Adam, for each MLP
        self.nets: list[Net] = []  # in the module's order
        self.learnt: list[Learnt] = []  # of each of them, but for a target
        for own, at in zip(parameters, places, strict=True):
            exact = _views(self.values, at)
            for parameter, view in zip(own, exact, strict=True):
                view.copy_(parameter.detach())
                parameter.data = view
            low = _views(self.low, at)
            gradients = [] if lr is None else _views(self.gradient, at)
            exact_gradients = [] if lr is None else _views(self.exact_gradient, at)
            self.nets.append(Net(low[::2], low[1::2], *exact[-2:], gradients, exact_gradients))
            last, shape = at[-1]
            if lr is not None:
                vectors = self.values, self.low, self.gradient, self.exact_gradient, *self.moments.values()
                span = slice(at[0][0], last + shape.numel())
                self.learnt.append(Learnt(*(v[span] for v in vectors), steps=self.steps[len(self.learnt)]))
        self.refresh()

    def __deepcopy__(self, memo: dict) -> "Flat":
        """A copy whose module's parameters are views of its own vector."""
        other = Flat(copy.deepcopy(self.module, memo), self.dtype, self.lr)
        other.load_state(self.state())
        return other

    def refresh(self) -> None:
        """Round anew: the values have changed."""
        if self.low is not self.values:
            self.low.copy_(self.values)

    def descend(self, which: int = 0) -> None:
        """One step of Adam on the gradient that the passes left of one net."""
        net = self.learnt[which]
        net.steps.add_(1.0)
        rounded = self.low is not self.values
        if rounded:
            net.exact_gradient.copy_(net.gradient)
        # what torch.optim.Adam(fused=True) calls, without the optimiser's bookkeeping around it
        torch._fused_adam_(
            [net.values],
            [net.exact_gradient],
            [net.mean],
            [net.square],
            [],
            [net.steps],
            lr=self.lr,
            **_ADAM,
        )
        if rounded:
            net.low.copy_(net.values)

    def track(self, online: "Flat", rate: float) -> None:
        """values ← rate · online's + (1 − rate) · values."""
        self.values.lerp_(online.values, rate)
        self.refresh()

    def state(self) -> dict[str, Tensor]:
        """Adam's, beside the module's own parameters; nothing of a target."""
        return {} if self.lr is None else {**self.moments, "steps": self.steps}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        for name, own in self.state().items():
            own.copy_(tensors[name])


def _zeros(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """In large pages, where there are any: a step reads all of it, and small ones take longer to find."""
    size = max(1, count) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(count, dtype=dtype, device=device)
    whole = -(-size // _LARGE) * _LARGE
    memory = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count)


def _views(vector: Tensor, places: Sequence[tuple[int, torch.Size]]) -> list[Tensor]:
    return [vector[at : at + shape.numel()].view(shape) for at, shape in places]
