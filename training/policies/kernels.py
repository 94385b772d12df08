"""The parts of a step by the compiled ``kernels.c``, where the processor multiplies bfloat16.

As operations of PyTorch half of a step's time goes into what lies between its products. ``make install``
compiles the file; without a C compiler, on another processor and in another precision the parts are
:class:`training.policies.parts.Parts`, which compute the same up to rounding.
"""

import ctypes
import math
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import structlog
import torch
from torch import Tensor

from training.contract.errors import SettingsError
from training.contract.settings import LearnerSettings
from training.policies.networks import STATE_CLIP
from training.policies.parts import Nets, Noise, Parts, Rows
from training.policies.passes import Net
from training.policies.products import training_dtype
from training.trajectories import Transitions

_log = structlog.get_logger("mtf.policies")
_MOST_LAYERS = 8  # of kernels.c, as is the order of all fields and arguments
_LANES = 16
_CALLS_BITS = 8  # of a stream's number: which draw of a step it is of
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float
_FUNCTIONS = {
    "next_values": [*[_POINTER] * 6, *[_INT] * 4, _FLOAT, _INT, _POINTER],
    "generated": [_POINTER, _POINTER, _INT, _POINTER, _INT, _INT, _INT, _POINTER],
    "generator_gradient": [*[_POINTER] * 5, _INT, _INT, _FLOAT, _POINTER],
    "perturbation_gradient": [*[_POINTER] * 3, _INT, _POINTER, _INT, _INT, _FLOAT, _POINTER],
    "critic_gradient": [*[_POINTER] * 3, _INT, _POINTER],
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
    )


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
                getattr(library, f"mtf_{name}").argtypes = arguments
            return library
    return None


_LIBRARY = _library()


class _Noise(Noise):
    """The same from a stream of numbers that are what their places in it are (Philox)."""

    def __init__(self, seed: int, step: int, device: torch.device, dtype: torch.dtype) -> None:
        self._seed, self._stream, self._dtype = seed, step << _CALLS_BITS, dtype

    def normal(self, *shape: int) -> Tensor:
        return self._next(math.inf, shape, torch.float32)

    def latents(self, clip: float, *shape: int) -> Tensor:
        return self._next(clip, shape, self._dtype)

    def _next(self, clip: float, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        numbers = torch.empty(shape, dtype=dtype)
        at = (numbers.data_ptr(), None) if dtype == torch.float32 else (None, numbers.data_ptr())
        _call("normals", self._seed % 2**64, self._stream, numbers.numel(), clip, *at)
        self._stream += 1
        return numbers


class Kernels(Parts):
    """The parts, each one call without the interpreter's lock. All tensors are contiguous, but for s."""

    exact_gradients = True

    def __init__(self, nets: Nets, in_eight: bool) -> None:
        """``in_eight``: hidden layers of the candidates, but the first ones, by integers of eight bits."""
        super().__init__(nets, _Noise)
        self.in_eight = in_eight
        described = (_described(net) for net in nets)
        self._kept = Nets(*described)  # a kernel reads them
        self._at = Nets(*(ctypes.addressof(net) for net in self._kept))
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def rows(self, data: Transitions, rows: Tensor, mean: Tensor, scale: Tensor) -> Rows:
        """Of s' no more than those whose Q' counts."""
        count, (d, k) = len(rows), (data.states.shape[1], data.actions.shape[1])
        sa = torch.empty(count, d + k, dtype=torch.bfloat16)
        a, r, done = torch.empty(count, k), torch.empty(count), torch.empty(count)
        on, next_s = torch.empty(count, dtype=torch.int64), torch.empty(count, d, dtype=torch.bfloat16)
        read = data.states, data.next_states, data.actions, data.rewards, data.dones, mean, scale
        assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in read)
        inputs, outputs = (
            [tensor.data_ptr() for tensor in group] for group in (read, (sa, a, r, done, on, next_s))
        )
        kept = _LIBRARY.mtf_rows(rows.data_ptr(), count, *inputs, STATE_CLIP, d, k, *outputs)
        return Rows(rows, sa, a, r, done, on[:kept], next_s[:kept])

    def shares(self, count: int) -> list[slice]:
        """Four, of whole vectors."""
        size = _LANES * max(1, -(-count // (4 * _LANES)))
        return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]

    def generated(self, s: Tensor, z: Tensor) -> Tensor:
        a = torch.empty(len(s), self._kept.perturbation.widths[self._kept.perturbation.layers], dtype=s.dtype)
        shape = len(s), s.shape[1], z.shape[1]
        _call("generated", self._at.decoder, s.data_ptr(), s.stride(0), z.data_ptr(), *shape, a.data_ptr())
        return a

    def next_values(self, s: Tensor, x: Tensor, rho: float, frozen: bool) -> Tensor:
        """PyTorch's threads share the states; what comes out does not depend on how many they are."""
        best = torch.empty(len(s))
        at = self._at
        nets = None if frozen else at.decoder, at.target_perturbation, at.target_first, at.target_second

        def compute(part: slice) -> None:
            shape = len(s[part]), s.shape[1], *x.shape[1:]
            pointers = s[part].data_ptr(), x[part].data_ptr()
            _call("next_values", *nets, *pointers, *shape, rho, self.in_eight, best[part].data_ptr())

        threads = min(torch.get_num_threads(), -(-len(s) // _LANES))
        if threads <= 1:
            compute(slice(None))
            return best
        if self._pool is None or self._pool[0] < threads:
            self._pool = threads, ThreadPoolExecutor(threads, "kernels")
        rows = -(-len(s) // threads)
        list(self._pool[1].map(compute, (slice(start, start + rows) for start in range(0, len(s), rows))))
        return best

    def generator_gradient(
        self, sa: Tensor, a: Tensor, noise: Tensor, kl_weight: float
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(2)
        pointers = sa.data_ptr(), a.data_ptr(), noise.data_ptr()
        shape = len(sa), sa.shape[1] - a.shape[1]
        nets = self._at.encoder, self._at.decoder
        _call("generator_gradient", *nets, *pointers, *shape, kl_weight, losses.data_ptr())
        return losses[0], losses[1]

    def perturbation_gradient(self, s: Tensor, a: Tensor, rho: float) -> Tensor:
        q = torch.empty(())
        pointers = s.data_ptr(), s.stride(0), a.data_ptr()
        nets = self._at.perturbation, self._at.first
        _call("perturbation_gradient", *nets, *pointers, *s.shape, rho, q.data_ptr())
        return q

    def critic_gradient(self, j: int, sa: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        losses = torch.empty(2)
        net = self._at.second if j else self._at.first
        _call("critic_gradient", net, sa.data_ptr(), y.data_ptr(), len(sa), losses.data_ptr())
        return losses[0], losses[1]


def parts_of(nets: Nets, precision: str) -> Parts:
    """The parts of these nets by the fastest means that there are for them, in ``learner.precision``.

    Raises :class:`SettingsError` for int8 where that needs a kernel that is not there.
    """
    fits = all(
        net.weights[0].dtype == torch.bfloat16
        and net.weights[0].is_cpu
        and 2 <= len(net.weights) <= _MOST_LAYERS
        for net in nets
    )
    if fits and _LIBRARY is not None:
        return Kernels(nets, in_eight=precision != "bfloat16")
    if precision == "int8":
        raise SettingsError(
            "learner.precision: int8 needs a processor with AVX-512 for bfloat16 and int8, the compiled "
            f"training/policies/kernels.c, device cpu, and nets of 2 to {_MOST_LAYERS} layers"
        )
    on_cpu = nets.first.weights[0].is_cpu
    return Parts(nets, Noise if _LIBRARY is None or not on_cpu else _Noise)


def arithmetic(settings: LearnerSettings, device: torch.device) -> str:
    """What :func:`parts_of` computes in, and whether by kernels, for the lineage of a model."""
    dtype = str(training_dtype(settings, device)).removeprefix("torch.")
    if dtype != "bfloat16" or device.type != "cpu" or _LIBRARY is None:
        return dtype
    return f"{'bfloat16' if settings.precision == 'bfloat16' else 'int8'}, compiled"


def _call(name: str, *arguments: float | None) -> None:
    if getattr(_LIBRARY, f"mtf_{name}")(*arguments):
        raise MemoryError(f"no memory for what lies between the layers ({name})")


def _described(net: Net) -> _Net:
    described = _Net(layers=len(net.weights))
    described.widths[0] = net.weights[0].shape[1]
    for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        described.widths[layer + 1] = weight.shape[0]
        described.weights[layer], described.biases[layer] = weight.data_ptr(), bias.data_ptr()
    described.last_weight, described.last_bias = net.exact_weight.data_ptr(), net.exact_bias.data_ptr()
    for at, gradient in enumerate(net.exact_gradients):
        described.gradients[at] = gradient.data_ptr()
    return described
