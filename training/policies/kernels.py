"""The parts of a step by the compiled ``kernels.c``, where the processor multiplies bfloat16.

As operations of PyTorch half of a step's time goes into what lies between its products. ``make install``
compiles the file; without a C compiler, on another processor and in another precision the parts are
:class:`training.policies.parts.Parts`, which compute the same up to rounding.
"""

import ctypes
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import structlog
import torch
from torch import Tensor

from training.contract.errors import SettingsError
from training.contract.settings import LearnerSettings
from training.policies.networks import STATE_CLIP
from training.policies.parts import (
    DECODER,
    OF_CANDIDATES,
    OF_OWN,
    OF_Z,
    Drawn,
    Given,
    Nets,
    Noise,
    Parts,
)
from training.policies.passes import Flat, Learnt, Net
from training.policies.products import training_dtype

_log = structlog.get_logger("mtf.policies")
_MOST_LAYERS = 8  # of kernels.c, as is the order of all fields and arguments
_LANES = 16
_PLACES = 3  # of what is drawn: for a step, the next one, and the one that is drawn meanwhile
_DRAWS_BITS = 8  # of a stream's number: which draw of a step it is
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
_FUNCTIONS = {
    "round": [_POINTER],
    "candidates": [*[_POINTER] * 5, *[_INT] * 4, _FLOAT, _POINTER, _POINTER],
    "best": [*[_POINTER] * 4, *[_INT] * 5, _POINTER],
    "generated": [_POINTER, _POINTER, _INT, _POINTER, _INT, _INT, _INT, _POINTER],
    "generator_gradient": [*[_POINTER] * 5, _INT, _INT, _FLOAT, _POINTER],
    "perturbation_gradient": [*[_POINTER] * 3, _INT, _POINTER, _INT, _INT, _FLOAT, _POINTER],
    "critic_gradient": [*[_POINTER] * 3, _INT, _POINTER],
    "target": [*[_POINTER] * 4, _INT, _INT, _FLOAT, _POINTER, _POINTER],
    "adam": [*[_POINTER] * 5, ctypes.c_int64, _FLOAT, _POINTER],
    "rows": [_POINTER, _INT, *[_POINTER] * 7, _FLOAT, _INT, _INT, *[_POINTER] * 6],
    "normals": [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64, _FLOAT, _POINTER, _POINTER],
}


class _Net(ctypes.Structure):
    _fields_ = (
        ("layers", _INT),
        ("widths", _INT * (_MOST_LAYERS + 1)),
        ("weights", _POINTER * _MOST_LAYERS),
        ("biases", _POINTER * _MOST_LAYERS),
        ("last_weight", _POINTER),
        ("last_bias", _POINTER),
        ("gradients", _POINTER * (2 * _MOST_LAYERS)),
        ("eight", _POINTER * _MOST_LAYERS),
        ("scales", _POINTER * _MOST_LAYERS),
    )


def _checked(result: int, function: object, _: tuple) -> None:
    if result:
        raise MemoryError(f"no memory for what lies between the layers ({function.__name__})")


def _library() -> ctypes.CDLL | None:
    source = Path(__file__).with_name("kernels.c")
    for suffix in EXTENSION_SUFFIXES:
        path = source.with_name(f"_kernels{suffix}")
        if path.exists():
            if source.exists() and source.stat().st_mtime > path.stat().st_mtime:
                _log.warning("kernels not used: compiled of an older kernels.c; run `make install`")
                return None
            library = ctypes.CDLL(str(path))
            if not library.mtf_has_kernels():
                return None
            for name, arguments in _FUNCTIONS.items():
                function = getattr(library, f"mtf_{name}")
                function.argtypes = arguments
                if name != "rows":  # which returns a number
                    function.errcheck = _checked
                setattr(library, name, function)
            return library
    return None


_LIBRARY = _library()


class _Noise(Noise):
    """The same from a stream of numbers that are what their places in it are (Philox)."""

    def fill(self, numbers: Tensor, step: int, which: int, clip: float = math.inf) -> Tensor:
        at = (numbers.data_ptr(), None) if numbers.dtype == torch.float32 else (None, numbers.data_ptr())
        stream = (step << _DRAWS_BITS) + which
        _LIBRARY.normals(self._seed % 2**64, stream, numbers.numel(), clip, *at)
        return numbers


class _Placed(Drawn):
    """With room for as many rows as a batch has, that stays where it is."""

    def __init__(self, batch: int, n: int, d: int, k: int, z: int, width: int) -> None:
        low = {"sa": (batch, d + k), "next_s": (batch, d), "x": (batch, n, width), "own": (batch, z)}
        exact = {
            "a": (batch, k),
            "r": (batch,),
            "done": (batch,),
            "noise": (batch, z),
            "best": (batch,),
            "y": (batch,),
            "points": (8,),
        }
        for shapes, dtype in ((low, torch.bfloat16), (exact, torch.float32)):
            for name, shape in shapes.items():
                setattr(self, name, torch.zeros(shape, dtype=dtype))
        self.on = torch.zeros(batch, dtype=torch.int64)
        blocks = -(-batch // _LANES)
        self.moved = torch.zeros(blocks, n, -(-k // 2), _LANES, dtype=torch.int32)  # pairs of the candidates
        self.first = torch.zeros(blocks, n, _LANES)  # Q'_1 of them
        self.generated = torch.zeros(batch, k, dtype=torch.bfloat16)  # the actions of eq. (5)
        self.at = {name: value.data_ptr() for name, value in vars(self).items()}


class Kernels(Parts):
    """The parts, each one call without the interpreter's lock.

    What a call is given stays in its place from step to step: between two kernels, which leave nothing of the
    interpreter in the processor's caches, every operation of PyTorch takes tens of microseconds.
    """

    halves = 2

    def __init__(self, flat: Mapping[str, Flat], given: Given) -> None:
        super().__init__(flat, given, _Noise(given.seed))
        settings, data = given.settings, given.data
        self._sizes = data.states.shape[1], data.actions.shape[1]
        self._rounded: list[Tensor] = []  # kernels read and write these
        in_eight = settings.batchrl_mtf.precision != "bfloat16"
        asked = "decoder", "target_perturbation", "target_first", "target_second"
        self._kept = Nets(
            *(self._described(net, in_eight and name in asked) for name, net in self.nets._asdict().items())
        )
        self._at = at = Nets(*(ctypes.addressof(net) for net in self._kept))
        self._targets = at.target_perturbation, at.target_first, at.target_second
        for net in (at.decoder, *self._targets):
            _LIBRARY.round(net)
        read = data.states, data.next_states, data.actions, data.rewards, data.dones, given.mean, given.scale
        assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in read)
        self._read = [tensor.data_ptr() for tensor in read]
        self._adam = {name: [_adam_of(own, f.lr) for own in f.learnt] for name, f in flat.items()}
        self._steps = {name: [own.steps.numpy() for own in f.learnt] for name, f in flat.items()}
        self._shares = _shares(settings.batch_size)
        self.shares = len(self._shares)
        self._places: dict[tuple[int, bool], _Placed] = {}
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def place(self, step: int, frozen: bool) -> Drawn:
        which = step % _PLACES, frozen
        if which not in self._places:
            settings, (d, k) = self.given.settings, self._sizes
            self._places[which] = _Placed(
                settings.batch_size,
                settings.batchrl_mtf.candidates,
                d,
                k,
                self.latent,
                k if frozen else self.latent,
            )
        return self._places[which]

    def draw(self, drawn: _Placed, step: int, rows: Tensor, frozen: bool) -> Drawn:
        """Of s' no more than those whose Q' counts."""
        at = drawn.at
        left = at["sa"], at["a"], at["r"], at["done"], at["on"], at["next_s"]
        drawn.step, drawn.rows = step, rows
        drawn.count = _LIBRARY.rows(rows.data_ptr(), len(rows), *self._read, STATE_CLIP, *self._sizes, *left)
        if not frozen:
            self.noise.fill(drawn.noise, step, OF_Z)
        return drawn

    def draw_latents(self, drawn: _Placed, pool: Tensor | None) -> None:
        clip = self.given.settings.batchrl_mtf.latent_clip
        if pool is None:
            self.noise.fill(drawn.x[: drawn.count], drawn.step, OF_CANDIDATES, clip)
        else:
            rows = drawn.rows.index_select(0, drawn.on[: drawn.count])
            torch.index_select(pool, 0, rows, out=drawn.x[: drawn.count])
        self.noise.fill(drawn.own, drawn.step, OF_OWN, clip)

    def generator(self, drawn: _Placed) -> None:
        at, nets = drawn.at, self._at
        shape = len(drawn.r), self._sizes[0]
        weight = self.given.settings.batchrl_mtf.kl_weight
        _LIBRARY.generator_gradient(
            nets.encoder, nets.decoder, at["sa"], at["a"], at["noise"], *shape, weight, at["points"]
        )

    def perturbation(self, drawn: _Placed) -> None:
        at, nets, (d, k) = drawn.at, self._at, self._sizes
        sa, a, batch = (at["sa"], d + k), at["generated"], len(drawn.r)
        _LIBRARY.generated(nets.decoder, *sa, at["own"], batch, d, self.latent, a)
        rho = self.given.settings.batchrl_mtf.rho
        _LIBRARY.perturbation_gradient(nets.perturbation, nets.first, *sa, a, batch, d, rho, at["points"] + 8)

    def values(self, drawn: _Placed, share: int, frozen: bool) -> None:
        """What comes out depends neither on the share nor on how many threads compute it."""
        start, stop = (min(row, drawn.count) for row in self._shares[share])
        threads = min(torch.get_num_threads(), -(-(stop - start) // _LANES))
        if threads <= 1:
            self._values(drawn, frozen, start, stop)
            return
        if self._pool is None or self._pool[0] < threads:
            self._pool = threads, ThreadPoolExecutor(threads, "kernels")
        size = _LANES * -(-(stop - start) // (threads * _LANES))
        parts = [(at, min(at + size, stop)) for at in range(start, stop, size)]
        list(self._pool[1].map(lambda part: self._values(drawn, frozen, *part), parts))

    def _values(self, drawn: _Placed, frozen: bool, start: int, stop: int) -> None:
        at, (d, k), (n, width) = drawn.at, self._sizes, drawn.x.shape[1:]
        _LIBRARY.candidates(
            None if frozen else self._at.decoder,
            self._at.target_perturbation,
            self._at.target_first,
            at["next_s"] + 2 * d * start,
            at["x"] + 2 * n * width * start,
            *(stop - start, d, n, width),
            self.given.settings.batchrl_mtf.rho,
            at["moved"] + 4 * n * -(-k // 2) * start,
            at["first"] + 4 * n * start,
        )

    def best(self, drawn: _Placed, half: int) -> None:
        at, (d, k), n = drawn.at, self._sizes, drawn.x.shape[1]
        middle = drawn.count // 2
        states = (middle, drawn.count) if half else (0, middle)
        left = at["next_s"], at["moved"], at["first"]
        _LIBRARY.best(self._at.target_second, *left, *states, d, n, k, at["best"])

    def target(self, drawn: _Placed) -> None:
        at = drawn.at
        of_q = at["best"], at["on"], drawn.count
        gamma = self.given.settings.gamma
        _LIBRARY.target(at["r"], at["done"], *of_q, len(drawn.r), gamma, at["y"], at["points"] + 12)

    def critic(self, j: int, drawn: _Placed) -> None:
        at, net = drawn.at, self._at.second if j else self._at.first
        _LIBRARY.critic_gradient(net, at["sa"], at["y"], len(drawn.r), at["points"] + 16 + 8 * j)

    def descend(self, name: str, which: int = 0) -> None:
        _LIBRARY.adam(*self._adam[name][which][-1])
        self.descended(name, which)

    def descend_half(self, name: str, which: int, half: int) -> None:
        _LIBRARY.adam(*self._adam[name][which][half])

    def descended(self, name: str, which: int) -> None:
        self._steps[name][which][()] += 1.0
        if name == "generator" and which == DECODER:
            _LIBRARY.round(self._at.decoder)

    def track(self) -> None:
        super().track()
        for net in self._targets:
            _LIBRARY.round(net)

    def curves(self, drawn: _Placed) -> Tensor:
        *generator, perturbation, y, loss, q, second_loss, second_q = drawn.points.tolist()
        return torch.tensor([*generator, perturbation, loss + second_loss, 0.5 * (q + second_q), y])

    def _described(self, net: Net, in_eight: bool) -> _Net:
        described = _Net(layers=len(net.weights))
        described.widths[0] = net.weights[0].shape[1]
        for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            described.widths[layer + 1] = weight.shape[0]
            described.weights[layer], described.biases[layer] = weight.data_ptr(), bias.data_ptr()
            if in_eight and 0 < layer < len(net.weights) - 1:
                stride = -(-weight.shape[1] // 4) * 4
                eight, scales = torch.empty(weight.shape[0], stride, dtype=torch.int8), torch.empty(len(bias))
                self._rounded += eight, scales
                described.eight[layer], described.scales[layer] = eight.data_ptr(), scales.data_ptr()
        described.last_weight, described.last_bias = net.exact_weight.data_ptr(), net.exact_bias.data_ptr()
        for at, gradient in enumerate(net.exact_gradients):
            described.gradients[at] = gradient.data_ptr()
        return described


def _shares(rows: int) -> list[tuple[int, int]]:
    """Whole vectors of lanes, ever fewer of them, so that those who take one after the other end together."""
    shares, start = [], 0
    while start < rows:
        stop = min(rows, start + _LANES * -(-(rows - start) // (4 * _LANES)))
        shares.append((start, stop))
        start = stop
    return shares


def parts_of(flat: Mapping[str, Flat], given: Given) -> Parts:
    """The parts of these nets by the fastest means that there are for them, in ``batchrl_mtf.precision``.

    Raises :class:`SettingsError` for int8 where that needs a kernel that is not there.
    """
    nets = [net for own in flat.values() for net in own.nets]
    on_cpu = all(net.weights[0].is_cpu for net in nets)
    fits = on_cpu and all(
        net.weights[0].dtype == torch.bfloat16 and 2 <= len(net.weights) <= _MOST_LAYERS for net in nets
    )
    if fits and _LIBRARY is not None:
        return Kernels(flat, given)
    if given.settings.batchrl_mtf.precision == "int8":
        raise SettingsError(
            "learner.batchrl_mtf.precision: int8 needs a processor with AVX-512 for bfloat16 and int8, the "
            f"compiled training/policies/kernels.c, device cpu, and nets of 2 to {_MOST_LAYERS} layers"
        )
    return Parts(flat, given, Noise(given.seed) if _LIBRARY is None or not on_cpu else _Noise(given.seed))


def arithmetic(settings: LearnerSettings, device: torch.device) -> str:
    """What :func:`parts_of` computes in, and whether by kernels, for the lineage of a model."""
    dtype = str(training_dtype(settings, device)).removeprefix("torch.")
    if dtype != "bfloat16" or device.type != "cpu" or _LIBRARY is None:
        return dtype
    return f"{'bfloat16' if settings.batchrl_mtf.precision == 'bfloat16' else 'int8'}, compiled"


def _adam_of(own: Learnt, lr: float) -> list[tuple[int | float, ...]]:
    """The arguments of both halves, which end and begin at a cache line, and of the whole."""
    vectors = own.values, own.low, own.exact_gradient, own.mean, own.square
    count, middle = own.values.numel(), own.values.numel() // 64 * 32
    return [
        (*(vector[part].data_ptr() for vector in vectors), part.stop - part.start, lr, own.steps.data_ptr())
        for part in (slice(0, middle), slice(middle, count), slice(0, count))
    ]
