"""A dry run over someone's logs: landed and validated in a scratch lake, which is then thrown away.

So it says what landing and validation would: they are what says it. Nothing is written into the data folder.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from training.contract.errors import DataError
from training.contract.layout import TABLES
from training.contract.records import write_record
from training.contract.settings import Settings
from training.ingest import facts


@dataclass(frozen=True)
class Remark:
    """Something that validation would say, in the words of the first of the days it would say it of."""

    severity: str
    text: str
    days: tuple[date, ...]


@dataclass
class Checked:
    """What was read, what would be refused and remarked, and what the logs hold."""

    days: list[date] = field(default_factory=list)
    landed: list[date] = field(default_factory=list)
    stopped: set[date] = field(default_factory=set)  # by validation
    refusals: dict[str, list[date]] = field(default_factory=dict)  # by message
    remarks: list[Remark] = field(default_factory=list)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)  # text files by separator
    times: dict[str, set[str]] = field(default_factory=dict)  # kinds of each column of times
    shown: facts.Shown | None = None
    sessions: facts.Sessions | None = None
    explored: facts.Explored | None = None

    @property
    def sound(self) -> bool:
        return bool(self.landed) and not self.refusals and not self.stopped


Told = Callable[[str], None]


def check(settings: Settings, folder: Path, told: Told = lambda _: None) -> Checked:
    """Read every delivery of the folder, oldest first; ``told`` hears what is done."""
    from training.ingest import dry

    found = Checked(days=dry.days(folder))
    with _scratch(settings) as aside:
        for day in found.days:
            told(f"{day} reading")
            _land(aside, folder, day, found)
        remarks: dict[tuple[str, str, str], list[tuple[date, str]]] = {}
        for day in found.landed:
            told(f"{day} validating")
            _validate(aside, day, found, remarks)
        found.remarks = [
            Remark(severity, said[0][1], tuple(day for day, _ in said))
            for (severity, *_), said in remarks.items()
        ]
        found.remarks += [
            Remark(
                "warning",
                f"{folder / table / f'dt={days[0]}'}: there are no impressions of that day, so no run lands "
                "it: bring them, or put its rows into a day that has some",
                tuple(days),
            )
            for table, days in dry.landed_by_none(folder).items()
        ]
        told("counting")
        if found.landed:
            found.shown = facts.shown(aside, found.landed)
            found.sessions = facts.sessions(aside, found.landed)
            found.explored = facts.explored(aside, found.landed)
        found.texts = dry.texts(settings, folder, found.landed)
    return found


@contextmanager
def _scratch(settings: Settings) -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="mtf-check-") as data:
        yield settings.model_copy(update={"data": Path(data)})


def _land(settings: Settings, folder: Path, day: date, found: Checked) -> None:
    from training import ingest
    from training.ingest import dry
    from training.ingest.landing import read_note
    from training.ingest.schema import TIMESTAMP, table_spec

    try:
        record = ingest.land_files(settings, day, folder)
    except DataError as error:
        for fault in dict.fromkeys([str(error), *dry.faults(settings, day, folder)]):
            found.refusals.setdefault(fault, []).append(day)
        return
    found.landed.append(day)
    write_record(settings.layout, day, "land", record)
    for table in TABLES:
        if (told := record["tables"].get(table)) is None:
            continue
        sums = found.tables.setdefault(
            table, {"files": 0, "rows": 0, "later_rows": 0, "set_aside": 0, "duplicates_removed": 0}
        )
        for name in ("files", "rows", "later_rows", "set_aside", "duplicates_removed"):
            sums[name] += told.get(name, 0)
        for name in ("left_out", "unread_columns", "absent_columns"):
            sums[name] = sorted({*sums.get(name, ()), *told[name]})
        note = read_note(settings.layout.partition(table, day)) or {}
        for column in table_spec(settings, table).schema:
            if column.type == TIMESTAMP and (kind := note.get("columns", {}).get(column.name)):
                found.times.setdefault(column.name, set()).update(kind.split(" or "))


def _validate(
    settings: Settings, day: date, found: Checked, remarks: dict[tuple[str, str, str], list[tuple[date, str]]]
) -> None:
    from training.validation.stages import validate_landed

    record = validate_landed(settings, day)
    write_record(settings.layout, day, "validate_landed", record)
    if not record["success"]:
        found.stopped.add(day)
    for name, suite in record["suites"].items():
        for failed in suite["failed"]:
            key = (failed["severity"], name, failed["field"])
            remarks.setdefault(key, []).append((day, failed["message"]))
