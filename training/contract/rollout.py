"""Who serves next: the moves of the champion's and the challenger's pointer, each with its history.

The daily loop begins a rollout and a person may take it back; the running service carries it on. All
of them call these functions on what :func:`training.contract.in_service.changing` gives.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from training.contract.errors import MtfError
from training.contract.in_service import InService, policies
from training.contract.log import STATIC_VERSION
from training.contract.pointer import PolicyPointer, chain, previous
from training.contract.policy import PolicyHeader, load_policy, save_policy
from training.contract.records import now
from training.contract.settings import Settings

CHAIN = 30  # champions that the pointer remembers, so that it cannot grow for ever


def before_day(pointer: PolicyPointer | None, day: str) -> PolicyPointer | None:
    """The champion from before ``day`` (ISO): ``pointer`` itself or one that it remembers."""
    return next((one for one in chain(pointer) if one.day < day), None)


def following(pointer: PolicyPointer, before: PolicyPointer | None) -> PolicyPointer:
    """``pointer`` as the successor of ``before``, promoted now; the chain is cut to its newest."""
    replaced = None if before is None else _shortened(asdict(before), CHAIN)
    return PolicyPointer(**{**asdict(pointer), "promoted_ts": now(), "previous": replaced})


def make_champion(row: InService, pointer: PolicyPointer, reason: str, evidence: Mapping[str, Any]) -> None:
    """Put a policy in front of all users that no other arm has.

    ``evidence`` is kept with the event: ``by`` canary, offline or person, the ``lower``, ``value`` and
    ``upper`` of the difference to the champion before (of a person's choice, of both parts of the reward to
    static weights), and the ``delta`` that was spent (:func:`delta_spent`).
    """
    # files may have the event of a run that was killed
    last = [e for e in row.history if e["action"] in ("promote", "rollback")][-1:]
    if not last or (last[0]["action"], last[0]["sha256"]) != ("promote", pointer.sha256):
        _record(row, "promote", pointer, previous(pointer), reason, evidence=dict(evidence))
    row.champion = pointer


def begin_canary(
    row: InService, pointer: PolicyPointer, reason: str, evidence: Mapping[str, Any] | None = None
) -> None:
    """Make a policy the challenger, in place of the one before it; nobody is served by it yet.

    ``evidence`` is kept with the event, where a person has chosen it.
    """
    if row.shares.challenger > 0.0:
        row.change_shares({"challenger": 0.0}, f"{pointer.version} begins its canary")
    more = {} if evidence is None else {"evidence": dict(evidence)}
    _record(row, "canary", pointer, row.champion, reason, **more)
    row.challenger = pointer


def complete_canary(row: InService, reason: str, evidence: Mapping[str, Any]) -> PolicyPointer:
    """The challenger becomes the champion, on this evidence of a gain; returns its pointer."""
    challenger = row.challenger
    if challenger is None:
        raise MtfError("there is no challenger to promote")
    pointer = following(challenger, before_day(row.champion, challenger.day))
    make_champion(row, pointer, reason, evidence)
    _clear_challenger(row, f"{pointer.version} is the champion")
    return pointer


def withdraw_challenger(row: InService, reason: str) -> PolicyPointer:
    """Take the challenger out of service; no rerun of its day brings it back. Returns its pointer."""
    return _take_out(row, "rollback", reason)


def end_canary(row: InService, reason: str) -> PolicyPointer:
    """The canary showed no gain: the champion stays, and no rerun of the challenger's day begins it again."""
    return _take_out(row, "end", reason)


def lift_pause(row: InService, reason: str) -> str:
    """Let a canary go on in spite of what holds it; returns the rule, which holds it no more.

    Raises :class:`MtfError` where nothing holds.
    """
    canary = row.canary or {}
    paused = canary.get("paused")
    if paused is None or row.challenger is None:
        raise MtfError("nothing holds a canary")
    rule: str = paused["rule"]
    event = {"action": "resume", "version": canary["version"], "sha256": canary["sha256"]}
    row.append({**event, "reason": f"{rule} was lifted: {reason}"})
    row.canary = {**canary, "paused": None, "lifted": [*canary["lifted"], rule]}
    return rule


def delta_spent(row: InService, champion: PolicyPointer | None) -> float:
    """What promotions without a shown gain may have cost since the last one with, as a share of the value.

    The sum of ``evidence.delta`` over the champion and its predecessors back to that one: what was rolled
    back is not among them, and so has cost nothing for good.
    """
    events = {e["sha256"]: e for e in row.history if e["action"] == "promote"}
    spent = 0.0
    for one in chain(champion):
        delta = events.get(one.sha256, {}).get("evidence", {}).get("delta", 0.0)
        if delta <= 0.0:
            break
        spent += delta
    return spent


def _take_out(row: InService, action: str, reason: str) -> PolicyPointer:
    challenger = row.challenger
    if challenger is None:
        raise MtfError("there is no challenger to take out")
    _record(row, action, row.champion, challenger, reason)
    _clear_challenger(row, f"{challenger.version} was taken out: {reason}")
    return challenger


def step_back(row: InService, reason: str, *, to_static: bool = False) -> PolicyPointer:
    """Put the champion's predecessor back; returns its pointer.

    The policy taken out is remembered, and no rerun promotes it again. Without a predecessor, static
    weights take the champion's place when ``to_static``. Raises :class:`MtfError` when there is nothing
    to go back to and :class:`PolicyError` when the predecessor's file is broken; the champion stays.
    """
    champion = row.champion
    if champion is None:
        raise MtfError("there is no champion to roll back: static weights serve")
    target = previous(champion)
    if target is None and to_static and champion.version != STATIC_VERSION:
        target = static_weights(row.settings, champion)
    if target is None:
        raise MtfError(
            f"there is nothing to go back to: {champion.version} is the first champion. "
            "To serve static weights alone: mtf arms --static 1 --random 0 --noise 0"
        )
    load_policy(policies.file_of(row.settings, target), target.sha256)
    _record(row, "rollback", target, champion, reason)
    row.champion = target
    return target


def static_weights(settings: Settings, champion: PolicyPointer) -> PolicyPointer:
    """The hand-tuned weights as a policy file of their own, for when no policy is fit to serve."""
    header = PolicyHeader("constant", STATIC_VERSION, settings.state_spec, settings.fusion)
    folder = settings.layout.serving / "policies"
    made = folder / "static.safetensors"
    digest = save_policy(made, header, {"action": settings.fusion.static_action})
    path = made.replace(folder / f"{digest}.safetensors")
    return PolicyPointer(
        policy=path.relative_to(settings.layout.root).as_posix(),
        sha256=digest,
        version=STATIC_VERSION,
        day=champion.day,
        model_version="",
        promoted_ts=now(),
    )


def _record(
    row: InService,
    action: str,
    target: PolicyPointer | None,
    was: PolicyPointer | None,
    reason: str,
    **more: Any,
) -> None:
    event: dict[str, Any] = {
        "action": action,
        "day": None if target is None else target.day,
        "version": STATIC_VERSION if target is None else target.version,
        "sha256": None if target is None else target.sha256,
        "model_version": None if target is None else target.model_version,
        "from": None if was is None else was.sha256,
        "reason": reason,
        **more,
    }
    row.append(event)


def _clear_challenger(row: InService, reason: str) -> None:
    row.challenger = row.canary = None
    if row.shares.challenger > 0.0:
        row.change_shares({"challenger": 0.0}, reason)


def _shortened(pointer: dict[str, Any], length: int) -> dict[str, Any]:
    before = pointer["previous"]
    if before is not None:
        pointer["previous"] = _shortened(before, length - 1) if length > 1 else None
    return pointer
