"""What must a person do now? A line each: what it is about, the command, where the runbook says more, and the
setting that decides."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from training.operations.report.causes import Group, groups
from training.operations.runbook import RUNBOOK


@dataclass(frozen=True)
class Todo:
    """``state`` is ``stopped`` (a day or a policy waits for it) or ``held`` (worth a look).

    ``text`` is short, ``remedy`` a sentence, ``section`` a heading of the runbook, ``page`` one of Data Docs,
    relative to the data folder.
    """

    state: str
    text: str
    remedy: str = ""
    command: str = ""
    section: str = ""
    setting: str = ""
    day: date | None = None
    page: str = ""

    @property
    def line(self) -> str:
        """As a terminal has it."""
        parts = (
            f"{self.text}.",
            self.remedy,
            f"`{self.command}`" if self.command else "",
            f"[{self.setting}]" if self.setting else "",
            f"({RUNBOOK}#{self.section})" if self.section else "",
        )
        return " ".join(part for part in parts if part)


def of_groups(day: date, found: Iterable[Group]) -> tuple[Todo, ...]:
    return tuple(
        Todo(
            "stopped" if group.stops else "held",
            group.text if group.stops else f"{day}: {group.text}",
            group.cause.remedy,
            f"mtf day --date {day}" if group.stops else "",
            group.cause.section,
            group.cause.setting,
            day,
            group.page,
        )
        for group in found
    )


def stopping(day: date, records: Mapping[str, Mapping[str, Any]]) -> tuple[Todo, ...]:
    """Of what stopped a day, by cause."""
    return of_groups(day, [group for group in groups(records) if group.stops])
