"""Progressive layered extraction: the multi-task network (Tang et al., RecSys 2020)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small: threads wait for each other longer than they work (on a shared machine four
    times the processor time), and one gives the same sums whatever the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ExtractionLayer(nn.Module):
    """One extraction network: experts of each task and shared ones, mixed by gates.

    The first layer takes [n, inputs], later ones [T + 1, n, inputs], one slice a task and the last
    one shared; the output is [T + 1, n, hidden], without the shared slice in the last layer. A
    task's gate looks at its own and the shared experts, the shared gate at all of them.
    """

    def __init__(self, tasks: int, experts: int, inputs: int, hidden: int, *, last: bool) -> None:
        super().__init__()
        self.shape = (tasks, experts, hidden)
        self.last = last
        self.weight = nn.Parameter(torch.randn(tasks + 1, inputs, experts * hidden) * (2.0 / inputs) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(tasks + 1, 1, experts * hidden))
        self.task_gate = nn.Parameter(torch.zeros(tasks, inputs, 2 * experts))
        if not last:
            self.shared_gate = nn.Parameter(torch.zeros(inputs, (tasks + 1) * experts))

    def forward(self, x: Tensor) -> Tensor:
        tasks, experts, hidden = self.shape
        by_task, common = (x, x) if x.dim() == 2 else (x[:-1], x[-1])
        out = torch.relu(_grouped(x, self.weight) + self.bias)
        out = out.view(tasks + 1, -1, experts, hidden)
        gate = torch.softmax(_grouped(by_task, self.task_gate), dim=-1)[..., None]  # [T, n, 2e, 1]
        mixed = (gate[:, :, :experts] * out[:-1]).sum(2) + (gate[:, :, experts:] * out[-1]).sum(2)
        if self.last:
            return mixed
        gate = torch.softmax(common @ self.shared_gate, dim=-1).view(-1, tasks + 1, experts, 1)
        shared = (gate.transpose(0, 1) * out).sum((0, 2))
        return torch.cat([mixed, shared[None]])


def _grouped(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, i] or [g, n, i] by weight [g, i, o] to [g, n, o]; a common x takes one multiplication."""
    if x.dim() == 3:
        return torch.bmm(x, weight)
    groups, inputs, outputs = weight.shape
    product = x @ weight.transpose(0, 1).reshape(inputs, groups * outputs)
    return product.view(-1, groups, outputs).transpose(0, 1)


class PLE(nn.Module):
    """Embeddings and numbers through extraction layers and a tower a task.

    ``forward(categories int64[n, c], numbers float32[n, k])`` gives float32[n, T]: logits, and
    log(1 + seconds) for play time. Index 0 of every embedding is the unknown value.
    """

    def __init__(
        self,
        cardinalities: list[int],
        numbers: int,
        tasks: int,
        *,
        embedding: int,
        experts: int,
        layers: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [min(embedding, 2 * round(size**0.25) + 1) for size in cardinalities]
        tables = [nn.Embedding(size, width) for size, width in zip(cardinalities, widths, strict=True)]
        for table in tables:
            nn.init.normal_(table.weight, std=0.05)
        self.embeddings = nn.ModuleList(tables)
        sizes = [sum(widths) + numbers, *[hidden] * layers]
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            ExtractionLayer(tasks, experts, sizes[i], hidden, last=i == layers - 1) for i in range(layers)
        )
        self.tower_weight = nn.Parameter(torch.randn(tasks, hidden, 1) * hidden**-0.5)
        self.tower_bias = nn.Parameter(torch.zeros(tasks, 1, 1))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        embedded = [table(categories[:, i]) for i, table in enumerate(self.embeddings)]
        x = self.dropout(torch.cat([*embedded, numbers], dim=1))
        for layer in self.layers:
            x = layer(x)
        return (torch.bmm(x, self.tower_weight) + self.tower_bias)[:, :, 0].T
