"""What becomes of a challenger? Decided on the difference of its sessions to the champion's.

Gain shown, and every step climbed: it is the champion. Loss shown: out at once. Neither within
``serving.canary_days`` and ``canary_sessions``: the champion stays. A signal of ``guardrail.pause_on``
holds it where it is, until the signal recovers or a person decides.
"""

import math
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

from serving.control.evidence import Difference, Evidence, mismatch, sessions_needed
from serving.log.index.returns import ArmReturns
from training.contract.settings import GuardrailSettings, ServingSettings

POWER = 0.8


class Move(NamedTuple):
    """``rule`` names what speaks against it for ``out`` (reward) and ``pause`` (negative, mismatch)."""

    what: Literal["promote", "out", "end", "pause", "stay"]
    rule: str
    reason: str


class Tried(NamedTuple):
    """How far a canary is: days since it began, whether every step is over, the challenger's share of both
    sides' users in the newest stratum (None when that is not known), and pauses that a person lifted."""

    days: float
    climbed: bool
    share: float | None
    lifted: Collection[str] = ()


def decide(settings: ServingSettings, found: Evidence, tried: Tried) -> Move:
    """The move that the evidence allows; the same at every look, so that it can be asked at any time."""
    gain, told = found.reward, tell(found)
    enough = min(found.sessions) >= settings.guardrail.min_sessions
    worse = loss(settings.guardrail, found, "the champion's")
    if worse is not None:
        return Move("out", "reward", worse)
    over = tried.days >= settings.canary_days or found.sessions[0] >= settings.canary_sessions
    pause = next((p for p in _pauses(settings, found, tried, enough) if p.rule not in tried.lifted), None)
    shown = enough and gain is not None and gain.low > 0.0
    if over and (pause is not None or not shown):
        held = f"; held by {pause.rule}: {pause.reason}" if pause is not None else ""
        return Move("end", "no gain", f"no gain shown in {tried.days:.1f} days: {told}{held}")
    if pause is not None:
        return pause
    if shown and tried.climbed:
        return Move("promote", "gain", f"its sessions bring more than the champion's: {told}")
    return Move("stay", "", told)


def loss(rules: GuardrailSettings, found: Evidence, rival: str) -> str | None:
    """In words, that the sessions bring less than ``rival``; None where that is not shown."""
    few = min(found.sessions) < rules.min_sessions
    if few or found.reward is None or found.reward.high >= 0.0:
        return None
    return f"its sessions bring less than {rival}: {tell(found)}"


def _pauses(settings: ServingSettings, found: Evidence, tried: Tried, enough: bool) -> list[Move]:
    pauses, watched = [], settings.guardrail.pause_on
    if "negative" in watched and enough and found.negative is not None and found.negative.low > 0.0:
        told = f"{_interval(found.negative)} items a session with feedback of negative weight"
        pauses.append(Move("pause", "negative", told))
    _, treated, control = found.newest
    if "mismatch" in watched and tried.share is not None and mismatch(treated, control, tried.share):
        told = f"{treated} against {control} users came, where the shares say {tried.share:.1%} to the rest"
        pauses.append(Move("pause", "mismatch", told))
    return pauses


def tell(found: Evidence) -> str:
    """The difference in words, with its sequence and what it rests on."""
    sessions = f"{found.sessions[0]} against {found.sessions[1]} sessions of {found.users} users"
    if found.reward is None:
        return f"not known yet, {sessions}"
    return f"{_interval(found.reward)} a session of {found.control_mean:.4g}, {sessions}"


def _interval(one: Difference) -> str:
    return f"{one.value:+.3g} ({one.low:+.3g} to {one.high:+.3g})"


def plan(
    settings: ServingSettings, found: Evidence | None, before: ArmReturns, a_day: float, share: float
) -> dict[str, Any]:
    """How long a gain of ``canary_effect`` takes to be seen, said before it is looked for.

    ``found`` is what an earlier comparison tells of a session's deviation as users come, ``before`` the
    control's sessions so far, ``a_day`` all sessions, ``share`` the challenger's last. The record is
    ``{"effect", "mean", "sd", "sessions_an_arm" | None, "days" | None, "reason"}``.
    """
    effect = settings.canary_effect
    mean = before.total / before.sessions if before.sessions else 0.0
    sd = 0.0
    if found is not None and found.reward is not None and math.isfinite(found.reward.sd):
        sd = found.reward.sd
    elif before.sessions >= 2:
        sd = math.sqrt(max(0.0, before.squares - before.sessions * mean * mean) / (before.sessions - 1))
    record = {"effect": effect, "mean": mean, "sd": sd, "sessions_an_arm": None, "days": None}
    if before.sessions < settings.guardrail.min_sessions or sd == 0.0 or mean == 0.0:
        return {**record, "reason": "how long it takes is not known yet: too few sessions came before"}
    needed = sessions_needed(
        sd, effect * abs(mean), settings.guardrail.confidence, POWER, tuned_to=tuned_to(settings)
    )
    days = needed / (a_day * share) if a_day > 0.0 else None
    reason = f"{needed:,} sessions an arm for {100.0 * effect:.3g} %"
    if days is not None:
        reason += f": {days:.1f} days at this traffic"
    if needed > settings.canary_sessions or (days or 0.0) > settings.canary_days:
        reason += (
            f", more than serving.canary_sessions ({settings.canary_sessions:,}) or canary_days "
            f"({settings.canary_days:g}) give"
        )
    return {**record, "sessions_an_arm": needed, "days": days, "reason": reason}


def tuned_to(settings: ServingSettings) -> float:
    """Effective sessions at which the sequence is narrowest: a quarter of what even arms have at the end."""
    return max(float(settings.guardrail.min_sessions), settings.canary_sessions / 8.0)
