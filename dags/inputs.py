"""What a stage of a day depends on, as fingerprints: with equal inputs it need not run again.

A day depends on the landed rows of itself and of days before it, never on later days. That the look-back
of the transform closes a day's last sessions once the log has gone on is no change of the day: it happens
to every day once, and the model of a past day is not trained again for it.

| stage | landed days that it depends on | beside its settings and code |
|---|---|---|
| ``land`` | | the day's own source files, and that the lake still holds what it landed |
| ``validate_landed`` | the day | |
| ``transform`` | the day | no earlier day waits to be transformed |
| ``validate_transitions`` | the day and :data:`REACH_DAYS` days before | |
| ``features``, ``parity`` | the day | |
| ``validate_training_set``, ``train`` | the learner's window and :data:`REACH_DAYS` days before | |
| ``evaluate`` | the same | the challenger's file, the champion from before the day |
| ``gate``, ``promote`` | the same | the inputs of every stage before, what was rolled back |

Late rows of day N therefore reach the data stages of N, ``validate_transitions`` up to N +
:data:`REACH_DAYS`, and the learning stages up to N + ``learner.window_days`` - 1 + :data:`REACH_DAYS`.
Users' histories and the online store of all later days are brought up to date by ``transform`` and
``features`` of N themselves, which replace every later day, too. The days that a day's volumes and scores
are compared with are not its inputs: the verdict holds for what was known when the day was judged.

A stage's code is its function and what that imports, with the versions of the libraries among it
(:mod:`dags.sources`).
"""

from collections.abc import Iterable
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from dags import sources
from training.contract import in_service
from training.contract.files import json_sha256, read_json, sha256
from training.contract.layout import TABLES
from training.contract.records import read_record
from training.contract.rollout import before_day
from training.contract.session import REACH_DAYS
from training.contract.settings import Settings

Inputs = dict[str, str]

_DATA = ("ids", "heads", "signals", "state", "calendar")
_TRAJECTORIES = (*_DATA, "session", "reward")
_LEARNING = (*_TRAJECTORIES, "seed", "fusion_form", "learner", "evaluation")
_ASSIGNMENT = (
    "serving.shares",
    "serving.no_exploration_for",
    "serving.exploration",
    "serving.accept_event_ts",
)
_WINDOW = ("learner.window_days", "learner.mixed_exploration")
# sections, or single entries of one, that a stage reads or that what it reads was made with
_SETTINGS: dict[str, tuple[str, ...]] = {
    "land": (*_DATA, "logs", "serving.ship"),
    "validate_landed": (*_DATA, "validation", "session", "serving.default_shown", *_ASSIGNMENT),
    # the limit of sessions that a world made
    "transform": (*_TRAJECTORIES, "world.max_requests", "warehouse.engine"),
    "validate_transitions": (*_TRAJECTORIES, "validation"),
    "features": (*_DATA, "session", "store", "postgres", "warehouse.engine"),
    "parity": (*_TRAJECTORIES, "store", "gate.parity_sample", "warehouse.engine"),
    "validate_training_set": (*_TRAJECTORIES, "validation", *_WINDOW),
    "train": (*_LEARNING, "warehouse.engine"),
    "evaluate": (*_LEARNING, "gate.estimator", "serving.noise_std"),
    "gate": (*_LEARNING, "gate", "serving", "store"),
    "promote": ("learner", "postgres", "serving", "gate.evidence"),
}


def of_stage(settings: Settings, day: date, stage: str) -> Inputs:
    """Name of each input → its fingerprint, as things are now."""
    return {
        "settings": _digest(settings.model_dump(mode="json", include=_chosen(_SETTINGS[stage]))),
        "code": _code(stage),
        **_data(settings, day, stage),
    }


def differences(before: Inputs, now: Inputs) -> list[str]:
    """Names of the inputs that are not what they were."""
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def why_not_current(settings: Settings, day: date, stage: str) -> str | None:
    """Why the stage has to run (again), or None when its record still holds."""
    record = read_record(settings.layout, day, stage)
    if record is None:
        return "it has not run"
    if not record.get("success", True):
        return "it failed"
    if "inputs" not in record:
        return "its record names no inputs"
    changed = differences(record["inputs"], of_stage(settings, day, stage))
    if changed:
        return f"changed: {_named(changed)}"
    return None if "skipped" in record else _missing_output(settings, day, stage, record)


def landed(settings: Settings, days: Iterable[date]) -> Inputs:
    """Content of the landed partitions of some days."""
    found = {}
    for day in days:
        for table in TABLES:
            path = settings.layout.partition(table, day) / "part-0.parquet"
            if path.exists():
                found[f"{table} of {day}"] = _content(path)
    return found


def _data(settings: Settings, day: date, stage: str) -> Inputs:
    if stage == "land":
        from training import ingest

        return {str(path): _stat(path) for path in ingest.source_files(settings, day)}
    if stage in ("validate_landed", "transform", "features", "parity"):
        return landed(settings, [day])
    if stage == "validate_transitions":
        return landed(settings, _back(day, REACH_DAYS))
    window = landed(settings, _back(day, settings.learner.window_days - 1 + REACH_DAYS))
    champion = before_day(in_service.read(settings).champion, day.isoformat())
    judged_against = {"champion before": "none" if champion is None else champion.sha256}
    if stage == "validate_training_set":
        return window
    if stage == "train":
        return {**window, **judged_against} if settings.learner.warm_start else window
    trained = read_record(settings.layout, day, "train") or {}
    pool = trained.get("pool", {}) | trained.get("leanings", {})
    if stage == "evaluate":
        return {**window, **judged_against, **{name: one["sha256"] for name, one in pool.items()}}
    challenger = (read_record(settings.layout, day, "evaluate") or {}).get("sha256", "none")
    before = {
        f"inputs of {earlier}": _digest((read_record(settings.layout, day, earlier) or {}).get("inputs"))
        for earlier in _before(stage)
    }
    rolled_back = any(
        e["action"] in ("rollback", "end") and e["from"] == challenger
        for e in in_service.read(settings).history
    )
    return {**judged_against, **before, "challenger": challenger, "rolled back": str(rolled_back)}


def _before(stage: str) -> list[str]:
    return list(_SETTINGS)[: list(_SETTINGS).index(stage)]


def _back(day: date, days: int) -> list[date]:
    return [day - timedelta(days=back) for back in range(days, -1, -1)]


def _missing_output(settings: Settings, day: date, stage: str, record: dict[str, Any]) -> str | None:
    """What the stage has made and is no longer there, or is another day's doing since."""
    layout = settings.layout
    if stage == "land":
        for table, told in record["tables"].items():
            path = layout.partition(table, day) / "part-0.parquet"
            if "sha256" in told and (not path.exists() or _content(path) != told["sha256"]):
                return f"changed: {table} of {day} in the lake"
    if stage == "transform":
        from training.warehouse import transform

        pending = transform.pending(settings, day)
        if pending:
            return f"changed: {_named([f'landed rows of {one}' for one in pending])}"
        for mart, exported in record["exported"].items():
            if day.isoformat() in exported["days"] and not (layout.mart(mart) / f"dt={day}").is_dir():
                return f"the export of {mart} is gone"
    if stage == "features":
        end = settings.day_start(day + timedelta(days=1)).isoformat()
        if not layout.materialised.exists() or read_json(layout.materialised)["until"] < end:
            return "the online store is not up to the day's end"
    made_by: dict[str, list[dict[str, Any]]] = {
        "train": [*record.get("pool", {}).values(), *record.get("leanings", {}).values()],
        "evaluate": [record],
    }
    for made in made_by.get(stage, []):
        path = layout.root / made["policy"]
        if not path.exists() or _content(path) != made["sha256"]:
            return f"the policy file {made['policy']} is gone or another"
    return None


def _named(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _chosen(names: Iterable[str]) -> dict[str, Any]:
    """Sections and ``section.entry`` as pydantic wants them."""
    chosen: dict[str, Any] = {}
    for name in names:
        section, _, entry = name.partition(".")
        if entry:
            chosen.setdefault(section, set()).add(entry)
        else:
            chosen[section] = True
    return chosen


def _digest(value: Any) -> str:
    return json_sha256(value)[:16]


def _stat(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} bytes at {stat.st_mtime_ns}"


def _content(path: Path) -> str:
    stat = path.stat()
    return _hashed(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=4096)
def _hashed(path: Path, *_identity: int) -> str:
    """A file is read once a process, until it is written again."""
    return sha256(path)


_code = lru_cache(sources.fingerprint)
