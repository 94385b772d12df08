"""Days that no night has run, or not to their end: what the next night's run does of them first."""

from datetime import date, timedelta

from dags import stages
from training.contract.settings import Settings
from training.operations.missed import days_to_run


def run_missed(settings: Settings, before: date) -> tuple[list[date], dict[date, Exception]]:
    """Land and validate the missing and the unfinished days before one, oldest first, at most
    ``orchestration.reopen_days`` back; those that are good, and why the others are not.

    Of an unfinished day these stages hold as a rule: it is only handed to the consumers once more.
    """
    oldest = before - timedelta(days=settings.orchestration.reopen_days)
    return stages.land_again(settings, [day for day in days_to_run(settings, before) if day >= oldest])
