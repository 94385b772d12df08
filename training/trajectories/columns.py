"""What is read of the export of ``fct_transitions``: its columns, and the tensors that they fill."""

import math
from collections.abc import Collection

import numpy as np

from training.contract.settings import Settings

# columns of the export behind what only some learners read
OPTIONAL = {
    "watch_rewards": ("watch_reward",),
    "item_scores": ("item_scores", "item_rewards"),
    "item_rewards": ("item_rewards",),
}
SOURCES = {  # columns of the export, by the field of Transitions that they fill
    "states": "state",
    "actions": "action",
    "rewards": "reward",
    "next_states": "next_state",
    "dones": "done",
    "action_means": "action_mean",
    "log_densities": "log_density",
    "steps": "step",
    "users": "user_id",
    "watch_rewards": "watch_reward",
    "item_scores": "item_scores",
    "item_rewards": "item_rewards",
}


def row_kinds(
    settings: Settings, columns: Collection[str], page: int
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape of a row and dtype of every column that is read from the exports."""
    state, heads, single = (settings.state_spec.width,), (len(settings.heads),), np.dtype(np.float32)
    kinds: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        "states": (state, single),
        "actions": (heads, single),
        "rewards": ((), single),
        "next_states": (state, single),
        "next_actions": (heads, single),
        "dones": ((), single),
        "action_means": (heads, single),
        "next_action_means": (heads, single),
        "log_densities": ((), np.dtype(np.float64)),
        "steps": ((), np.dtype(np.int64)),
        "users": ((), np.dtype(np.int64)),
        "watch_rewards": ((), single),
        "item_scores": ((page, *heads), single),
        "item_rewards": ((page,), single),
    }
    return {name: kind for name, kind in kinds.items() if SOURCES.get(name, "action") in columns}


def row_bytes(shape: tuple[int, ...], kind: np.dtype) -> int:
    return math.prod(shape) * kind.itemsize
