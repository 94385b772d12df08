"""What policies for rewards that lean to or from interaction bring, in time and in interaction.

A point is a menu of the regression whose reward counts the interaction part ``factor`` times. Its values are
those of :mod:`training.evaluation.session_returns`: differences in the return's time part (play time and
integrity) and in its interaction part (all signals), both as the settings weigh them. The intervals of a part
hold for all points at once, so that the one that is taken is not the luckiest of many.
"""

from collections.abc import Mapping
from typing import Any

from training.contract.policy import Policy
from training.evaluation.intervals import Interval
from training.evaluation.pool import RIVAL, simultaneous
from training.evaluation.session_returns import PARTS, SessionReturns
from training.policies.return_regression import leaning_name


def sweep(
    parts: Mapping[str, SessionReturns], policies: Mapping[str, Policy], leanings: Mapping[float, Policy]
) -> dict[str, Any]:
    """The points of ``leanings`` and of the regression's own menu among ``policies``, factor 1, in order.

    Returns ``points``, each with its ``factor``, ``name``, ``version``, and ``over``: by version of every
    policy the difference to it in ``time`` and ``interaction``, as ``lower``, ``value`` and ``upper``;
    ``static``, what static weights bring of each part; ``champion``, its difference to that, or null; and
    ``trusted``: by part whether its models explain what every arm is known to have returned.
    """
    estimates = {part: parts[part].estimates for part in PARTS}
    factors = sorted({1.0, *leanings})
    names = [leaning_name(factor) for factor in factors]
    served = {**policies, **{leaning_name(factor): policy for factor, policy in leanings.items()}}
    over: dict[str, dict[str, dict[str, Interval]]] = {name: {} for name in names}
    for rival, policy in served.items():
        found = {part: simultaneous(estimates[part], names, rival) for part in PARTS}
        for name in names:
            over[name][policy.version] = {part: found[part][name] for part in PARTS}
    champion = None
    if "champion" in policies:
        above = {part: estimates[part].difference("champion", RIVAL) for part in PARTS}
        champion = {"version": policies["champion"].version, **above}
    return {
        "points": [
            {"factor": factor, "name": name, "version": served[name].version, "over": over[name]}
            for factor, name in zip(factors, names, strict=True)
        ],
        "static": {part: estimates[part].values[RIVAL] for part in PARTS},
        "champion": champion,
        "trusted": {part: parts[part].trusted for part in PARTS},
    }
