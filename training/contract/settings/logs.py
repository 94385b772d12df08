"""Where the daily run's logs come from."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from training.contract.settings.section import Section


class LogsSettings(Section):
    source: Literal["service", "files"] = Field(
        "service",
        description="what the daily run lands: the service's own log, or files in logs.folder",
    )
    folder: Path | None = Field(None, description="for source: files; see training/ingest/template.py")

    @model_validator(mode="after")
    def _folder(self) -> Self:
        if self.source == "files" and self.folder is None:
            raise ValueError("source 'files' needs logs.folder")
        return self
