"""Where the daily run's logs come from."""

from typing import Literal, Self

from pydantic import Field, model_validator

from training.contract.settings.section import Folder, Section


class LogsSettings(Section):
    source: Literal["service", "files", "both"] = Field(
        "service",
        description="what the daily run lands: the service's own log, files in logs.folder, or both of them, "
        "merged by request (docs/rollout.md)",
    )
    folder: Folder | None = Field(None, description="for source: files and both; see docs/own-logs.md")
    max_late_days: int = Field(
        366,
        ge=1,
        le=3_660,
        description="days before its delivery's that a row may be of; an older time is wrong (ours)",
    )

    @model_validator(mode="after")
    def _folder(self) -> Self:
        if self.source != "service" and self.folder is None:
            raise ValueError(f"source {self.source!r} needs logs.folder")
        return self
