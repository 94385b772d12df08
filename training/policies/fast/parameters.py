"""All parameters of a module in one vector, with their gradient, Adam's moments and a copy in bfloat16."""

import contextlib
import mmap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_ALIGNED = 32  # entries between the starts of two parameters, so that none straddles a cache line
_LARGE = 1 << 21  # bytes of a large page


class Net(NamedTuple):
    """One ReLU MLP of a module, its last layer linear: W [o, i] and b [o] of each layer."""

    weights: list[Tensor]  # bfloat16
    biases: list[Tensor]
    last_weight: Tensor  # of the last layer, in float32
    last_bias: Tensor
    gradients: list[Tensor]  # float32: where those of W, b, W, b, … belong; empty where nothing is learnt


class Learnt(NamedTuple):
    """Its parameters [p] in a row, beside all that its Adam needs."""

    values: Tensor
    rounded: Tensor
    gradient: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor  # []


class Flat:
    """A module's parameters, which become views of one float32 vector, ``values``.

    The passes run on a rounded copy, renewed by :meth:`refresh` after every change from outside; ``values``,
    the gradients and Adam's moments are float32 and gather what rounding would lose.
    """

    def __init__(self, module: nn.Module, lr: float | None = None) -> None:
        """The module's parameters must be those of its MLPs. Without ``lr`` nothing is learnt (a target)."""
        self.lr = lr
        nets: list[Any] = [getattr(net, "layers", None) for net in module.modules()]
        nets = [layers for layers in nets if isinstance(layers, nn.ModuleList)]
        parameters = [[p for layer in layers for p in (layer.weight, layer.bias)] for layers in nets]
        places: list[list[tuple[int, torch.Size]]] = []
        end = 0
        for own in parameters:
            places.append([])
            for parameter in own:
                places[-1].append((end, parameter.shape))
                end += -(-parameter.numel() // _ALIGNED) * _ALIGNED
        self.values, self.rounded = _zeros(end, torch.float32), _zeros(end, torch.bfloat16)
        if lr is not None:
            self.gradient = _zeros(end, torch.float32)
            self.moments = {name: _zeros(end, torch.float32) for name in ("mean", "square")}
            self.steps = torch.zeros(len(nets))  # of Adam, for each MLP
        self.nets: list[Net] = []  # in the module's order
        self.learnt: list[Learnt] = []  # of each of them, but for a target
        for own, at in zip(parameters, places, strict=True):
            exact, rounded = _views(self.values, at), _views(self.rounded, at)
            for parameter, view in zip(own, exact, strict=True):
                view.copy_(parameter.detach())
                parameter.data = view
            gradients = [] if lr is None else _views(self.gradient, at)
            self.nets.append(Net(rounded[::2], rounded[1::2], exact[-2], exact[-1], gradients))
            last, shape = at[-1]
            if lr is not None:
                span = slice(at[0][0], last + shape.numel())
                vectors = self.values, self.rounded, self.gradient, *self.moments.values()
                self.learnt.append(Learnt._make([*(v[span] for v in vectors), self.steps[len(self.learnt)]]))
        self.refresh()

    def refresh(self) -> None:
        """Round anew: the values have changed."""
        self.rounded.copy_(self.values)

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


def _zeros(count: int, dtype: torch.dtype) -> Tensor:
    """In large pages, where there are any: a step reads all of it, and small ones take longer to find."""
    size = max(1, count) * dtype.itemsize
    if size < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(count, dtype=dtype)
    whole = -(-size // _LARGE) * _LARGE
    memory = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count)


def _views(vector: Tensor, places: Sequence[tuple[int, torch.Size]]) -> list[Tensor]:
    return [vector[at : at + shape.numel()].view(shape) for at, shape in places]
