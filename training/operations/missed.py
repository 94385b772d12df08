"""Which days are missing? Those that nobody ran, or not to their end, since the first that ran."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from training.contract.records import read_record, read_records, recorded_days
from training.contract.settings import Settings

ONE_DAY = timedelta(days=1)


def missing_days(settings: Settings, before: date) -> list[date]:
    """Days before ``before`` that have not run, oldest first: from the first that did on, and no older than
    retention keeps.

    A day that stopped has run. One that was only landed has not: no stage left a record of it.
    """
    layout, limits = settings.layout, settings.retention
    ran = {day for day in recorded_days(layout) if read_record(layout, day, "land") is not None}
    if not ran:
        return []
    first = max(min(ran), max(ran) - timedelta(days=min(limits.lake_days, limits.reports_days) - 1))
    days = (first + timedelta(days=n) for n in range((before - first).days))
    return [day for day in days if day not in ran]


def unfinished_days(settings: Settings, before: date) -> list[date]:
    """Days before ``before`` that were landed and found good, and that no later stage has taken up to their
    end, though none failed: the consumers were paused. Airflow hands them nothing that is landed meanwhile.
    """
    found = []
    for day in recorded_days(settings.layout):
        records = read_records(settings.layout, day)
        if (
            day < before
            and {"land", "validate_landed"} <= records.keys()
            and "promote" not in records
            and not records.get("traffic", {}).get("past")
            and all(record.get("success", True) and "skipped" not in record for record in records.values())
        ):
            found.append(day)
    return found


def days_to_run(settings: Settings, before: date) -> list[date]:
    """The missing and the unfinished days before ``before``, oldest first."""
    return sorted({*missing_days(settings, before), *unfinished_days(settings, before)})


def missed(settings: Settings, now: datetime | None = None) -> list[date]:
    """Days that are missing or unfinished by now. The newest may be at work, and yesterday's, which is due,
    alone is no missed night; days that are simulated are of another calendar, which ends with the newest.
    """
    days = recorded_days(settings.layout)
    if not days:
        return []
    unfinished = unfinished_days(settings, days[-1])
    if read_record(settings.layout, days[-1], "traffic") is not None:
        return sorted({*missing_days(settings, days[-1]), *unfinished})
    today = (now or datetime.now(UTC)).astimezone(settings.calendar.zone).date()
    found = sorted({*missing_days(settings, today), *unfinished})
    return [] if found == [today - ONE_DAY] else found


def spans(days: Sequence[date]) -> str:
    """Days in order as text: a run of three or more by its ends."""
    runs: list[list[date]] = []
    for day in days:
        if runs and day == runs[-1][-1] + ONE_DAY:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
