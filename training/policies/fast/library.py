"""The compiled ``kernels.c``: whether it can run here, and its functions.

``ONEDNN_MAX_CPU_ISA``, by which oneDNN is told to leave instructions of the processor alone, is obeyed here
too: with ``ONEDNN_MAX_CPU_ISA=AVX2`` everything learns as on a processor that has no AVX-512.
"""

import ctypes
import math
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from training.policies.draws import Draws

_log = structlog.get_logger("mtf.policies")
MOST_LAYERS = 8  # of kernels.c, as is the order of all fields and arguments
LANES = 16
_LESS = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
_DRAWS_BITS = 8  # of a stream's number: which draw of a step it is
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_FUNCTIONS = {
    "round": [_POINTER],
    "candidates": [*[_POINTER] * 5, *[_INT] * 4, _FLOAT, _POINTER, _POINTER],
    "best": [*[_POINTER] * 4, *[_INT] * 5, _POINTER],
    "generated": [_POINTER, _POINTER, _INT, _POINTER, _INT, _INT, _INT, _POINTER],
    "generator_gradient": [*[_POINTER] * 5, _INT, _INT, _FLOAT, _POINTER],
    "perturbation_gradient": [*[_POINTER] * 3, _INT, _POINTER, _INT, _INT, _FLOAT, _POINTER],
    "critic_gradient": [*[_POINTER] * 3, _INT, _POINTER],
    "target": [*[_POINTER] * 4, _INT, _INT, _FLOAT, _POINTER, _POINTER],
    "adam": [*[_POINTER] * 5, _LONG, _FLOAT, _POINTER],
    "rows": [_POINTER, _INT, *[_POINTER] * 7, _FLOAT, _INT, _INT, *[_POINTER] * 6],
    "normals": [ctypes.c_uint64, ctypes.c_uint64, _LONG, _FLOAT, _POINTER, _POINTER],
    "reaches": [_POINTER, _LONG, _LONG],
}
_ANSWER = {"rows", "reaches"}  # with a number; the others say whether there was memory


class Network(ctypes.Structure):
    """``Net`` of kernels.c."""

    _fields_ = (
        ("layers", _INT),
        ("widths", _INT * (MOST_LAYERS + 1)),
        ("weights", _POINTER * MOST_LAYERS),
        ("biases", _POINTER * MOST_LAYERS),
        ("last_weight", _POINTER),
        ("last_bias", _POINTER),
        ("gradients", _POINTER * (2 * MOST_LAYERS)),
        ("eight", _POINTER * MOST_LAYERS),
        ("scales", _POINTER * MOST_LAYERS),
    )


def _checked(result: int, function: Any, _: tuple[Any, ...]) -> None:
    if result:
        raise MemoryError(f"no memory for what lies between the layers ({function.__name__})")


def _library() -> ctypes.CDLL | None:
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _LESS:
        return None
    source = Path(__file__).with_name("kernels.c")
    paths = [source.with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return None
    if source.exists() and source.stat().st_mtime > path.stat().st_mtime:
        _log.warning("kernels not used: compiled of an older kernels.c; run `make install`")
        return None
    library = ctypes.CDLL(str(path))
    if not library.mtf_has_kernels():
        return None
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, f"mtf_{name}")
        function.argtypes = arguments
        if name not in _ANSWER:
            function.errcheck = _checked
        setattr(library, name, function)
    return library


LIBRARY: Any = _library()  # None where it cannot run


class CompiledDraws(Draws):
    """The same from a stream of numbers that are what their places in it are (Philox)."""

    def normal(self, step: int, which: int, *shape: int, clip: float = math.inf) -> Tensor:
        return self.fill(torch.empty(shape), step, which, clip)

    def fill(self, numbers: Tensor, step: int, which: int, clip: float = math.inf) -> Tensor:
        """The same in the place of float32 or bfloat16 that lie in a row."""
        at = (numbers.data_ptr(), None) if numbers.dtype == torch.float32 else (None, numbers.data_ptr())
        stream = (step << _DRAWS_BITS) + which
        LIBRARY.normals(self.seed % 2**64, stream, numbers.numel(), clip, *at)
        return numbers
