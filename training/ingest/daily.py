"""The landing of the daily run: a day from the service's log, from files, or from both."""

from datetime import date
from typing import Any

from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS
from training.contract.settings import Settings
from training.ingest.folders import has_delivery
from training.ingest.landing import landed, together
from training.ingest.own_files import land_files
from training.ingest.service_log import has_service_log, land_service_log


def land_day(settings: Settings, day: date) -> dict[str, Any]:
    """Land a day from what the settings name, or tell of what lies there already.

    Raises :class:`DataError` as the landings do, and for a day that nothing brings.
    """
    folder, served = settings.logs.folder, has_service_log(settings, day)
    there = settings.layout.partition(IMPRESSIONS, day).exists()
    records = []
    if settings.logs.source != "service":
        assert folder is not None  # the settings are refused without it
        # of both, one alone is landed: validation holds it against the days before
        if has_delivery(folder, day) or not (there or (served and settings.logs.source == "both")):
            records.append(land_files(settings, day, folder))
    if settings.logs.source != "files" and served:
        records.append(land_service_log(settings, day))
    if records:
        return together(records)
    if there:
        return landed(settings, day)  # brought by `mtf ingest`, or late in other days' files
    raise DataError(
        f"there is no log of {day}: the service's log in {settings.layout.serving_log} has no file of "
        f"that day, and nothing was landed by `mtf ingest`",
        breaks="delivered",
    )
