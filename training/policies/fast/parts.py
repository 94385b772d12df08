"""The parts of a step, each one call of the compiled ``kernels.c`` without the interpreter's lock.

What a call is given stays in its place from step to step: between two kernels, which leave nothing of the
interpreter in the processor's caches, every operation of PyTorch takes tens of microseconds.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from training.contract.settings import LearnerSettings
from training.policies.draws import OF_CANDIDATES, OF_OWN, OF_Z
from training.policies.fast.library import LANES, LIBRARY, CompiledDraws, Network
from training.policies.fast.parameters import Flat, Learnt, Net
from training.policies.networks import STATE_CLIP
from training.trajectories import Transitions

MODULES = "generator", "perturbation", "critics", "target_perturbation", "target_critics"
ENCODER, DECODER = 0, 1  # of the generator's nets
HALVES = 2  # of a net's Adam, and of :meth:`Parts.best`
_PLACES = 3  # of what is drawn: for a step, the next one, and the one that is drawn meanwhile


Described = TypeVar("Described")


class Owner(Protocol):
    """What a compiled step takes from its learner, BatchRL-MTF's."""

    settings: LearnerSettings
    data: Transitions
    seed: int
    device: torch.device
    state_mean: Tensor
    state_scale: Tensor
    modules: dict[str, nn.Module]
    latent: int
    step_count: int

    def rows(self, step: int) -> Tensor: ...

    def frozen(self, step: int) -> bool: ...

    def pool(self, dtype: torch.dtype) -> Tensor: ...


class Nets(NamedTuple, Generic[Described]):
    """Something of each MLP of a step, in the order of their modules."""

    encoder: Described
    decoder: Described
    perturbation: Described
    first: Described  # Q_1
    second: Described
    target_perturbation: Described
    target_first: Described
    target_second: Described


class Drawn:
    """What a step takes from the data and its seed alone, and what its parts leave for each other; of B rows.

    ``count`` (M) is how many of them do not end a session: those whose Q' counts.
    """

    step: int
    rows: Tensor  # int64[B], of the transitions
    count: int
    # made by name, as the others are that kernels alone read and write
    x: Tensor
    own: Tensor
    r: Tensor
    noise: Tensor
    points: Tensor

    def __init__(self, batch: int, n: int, d: int, k: int, z: int, width: int) -> None:
        """``width`` of what the candidates of eq. (7) are made of: latents, or where D is frozen actions."""
        rounded = {
            "sa": (batch, d + k),  # s and s' are standardised
            "next_s": (batch, d),  # [M]
            "x": (batch, n, width),  # [M], of the candidates of eq. (7)
            "own": (batch, z),  # latents of the actions at s, eq. (5)
            "generated": (batch, k),  # and those actions
        }
        exact = {
            "a": (batch, k),
            "r": (batch,),
            "done": (batch,),
            "noise": (batch, z),  # of the generator's z, eq. (3)
            "best": (batch,),  # [M], of eq. (7)
            "y": (batch,),
            # reconstruction, KL, mean Q of eq. (5), mean y, then each critic's loss and mean Q
            "points": (8,),
        }
        for shapes, dtype in ((rounded, torch.bfloat16), (exact, torch.float32)):
            for name, shape in shapes.items():
                setattr(self, name, torch.zeros(shape, dtype=dtype))
        self.on = torch.zeros(batch, dtype=torch.int64)  # [M]: their places in the batch
        blocks = -(-batch // LANES)
        self.moved = torch.zeros(blocks, n, -(-k // 2), LANES, dtype=torch.int32)  # pairs of the candidates
        self.first = torch.zeros(blocks, n, LANES)  # Q'_1 of them
        self.at = {name: value.data_ptr() for name, value in vars(self).items()}


class Parts:
    """The parts of one learner's step; the parameters of its networks move into vectors and stay there."""

    def __init__(self, learner: Owner, in_eight: bool) -> None:
        """``in_eight``: eight bits in the hidden layers of actions that nothing is learnt through."""
        self.learner, own = learner, learner.settings.batchrl_mtf
        rates = own.generator_lr, own.perturbation_lr, learner.settings.critic_lr, None, None
        modules = (learner.modules[name] for name in MODULES)
        self.flat = {name: Flat(m, lr) for name, m, lr in zip(MODULES, modules, rates, strict=True)}
        self.nets = Nets(*(net for flat in self.flat.values() for net in flat.nets))
        self.draws = CompiledDraws(learner.seed, learner.device)
        self._sizes = learner.data.states.shape[1], learner.data.actions.shape[1]
        self._shares = _shares(learner.settings.batch_size)
        self.shares = len(self._shares)  # of :meth:`values`
        self._rounded: list[Tensor] = []  # kernels read and write these
        asked = "decoder", "target_perturbation", "target_first", "target_second"
        self._kept = Nets(
            *(self._described(net, in_eight and name in asked) for name, net in self.nets._asdict().items())
        )
        self._at = at = Nets(*(ctypes.addressof(net) for net in self._kept))
        self._targets = at.target_perturbation, at.target_first, at.target_second
        self._adam = {
            name: [_adam_of(own, f.lr) for own in f.learnt if f.lr is not None]
            for name, f in self.flat.items()
        }
        self._steps = {name: [own.steps.numpy() for own in f.learnt] for name, f in self.flat.items()}
        self._places: dict[tuple[int, bool], Drawn] = {}
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self.refresh()

    def refresh(self) -> None:
        """What is made of weights and standardisation, which have changed from outside."""
        data, learner = self.learner.data, self.learner
        for flat in self.flat.values():
            flat.refresh()
        for net in (self._at.decoder, *self._targets):
            LIBRARY.round(net)
        self._data = (
            *(data.states, data.next_states, data.actions, data.rewards, data.dones),
            *(learner.state_mean, learner.state_scale),
        )
        assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in self._data)
        self._read = [tensor.data_ptr() for tensor in self._data]

    # what is drawn

    def draw(self, step: int) -> Drawn:
        """Of a step, whose place may be that of the third step before: rows, and z's noise."""
        frozen, settings, (d, k) = self.learner.frozen(step), self.learner.settings, self._sizes
        which, z = (step % _PLACES, frozen), self.learner.latent
        if which not in self._places:
            sizes = settings.batch_size, settings.batchrl_mtf.candidates, d, k, z, k if frozen else z
            self._places[which] = Drawn(*sizes)
        drawn, rows = self._places[which], self.learner.rows(step)
        left = (drawn.at[name] for name in ("sa", "a", "r", "done", "on", "next_s"))
        drawn.step, drawn.rows = step, rows
        drawn.count = LIBRARY.rows(rows.data_ptr(), len(rows), *self._read, STATE_CLIP, d, k, *left)
        if not frozen:
            self.draws.fill(drawn.noise, step, OF_Z)
        return drawn

    def draw_latents(self, drawn: Drawn, pool: Tensor | None) -> None:
        """``pool`` [N, n, k] holds the candidates of every s' where the generator is frozen."""
        clip = self.learner.settings.batchrl_mtf.latent_clip
        if pool is None:
            self.draws.fill(drawn.x[: drawn.count], drawn.step, OF_CANDIDATES, clip)
        else:
            rows = drawn.rows.index_select(0, drawn.on[: drawn.count])
            torch.index_select(pool, 0, rows, out=drawn.x[: drawn.count])
        self.draws.fill(drawn.own, drawn.step, OF_OWN, clip)

    # what is learnt

    def generator(self, drawn: Drawn) -> None:
        """Leaves the gradient of eq. (3)."""
        at, nets = drawn.at, self._at
        shape = len(drawn.r), self._sizes[0]
        weight = self.learner.settings.batchrl_mtf.kl_weight
        LIBRARY.generator_gradient(
            nets.encoder, nets.decoder, at["sa"], at["a"], at["noise"], *shape, weight, at["points"]
        )

    def perturbation(self, drawn: Drawn) -> None:
        """Leaves the gradient of eq. (5)."""
        at, nets, (d, k) = drawn.at, self._at, self._sizes
        sa, a, batch = (at["sa"], d + k), at["generated"], len(drawn.r)
        LIBRARY.generated(nets.decoder, *sa, at["own"], batch, d, self.learner.latent, a)
        rho = self.learner.settings.batchrl_mtf.rho
        LIBRARY.perturbation_gradient(nets.perturbation, nets.first, *sa, a, batch, d, rho, at["points"] + 8)

    def values(self, drawn: Drawn, share: int) -> None:
        """One share of the candidates of eq. (7), and of Q'_1 of them.

        What comes out depends neither on the share nor on how many threads compute it.
        """
        start, stop = (min(row, drawn.count) for row in self._shares[share])
        threads = min(torch.get_num_threads(), -(-(stop - start) // LANES))
        if threads <= 1:
            self._values(drawn, start, stop)
            return
        if self._pool is None or self._pool[0] < threads:
            self._pool = threads, ThreadPoolExecutor(threads, "kernels")
        size = LANES * -(-(stop - start) // (threads * LANES))
        parts = [(at, min(at + size, stop)) for at in range(start, stop, size)]
        list(self._pool[1].map(lambda part: self._values(drawn, *part), parts))

    def _values(self, drawn: Drawn, start: int, stop: int) -> None:
        at, (d, k), (n, width) = drawn.at, self._sizes, drawn.x.shape[1:]
        LIBRARY.candidates(
            None if self.learner.frozen(drawn.step) else self._at.decoder,
            self._at.target_perturbation,
            self._at.target_first,
            at["next_s"] + 2 * d * start,
            at["x"] + 2 * n * width * start,
            *(stop - start, d, n, width),
            self.learner.settings.batchrl_mtf.rho,
            at["moved"] + 4 * n * -(-k // 2) * start,
            at["first"] + 4 * n * start,
        )

    def best(self, drawn: Drawn, half: int) -> None:
        """max_a' min_j Q'_j(s', a') of half of the rows, after all shares of :meth:`values`."""
        at, (d, k), n = drawn.at, self._sizes, drawn.x.shape[1]
        middle = drawn.count // 2
        states = (middle, drawn.count) if half else (0, middle)
        left = at["next_s"], at["moved"], at["first"]
        LIBRARY.best(self._at.target_second, *left, *states, d, n, k, at["best"])

    def target(self, drawn: Drawn) -> None:
        """y = r + γ (1 − done) of that."""
        at = drawn.at
        of_q = at["best"], at["on"], drawn.count
        gamma = self.learner.settings.gamma
        LIBRARY.target(at["r"], at["done"], *of_q, len(drawn.r), gamma, at["y"], at["points"] + 12)

    def critic(self, j: int, drawn: Drawn) -> None:
        """Leaves the gradient of eq. (6) for Q_1 (j = 0) or Q_2."""
        at, net = drawn.at, self._at.second if j else self._at.first
        LIBRARY.critic_gradient(net, at["sa"], at["y"], len(drawn.r), at["points"] + 16 + 8 * j)

    def descend(self, name: str, which: int = 0) -> None:
        """One step of Adam on the gradient that was left of one net of a module."""
        LIBRARY.adam(*self._adam[name][which][-1])
        self.descended(name, which)

    def descend_half(self, name: str, which: int, half: int) -> None:
        """A half of that; :meth:`descended` is what is left to do after both."""
        LIBRARY.adam(*self._adam[name][which][half])

    def descended(self, name: str, which: int) -> None:
        self._steps[name][which][()] += 1.0
        if name == "generator" and which == DECODER:
            LIBRARY.round(self._at.decoder)

    def track(self) -> None:
        """target ← η · online + (1 − η) · target."""
        for name in ("critics", "perturbation"):
            self.flat[f"target_{name}"].track(self.flat[name], self.learner.settings.target_rate)
        for net in self._targets:
            LIBRARY.round(net)

    def _described(self, net: Net, in_eight: bool) -> Network:
        described = Network(layers=len(net.weights))
        described.widths[0] = net.weights[0].shape[1]
        for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            described.widths[layer + 1] = weight.shape[0]
            described.weights[layer], described.biases[layer] = weight.data_ptr(), bias.data_ptr()
            if in_eight and 0 < layer < len(net.weights) - 1:
                stride = -(-weight.shape[1] // 4) * 4
                eight, scales = torch.empty(weight.shape[0], stride, dtype=torch.int8), torch.empty(len(bias))
                self._rounded += eight, scales
                described.eight[layer], described.scales[layer] = eight.data_ptr(), scales.data_ptr()
        described.last_weight, described.last_bias = net.last_weight.data_ptr(), net.last_bias.data_ptr()
        for at, gradient in enumerate(net.gradients):
            described.gradients[at] = gradient.data_ptr()
        return described


def _shares(rows: int) -> list[tuple[int, int]]:
    """Whole vectors of lanes, ever fewer of them, so that those who take one after the other end together."""
    shares, start = [], 0
    while start < rows:
        stop = min(rows, start + LANES * -(-(rows - start) // (4 * LANES)))
        shares.append((start, stop))
        start = stop
    return shares


def _adam_of(own: Learnt, lr: float) -> list[tuple[int | float, ...]]:
    """The arguments of both halves, which end and begin at a cache line, and of the whole."""
    vectors = own.values, own.rounded, own.gradient, own.mean, own.square
    count, middle = own.values.numel(), own.values.numel() // 64 * 32
    return [
        (*(vector[part].data_ptr() for vector in vectors), part.stop - part.start, lr, own.steps.data_ptr())
        for part in (slice(0, middle), slice(middle, count), slice(0, count))
    ]
