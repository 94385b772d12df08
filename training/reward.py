"""The reward's weights, eq. (2): variants that lean to one kind of satisfaction (method §5)."""

from typing import Literal

from training.contract.settings import Settings

Leaning = Literal["time", "integrity", "interaction"]


def leaning(settings: Settings, to: Leaning, factor: float) -> Settings:
    """Settings whose reward weighs one kind ``factor`` times as much; the other weights stay.

    ``time`` is the play time, ``integrity`` the finish ratio, and ``interaction`` every signal marked as a
    positive interaction.
    """
    reward, signals = settings.reward, settings.signals
    if to == "time":
        reward = reward.model_copy(update={"play_time_weight": factor * reward.play_time_weight})
    elif to == "integrity":
        reward = reward.model_copy(update={"integrity_weight": factor * reward.integrity_weight})
    else:
        signals = tuple(
            s.model_copy(update={"weight": factor * s.weight}) if s.positive_interaction else s
            for s in signals
        )
    return settings.model_copy(update={"reward": reward, "signals": signals})
