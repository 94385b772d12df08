"""Earlier days that a night takes up beside its own: missed ones before it, and those to be run again after.

Each gives the days that are good, and why the others are not.
"""

from datetime import date, timedelta

from dags import stages
from training.contract.settings import Settings
from training.operations.missed import days_to_run

Landed = tuple[list[date], dict[date, Exception]]


def run_missed(settings: Settings, before: date) -> Landed:
    """Land and validate the days before one that no night has run, or not to their end, at most
    ``orchestration.reopen_days`` back.

    Of an unfinished day these stages hold as a rule: it is only handed to the consumers once more.
    """
    oldest = before - timedelta(days=settings.orchestration.reopen_days)
    return _land(settings, [day for day in days_to_run(settings, before) if day >= oldest])


def reopen(settings: Settings, before: date) -> Landed:
    """Land and validate :func:`dags.stages.open_days`."""
    return _land(settings, stages.open_days(settings, before))


def _land(settings: Settings, days: list[date]) -> Landed:
    good, failed = [], {}
    for day in days:
        try:
            for stage in ("land", "validate_landed"):
                stages.run_stage(settings, day, stage)
        except Exception as error:
            failed[day] = error
        else:
            good.append(day)
    return good, failed
