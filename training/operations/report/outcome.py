"""How a day ended, in a word and a sentence."""

from collections.abc import Mapping
from typing import Any


def outcome(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """How the day ended, as a state (``good``, ``held``, ``stopped``, ``open``, ``past``) and a sentence."""
    for stage, record in records.items():
        if not record.get("success", True):
            reason = record.get("error") or "; ".join(
                f"{fault['column'] or suite}: {fault['message']}"
                for suite, result in record.get("suites", {}).items()
                for fault in result["failed"]
                if fault["severity"] == "critical"
            )
            return {"state": "stopped", "text": f"Stopped at {stage}: {reason}"}
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
    return {
        "state": "held",
        "text": f"Refused, what was served before serves on: {'; '.join(gate['reasons'])}",
    }
