"""Learner states at rest: one safetensors file each, with what it belongs to in its metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.contract.files import write_atomic

_KEY = "mtf_learner"


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and their plain-JSON description atomically, as one file."""
    # a float64 scalar or a tensor that shares memory with another is stored as it is: a copy of its own
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    metadata = {_KEY: json.dumps(about, sort_keys=True)}
    write_atomic(path, lambda temporary: save_file(own, str(temporary), metadata=metadata))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and description; None when there is no such file, or it is not a whole one of ours."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
    return tensors, about
