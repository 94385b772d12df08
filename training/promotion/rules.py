"""Rules of the gate: what was seen, what is allowed, and whether that holds, in words."""

from collections.abc import Iterator, Sequence
from typing import Any

from training.contract.settings import Settings

Rule = dict[str, Any]


def ruled(rule: str, passed: bool, observed: Any, threshold: Any, reason: str) -> Rule:
    return {"rule": rule, "passed": passed, "observed": observed, "threshold": threshold, "reason": reason}


def of_trust(settings: Settings, trusted: bool) -> Rule:
    """Whether an estimator is to be trusted on the log, or a canary decides in its place."""
    canary = settings.gate.evidence == "canary"
    told = "no estimator is to be trusted on this log"
    if trusted:
        told = "the estimator that is read is to be trusted on this log"
    elif canary:
        told += ": it is asked for what is not clearly worse, and the canary decides"
    return ruled("trusted", trusted or canary, trusted, not canary, told)


def of_actions(
    settings: Settings, alarms: Sequence[str], bound_share: float, jump: float | None, *, champion: bool
) -> Iterator[Rule]:
    """``alarm``, ``bounds`` and ``jump``: what a policy does, on the states that it was judged on.

    ``jump`` is the mean distance of its actions to the champion's, where there is a ``champion``.
    """
    limits = settings.gate
    yield ruled(
        "alarm",
        not alarms,
        bool(alarms),
        False,
        "the estimate is not to be trusted: " + "; ".join(alarms)
        if alarms
        else "the actions lie where the log has data, and the estimate within its returns",
    )
    passed = bound_share <= limits.max_bound_share
    yield ruled(
        "bounds",
        passed,
        bound_share,
        limits.max_bound_share,
        f"{bound_share:.1%} of the actions' entries lie on a bound, "
        f"{'at most' if passed else 'more than the'} {limits.max_bound_share:.1%} allowed",
    )
    if not champion:
        yield ruled(
            "jump", True, None, limits.max_action_jump, "not applicable: there is no champion to jump from"
        )
    elif jump is None:
        yield ruled(
            "jump", False, None, limits.max_action_jump, "the evaluation recorded no distance to the champion"
        )
    else:
        passed = jump <= limits.max_action_jump
        yield ruled(
            "jump",
            passed,
            jump,
            limits.max_action_jump,
            f"the actions differ from the champion's by {jump:.3g} on average, "
            f"{'at most' if passed else 'more than the'} {limits.max_action_jump:g} allowed",
        )
