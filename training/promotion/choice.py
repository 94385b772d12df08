"""An operating point that a person takes from the day's sweep in place of its challenger.

The judge orders policies by the reward of the settings, of which a leaning gives up a little on purpose. So
what is asked of a choice is a gain in one part at least, time or interaction, over static weights and over
what serves; and all else that is asked of a policy which is to be served.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from training.contract import in_service
from training.contract.errors import DataError
from training.contract.log import STATIC_VERSION
from training.contract.pointer import PolicyPointer
from training.contract.records import read_record
from training.contract.settings import Settings
from training.promotion.rules import Rule, of_actions, of_trust, ruled

PERSON = "person"  # whose evidence it is
_MENU = "return_regression"


@dataclass(frozen=True)
class Choice:
    """A point of a day's sweep: its entries in the records of ``evaluate`` and ``train``, and why it."""

    point: Mapping[str, Any]
    trained: Mapping[str, Any]
    reason: str

    @property
    def judged(self) -> dict[str, Any]:
        """What gate, registry and promotion know of a challenger."""
        return {
            "policy": self.trained["policy"],
            "sha256": self.trained["sha256"],
            "version": self.trained["version"],
            "chosen": _MENU,
            "estimates": self.point["over"][STATIC_VERSION],
        }

    @property
    def told(self) -> str:
        return f"chosen by a person, interaction x{self.point['factor']:g}: {self.reason}"

    @property
    def evidence(self) -> dict[str, Any]:
        """Kept with the event. It spends nothing of the gate's delta: what is given up is wanted so."""
        found = self.point["over"][STATIC_VERSION]
        return {"by": PERSON, "factor": self.point["factor"], "delta": 0.0, **found}


def swept(settings: Settings, day: date) -> dict[str, Any]:
    """The sweep of the day's night, as :func:`training.evaluation.pareto.sweep` left it.

    Raises :class:`DataError` where there is none, with what to do.
    """
    record = read_record(settings.layout, day, "evaluate") or {}
    if not record.get("pareto"):
        raise DataError(
            f"there is no sweep of {day}: it takes `mtf day --date {day}` with {_MENU} among "
            "learner.algorithms, learner.return_regression.leanings, and session_return among "
            "evaluation.estimators"
        )
    found: dict[str, Any] = record["pareto"]
    return found


def choose(settings: Settings, day: date, factor: float, reason: str) -> Choice:
    """The point of ``factor``. Raises :class:`DataError` where the day has none."""
    points = {point["factor"]: point for point in swept(settings, day)["points"]}
    if factor not in points:
        known = ", ".join(f"{one:g}" for one in points)
        raise DataError(f"{factor:g} is not among the factors of {day}: {known}")
    point = points[factor]
    record = read_record(settings.layout, day, "train") or {}
    trained = (record.get("leanings", {}) | record.get("pool", {})).get(point["name"])
    if trained is None or trained["version"] != point["version"]:
        raise DataError(
            f"policy {point['version']} of {day} was judged and is not the one that was trained last: "
            f"`mtf day --date {day}` judges that"
        )
    return Choice(point, trained, reason)


def rules(
    settings: Settings, chosen: Choice, evaluated: Mapping[str, Any], serving: PolicyPointer | None
) -> Iterator[Rule]:
    """The rules on what a choice brings and does, in place of the challenger's."""
    trusted = evaluated.get("trusted") is not False
    yield of_trust(settings, trusted)
    present = STATIC_VERSION if serving is None else serving.version
    for rule, rival, name in (
        ("static", STATIC_VERSION, "static weights"),
        ("champion", present, f"policy {present}, which serves"),
    ):
        if rule == "champion" and present == STATIC_VERSION:
            yield ruled(rule, True, None, None, "not applicable: there is no champion")
        else:
            yield _gains(rule, chosen.point["over"].get(rival), name, trusted)
    point = chosen.point
    yield from of_actions(
        settings,
        point["alarm_reasons"],
        point["bound_share"],
        point["jump"],
        champion=evaluated["pareto"]["champion"] is not None,
    )


def is_choice(settings: Settings, pointer: PolicyPointer) -> bool:
    """Whether a person has put this policy in its place."""
    return any(
        event.get("sha256") == pointer.sha256 and event.get("evidence", {}).get("by") == PERSON
        for event in in_service.read(settings).history
    )


def _gains(rule: str, found: Mapping[str, Mapping[str, float]] | None, name: str, trusted: bool) -> Rule:
    """One part's lower bound must lie above 0; without trust one upper bound must not lie below."""
    if found is None:
        return ruled(rule, False, None, None, f"the evaluation knows nothing of {name}: run it again")
    end = "lower" if trusted else "upper"
    observed = {part: found[part][end] for part in ("time", "interaction")}
    passed = any(bound > 0.0 if trusted else bound >= 0.0 for bound in observed.values())
    told = " and ".join(
        f"{part} by {found[part]['value']:+.4g} ({found[part]['lower']:+.4g} to {found[part]['upper']:+.4g})"
        for part in observed
    )
    verdict = "a gain in one at least" if passed else "a gain in neither"
    return ruled(rule, passed, observed, 0.0, f"it differs from {name}, in {told}: {verdict}")
