"""What a person asks first, answered from the records: the index page and `mtf status` show the same.

An answer is a line; what is to be done about it are its :class:`~training.operations.report.todo.Todo`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from statistics import NormalDist
from typing import Any

import duckdb

from training.contract import in_service
from training.contract.pointer import PolicyPointer
from training.contract.records import read_record, read_records, recorded_days
from training.contract.settings import Settings
from training.operations.missed import missed, spans
from training.operations.report import trying
from training.operations.report.causes import cause_of, groups
from training.operations.report.outcome import outcome
from training.operations.report.todo import Todo, of_groups, stopping
from training.validation import quarantine

MEASURED_DAYS = 7  # newest days on which the champion served whose sessions are compared
WAITING_DAYS = 30  # newest days that are looked through for one that stopped
CONFIDENCE = 0.95
RAN, SERVED, BETTER = "Did today run?", "What is served, since when?", "Is it better than static weights?"
HELD, DRIFT = "What is in quarantine?", "What is drifting?"
CARDS = (BETTER, RAN, SERVED)  # questions that the index answers at its head, in this order


@dataclass(frozen=True)
class Answer:
    """``state`` is ``good``, ``held`` (worth a look), ``stopped`` or ``open`` (nothing to say yet)."""

    question: str
    state: str
    text: str
    day: date | None = None  # whose page says more
    todos: tuple[Todo, ...] = ()
    found: Mapping[str, Any] = field(default_factory=dict)  # the numbers behind the text, where it has some


def standing(settings: Settings, now: datetime | None = None) -> list[Answer]:
    """The answers of now: did today run, what is served, is it better, what is held, what drifts; and which
    days are missing, what else was unusual and what is not learnt from, where there is something."""
    champion = in_service.read(settings).champion
    return [
        _ran(settings, now or datetime.now(UTC)),
        *_missing(settings, now),
        _served(settings, champion),
        _better(settings, champion),
        _held(settings),
        _drifting(settings),
        *_capped(settings),
        *_unusual(settings),
        *_waiting(settings),
    ]


def todos(answers: Sequence[Answer]) -> list[Todo]:
    """What the answers ask for, what stops something first. An answer that is worth a look and names nothing
    to do is one itself."""
    found: list[Todo] = []
    for answer in answers:
        asks = answer.state in ("held", "stopped") and answer.question not in (*CARDS, HELD, DRIFT)
        bare = (Todo(answer.state, answer.text.rstrip("."), day=answer.day),) if asks else ()
        found += answer.todos or bare
    return sorted(dict.fromkeys(found), key=lambda one: one.state != "stopped")


def _ran(settings: Settings, now: datetime) -> Answer:
    question = RAN
    days = recorded_days(settings.layout)
    if not days:
        return Answer(question, "open", "No day has run yet.")
    newest = days[-1]
    records = read_records(settings.layout, newest)
    ended = outcome(records)
    text = f"{newest}: {ended['text']}".rstrip(".") + "."
    local = now.astimezone(settings.calendar.zone).date()
    due = local - timedelta(days=1)  # the run after midnight handles the day before
    if newest < due and "traffic" not in records:  # a simulated day is of another calendar
        due_day = Todo(
            "stopped",
            f"{due} is due and has not run",
            "See in Airflow whether it waits or failed.",
            f"mtf day --date {due}",
            "a-deadline-was-missed",
            "orchestration.schedule",
        )
        text = f"No: {due} is due, and the newest run is of {text}"
        return Answer(question, "stopped", text, newest, (due_day, *stopping(newest, records)))
    state = "open" if ended["state"] == "past" else ended["state"]
    return Answer(question, state, text, newest, stopping(newest, records))


def _missing(settings: Settings, now: datetime | None) -> list[Answer]:
    days = missed(settings, now)
    if not days:
        return []
    told = f"{len(days)} did not run to their end: {spans(days)}"
    todo = Todo(
        "held",
        told,
        "This runs them, oldest first.",
        "mtf backfill --missing",
        "missed-nights",
        "orchestration.reopen_days",
    )
    return [Answer("Which days are missing?", "held", f"{told}.", None, (todo,))]


def _served(settings: Settings, champion: PolicyPointer | None) -> Answer:
    question, row = SERVED, in_service.read(settings)
    shares = {arm: share for arm, share in row.shares if arm != "shadow" and share}
    rest = 1.0 - sum(shares.values())
    split = ", ".join([f"champion {rest:.3g}", *(f"{arm} {share:.3g}" for arm, share in shares.items())])
    canary = "".join(f" {told}" for told in trying.told(settings))
    paused = trying.held(settings)
    todo: tuple[Todo, ...] = ()
    if paused:
        held = Todo(
            "stopped",
            paused,
            "Let it go on, or take the policy out: `mtf rollback`.",
            "mtf canary --go-on",
            "a-bad-champion-and-a-refusal",
            "serving.guardrail",
        )
        todo = (held,)
    changes = [event for event in row.history if event["action"] in ("rollback", "promote")]
    # a promotion since then has answered it
    rolled_back = bool(changes) and changes[-1]["action"] == "rollback"
    back = f" Last rollback {changes[-1]['ts']}: {changes[-1]['reason']}." if rolled_back else ""
    if champion is None:
        text = f"Static weights: no policy has been promoted yet. Shares: {split}.{canary}{back}"
        return Answer(question, "open", text, None, todo)
    text = f"{champion.version}, since {champion.promoted_ts}. Shares: {split}.{canary}{back}"
    return Answer(question, "good", text, date.fromisoformat(champion.day), todo)


def _better(settings: Settings, champion: PolicyPointer | None) -> Answer:
    """The sessions that were served, and the newest offline estimate; the former decide the state."""
    question = BETTER
    if champion is None:
        return Answer(question, "open", "There is no champion to compare.")
    parts, states, numbers = [], [], {}
    for find, what in ((measured, "Served sessions"), (_estimated, "Offline estimate")):
        try:
            found = find(settings, champion)
        except duckdb.Error as error:  # a page must be made of a damaged folder too
            parts.append(f"{what}: cannot be read: {str(error).splitlines()[0]}.")
            continue
        if found is None:
            parts.append(f"{what}: none yet.")
            continue
        states.append("good" if found["lower"] > 0 else "stopped" if found["upper"] < 0 else "held")
        told = {"good": "better", "stopped": "worse", "held": "not shown"}[states[-1]]
        numbers[what] = found | {"state": states[-1]}
        parts.append(
            f"{what}: {told}, {found['value']:+.3f} a session ({found['lower']:+.3f} to "
            f"{found['upper']:+.3f}, {found['confidence']:.0%} interval), {found['about']}."
        )
    state = states[0] if states else "open"
    worse = Todo(
        "stopped",
        f"{champion.version} is worse than static weights",
        "Put the champion before it back, or static weights in front.",
        'mtf rollback --reason "worse than static weights"',
        "a-bad-champion-and-a-refusal",
        "serving.guardrail",
    )
    return Answer(question, state, " ".join(parts), None, (worse,) if state == "stopped" else (), numbers)


def measured(settings: Settings, champion: PolicyPointer) -> dict[str, Any] | None:
    """Mean session return under the champion minus that of the static arm, on the days of both.

    The interval takes users as clusters (each is in one arm). None with fewer than two users in an arm.
    """
    mart = settings.layout.mart("fct_transitions")
    # two weeks hold the days of a week even when the champion did not serve on each
    paths = [str(path) for path in sorted(mart.glob("dt=????-??-??/part-0.parquet"))[-2 * MEASURED_DAYS :]]
    if not paths:
        return None
    with duckdb.connect() as connection:
        rows = connection.execute(
            "with sessions as ("
            "  select dt, user_id, arg_min(arm, step) as arm, sum(reward) as r,"
            "    arg_min(policy_version, step) as version"
            "  from read_parquet($paths, hive_partitioning = false, union_by_name = true)"
            "  group by dt, user_id, session_id"
            "), days as ("
            "  select distinct dt from sessions where arm = 'champion' and version = $version"
            "  order by dt desc limit $days"
            "), users as ("
            "  select arm, user_id, count(*) as n, sum(r) as s, min(dt) as since, max(dt) as until"
            "  from sessions semi join days using (dt)"
            "  where arm = 'static' or (arm = 'champion' and version = $version) group by arm, user_id"
            "), means as (select arm, sum(s) / sum(n) as mean from users group by arm) "
            "select arm, any_value(mean), sum(n), count(*), sum((s - mean * n) * (s - mean * n))"
            "    / (sum(n) * sum(n)) * count(*) / greatest(count(*) - 1, 1),"
            "  min(since), max(until) from users join means using (arm) group by arm",
            {"paths": paths, "version": champion.version, "days": MEASURED_DAYS},
        ).fetchall()
    arms = {row[0]: row[1:] for row in rows}
    if set(arms) != {"champion", "static"} or min(found[2] for found in arms.values()) < 2:
        return None
    (mine, n, _, variance, since, until), (static, m, _, other, *_) = arms["champion"], arms["static"]
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2.0) * (variance + other) ** 0.5
    value = mine - static
    about = f"{n} against {m} sessions, {since} to {until}"
    return _interval(value - half, value, value + half, CONFIDENCE, about) | {"static": static}


def _estimated(settings: Settings, champion: PolicyPointer) -> dict[str, Any] | None:
    """The judge's newest paired difference of the policy that serves."""
    for day in reversed(recorded_days(settings.layout)):
        record = read_record(settings.layout, day, "evaluate") or {}
        for name in ("champion", "challenger"):
            found = record.get("differences", {}).get(f"{name} - static")
            if found and record["estimates"].get(name, {}).get("version") == champion.version:
                about = f"judged on {day} by {settings.gate.estimator}"
                confidence = settings.evaluation.confidence
                return _interval(found["lower"], found["value"], found["upper"], confidence, about)
    return None


def _interval(lower: float, value: float, upper: float, confidence: float, about: str) -> dict[str, Any]:
    return {"lower": lower, "value": value, "upper": upper, "confidence": confidence, "about": about}


def _held(settings: Settings) -> Answer:
    question = HELD
    held = quarantine.held(settings)
    if not held:
        return Answer(question, "good", "Nothing.")
    told = "; ".join(f"{one.rows} rows of {one.table} of {one.day}" for one in held[-5:])
    more = f"; and {len(held) - 5} older tables" if len(held) > 5 else ""
    stopped = {day for day in {one.day for one in held} if _stopped(settings, day)}
    apart = [one for one in held if one.day not in stopped]  # those of a day that stopped are said with it
    days = list(dict.fromkeys(str(one.day) for one in apart))
    todo = Todo(
        "held",
        f"{sum(one.rows for one in apart):,} rows are in quarantine, of {', '.join(days[-3:])}"
        + (f" and {len(days) - 3} more days" if len(days) > 3 else ""),
        "See why, mend what matters.",
        "mtf quarantine list",
        "rows-are-in-quarantine",
        "validation.max_bad_share",
        held[-1].day,
    )
    text = f"{told}{more}. `mtf quarantine list` says why."
    return Answer(question, "held", text, held[-1].day, (todo,) if apart else ())


def _stopped(settings: Settings, day: date) -> bool:
    return not (read_record(settings.layout, day, "validate_landed") or {}).get("success", True)


def _drifting(settings: Settings) -> Answer:
    question = DRIFT
    newest = _validated(settings)
    if newest is None:
        return Answer(question, "open", "No day has been validated yet.")
    day, record = newest
    faults = drifting(record)
    moved = (read_record(settings.layout, day, "evaluate") or {}).get("steadiness", {}).get("warnings", [])
    if not faults and not moved:
        heads = (read_record(settings.layout, day, "drift") or {}).get("heads", {})
        compared = sum("psi" in head for head in heads.values())
        if not compared:
            return Answer(question, "open", f"{day} has no recent days to be held against yet.", day)
        return Answer(
            question, "good", f"Nothing on {day}: {compared} heads are spread as on recent days.", day
        )
    state = "stopped" if any(fault["severity"] == "critical" for fault in faults) else "held"
    told = list(dict.fromkeys(fault["column"] for fault in faults))
    if moved:
        told.append("the state under an unchanged policy")
    todo = _of_warnings(day, record, drift=True)
    if moved:
        text = f"{day}: {len(moved)} champions weigh otherwise on today's states"
        todo += (
            Todo("held", text, "What the state is made of has moved.", "", "predictions-drift", "", day),
        )
    return Answer(question, state, f"{'; '.join(told)} on {day}.", day, todo)


def _unusual(settings: Settings) -> list[Answer]:
    """Warnings of the newest validated day that are about something else than drift."""
    newest = _validated(settings)
    todo = _of_warnings(*newest, drift=False) if newest else ()
    if newest is None or not todo:
        return []
    day, _ = newest
    kinds = "; ".join(one.text.partition(": ")[2] for one in todo)
    one = Todo("held", f"{day} warns of {kinds}", "Its page has each with its remedy.", "", "", "", day)
    if len(todo) == 1:
        [one] = todo
    return [Answer("What else is unusual?", "held", f"{kinds}, on {day}.", day, (one,))]


def _waiting(settings: Settings) -> list[Answer]:
    """Days before the newest that stopped: their rows are in no table until they pass."""
    found = []
    for day in recorded_days(settings.layout)[-WAITING_DAYS:-1]:
        ended = outcome(read_records(settings.layout, day))
        if ended["state"] == "stopped":
            found.append((day, ended["text"]))
    if not found:
        return []
    todo = tuple(
        Todo(
            "stopped",
            f"{day} waits. {text}",
            "Its page says what to mend; then run it again.",
            f"mtf day --date {day}",
            "a-day-stopped",
            "orchestration.reopen_days",
            day,
        )
        for day, text in reversed(found[-3:])
    )
    older = f" and {len(found) - 3} before them" if len(found) > 3 else ""
    told = ", ".join(str(day) for day, _ in found[-3:])
    return [Answer("Which days wait?", "stopped", f"{told}{older}.", found[-1][0], todo)]


def _validated(settings: Settings) -> tuple[date, Mapping[str, Any]] | None:
    for day in reversed(recorded_days(settings.layout)):
        record = read_record(settings.layout, day, "validate_landed")
        if record is not None and "suites" in record:
            return day, record
    return None


def _of_warnings(day: date, record: Mapping[str, Any], drift: bool) -> tuple[Todo, ...]:
    warned = [group for group in groups({"validate_landed": record}) if not group.stops]
    return of_groups(day, [one for one in warned if one.cause.drift == drift])


def _capped(settings: Settings) -> list[Answer]:
    """Requests of the newest training's window that one user or session has beyond the settings' limits."""
    for day in reversed(recorded_days(settings.layout)):
        lineage = (read_record(settings.layout, day, "train") or {}).get("lineage")
        if lineage is None:
            continue
        over = {
            n: lineage["left_out"].get(f"over_{n}", 0) for n in ("max_user_requests", "max_session_requests")
        }
        told = " and ".join(f"{count:,} beyond learner.{name}" for name, count in over.items() if count)
        if not told:
            return []
        told = f"requests of a single user or session: {told}"
        remedy = "They are kept, and count in the tables. `mtf check` names the heaviest users."
        todo = Todo("held", f"not learnt from: {told}", remedy, "", "", "learner.max_user_requests", day)
        return [Answer("What is not learnt from?", "held", f"{told[0].upper()}{told[1:]}.", day, (todo,))]
    return []


def drifting(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Faults of a day's landed rows that are about scores, calibration, profiles, the source's columns or the
    arms: those whose cause is :attr:`~training.operations.report.causes.Cause.drift`."""
    return [
        fault
        for suite, result in record.get("suites", {}).items()
        for fault in result["failed"]
        if cause_of(suite, fault).drift
    ]
