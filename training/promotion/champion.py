"""Champion and challenger: promotion, rollback, and what serves now.

What the service follows (:mod:`training.contract.in_service`) is changed last, after the registry's
``champion`` alias, so that a promotion killed half-way is made whole by running it again.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import date, timedelta
from typing import Any

from training.contract import in_service, rollout
from training.contract.errors import MtfError, PolicyError
from training.contract.files import write_atomic
from training.contract.in_service import policies
from training.contract.pointer import PolicyPointer, previous
from training.contract.policy import Policy, constant_policy, load_policy
from training.contract.records import read_record
from training.contract.settings import Settings
from training.promotion.choice import Choice, is_choice


def champion_before(settings: Settings, day: date) -> PolicyPointer | None:
    """The champion from before ``day``: what its challenger is judged against, also on a rerun."""
    return rollout.before_day(in_service.read(settings).champion, day.isoformat())


def champion_policy(settings: Settings, before: date | None = None) -> Policy:
    """The policy that serves, or (``before`` given) the one from before that day.

    Static weights as a constant policy stand in when there is none, or when its state specification
    or its heads are no longer those of the settings: it could not be served either.
    """
    pointer = in_service.read(settings).champion if before is None else champion_before(settings, before)
    if pointer is not None:
        policy = load_policy(policies.file_of(settings, pointer), pointer.sha256)
        if _fits(settings, policy):
            return policy
    return constant_policy(settings.state_spec, settings.fusion, settings.fusion.static_action, "static")


def champions_to_replay(settings: Settings, day: date) -> dict[date, Policy]:
    """The champion from before ``day`` and the one of ``evaluation.steadiness_days`` earlier, by their days.

    Where none is as old as that, the oldest that is known takes its place. Those whose file is gone, or which
    the settings' state or heads no longer fit, are left out: no state of today could be shown to them.
    """
    present = champion_before(settings, day)
    earlier = day - timedelta(days=settings.evaluation.steadiness_days)
    old = present
    while old is not None and old.day > earlier.isoformat():
        older = previous(old)
        if older is None:
            break
        old = older
    found = {}
    for pointer in (old, present):
        if pointer is None:
            continue
        try:
            policy = load_policy(policies.file_of(settings, pointer), pointer.sha256)
        except PolicyError:
            continue
        if _fits(settings, policy):
            found[date.fromisoformat(pointer.day)] = policy
    return found


def _fits(settings: Settings, policy: Policy) -> bool:
    header = policy.header
    return header.spec.version == settings.state_spec.version and header.fusion == settings.fusion


def promote(
    settings: Settings, day: date, gate_record: Mapping[str, Any], chosen: Choice | None = None
) -> dict[str, Any]:
    """Make the challenger of ``day`` the champion if the gate decided so; safe to run again.

    Where ``gate.evidence`` is canary the policy begins its canary instead, and the running service decides;
    while another is in its canary, it is not tried.

    The record is ``{"promoted": bool, "version": str | None, "champion": {...} | None, "reason"}``:
    ``promoted`` says whether the day's challenger is the champion now, the rest what serves. A day
    older than the champion's changes nothing, so that a backfill does not put an older policy in
    place of a newer one; nor does a day's challenger take the place of what a person has ``chosen`` of that
    day.
    Raises :class:`PolicyError` when the policy file is no longer the one that was judged.
    """
    row = in_service.read(settings)
    champion = row.champion
    if gate_record["decision"] == "refuse":
        return _outcome(False, champion, "the gate refused: " + "; ".join(gate_record["reasons"]))
    challenger = gate_record["challenger"]
    follow_in_registry(settings)
    trying = row.challenger
    if trying is not None and trying.sha256 == challenger["sha256"]:
        return _outcome(False, champion, f"policy {trying.version} is the challenger: its canary decides")
    if chosen is None:
        taken = next((p for p in (champion, trying) if p is not None and p.day == day.isoformat()), None)
        if taken is not None and is_choice(settings, taken):
            return _outcome(
                False, champion, f"policy {taken.version} of {day} was chosen by a person: it stays"
            )
    if trying is not None and settings.gate.evidence == "canary" and row.text("canary"):
        reason = (
            f"policy {trying.version} is in its canary, and decides first: {challenger['version']} is not"
        )
        return _outcome(False, champion, f"{reason} tried")
    if champion is not None and champion.sha256 == challenger["sha256"]:
        return _outcome(True, champion, f"policy {champion.version} is the champion")
    if champion is not None and champion.day > day.isoformat():
        reason = f"the champion is of {champion.day}, newer than {day}: it stays"
        return _outcome(False, champion, reason)

    from training.promotion import registry

    train, evaluate = (read_record(settings.layout, day, stage) for stage in ("train", "evaluate"))
    assert train is not None and evaluate is not None  # the gate has judged by them
    judged = evaluate if chosen is None else chosen.judged
    model_version = registry.register(settings, day, train, judged)
    pointer = PolicyPointer(
        policy=_keep(settings, judged["policy"], challenger["sha256"]),
        sha256=challenger["sha256"],
        version=challenger["version"],
        day=day.isoformat(),
        model_version=model_version,
        promoted_ts="",
    )
    reason = "; ".join(gate_record["reasons"])
    if settings.gate.evidence == "canary":
        with in_service.changing(settings) as row:
            pointer = rollout.following(pointer, rollout.before_day(row.champion, pointer.day))
            rollout.begin_canary(row, pointer, reason, None if chosen is None else chosen.evidence)
        return _outcome(False, champion, f"policy {pointer.version} is the challenger: its canary decides")
    # What serves last: killed before it, the gate of a rerun still says "promote" and all is repeated.
    registry.set_alias(settings, registry.CHAMPION, model_version)
    with in_service.changing(settings) as row:
        pointer = rollout.following(pointer, rollout.before_day(row.champion, pointer.day))
        rollout.make_champion(row, pointer, reason, gate_record["evidence"])
    return _outcome(True, pointer, f"policy {pointer.version} is the champion")


def rollback(settings: Settings, reason: str = "asked for by a person") -> dict[str, Any]:
    """Put the champion's predecessor back; returns ``{"version", "from_version", "reason", "champion"}``.

    While a challenger is in its canary, that is what is taken out, and the champion stays.
    What serves moves before the registry is touched: it must work when the registry does
    not. The policy taken out is remembered, and no rerun promotes it again. Raises
    :class:`MtfError` when there is nothing to go back to and :class:`PolicyError` when the
    predecessor's file is broken; the champion then stays.
    """
    with in_service.changing(settings) as row:
        was = row.challenger
        if was is not None:
            rollout.withdraw_challenger(row, reason)
            target = row.champion
        else:
            was = row.champion
            target = rollout.step_back(row, reason)
    assert was is not None
    now = "static" if target is None else target.version
    try:
        follow_in_registry(settings)
    except Exception as error:
        raise MtfError(
            f"rolled back to {now} (it serves now; do not roll back again), but the registry's "
            f"champion alias could not follow: {error}"
        ) from error
    return {
        "version": now,
        "from_version": was.version,
        "reason": reason,
        "champion": None if target is None else _plain(target),
    }


def follow_in_registry(settings: Settings) -> None:
    """Bring the registry's champion alias in line with what serves: the service moves on by itself."""
    from training.promotion import registry

    champion = in_service.read(settings).champion
    if champion is None or not champion.model_version:  # static weights have no version there
        return
    if registry.alias_version(settings, registry.CHAMPION) != champion.model_version:
        registry.set_alias(settings, registry.CHAMPION, champion.model_version)


def history(settings: Settings) -> list[dict[str, Any]]:
    """Every promotion and rollback, oldest first: ``{"action", "ts", "day", "version", "sha256",
    "model_version", "from" (SHA-256 of what it replaced) | None, "reason"}``."""
    return [
        event for event in in_service.read(settings).history if event["action"] in ("promote", "rollback")
    ]


def _keep(settings: Settings, policy: str, sha256: str) -> str:
    """Copy the policy to where no retrain writes; its path relative to the data folder, as ``policy`` is."""
    layout = settings.layout
    source = layout.root / policy
    kept = layout.serving / "policies" / f"{sha256}.safetensors"
    write_atomic(kept, lambda temporary: shutil.copyfile(source, temporary))
    load_policy(kept, sha256)
    return kept.relative_to(layout.root).as_posix()


def _outcome(promoted: bool, champion: PolicyPointer | None, reason: str) -> dict[str, Any]:
    return {
        "promoted": promoted,
        "version": None if champion is None else champion.version,
        "champion": None if champion is None else _plain(champion),
        "reason": reason,
    }


def _plain(pointer: PolicyPointer) -> dict[str, Any]:
    return asdict(replace(pointer, previous=None))
