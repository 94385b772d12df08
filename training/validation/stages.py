"""The three validations of a day: what was landed, its transitions, the training set of its window."""

from datetime import date, timedelta
from typing import Any

from training.contract.files import read_json
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS, days_in
from training.contract.log import NO_POLICY
from training.contract.records import read_record, write_record
from training.contract.settings import Settings
from training.contract.transitions import MART
from training.ingest.column_changes import schema_changes
from training.ingest.landing import read_note
from training.ingest.merging import SERVICE
from training.validation import rules as table_rules
from training.validation import sample_ratio
from training.validation.checks import measure, severity_of
from training.validation.partitions import Partition, inspect, parquet_files
from training.validation.recent_days import sound_days
from training.validation.rules import TRAINING_SET, TRANSITIONS, Rules
from training.validation.stage_record import finish, plain
from training.validation.table import ValidatedTable
from training.validation.training_set import training_measures

# Share of the decisions with a state that must have become transitions.
LEAST_TRANSITION_SHARE = 0.99
# Sources of decisions whose arms were drawn by our own assignment.
ASSIGNED_HERE = ("service", "world")
# Decisions without a single landed impression: their feedback is missing, and their reward 0.
MOST_UNMATCHED_SHARE = 0.01
# Unknown categories that a message names, the most frequent first.
SHOWN_CATEGORIES = 5


def validate_landed(settings: Settings, day: date) -> dict[str, Any]:
    """Check the day's landed impressions, and its decisions and users where there are any.

    The record: ``success`` (nothing critical failed), ``suites`` by name (``success``,
    ``evaluated``, ``failed``, ``page``), ``not_judged``, ``measures`` by table, ``quarantined`` (bad
    rows kept by table) and ``data_docs`` (index page), paths relative to the data folder.
    """
    layout = settings.layout
    found = [_landed(settings, day, table_rules.impressions(settings, day), required=True)]
    _orphans(settings, day, found[0])
    served_lately = [d for d in layout.days(DECISIONS) if day - timedelta(days=7) <= d < day]
    if layout.partition(DECISIONS, day).is_dir() or served_lately:
        rules = table_rules.decisions(settings, day)
        found.append(_landed(settings, day, rules, required=bool(served_lately)))
        _match_requests(found[0], found[1])
        _fallbacks(settings, found[1])
        _sample_ratio(settings, day, found[1])
    if layout.partition(USERS, day).is_dir():
        found.append(_landed(settings, day, table_rules.users(settings, day), required=False))
        _categories(settings, found[-1])
    write_record(layout, day, "drift", plain(found[0].drift))
    return finish(settings, day, (IMPRESSIONS, DECISIONS, USERS), found)


def validate_transitions(settings: Settings, day: date) -> dict[str, Any]:
    """Check the day's export of ``fct_transitions``; the record is that of :func:`validate_landed`.

    A day whose decisions carry no state (or that has none) needs no transitions.
    """
    layout = settings.layout
    decided = Partition(inspect(parquet_files([layout.partition(DECISIONS, day)]), every_page=True))
    expected = 0
    if not decided.empty and "state" in decided.columns:
        expected = decided.measures({"n": "count(state)"})["n"]
    rules = table_rules.transitions(settings)
    mart = layout.mart(MART)
    recent = sound_days(settings, day, days_in(mart), "validate_transitions")
    folder = mart / f"dt={day.isoformat()}"
    table = ValidatedTable(settings, day, rules, [folder], {d: mart / f"dt={d.isoformat()}" for d in recent})
    if expected or parquet_files([folder]):
        table.check(required=expected > 0)
    else:
        table.skip("no decision of the day carries a state, so there are no transitions")
    if expected and table.judged:
        share = table.rows / expected
        table.measures["share_of_decisions"] = share
        table.day_checks.append(
            measure(
                "share_of_decisions",
                f"each of the {expected} decisions with a state is one transition",
                LEAST_TRANSITION_SHARE,
                1.0,
                source="request_id",
            )
        )
    return finish(settings, day, (TRANSITIONS,), [table])


def validate_training_set(settings: Settings, day: date) -> dict[str, Any]:
    """Check the transitions of the learner's window, together; the record is as above."""
    mart = settings.layout.mart(MART)
    window = [day - timedelta(days=back) for back in reversed(range(settings.learner.window_days))]
    rules = table_rules.transitions(settings, TRAINING_SET)
    recent = sound_days(settings, day, days_in(mart), "validate_transitions")
    before = [d for d in recent if d < window[0]]
    folders = [mart / f"dt={d.isoformat()}" for d in window]
    table = ValidatedTable(settings, day, rules, folders, {d: mart / f"dt={d.isoformat()}" for d in before})
    table.check(required=True)
    if table.judged:
        training_measures(settings, table)
    return finish(settings, day, (TRAINING_SET,), [table])


def _landed(settings: Settings, day: date, rules: Rules, required: bool) -> ValidatedTable:
    layout = settings.layout
    recent = sound_days(settings, day, layout.days(rules.table), "validate_landed")
    table = ValidatedTable(
        settings,
        day,
        rules,
        [layout.partition(rules.table, day)],
        {d: layout.partition(rules.table, d) for d in recent},
    )
    table.check(required)
    if table.judged:
        _landing_note(table)
        _set_aside(table)
        _source_columns(table)
    return table


def _source_columns(table: ValidatedTable) -> None:
    """What has become of the source's columns since the day landed before: each change has its name.

    One that nobody reads and that is gone or of another type is told of, and judged by nothing.
    """
    settings, known = table.settings, table.rules.types
    changes = schema_changes(settings, table.rules.table, table.day)
    table.drift["schema"] = changes
    for change in changes:
        column, kind = change["column"], change["change"]
        if kind != "new" and column not in known:
            continue
        # another name than the check of a column of nulls has
        field = f"{column}_{kind}_{'from' if kind == 'gone' else 'in'}_source"
        table.measures[field] = 1.0
        severity = severity_of(settings, f"column_{kind}")
        text = f"the source's columns are those of {change['since']}: {change['text']}"
        table.day_checks.append(measure(field, text, 0, 0, severity, source=column))


def _landing_note(table: ValidatedTable) -> None:
    """Compare with the rows that landing wrote down: files changed since are worth a look."""
    note = table.folders[0] / "_landed.json"
    rows = read_json(note).get("rows") if note.exists() else None
    if isinstance(rows, int):
        table.measures["rows_since_landing"] = table.rows - rows
        text = f"the partition still holds the {rows} rows that were landed"
        table.day_checks.append(measure("rows_since_landing", text, 0, 0, "warning"))


def _set_aside(table: ValidatedTable) -> None:
    """Single rows that landing left out of the day: it goes on without them, and says so."""
    note = read_note(table.folders[0])
    if note is None or "set_aside" not in note:
        return
    table.measures["rows_set_aside"] = note["set_aside"]
    text = "no row was set aside (`mtf quarantine list` says which, and why)"
    table.day_checks.append(measure("rows_set_aside", text, 0, 0, "warning"))


def _orphans(settings: Settings, day: date, shown: ValidatedTable) -> None:
    """Feedback that landing found no impression for: it is in no table."""
    landed = (read_record(settings.layout, day, "land") or {}).get("tables", {}).get(IMPRESSIONS, {})
    if not shown.judged or "orphan_feedback" not in landed:
        return
    orphans = landed["orphan_feedback"]
    shown.measures["orphan_feedback"] = orphans
    text = "feedback names items that were ranked for its request: 0 of its events belong to no impression"
    severity = severity_of(settings, "orphan_feedback")
    shown.day_checks.append(measure("orphan_feedback", text, 0, 0, severity, source="item_id"))


def _fallbacks(settings: Settings, decided: ValidatedTable) -> None:
    """Requests that got the static weights because something failed while serving."""
    if decided.partition is None or "fallback" not in decided.partition.columns or not decided.rows:
        return
    most = settings.validation.max_fallback_share
    # that no policy has been promoted yet is no failure
    failed = f"count(*) FILTER (WHERE fallback <> '{NO_POLICY}') / count(*)"
    share = decided.partition.measures({"share": failed})["share"]
    decided.measures["fallback_share"] = share
    text = f"at most {most:.0%} of the decisions fell back to static weights"
    decided.day_checks.append(measure("fallback_share", text, 0, most, "warning", "fallback"))


def _categories(settings: Settings, profiles: ValidatedTable) -> None:
    """Categories that the settings do not name: such a user's state says nothing of that column."""
    if profiles.partition is None:
        return
    for feature in settings.state.profile:
        if feature.kind != "categorical" or feature.column not in profiles.partition.columns:
            continue
        column = f'"{feature.column}"'
        counts = profiles.partition.counts(column, f"{column} is not null")
        unknown = {name: rows for name, rows in counts.items() if name not in feature.categories}
        field = f"{feature.column}_unknown_rows"
        profiles.measures[field] = sum(unknown.values())
        most = sorted(unknown, key=lambda name: -unknown[name])[:SHOWN_CATEGORIES]
        text = f"every {feature.column} is one that state.profile names"
        if unknown:
            text += f" (not named: {', '.join(f'{name}, {unknown[name]} rows' for name in most)})"
        profiles.day_checks.append(measure(field, text, 0, 0, "warning", source=feature.column))


def _sample_ratio(settings: Settings, day: date, decided: ValidatedTable) -> None:
    """Whether users are in the arms as the shares in force say, for decisions of our own assignment."""
    if decided.partition is None or not decided.rows:
        return
    note = read_note(decided.folders[0])
    if note is None or note["source"] not in ASSIGNED_HERE:
        if note is not None and SERVICE in note.get("parts", {}):
            decided.leave_out("day", "users by arm against the shares", "decisions of files are among them")
        return
    found = sample_ratio.of_day(settings, day, decided.partition)
    if isinstance(found, str):
        decided.leave_out("day", "users by arm against the shares", found)
        return
    decided.measures["sample_ratio"] = {"observed": found.observed, "expected": found.expected}
    decided.measures["arms_sample_ratio"] = found.p
    least = settings.validation.min_sample_ratio_p
    counts = ", ".join(f"{arm} {n} of {found.expected[arm]:.1f}" for arm, n in found.observed.items())
    text = (
        f"users are in the arms as the shares say ({counts}): the chance of a difference like this, "
        f"{found.p:.3g}, is at least {least:g}"
    )
    severity = severity_of(settings, "sample_ratio")
    decided.day_checks.append(measure("arms_sample_ratio", text, least, severity=severity, source="arm"))


def _match_requests(shown: ValidatedTable, decided: ValidatedTable) -> None:
    """Decisions of the day whose request has no impression, or those of another user."""
    if shown.partition is None or decided.partition is None or not decided.rows:
        return
    if not ({"request_id"} <= shown.partition.columns and {"request_id"} <= decided.partition.columns):
        return
    share = decided.partition.unmatched(shown.partition, "request_id") / decided.rows
    decided.measures["share_without_impressions"] = share
    if decided.settings.serving.default_shown == 0:
        decided.leave_out("day", "decisions without an impression", "serving.default_shown is 0")
    else:
        text = f"at most {MOST_UNMATCHED_SHARE:.0%} of the decisions have no impression"
        decided.day_checks.append(
            measure("share_without_impressions", text, 0, MOST_UNMATCHED_SHARE, "warning", "request_id")
        )
    if {"user_id"} <= shown.partition.columns & decided.partition.columns:
        others = decided.partition.contradicting(shown.partition, "request_id", "user_id")
        decided.measures["decisions_for_another_user"] = others
        text = "a decision and what it showed are of one user"
        decided.day_checks.append(measure("decisions_for_another_user", text, 0, 0, source="user_id"))
