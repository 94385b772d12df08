"""How a day ended, in a word and a short sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.operations.report.causes import groups

# rules of the gate that ask for evidence of a gain: where no more is amiss, no policy was better today
_NOT_SHOWN = frozenset({"static", "constant", "champion"})


def outcome(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """How the day ended, as a state (``good``, ``held``, ``stopped``, ``open``, ``past``) and a sentence."""
    for stage, record in records.items():
        if not record.get("success", True):
            stops = [group for group in groups({stage: record}) if group.stops]
            faults = sum(len(group.faults) for group in stops)
            count = f"{faults} {'fault' if faults == 1 else 'faults'}, " if faults else ""
            kinds = [group.cause.name for group in stops]
            more = f" and {len(kinds) - 3} kinds more" if len(kinds) > 3 else ""
            return {"state": "stopped", "text": f"Stopped at {stage}: {count}{'; '.join(kinds[:3])}{more}"}
    gate = records.get("gate")
    if gate is None:
        if records.get("traffic", {}).get("past"):
            return {"state": "past", "text": "Of the past that learning starts from: no policy is its own."}
        *_, last = ("nothing", *records)
        return {"state": "open", "text": f"Not finished: {last} was the last stage."}
    if "skipped" in gate:
        return {"state": "held", "text": f"Nothing to learn from: {gate['skipped']}."}
    if gate["decision"] == "promote":
        return {"state": "good", "text": f"Promoted {gate['challenger']['version']}."}
    if gate["decision"] == "unchanged":
        return {"state": "good", "text": "Unchanged: this day's model is already the champion."}
    failed = [rule["rule"] for rule in gate.get("rules", ()) if not rule["passed"]]
    if failed and gate.get("champion") and _NOT_SHOWN.issuperset(failed):
        stays = gate["champion"]["version"]
        return {
            "state": "good",
            "text": f"{stays} serves on: no better policy was shown, by {_told(failed)}.",
        }
    rules = f" by {_told(failed)}" if failed else ""
    return {"state": "held", "text": f"Refused{rules}: what was served before serves on."}


def _told(rules: Sequence[str]) -> str:
    return f"the gate's {'rule' if len(rules) == 1 else 'rules'} {', '.join(rules)}"
