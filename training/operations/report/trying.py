"""Is a policy being tried, and what does its canary tell so far? From what the service left."""

from typing import Any

from training.contract import in_service
from training.contract.errors import MtfError
from training.contract.files import read_json
from training.contract.settings import Settings

OFFLINE = (
    "No canary (gate.evidence: offline): a policy that only looked better serves everybody until the "
    "guardrail or a person takes it out."
)


def told(settings: Settings) -> list[str]:
    """Sentences: what is tried, how far it is, how long it takes, what it brought."""
    sentences = [OFFLINE] if settings.gate.evidence == "offline" else []
    row = in_service.read(settings)
    challenger, canary = row.challenger, _canary(row)
    if challenger is None:
        return sentences
    if canary is None or canary.get("sha256") != challenger.sha256:
        return [*sentences, f"{challenger.version} is the challenger; its canary has not begun."]
    step = f"step {canary['step'] + 1} of {len(settings.serving.canary)}, share {canary['share']:g}"
    sentences.append(f"{challenger.version} is in its canary: {step}.")
    if canary.get("plan"):
        sentences.append(f"{canary['plan']['reason']}.".capitalize())
    seen = (_read(settings.layout.guardrail) or {}).get("arms", {}).get("challenger")
    if seen is not None and seen["version"] == challenger.version:
        sentences.append(f"Challenger less champion: {seen['evidence']['reason']}.")
    return sentences


def held(settings: Settings) -> str | None:
    """What holds the canary of the challenger, where something does."""
    row = in_service.read(settings)
    challenger, canary = row.challenger, _canary(row)
    if challenger is None or canary is None or canary.get("sha256") != challenger.sha256:
        return None
    paused = canary.get("paused")
    if not paused:
        return None
    why = f"{paused['rule']}: {paused['reason']}"
    return f"The canary of {challenger.version} is held since {paused['ts']} by {why}"


def _canary(row: in_service.InService) -> dict[str, Any] | None:
    try:
        return row.canary
    except MtfError:
        return None


def _read(path: Any) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = read_json(path)
        return found
    except (FileNotFoundError, ValueError):
        return None
