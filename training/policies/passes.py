"""Forward and backward passes of ReLU MLPs, written out, and the parameters that they learn.

A step of BatchRL-MTF is some forty products of a few tens of microseconds. Beside them autograd's graph, a
gradient tensor and an optimiser's turn for every parameter would take as long again. So the step is written
as its equations and their derivatives: :class:`Flat` holds all parameters of a module in one vector, with
their gradient, their copy in the precision of the products, and an Adam that is one call;
:class:`Pass` runs one of the module's MLPs forward and back on views of these.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.policies.products import product, times

_ALIGNED = 32  # entries between the starts of two parameters, so that none straddles a cache line


class Pass:
    """One ReLU MLP; its last layer is linear. Nothing here is seen by autograd.

    ``dtype`` is that of the products. Weights, biases and the gradients' places are views of a :class:`Flat`.
    """

    def __init__(
        self, low: Sequence[Tensor], exact: Sequence[Tensor], gradients: Sequence[Tensor] | None
    ) -> None:
        """Each: W [o, i], b [o], W, b, … in ``dtype``, in float32, and of the gradients in ``dtype``."""
        self.weights, self.biases = low[::2], low[1::2]
        self.exact_weight, self.exact_bias = exact[-2:]
        self.gradients = gradients
        self.dtype = low[0].dtype
        self._wide: Tensor | None = None  # where many h in float32 lie: new memory costs more than rounding

    def hidden(self, x: Tensor) -> list[Tensor]:
        """The input of every layer: x [B, i] in ``dtype`` and what each hidden layer makes of it."""
        inputs = [x]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            inputs.append(product(inputs[-1], weight, bias, relu=True))
        return inputs

    def out(self, h: Tensor) -> Tensor:
        """The last layer [B, o] of the last input, in float32: bfloat16 would round a Q of 25 to eighths."""
        if h.dtype != torch.float32:
            if self._wide is None or len(self._wide) < len(h):
                self._wide = torch.empty(h.shape, device=h.device)
            h = self._wide[: len(h)].copy_(h)
        return product(h, self.exact_weight, self.exact_bias)

    def rough_out(self, h: Tensor) -> Tensor:
        """The same in ``dtype``: for the many candidates, which are drawn at random anyhow."""
        return product(h, self.weights[-1], self.biases[-1])

    def back(
        self, gradient: Tensor, inputs: Sequence[Tensor], learn: bool = True, beside: int | None = None
    ) -> Tensor | None:
        """From the loss's gradient [B, o] by the output: that of every parameter is written where it belongs.

        ``inputs`` are :meth:`hidden`'s; without ``learn`` the parameters are passed over. Returns the
        gradient float32[B, i − beside] by the entries of x from ``beside`` on, where that is given.
        """
        gradient = gradient.to(self.dtype)
        for at in reversed(range(len(self.weights))):
            weight = self.weights[at]
            if learn:
                times(gradient.t(), inputs[at], out=self.gradients[2 * at])
                torch.sum(gradient, 0, out=self.gradients[2 * at + 1])
            if at > 0:
                gradient = gradient * weight if len(weight) == 1 else times(gradient, weight)
                # the input is what a ReLU let through
                gradient = torch.ops.aten.threshold_backward(gradient, inputs[at], 0.0)
        if beside is None:
            return None
        # a copy: oneDNN takes weights with gaps by a kernel that is a hundred times slower
        return times(gradient, self.weights[0][:, beside:].contiguous()).float()


class Flat:
    """All parameters of a module, which become views of one float32 vector, ``values``.

    In bfloat16 the passes run on a rounded copy, renewed by :meth:`refresh` after every change, and leave
    rounded gradients; ``values``, and Adam's moments, are float32 and gather what rounding would lose.
    """

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        lr: float | None = None,
        values: nn.Parameter | None = None,
        optimiser: torch.optim.Optimizer | None = None,
    ) -> None:
        """Without ``lr`` nothing is learnt (a target network)."""
        self.module, self.dtype, self.lr = module, dtype, lr
        parameters = list(module.parameters())
        starts, end = [], 0
        for parameter in parameters:
            starts.append(end)
            end += -(-parameter.numel() // _ALIGNED) * _ALIGNED
        if values is None:
            values = nn.Parameter(torch.zeros(end, device=parameters[0].device), requires_grad=False)
            for parameter, view in zip(parameters, _views(values, parameters, starts), strict=True):
                view.copy_(parameter.detach())
        self.values = values
        rounded = dtype != torch.float32
        self.low = torch.empty_like(values.data, dtype=dtype) if rounded else values.data
        self.optimiser, self.gradient = None, None
        exact, low, gradients = _views(values.data, parameters, starts), None, None
        for parameter, view in zip(parameters, exact, strict=True):
            parameter.data = view
        low = _views(self.low, parameters, starts)
        if lr is not None:
            values.grad = torch.zeros_like(values.data)
            self.gradient = torch.zeros_like(self.low) if rounded else values.grad
            self.optimiser = optimiser or torch.optim.Adam([values], lr, fused=True)
            gradients = _views(self.gradient, parameters, starts)
        places = {parameter: i for i, parameter in enumerate(parameters)}
        self.passes: Mapping[nn.Module, Pass] = {}
        for net in module.modules():
            if isinstance(getattr(net, "layers", None), nn.ModuleList):
                at = [places[p] for layer in net.layers for p in (layer.weight, layer.bias)]
                of = [[views[i] for i in at] for views in (low, exact)]
                self.passes[net] = Pass(*of, gradients and [gradients[i] for i in at])
        self.refresh()

    def __deepcopy__(self, memo: dict) -> "Flat":
        """A copy whose module's parameters are views of its own vector again."""
        module, values = copy.deepcopy(self.module, memo), copy.deepcopy(self.values, memo)
        return Flat(module, self.dtype, self.lr, values, copy.deepcopy(self.optimiser, memo))

    @torch.no_grad()
    def refresh(self) -> None:
        """Round anew: the values have changed."""
        if self.low.dtype != torch.float32:
            self.low.copy_(self.values)

    @torch.no_grad()
    def descend(self) -> None:
        """One step of Adam on the gradient that the passes left."""
        if self.gradient is not self.values.grad:
            self.values.grad.copy_(self.gradient)
        self.optimiser.step()
        self.refresh()

    @torch.no_grad()
    def track(self, online: "Flat", rate: float) -> None:
        """values ← rate · online's + (1 − rate) · values."""
        self.values.lerp_(online.values, rate)
        self.refresh()


def _views(vector: Tensor, parameters: Sequence[Tensor], starts: Sequence[int]) -> list[Tensor]:
    return [vector[at : at + p.numel()].view(p.shape) for p, at in zip(parameters, starts, strict=True)]
