"""One table's way through validation: its files, its rows, and what they are held against."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from training.contract.layout import IMPRESSIONS, USERS
from training.contract.settings import Settings
from training.validation import recent_days
from training.validation.checks import NOT_FINITE, Check, Suite, measure, severity_of
from training.validation.partitions import ParquetFile, Partition, inspect, manifest, parquet_files
from training.validation.rules import TRAINING_SET, Rules

# What all rows of a request have in common: column → measure and expectation.
ONE_A_REQUEST = {
    "user_id": ("requests_of_several_users", "what a request showed was shown to one user"),
    "event_ts": (
        "requests_of_several_times",
        "what a request showed was shown at one time (where each item has its own, say so in columns.json by "
        '"event_ts": {"of": "item"})',
    ),
}


@dataclass
class ValidatedTable:
    """What was found of a table, and the suites that it makes.

    ``folders`` are the partitions that are judged, as one; ``recent_folders`` those of the recent days.
    """

    settings: Settings
    day: date
    rules: Rules
    folders: list[Path]
    recent_folders: Mapping[date, Path]
    files: list[ParquetFile] = field(default_factory=list)
    partition: Partition | None = None
    rows: int = 0
    suites: list[Suite] = field(default_factory=list)
    measures: dict[str, Any] = field(default_factory=dict)
    day_checks: list[Check] = field(default_factory=list)
    not_judged: list[dict[str, str]] = field(default_factory=list)
    repeated: int = 0
    row_checks: list[Check] = field(default_factory=list)
    bands: dict[str, dict[str, Any]] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)
    predicted_lately: set[str] = field(default_factory=set)

    @property
    def judged(self) -> bool:
        """Whether rows could be read, so that the day's measures mean something."""
        return self.partition is not None

    @property
    def subject(self) -> str:
        return f"{self.rules.table} of {self.day}"

    def skip(self, why: str) -> None:
        self.leave_out("files", "everything", why)

    def leave_out(self, part: str, what: str, why: str) -> None:
        self.not_judged.append({"suite": f"{self.rules.table}_{part}", "what": what, "why": why})

    def check(self, required: bool) -> None:
        """Make the suites. A page that cannot be read counts as an unreadable file."""
        paths = parquet_files(self.folders)
        self.files = inspect(paths)
        sound = self._sound_columns()
        if not any(file.error for file in self.files):
            try:
                self._check_rows(sound)
            except duckdb.Error:
                self.files = inspect(paths, every_page=True)
                if not any(file.error for file in self.files):
                    raise
                self.partition = None
        if any(file.error for file in self.files):
            self.leave_out("rows", "rows and measures of the day", "a file cannot be read")
        elif not paths:
            self.leave_out("rows", "rows and measures of the day", "there is no file")
        self.suites.insert(0, self._files_suite(required))

    def _sound_columns(self) -> set[str]:
        """Columns that every file has, with a type that they may have."""
        return {
            name
            for name, types in self.rules.types.items()
            if all(file.types.get(name) in types for file in self.files)
        }

    def _files_suite(self, required: bool) -> Suite:
        frame = manifest(self.files, self.settings.layout.root)
        checks = []
        if required:
            checks.append(
                Check(
                    "ExpectTableRowCountToBeBetween",
                    None,
                    {"min_value": 1},
                    f"there are Parquet files of {self.subject}",
                )
            )
        broken = "; ".join(f"{file.path.name}: {file.error}" for file in self.files if file.error)
        checks.append(
            Check(
                "ExpectColumnValuesToBeInSet",
                "readable",
                {"value_set": ["yes"]},
                "every file can be read" + (f" ({broken})" if broken else ""),
            )
        )
        for name, types in self.rules.types.items():
            if not any(file.error is None for file in self.files):
                break
            text = f"every file has a column {name} of type {' or '.join(types)}"
            if name in frame:
                arguments = {"value_set": list(types)}
                checks.append(Check("ExpectColumnValuesToBeInSet", name, arguments, text, source=name))
            else:
                checks.append(Check("ExpectColumnToExist", name, {}, text, source=name))
        about = f"Files of {self.subject}: one row a file, with the type of each of its columns."
        return Suite(f"{self.rules.table}_files", frame, checks, about)

    def _check_rows(self, sound: set[str]) -> None:
        rules = self.rules
        partition = Partition(self.files)
        if partition.empty:
            return
        missing = sorted(set(rules.types) - sound)
        if missing:
            self.leave_out(
                "rows", "checks that need " + ", ".join(missing), "the column is missing or has another type"
            )
        fields = [entry for entry in rules.fields if sound.issuperset(entry.needs)]
        self.rows = sum(file.rows for file in self.files)
        self.measures["rows"] = self.rows
        if self.rows and fields:
            frame = partition.batch(fields)
            self.row_checks = self._judged_row_checks(partition, frame)
            about = (
                f"Rows of {self.subject}. Strings and times are reduced to whether they are there; "
                f"{NOT_FINITE:g} stands for a value that is not a finite number."
            )
            self.suites.append(Suite(f"{rules.table}_rows", frame, self.row_checks, about))
        if rules.table in (IMPRESSIONS, TRAINING_SET):
            self.day_checks.append(measure("rows", f"there are {rules.table}", 1))
        if sound.issuperset(rules.key):
            self.repeated = partition.repeated(rules.key)
            self.measures["repeated_rows"] = self.repeated
            unique = measure("repeated_rows", self.rules.key_text, 0, 0, source=", ".join(rules.key))
            self.day_checks.append(unique.with_bad_rows(self.repeated))
        if rules.table == IMPRESSIONS and "request_id" in sound and self.rows:
            self._requests_are_one(partition, sound)
        self._against_recent()
        self._predictions(partition, sound)
        self.partition = partition

    def _requests_are_one(self, partition: Partition, sound: Set[str]) -> None:
        """What all rows of a request must share; the transform takes the least of several."""
        texts = {column: text for column, text in ONE_A_REQUEST.items() if column in sound}
        bounds = {f"{end}_{column}": f"{end}({column})" for column in texts for end in ("min", "max")}
        several = [f"count(*) FILTER (WHERE min_{column} <> max_{column})" for column in texts]
        found = partition.grouped("request_id", bounds, several, "true") if texts else ()
        for (column, (name, text)), count in zip(texts.items(), found, strict=True):
            self.measures[name] = count
            self.day_checks.append(measure(name, text, 0, 0, source=column))

    def _judged_row_checks(self, partition: Partition, frame: pd.DataFrame) -> list[Check]:
        empty = {name for name in frame.columns if not frame[name].notna().any()}
        checks = [
            check
            for check in self.rules.checks
            if check.column in frame and not (check.is_bound and check.column in empty)
        ]
        bounded = {check.column for check in self.rules.checks if check.is_bound}
        if empty & bounded:
            self.leave_out("rows", "bounds of " + ", ".join(sorted(empty & bounded)), "no row has a value")
        suspects = {str(i): check.bad for i, check in enumerate(checks) if check.suspects(frame)}
        counts = partition.measures({i: f"count(*) FILTER (WHERE {bad})" for i, bad in suspects.items()})
        return [check.with_bad_rows(counts.get(str(i), 0)) for i, check in enumerate(checks)]

    def _against_recent(self) -> None:
        """Volume, rates and scores against those of the recent days."""
        if self.rules.table in (USERS, TRAINING_SET):
            return  # a day's new users follow no rhythm; a window is no day
        found = recent_days.compare(
            self.settings, self.rules, self.day, self.folders[0], self.rows, self.recent_folders
        )
        self.measures |= found.measures
        self.day_checks += found.checks
        self.bands, self.predicted_lately = found.bands, found.predicted_lately
        self.drift |= found.drift
        for what, why in found.not_judged:
            self.leave_out("day", what, why)

    def _predictions(self, partition: Partition, sound: set[str]) -> None:
        """A head is predicted for every row or (logs that carry none, yet) for no row."""
        names = [name for name in self.rules.predictions if name in sound]
        if not self.rows or not names:
            return
        shares = partition.measures({n: f'1.0 - count("{n}") / count(*)' for n in names})
        for name, share in shares.items():
            if share == 1.0 and name not in self.predicted_lately:
                continue  # said already: its bounds are left out because no row has a value
            if share == 1.0:
                self.measures[f"{name}_gone"] = 1.0
                text = f"{name} is there, as it was on the recent days"
                self.day_checks.append(
                    measure(
                        f"{name}_gone", text, 0, 0, severity_of(self.settings, "column_gone"), source=name
                    )
                )
                continue
            column = f"{name}_null_share"
            self.measures[column] = share
            text = f"{name} is there in every row or in none"
            self.day_checks.append(measure(column, text, 0, 0, "warning", name))

    def finished_suites(self) -> list[Suite]:
        """The suites of its files and rows, and that of the day's measures."""
        if not self.day_checks:
            return self.suites
        columns = [check.column for check in self.day_checks if check.column is not None]
        values = {column: self.measures[column] for column in columns}
        frame = pd.DataFrame([values]).astype(float)
        about = f"Measures of {self.subject}: one row."
        return [*self.suites, Suite(f"{self.rules.table}_day", frame, self.day_checks, about)]

    def quarantine(self) -> int:
        """Write the rows that break a critical check beside the lake; returns how many were kept.

        A run that finds none removes what an earlier run of the day had put there.
        """
        path = self.settings.layout.quarantine(self.rules.table, self.day) / "validation.parquet"
        path.unlink(missing_ok=True)
        broken = [check for check in self.row_checks if check.bad_rows and check.severity == "critical"]
        if self.partition is None or not (broken or self.repeated):
            return 0
        key = [column for column in self.rules.key if column in self.partition.columns]
        reason = self.rules.key_text if self.repeated else None
        limit = self.settings.validation.quarantine_rows
        return self.partition.write_bad_rows(path, broken, key, limit, reason)
