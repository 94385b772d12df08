"""What a folder of deliveries holds, without landing it: its days, faults by file, separators of its text."""

from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from training.contract.errors import DataError
from training.contract.layout import IMPRESSIONS, TABLES
from training.contract.settings import Settings
from training.ingest.columns_file import Mapped, read_columns
from training.ingest.csv_files import SEPARATORS, open_text
from training.ingest.files import TEXT, Asked, is_data, read_file
from training.ingest.folders import delivered_days, table_files
from training.ingest.schema import table_spec


def days(folder: Path) -> list[date]:
    """Days that have a delivery of impressions. Raises :class:`DataError` where there is none."""
    found = delivered_days(folder)
    if not found:
        raise DataError(
            f"{folder}: no delivery: expected {folder / IMPRESSIONS}/dt=2026-01-05/, a folder a day"
        )
    return found


def landed_by_none(folder: Path) -> dict[str, list[date]]:
    """By table, days of deliveries that no run lands, for there are no impressions of the day."""
    shown = set(delivered_days(folder))
    others = {table: delivered_days(folder, table) for table in TABLES if table != IMPRESSIONS}
    found = {table: [day for day in days if day not in shown] for table, days in others.items()}
    return {table: days for table, days in found.items() if days}


def faults(settings: Settings, day: date, folder: Path) -> list[str]:
    """Of a delivery that is refused: what is wrong in each file that is read, the first of each."""
    try:
        mapped = read_columns(settings, folder)
    except DataError:  # which is what was refused
        return []
    found = []
    for table in TABLES:
        asked = Asked(settings, table, table_spec(settings, table), day, mapped.get(table, Mapped()))
        try:
            paths = table_files(folder, table, day)
        except DataError as error:
            found.append(str(error))
            continue
        for path in paths:
            try:
                if is_data(path):
                    read_file(asked, path, folder / table / f"dt={day}")
            except DataError as error:
                found.append(str(error))
    return found


def texts(settings: Settings, folder: Path, landed: Sequence[date]) -> dict[str, int]:
    """How many text files of the deliveries are separated by what; they are read, so they are UTF-8."""
    mapped = read_columns(settings, folder) if landed else {}
    found: Counter[str] = Counter()
    for table in TABLES:
        known = mapped.get(table, Mapped()).known(table_spec(settings, table))
        for day in landed:
            for path in table_files(folder, table, day):
                if path.name.lower().endswith(TEXT):
                    with open_text(path, known) as (_, header):
                        found[SEPARATORS[header.separator]] += 1
    return dict(found)
