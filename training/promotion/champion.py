"""Champion and challenger: promotion, rollback, and what serves now.

The pointer file is what the service follows. It is written last, after the registry's ``champion``
alias and the history, so that a promotion killed half-way is made whole by running it again.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import date
from typing import Any

from training.contract import history as log
from training.contract.errors import MtfError
from training.contract.files import write_atomic
from training.contract.pointer import ChampionPointer, read_champion, write_champion
from training.contract.policy import Policy, constant_policy, load_policy
from training.contract.records import read_record
from training.contract.settings import Settings

CHAIN = 30  # champions that the pointer remembers, so that it cannot grow for ever


def champion_before(settings: Settings, day: date) -> ChampionPointer | None:
    """The champion from before ``day``: what its challenger is judged against, also on a rerun."""
    pointer = read_champion(settings.layout.champion)
    while pointer is not None and pointer.day >= day.isoformat():
        pointer = _previous(pointer)
    return pointer


def champion_policy(settings: Settings, before: date | None = None) -> Policy:
    """The policy that serves, or (``before`` given) the one from before that day.

    Static weights as a constant policy stand in when there is none, or when its state specification
    or its heads are no longer those of the settings: it could not be served either.
    """
    pointer = read_champion(settings.layout.champion) if before is None else champion_before(settings, before)
    if pointer is not None:
        policy = load_policy(settings.data / pointer.policy, pointer.sha256)
        header = policy.header
        if header.spec.version == settings.state_spec.version and header.fusion == settings.fusion:
            return policy
    return constant_policy(settings.state_spec, settings.fusion, settings.fusion.static_action, "static")


def promote(settings: Settings, day: date, gate_record: Mapping[str, Any]) -> dict[str, Any]:
    """Make the challenger of ``day`` the champion if the gate decided so; safe to run again.

    The record is ``{"promoted": bool, "version": str | None, "champion": {...} | None, "reason"}``:
    ``promoted`` says whether the day's challenger is the champion now, the rest what serves. A day
    older than the champion's changes nothing, so that a backfill does not put an older policy in
    place of a newer one.
    Raises :class:`PolicyError` when the policy file is no longer the one that was judged.
    """
    champion = read_champion(settings.layout.champion)
    if gate_record["decision"] == "refuse":
        return _outcome(False, champion, "the gate refused: " + "; ".join(gate_record["reasons"]))
    challenger = gate_record["challenger"]
    if champion is not None and champion.sha256 == challenger["sha256"]:
        return _outcome(True, champion, f"policy {champion.version} is the champion")
    if champion is not None and champion.day > day.isoformat():
        reason = f"the champion is of {champion.day}, newer than {day}: it stays"
        return _outcome(False, champion, reason)

    from training.promotion import registry

    train, evaluate = (read_record(settings.layout, day, stage) for stage in ("train", "evaluate"))
    model_version = registry.register(settings, day, train, evaluate)
    previous = champion_before(settings, day)
    pointer = ChampionPointer(
        policy=_keep(settings, day, challenger["sha256"]),
        sha256=challenger["sha256"],
        version=challenger["version"],
        day=day.isoformat(),
        model_version=model_version,
        promoted_ts=log.now(),
        previous=None if previous is None else _shortened(asdict(previous), CHAIN),
    )
    # The pointer last: killed before it, the gate of a rerun still says "promote" and all is repeated.
    registry.set_alias(settings, registry.CHAMPION, model_version)
    _record_promotion(settings, pointer, gate_record["reasons"])
    write_champion(settings.layout.champion, pointer)
    return _outcome(True, pointer, f"policy {pointer.version} is the champion")


def rollback(settings: Settings, reason: str = "asked for by a person") -> dict[str, Any]:
    """Put the champion's predecessor back; returns ``{"version", "from_version", "reason", "champion"}``.

    The service's pointer moves before the registry is touched: it must work when the registry does
    not. The policy taken out is remembered, and no rerun promotes it again. Raises
    :class:`MtfError` when there is nothing to go back to and :class:`PolicyError` when the
    predecessor's file is broken; the champion then stays.
    """
    champion = read_champion(settings.layout.champion)
    if champion is None:
        raise MtfError("there is no champion to roll back: static weights serve")
    target = _previous(champion)
    if target is None:
        raise MtfError(
            f"there is nothing to go back to: {champion.version} is the first champion. "
            "To serve static weights alone, set serving.shares.static to 1.0"
        )
    load_policy(settings.data / target.policy, target.sha256)
    # The history first: killed here, the champion still serves and the command can be given again.
    # The other way round, a rerun of the day could bring back what was taken out.
    _record(settings, "rollback", target, champion, reason)
    write_champion(settings.layout.champion, target)

    from training.promotion import registry

    try:
        registry.set_alias(settings, registry.CHAMPION, target.model_version)
    except Exception as error:
        raise MtfError(
            f"rolled back to {target.version} (it serves now; do not roll back again), but the registry's "
            f"champion alias could not follow: {error}"
        ) from error
    return {
        "version": target.version,
        "from_version": champion.version,
        "reason": reason,
        "champion": _plain(target),
    }


def history(settings: Settings) -> list[dict[str, Any]]:
    """Every promotion and rollback, oldest first: ``{"action", "ts", "day", "version", "sha256",
    "model_version", "from" (SHA-256 of what it replaced) | None, "reason"}``."""
    return [event for event in log.read(settings.layout) if event["action"] in ("promote", "rollback")]


def _record(
    settings: Settings, action: str, now: ChampionPointer, was: ChampionPointer | None, reason: str
) -> None:
    event = {
        "action": action,
        "day": now.day,
        "version": now.version,
        "sha256": now.sha256,
        "model_version": now.model_version,
        "from": None if was is None else was.sha256,
        "reason": reason,
    }
    log.append(settings.layout, event)


def _record_promotion(settings: Settings, pointer: ChampionPointer, reasons: list[str]) -> None:
    events = history(settings)
    if not events or (events[-1]["action"], events[-1]["sha256"]) != ("promote", pointer.sha256):
        _record(settings, "promote", pointer, _previous(pointer), "; ".join(reasons))


def _keep(settings: Settings, day: date, sha256: str) -> str:
    """Copy the policy to where no retrain writes; its path relative to the data folder."""
    layout = settings.layout
    source = layout.model(day) / "policy.safetensors"
    kept = layout.serving / "policies" / f"{sha256}.safetensors"
    write_atomic(kept, lambda temporary: shutil.copyfile(source, temporary))
    load_policy(kept, sha256)
    return kept.relative_to(layout.root).as_posix()


def _previous(pointer: ChampionPointer) -> ChampionPointer | None:
    return None if pointer.previous is None else ChampionPointer(**pointer.previous)


def _shortened(pointer: dict[str, Any], length: int) -> dict[str, Any]:
    previous = pointer["previous"]
    if previous is not None:
        pointer["previous"] = _shortened(previous, length - 1) if length > 1 else None
    return pointer


def _outcome(promoted: bool, champion: ChampionPointer | None, reason: str) -> dict[str, Any]:
    return {
        "promoted": promoted,
        "version": None if champion is None else champion.version,
        "champion": None if champion is None else _plain(champion),
        "reason": reason,
    }


def _plain(pointer: ChampionPointer) -> dict[str, Any]:
    return asdict(replace(pointer, previous=None))
