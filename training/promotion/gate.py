"""The gate: whether the day's challenger may replace the champion, rule by rule, each with its reason.

It reads what the day's stages recorded and measures the exported policy file itself. Anything
doubtful, a missing record too, leaves the champion in place.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from training.contract import in_service
from training.contract.pointer import PolicyPointer
from training.contract.records import read_record
from training.contract.rollout import delta_spent
from training.contract.settings import Settings
from training.promotion import choice, policy_file
from training.promotion.champion import champion_before
from training.promotion.rules import Rule, of_actions, of_trust, ruled

Smoke = Callable[[Path], Mapping[str, Any]]

VALIDATIONS = {
    "validate_landed": "the landed log",
    "validate_transitions": "the transitions",
    "validate_training_set": "the training set",
}
REQUIRED = (*VALIDATIONS, "train", "evaluate", "parity")


def gate(
    settings: Settings, day: date, *, smoke: Smoke | None = None, chosen: choice.Choice | None = None
) -> dict[str, Any]:
    """Judge the challenger of ``day``; returns the gate's record.

    ``{"decision": "promote" | "refuse" | "unchanged", "rules": [...], "reasons": [...], "evidence": {...},
    "challenger": {...} | None, "champion": {...} | None}``; a rule is ``{"rule", "passed",
    "observed", "threshold", "reason"}`` and a rule that does not apply passes and says so. The
    champion is the one from before ``day``, so that a rerun judges as the first run did;
    ``unchanged`` means that the challenger's file already is the champion. ``smoke`` takes the
    policy file and answers ``{"ok": bool, "reason": str}``; it is called last, and only when every
    other rule passed. ``chosen`` is judged in the challenger's place, by its rules in place of those on the
    return (:func:`training.promotion.choice.rules`).
    """
    found = {stage: read_record(settings.layout, day, stage) for stage in REQUIRED}
    records = {
        stage: record
        for stage, record in found.items()
        if record is not None and not _unusable(stage, record)
    }
    challenger = records.get("evaluate") if chosen is None else chosen.judged
    before = champion_before(settings, day)
    record: dict[str, Any] = {
        "challenger": None
        if challenger is None
        else {"sha256": challenger["sha256"], "version": challenger["version"]},
        "champion": None if before is None else _named(before),
    }
    serving = in_service.read(settings).champion
    if challenger is not None and serving is not None and serving.sha256 == challenger["sha256"]:
        reason = f"policy {challenger['version']} of {day} already is the champion"
        return {
            **record,
            "champion": _named(serving),
            "decision": "unchanged",
            "rules": [],
            "reasons": [reason],
            "evidence": {},
        }

    rules = [
        ruled(f"record of {stage}", False, None, None, f"{fault} on {day}")
        for stage, record in found.items()
        if (fault := _unusable(stage, record))
    ]
    rules += [
        _data_valid(stage, name, records[stage]) for stage, name in VALIDATIONS.items() if stage in records
    ]
    if "evaluate" in records:
        if chosen is None:
            rules += _judged(settings, records["evaluate"], before)
        else:
            rules += choice.rules(settings, chosen, records["evaluate"], serving)
    if "parity" in records:
        rules.append(_parity(settings, records["parity"]))
    if challenger is not None:
        path = settings.layout.root / challenger["policy"]
        rules += policy_file.rules(settings, path, challenger["sha256"])
        rules.append(_not_rolled_back(settings, challenger))
        if smoke is not None and all(rule["passed"] for rule in rules):
            rules.append(_smoke(smoke, path))

    failed = [rule["reason"] for rule in rules if not rule["passed"]]
    won = f"policy {challenger['version']} passed all {len(rules)} rules" if challenger else ""
    if chosen is not None:
        won = f"{chosen.told}; {won}"
    return {
        **record,
        "decision": "refuse" if failed else "promote",
        "rules": rules,
        "reasons": failed or [won],
        "evidence": chosen.evidence
        if chosen is not None
        else _evidence(settings, records["evaluate"])
        if "evaluate" in records
        else {},
    }


def _unusable(stage: str, record: Mapping[str, Any] | None) -> str | None:
    """Why a stage's record says nothing of the challenger, or None."""
    if record is None:
        return f"the stage {stage} left no record"
    if "skipped" in record:
        return f"the stage {stage} was skipped ({record['skipped']})"
    if "error" in record:
        return f"the stage {stage} failed ({record['error']})"
    return None


def _named(pointer: PolicyPointer) -> dict[str, str]:
    return {
        "sha256": pointer.sha256,
        "version": pointer.version,
        "day": pointer.day,
        "model_version": pointer.model_version,
    }


def _data_valid(stage: str, name: str, record: Mapping[str, Any]) -> Rule:
    failed = [
        f"{suite}: {fault['expectation']} on {fault.get('column') or 'the table'}"
        for suite, result in record.get("suites", {}).items()
        if not result["success"]
        for fault in result["failed"]
    ]
    passed = bool(record["success"])
    reason = f"{name} is valid" if passed else f"{name} is invalid: {'; '.join(failed) or 'see its record'}"
    return ruled(stage, passed, passed, True, reason)


def _judged(settings: Settings, record: Mapping[str, Any], before: PolicyPointer | None) -> Iterator[Rule]:
    """The rules on the offline estimate and on the actions, from the record of ``evaluate``."""
    estimates = record["estimates"]
    challenger = estimates["challenger"]
    trusted = record.get("trusted") is not False  # null where the session estimator was not asked for
    yield of_trust(settings, trusted)
    for rival, name in (("static", "static weights"), ("constant", "the best constant of the log")):
        if rival not in estimates:
            told = f"the evaluation has no estimate of {name}"
            if rival == record.get("chosen"):
                told = f"not applicable: the challenger is {name}"
            yield ruled(rival, rival != "static", None, None, told)
        elif _same(challenger, estimates[rival]):
            yield ruled(rival, True, None, None, f"not applicable: the challenger is {name}")
        else:
            bar = settings.gate.gain * abs(estimates[rival]["value"])
            yield _above(rival, record, name, bar, trusted)
    yield _no_worse_than_champion(settings, record, before, trusted)
    yield from of_actions(
        settings,
        (challenger["alarm_reasons"] or ["nobody says why"]) if challenger["alarm"] else [],
        challenger["bound_share"],
        record.get("jump", {}).get("challenger vs champion"),
        champion="champion" in estimates,
    )


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.get("version") is not None and one.get("version") == other.get("version")


def _above(
    rule: str, record: Mapping[str, Any], name: str, bar: float, trusted: bool, told: str = ""
) -> Rule:
    """The lower bound of the paired difference to a rival must lie above ``bar`` (at it, where that is below
    0); without trust the upper one must not lie below 0. ``told`` says where the bar comes from."""
    found = record.get("differences", {}).get(f"challenger - {rule}")
    if found is None:
        return ruled(rule, False, None, None, f"the evaluation recorded no difference to {name}")
    if not trusted:
        passed, observed = found["upper"] >= 0.0, found["upper"]
        reason = f"at most {observed:+.4g}, {'not ' if passed else ''}clearly worse"
        bar = 0.0
    else:
        observed = found["lower"]
        passed = observed > bar if bar >= 0.0 else observed >= bar
        reason = f"at least {observed:+.4g}, {'' if passed else 'not '}above {bar:.4g}{told}"
    value = f"the challenger's value differs from that of {name} by {found['value']:+.4g}, "
    return ruled(rule, passed, observed, bar, value + reason)


def _no_worse_than_champion(
    settings: Settings, record: Mapping[str, Any], before: PolicyPointer | None, trusted: bool
) -> Rule:
    """No more than ``delta`` below the champion, of what the promotions before have left of its budget."""
    limits, champion = settings.gate, record["estimates"].get("champion")
    if champion is None:
        return ruled("champion", True, None, None, "not applicable: there is no champion")
    spent = delta_spent(in_service.read(settings), before)
    allowed = max(0.0, min(limits.delta, limits.delta_budget - spent))
    told = f", {allowed:.2%} of its value ({spent:.2%} of {limits.delta_budget:.2%} was spent before)"
    return _above("champion", record, "the champion", -allowed * abs(champion["value"]), trusted, told)


def _evidence(settings: Settings, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a promotion by the gate alone rests on: the difference to the champion, or to static weights
    where there is none, and ``delta``, how far below 0 it may lie as a share of the rival's value."""
    rival = "champion" if "champion" in record["estimates"] else "static"
    found = record.get("differences", {}).get(f"challenger - {rival}")
    if found is None:
        return {}
    value = abs(record["estimates"][rival]["value"])
    lost = max(0.0, -found["lower"])
    return {
        "by": "offline",
        **{end: found[end] for end in ("lower", "value", "upper")},
        "delta": lost / value if lost > 0.0 and value > 0.0 else 0.0,
    }


def _parity(settings: Settings, record: Mapping[str, Any]) -> Rule:
    limit = settings.gate.max_parity_mismatch
    compared, share, left_out = record["compared"], record["share"], record.get("left_out_states", 0)
    told = ""
    if left_out:
        told = (
            f"; {left_out} of {record['left_out_users']} users are left out, "
            "of whose past rows came after the state was served"
        )
    if not compared and not left_out:
        return ruled("parity", False, None, limit, "no served state could be compared with the feature store")
    passed = share <= limit
    reason = (
        f"{record['mismatched']} of {compared} served states differ from the feature store's ({share:.2%}), "
        f"{'at most' if passed else 'more than the'} {limit:.2%} allowed{told}"
    )
    least = min(settings.gate.min_parity_states, settings.gate.parity_sample)
    if passed and compared < least and left_out > compared:
        passed = settings.gate.few_parity == "warn"
        reason += f"; fewer than {least} are left to compare (gate.few_parity: {settings.gate.few_parity})"
    return ruled("parity", passed, share, limit, reason)


def _not_rolled_back(settings: Settings, judged: Mapping[str, Any]) -> Rule:
    """A rerun of a day must not bring back what was taken out of service, or showed no gain."""
    taken_out = [e for e in in_service.read(settings).history if e["action"] in ("rollback", "end")]
    withdrawn = [e for e in taken_out if e["from"] == judged["sha256"]]
    if not withdrawn:
        return ruled("not rolled back", True, None, None, "this policy was never rolled back")
    event = withdrawn[-1]
    what = "was rolled back" if event["action"] == "rollback" else "ended its canary"
    reason = f"this policy {what} at {event['ts']}: {event['reason']}"
    return ruled("not rolled back", False, event["ts"], None, reason)


def _smoke(smoke: Smoke, path: Path) -> Rule:
    answer = smoke(path)
    ok = bool(answer["ok"])
    reason = answer.get("reason") or (
        "the built service answered" if ok else "the built service did not answer"
    )
    return ruled("smoke", ok, ok, True, f"smoke request: {reason}")
