"""The files that a day is landed from, by the source that the settings name."""

from datetime import date
from pathlib import Path

from training.contract.settings import Settings
from training.ingest import folders, service_log


def source_files(settings: Settings, day: date) -> list[Path]:
    """The day's own files, oldest name first; none where the day was brought by ``mtf ingest``.

    Rows of the day in the files of later days are not among them: these files' own landing brings them.
    """
    found = []
    if settings.logs.source != "service":
        assert settings.logs.folder is not None  # the settings are refused without it
        found += folders.delivery_files(settings.logs.folder, day)
    if settings.logs.source != "files":
        found += service_log.day_files(settings, day)
    return found
