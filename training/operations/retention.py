"""Retention: what is older than the settings allow and that nothing needs any more.

Days are counted back from the newest landed one. Two things are kept whatever their age: what a policy
that serves, or that a rollback can go back to, was made of (its file, model, run, Bento and the days of its
training window), and days that a later run still reads (the learner's window, the days that bands are learnt
from, the look-back of the transform, users' histories, days that wait for a rerun). Users' profiles are
never deleted: a profile holds until the next one. Temporary files that killed writers left go, too.

Deleting is safe to kill and to run again: a folder is renamed out of sight first, and what is left of an
earlier run is removed by the next.
"""

# ruff: noqa: S608 -- SQL is composed of this code's own and the settings' checked names; values are bound

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import duckdb

from training.contract import in_service
from training.contract.errors import MtfError, PolicyError
from training.contract.files import leftovers, sha256
from training.contract.in_service import policies
from training.contract.layout import DECISIONS, IMPRESSIONS, days_in
from training.contract.log import LATE_DAYS, day_of
from training.contract.pointer import PolicyPointer, chain
from training.contract.policy import load_policy
from training.contract.records import read_record, recorded_days
from training.contract.session import REACH_DAYS
from training.contract.settings import Settings
from training.features import EMPTY_DAY
from training.ingest import changed_days
from training.ingest.landing import connect, landing_lock
from training.warehouse.days import forget
from training.warehouse.exports import MARTS

PROFILES = ("dim_users",)
UNTOUCHED = timedelta(days=1)  # a temporary file that old is nobody's: no writer takes so long
_GONE = ".gone.new"


@dataclass(frozen=True)
class Item:
    """Something to delete: its kind, the day it is of (None: of no day), its paths and their bytes."""

    kind: str
    day: date | None
    name: str
    paths: tuple[Path, ...]
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What goes, and why older days stay: reasons by day."""

    items: list[Item] = field(default_factory=list)
    held: Mapping[date, str] = field(default_factory=dict)


def expired(days: Iterable[date], newest: date, keep_days: int, held: Collection[date]) -> list[date]:
    """Days that are not among the ``keep_days`` up to ``newest`` and that nothing holds, oldest first."""
    first = newest - timedelta(days=keep_days - 1)
    return sorted(day for day in set(days) if day < first and day not in held)


def plan(settings: Settings) -> Plan:
    """What the settings would delete now; deletes nothing."""
    layout, limits = settings.layout, settings.retention
    landed = layout.days(IMPRESSIONS)
    if not landed:
        return Plan()
    newest = landed[-1]
    pointers = list(_pointers(settings))
    held = _held(settings, landed, pointers)
    items: list[Item] = []

    def add(kind: str, day: date | None, name: str, paths: Iterable[Path]) -> None:
        there = tuple(path for path in paths if path.exists())
        if there:
            items.append(Item(kind, day, name, there, sum(map(_bytes, there))))

    lake = expired({*landed, *layout.days(DECISIONS)}, newest, limits.lake_days, held)
    for day in lake:
        for table in (IMPRESSIONS, DECISIONS):
            places = (
                layout.partition(table, day),
                layout.quarantine(table, day),
                layout.corrections(table, day),
                layout.part(table, day),
            )
            add("lake", day, table, places)
    lying = {day + timedelta(days=late) for day in {*landed} - {*lake} for late in range(LATE_DAYS + 1)}
    for path in sorted(layout.serving_log.glob("*/*.jsonl")):
        day = day_of(path)
        if expired([day], newest, limits.lake_days, lying):
            add("log", day, f"{path.parent.name} {path.name}", [path])
    for path in sorted(layout.shipped.glob("*/????-??-??.*")):
        day = day_of(path)
        if expired([day], newest, limits.lake_days, lying):
            add("log", day, f"manifest of {path.parent.name}", [path])
    for mart in (mart for mart in MARTS if mart not in PROFILES):
        folder = layout.mart(mart)
        for day in expired(days_in(folder), newest, limits.warehouse_days, held):
            add("warehouse", day, mart, [folder / f"dt={day}"])
    serving = {pointer.sha256 for pointer in pointers}
    models = days_in(layout.models)
    gone = expired(models, newest, limits.models_days, {date.fromisoformat(p.day) for p in pointers})
    for day in gone:
        add("model", day, "challenger", [layout.model(day)])
    lasting = serving | {sha for day in {*models} - {*gone} if (sha := _sha256(settings, day))}
    for path in sorted((layout.bentos / "bentos" / "mtf_rank").glob("*-*")):
        if not any(path.name.startswith(sha[:12]) for sha in lasting):
            add("bento", None, path.name, [path])
    for path in _policies(settings, serving):
        add("policy", None, path.name, [path])
    docs = {date.fromisoformat(path.name) for path in layout.validation.glob("results/*/????-??-??")}
    for day in expired({*docs, *days_in(layout.reports)}, newest, limits.reports_days, held):
        results = (*layout.validation.glob(f"*/*/{day}"), *layout.validation.glob(f"*/*/*/{day}"))
        pages = (layout.reports / f"dt={day}", layout.lineage / f"{day}.jsonl", *results)
        add("report", day, "page, Data Docs and lineage", pages)
    # a landed day's records say whether it waits for a rerun, and whether its numbers are good ones
    for day in expired(recorded_days(layout), newest, limits.reports_days, {*held, *landed} - {*lake}):
        profiles = layout.validation.glob(f"profiles/*/dt={day}.json")
        add("record", day, "records of its stages", (layout.run(day), *profiles))
    for path in leftovers(layout.root, UNTOUCHED):
        add("temporary", None, str(path.relative_to(layout.root)), [path])
    return Plan(items, held)


def keep(settings: Settings, planned: Plan) -> None:
    """Delete what was planned.

    Raises :class:`MtfError` when the warehouse is open elsewhere; what was deleted by then stays so, and
    running again does the rest.
    """
    layout = settings.layout
    for orphan in [*layout.root.glob(f"*/.*{_GONE}"), *layout.root.glob(f"*/*/.*{_GONE}")]:
        shutil.rmtree(orphan, ignore_errors=True)
    by_kind: dict[str, list[Item]] = {}
    for item in planned.items:
        by_kind.setdefault(item.kind, []).append(item)
    lake = by_kind.pop("lake", [])
    with landing_lock(layout):
        forget(settings, {item.day for item in lake if item.day}, (IMPRESSIONS, DECISIONS))
        for item in lake:
            _remove(item)
    _forget_rows(settings, by_kind.get("warehouse", []))
    _forget_runs(settings, {item.day for item in by_kind.get("model", []) if item.day})
    for items in by_kind.values():
        for item in items:
            _remove(item)
    if by_kind.keys() & {"report", "record"}:
        from training.operations.report import index_page
        from training.validation import data_docs

        data_docs.rebuild_index(layout.validation)
        index_page.index(settings)


# --- what is held


def _held(settings: Settings, landed: Sequence[date], pointers: Sequence[PolicyPointer]) -> dict[date, str]:
    newest = landed[-1]
    held: dict[date, str] = {}
    # a day that is opened again reads its window, and that the look-back of the transform before it
    back = settings.orchestration.reopen_days + settings.learner.window_days - 1 + REACH_DAYS
    read = [day for day in landed if day >= newest - timedelta(days=back)]
    read += _sound(settings, landed)[-settings.validation.recent_days - 1 :]
    waiting = changed_days(settings)
    for pointer in pointers:
        try:
            header = load_policy(policies.file_of(settings, pointer), pointer.sha256).header
        except PolicyError as error:
            raise MtfError(f"nothing is deleted while a policy that may serve is broken: {error}") from error
        for name in header.lineage.get("partitions", {}):
            held.setdefault(date.fromisoformat(name), f"policy {pointer.version} was trained on it")
    held |= dict.fromkeys(waiting, "it has changed and waits for a rerun")
    held[EMPTY_DAY] = "an export without rows, for a mart that has none"
    held |= dict.fromkeys(read, "a next or reopened day's window or bands read it")
    oldest = min([*read, *waiting, newest - timedelta(days=settings.retention.lake_days - 1)])
    for day in _histories(settings, [d for d in landed if d not in held], oldest, newest):
        held.setdefault(day, "users' histories reach back to it")
    return held


def _sound(settings: Settings, landed: Sequence[date]) -> list[date]:
    records = {day: read_record(settings.layout, day, "validate_landed") for day in landed}
    return [day for day, record in records.items() if (record or {}).get("success", True)]


def _histories(settings: Settings, days: Sequence[date], oldest: date, newest: date) -> list[date]:
    """Of ``days``, those with an impression that is among a user's last before ``oldest``, as many as
    ``state.history_length``.

    Users not seen for ``retention.history_days`` hold none.
    """
    older = [day for day in days if day < oldest]
    if not older:
        return []
    paths = [str(p) for day in settings.layout.days(IMPRESSIONS) for p in _parts(settings, day)]
    with connect() as connection:
        found = connection.execute(
            "with user_days as ("
            "  select user_id, dt, count(*) as n"
            "  from read_parquet($paths, hive_partitioning = true, hive_types = {'dt': date}) group by all"
            "), seen as (select user_id, max(dt) as last from user_days group by user_id), back as ("
            "  select user_id, dt, sum(n) over (partition by user_id order by dt desc) - n as newer"
            "  from user_days where dt < $oldest"
            ") select distinct dt from back join seen using (user_id) "
            "where newer < $length and last > $dormant",
            {
                "paths": paths,
                "oldest": oldest,
                "length": settings.state.history_length,
                "dormant": newest - timedelta(days=settings.retention.history_days),
            },
        ).fetchall()
    return sorted({row[0] for row in found} & set(older))


def _parts(settings: Settings, day: date) -> list[Path]:
    return sorted(settings.layout.partition(IMPRESSIONS, day).glob("[!.]*.parquet"))


def _pointers(settings: Settings) -> Iterator[PolicyPointer]:
    """Every policy that serves, tries to, or can be rolled back to; static weights are of no day."""
    row = in_service.read(settings)
    yield from chain(row.champion)
    yield from chain(row.challenger)


def _policies(settings: Settings, serving: Collection[str]) -> list[Path]:
    """Promoted policy files that no pointer names, beyond the newest ``retention.serving_policies``."""
    folder = settings.layout.serving / "policies"
    order = [event["sha256"] for event in in_service.read(settings).history if event.get("sha256")]
    last = {sha: n for n, sha in enumerate(order)}
    free = [p for p in folder.glob("*.safetensors") if p.stem not in serving and len(p.stem) == 64]
    free.sort(key=lambda path: (last.get(path.stem, -1), path.name))
    return free[: max(len(free) - settings.retention.serving_policies, 0)]


def _sha256(settings: Settings, day: date) -> str | None:
    path = settings.layout.model(day) / "policy.safetensors"
    return sha256(path) if path.exists() else None


# --- deleting


def _forget_rows(settings: Settings, items: Sequence[Item]) -> None:
    """Take the days of these exports out of dbt's tables; DuckDB uses the space again."""
    for item in items:
        shutil.rmtree(settings.layout.spark_tables / item.name / f"dt={item.day}", ignore_errors=True)
    if not items or not settings.layout.warehouse.exists():
        return
    try:
        with duckdb.connect(str(settings.layout.warehouse)) as connection:
            known = {
                row[0] for row in connection.execute("select table_name from duckdb_tables()").fetchall()
            }
            for item in items:
                if item.name in known:
                    connection.execute(f"delete from main.{item.name} where dt = ?", [item.day])
    except duckdb.IOException as error:
        raise MtfError(
            f"the warehouse is open elsewhere, so run this again when dbt is done: {error}"
        ) from error


def _forget_runs(settings: Settings, days: Collection[date]) -> None:
    from training.promotion import registry

    if days:
        registry.delete(settings, days)


def _remove(item: Item) -> None:
    for path in item.paths:
        if path.is_dir():
            aside = path.with_name(f".{path.name}{_GONE}")
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)
            shutil.rmtree(aside)
        else:
            path.unlink(missing_ok=True)


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
