"""The files that a day is landed from, by the source that the settings name."""

from datetime import date
from pathlib import Path

from training.contract.settings import Settings
from training.ingest import service_log, template


def source_files(settings: Settings, day: date) -> list[Path]:
    """The day's own files, oldest name first; none where the day was brought by ``mtf ingest``.

    Rows of the day in the files of later days are not among them: these files' own landing brings them.
    """
    if settings.logs.source == "files":
        assert settings.logs.folder is not None  # the settings are refused without it
        return template.delivery_files(settings.logs.folder, day)
    return service_log.day_files(settings, day)
