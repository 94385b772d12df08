"""The reward of shown items, eq. (2): what the service judges its arms by while it runs.

dbt computes the same from the lake (``int_requests``), where all days are reduced at once.
"""

from collections.abc import Mapping
from typing import Any

from training.contract.settings import Settings


def item_reward(settings: Settings, event: Mapping[str, Any]) -> float:
    """r = Σ_i w_i v_i + play time + integrity of one item's feedback.

    ``event`` has the signals' 0/1 columns, ``play_time_ms`` and ``duration_ms`` (0: unknown, then the
    integrity is 0); what is missing counts as 0.
    """
    reward = settings.reward
    play = event.get("play_time_ms") or 0
    duration = event.get("duration_ms") or 0
    signals = sum(signal.weight * (event.get(signal.column) or 0) for signal in settings.signals)
    return (
        signals
        + reward.play_time_weight * min(play / 1000.0, reward.play_time_cap_s)
        + (reward.integrity_weight * min(play / duration, 1.0) if duration else 0.0)
    )


def is_negative(settings: Settings, event: Mapping[str, Any]) -> bool:
    """Whether one item's feedback has a signal of negative weight."""
    return any(signal.weight < 0.0 and bool(event.get(signal.column)) for signal in settings.signals)
