"""Who serves next: the moves of the champion's and the challenger's pointer, each with its history.

The daily loop begins a rollout and a person may take it back; the running service carries it on. All
of them call these functions inside :func:`training.contract.history.changing`. Pointers are written
last: what is killed half-way has changed nothing that serves, and can be done again.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from training.contract import history
from training.contract.errors import MtfError
from training.contract.files import read_json, write_json_atomic
from training.contract.log import STATIC_VERSION
from training.contract.pointer import PolicyPointer, read_pointer, write_pointer
from training.contract.policy import PolicyHeader, load_policy, save_policy
from training.contract.settings import Settings
from training.contract.shares import change_shares, read_shares

CHAIN = 30  # champions that the pointer remembers, so that it cannot grow for ever


def previous(pointer: PolicyPointer) -> PolicyPointer | None:
    """The champion before this one, or None for the first."""
    return None if pointer.previous is None else PolicyPointer(**pointer.previous)


def before_day(pointer: PolicyPointer | None, day: str) -> PolicyPointer | None:
    """The champion from before ``day`` (ISO): ``pointer`` itself or one that it remembers."""
    while pointer is not None and pointer.day >= day:
        pointer = previous(pointer)
    return pointer


def following(pointer: PolicyPointer, before: PolicyPointer | None) -> PolicyPointer:
    """``pointer`` as the successor of ``before``, promoted now; the chain is cut to its newest."""
    chain = None if before is None else _shortened(asdict(before), CHAIN)
    return PolicyPointer(**{**asdict(pointer), "promoted_ts": history.now(), "previous": chain})


def make_champion(
    settings: Settings, pointer: PolicyPointer, reason: str, evidence: Mapping[str, Any]
) -> None:
    """Put a policy in front of all users that no other arm has.

    ``evidence`` is kept with the event: ``by`` canary, offline or person, the ``lower``, ``value`` and
    ``upper`` of the difference to the champion before (of a person's choice, of both parts of the reward to
    static weights), and the ``delta`` that was spent (:func:`delta_spent`).
    """
    last = [e for e in history.read(settings.layout) if e["action"] in ("promote", "rollback")][-1:]
    if not last or (last[0]["action"], last[0]["sha256"]) != ("promote", pointer.sha256):
        record(settings, "promote", pointer, previous(pointer), reason, evidence=dict(evidence))
    write_pointer(settings.layout.champion, pointer)


def begin_canary(
    settings: Settings, pointer: PolicyPointer, reason: str, evidence: Mapping[str, Any] | None = None
) -> None:
    """Make a policy the challenger, in place of the one before it; nobody is served by it yet.

    ``evidence`` is kept with the event, where a person has chosen it.
    """
    layout = settings.layout
    if read_shares(settings).challenger > 0.0:
        change_shares(settings, {"challenger": 0.0}, f"{pointer.version} begins its canary")
    more = {} if evidence is None else {"evidence": dict(evidence)}
    record(settings, "canary", pointer, read_pointer(layout.champion), reason, **more)
    write_pointer(layout.challenger, pointer)


def complete_canary(settings: Settings, reason: str, evidence: Mapping[str, Any]) -> PolicyPointer:
    """The challenger becomes the champion, on this evidence of a gain; returns its pointer."""
    layout = settings.layout
    challenger = read_pointer(layout.challenger)
    if challenger is None:
        raise MtfError("there is no challenger to promote")
    pointer = following(challenger, before_day(read_pointer(layout.champion), challenger.day))
    make_champion(settings, pointer, reason, evidence)
    _clear_challenger(settings, f"{pointer.version} is the champion")
    return pointer


def withdraw_challenger(settings: Settings, reason: str) -> PolicyPointer:
    """Take the challenger out of service; no rerun of its day brings it back. Returns its pointer."""
    return _take_out(settings, "rollback", reason)


def end_canary(settings: Settings, reason: str) -> PolicyPointer:
    """The canary showed no gain: the champion stays, and no rerun of the challenger's day begins it again."""
    return _take_out(settings, "end", reason)


def lift_pause(settings: Settings, reason: str) -> str:
    """Let a canary go on in spite of what holds it; returns the rule, which holds it no more.

    The service looks at the file, so call it as all of these. Raises :class:`MtfError` where nothing holds.
    """
    path = settings.layout.canary
    canary = read_json(path) if path.exists() else {}
    paused = canary.get("paused")
    if paused is None or read_pointer(settings.layout.challenger) is None:
        raise MtfError("nothing holds a canary")
    rule: str = paused["rule"]
    event = {"action": "resume", "version": canary["version"], "sha256": canary["sha256"]}
    history.append(settings.layout, {**event, "reason": f"{rule} was lifted: {reason}"})
    write_json_atomic(path, {**canary, "paused": None, "lifted": [*canary["lifted"], rule]})
    return rule


def delta_spent(settings: Settings, champion: PolicyPointer | None) -> float:
    """What promotions without a shown gain may have cost since the last one with, as a share of the value.

    The sum of ``evidence.delta`` over the champion and its predecessors back to that one: what was rolled
    back is not among them, and so has cost nothing for good.
    """
    events = {e["sha256"]: e for e in history.read(settings.layout) if e["action"] == "promote"}
    spent = 0.0
    while champion is not None:
        delta = events.get(champion.sha256, {}).get("evidence", {}).get("delta", 0.0)
        if delta <= 0.0:
            break
        spent += delta
        champion = previous(champion)
    return spent


def _take_out(settings: Settings, action: str, reason: str) -> PolicyPointer:
    layout = settings.layout
    challenger = read_pointer(layout.challenger)
    if challenger is None:
        raise MtfError("there is no challenger to take out")
    # the history first, as in step_back
    record(settings, action, read_pointer(layout.champion), challenger, reason)
    _clear_challenger(settings, f"{challenger.version} was taken out: {reason}")
    return challenger


def step_back(settings: Settings, reason: str, *, to_static: bool = False) -> PolicyPointer:
    """Put the champion's predecessor back; returns its pointer.

    The policy taken out is remembered, and no rerun promotes it again. Without a predecessor, static
    weights take the champion's place when ``to_static``. Raises :class:`MtfError` when there is nothing
    to go back to and :class:`PolicyError` when the predecessor's file is broken; the champion stays.
    """
    champion = read_pointer(settings.layout.champion)
    if champion is None:
        raise MtfError("there is no champion to roll back: static weights serve")
    target = previous(champion)
    if target is None and to_static and champion.version != STATIC_VERSION:
        target = static_weights(settings, champion)
    if target is None:
        raise MtfError(
            f"there is nothing to go back to: {champion.version} is the first champion. "
            "To serve static weights alone: mtf arms --static 1 --random 0 --noise 0"
        )
    load_policy(settings.data / target.policy, target.sha256)
    # The history first: killed here, the champion still serves and the command can be given again.
    # The other way round, a rerun of the day could bring back what was taken out.
    record(settings, "rollback", target, champion, reason)
    write_pointer(settings.layout.champion, target)
    return target


def static_weights(settings: Settings, champion: PolicyPointer) -> PolicyPointer:
    """The hand-tuned weights as a policy file of their own, for when no policy is fit to serve."""
    header = PolicyHeader("constant", STATIC_VERSION, settings.state_spec, settings.fusion)
    path = settings.layout.serving / "policies" / "static.safetensors"
    digest = save_policy(path, header, {"action": settings.fusion.static_action})
    return PolicyPointer(
        policy=path.relative_to(settings.layout.root).as_posix(),
        sha256=digest,
        version=STATIC_VERSION,
        day=champion.day,
        model_version="",
        promoted_ts=history.now(),
    )


def record(
    settings: Settings,
    action: str,
    now: PolicyPointer | None,
    was: PolicyPointer | None,
    reason: str,
    **more: Any,
) -> None:
    event: dict[str, Any] = {
        "action": action,
        "day": None if now is None else now.day,
        "version": STATIC_VERSION if now is None else now.version,
        "sha256": None if now is None else now.sha256,
        "model_version": None if now is None else now.model_version,
        "from": None if was is None else was.sha256,
        "reason": reason,
        **more,
    }
    history.append(settings.layout, event)


def _clear_challenger(settings: Settings, reason: str) -> None:
    settings.layout.challenger.unlink(missing_ok=True)
    settings.layout.canary.unlink(missing_ok=True)
    if read_shares(settings).challenger > 0.0:
        change_shares(settings, {"challenger": 0.0}, reason)


def _shortened(pointer: dict[str, Any], length: int) -> dict[str, Any]:
    before = pointer["previous"]
    if before is not None:
        pointer["previous"] = _shortened(before, length - 1) if length > 1 else None
    return pointer
