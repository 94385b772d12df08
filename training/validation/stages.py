"""The three validations of a day: what was landed, its transitions, the training set of its window."""

import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from training.contract.files import read_json
from training.contract.layout import DECISIONS, IMPRESSIONS, USERS
from training.contract.log import MIXED_ARMS
from training.contract.records import read_record, write_record
from training.contract.settings import Settings
from training.contract.transitions import MART
from training.ingest.landing import schema_changes
from training.validation import drift, profiles
from training.validation import rules as table_rules
from training.validation.checks import NOT_FINITE, Check, Severity, Suite, measure
from training.validation.drift import CalibrationSums
from training.validation.partitions import ParquetFile, Partition, inspect, manifest, parquet_files
from training.validation.profiles import ALL, CONTROL, Profile, Scope
from training.validation.refusals import LANDING
from training.validation.rules import TRAINING_SET, TRANSITIONS, Rules

PARTS = ("files", "rows", "day")

# Share of the decisions with a state that must have become transitions.
LEAST_TRANSITION_SHARE = 0.99
# Below this share of the window's transitions in the current state specification, most of it is lost.
LEAST_SPEC_SHARE = 0.9
# Decisions without a single landed impression: their feedback is missing, and their reward 0.
MOST_UNMATCHED_SHARE = 0.01
# What all rows of a request have in common: column → measure and expectation.
ONE_A_REQUEST = {
    "user_id": ("requests_of_several_users", "what a request showed was shown to one user"),
    "event_ts": ("requests_of_several_times", "what a request showed was shown at one time"),
}
# A measure of this size is nothing: the least score, or a rate of no positives.
NO_LEVEL = 1e-5


def validate_landed(settings: Settings, day: date) -> dict[str, Any]:
    """Check the day's landed impressions, and its decisions and users where there are any.

    The record: ``success`` (nothing critical failed), ``suites`` by name (``success``,
    ``evaluated``, ``failed``, ``page``), ``not_judged``, ``measures`` by table, ``quarantined`` (bad
    rows kept by table) and ``data_docs`` (index page), paths relative to the data folder.
    """
    layout = settings.layout
    found = [_landed(settings, day, table_rules.impressions(settings, day), required=True)]
    served_lately = [d for d in layout.days(DECISIONS) if day - timedelta(days=7) <= d < day]
    if layout.partition(DECISIONS, day).is_dir() or served_lately:
        rules = table_rules.decisions(settings, day)
        found.append(_landed(settings, day, rules, required=bool(served_lately)))
        _match_requests(found[0], found[1])
        _fallbacks(settings, found[1])
    if layout.partition(USERS, day).is_dir():
        found.append(_landed(settings, day, table_rules.users(settings, day), required=False))
    write_record(layout, day, "drift", _plain(found[0].drift))
    return _finish(settings, day, (IMPRESSIONS, DECISIONS, USERS), found)


def validate_transitions(settings: Settings, day: date) -> dict[str, Any]:
    """Check the day's export of ``fct_transitions``; the record is that of :func:`validate_landed`.

    A day whose decisions carry no state (or that has none) needs no transitions.
    """
    layout = settings.layout
    decided = Partition(inspect(parquet_files([layout.partition(DECISIONS, day)]), every_page=True))
    expected = 0
    if not decided.empty and "state" in decided.columns:
        expected = decided.measures({"n": "count(state)"})["n"]
    rules = table_rules.transitions(settings)
    mart = layout.mart(MART)
    recent = _recent(settings, day, _days(mart), "validate_transitions")
    folder = mart / f"dt={day.isoformat()}"
    table = _Table(settings, day, rules, [folder], {d: mart / f"dt={d.isoformat()}" for d in recent})
    if expected or parquet_files([folder]):
        table.check(required=expected > 0)
    else:
        table.skip("no decision of the day carries a state, so there are no transitions")
    if expected and table.judged:
        share = table.rows / expected
        table.measures["share_of_decisions"] = share
        table.day_checks.append(
            measure(
                "share_of_decisions",
                f"each of the {expected} decisions with a state is one transition",
                LEAST_TRANSITION_SHARE,
                1.0,
                source="request_id",
            )
        )
    return _finish(settings, day, (TRANSITIONS,), [table])


def validate_training_set(settings: Settings, day: date) -> dict[str, Any]:
    """Check the transitions of the learner's window, together; the record is as above."""
    mart = settings.layout.mart(MART)
    window = [day - timedelta(days=back) for back in reversed(range(settings.learner.window_days))]
    rules = table_rules.transitions(settings, TRAINING_SET)
    before = [d for d in _recent(settings, day, _days(mart), "validate_transitions") if d < window[0]]
    folders = [mart / f"dt={d.isoformat()}" for d in window]
    table = _Table(settings, day, rules, folders, {d: mart / f"dt={d.isoformat()}" for d in before})
    table.check(required=True)
    if table.judged:
        _training_measures(settings, table)
    return _finish(settings, day, (TRAINING_SET,), [table])


def _landed(settings: Settings, day: date, rules: Rules, required: bool) -> "_Table":
    layout = settings.layout
    recent = _recent(settings, day, layout.days(rules.table), "validate_landed")
    table = _Table(
        settings,
        day,
        rules,
        [layout.partition(rules.table, day)],
        {d: layout.partition(rules.table, d) for d in recent},
    )
    table.check(required)
    if table.judged:
        _landing_note(table)
        _source_columns(table)
    return table


def _source_columns(table: "_Table") -> None:
    """What has become of the source's columns since the day landed before: each change has its name."""
    settings, known = table.settings, table.rules.types
    changes = schema_changes(settings, table.rules.table, table.day)
    table.drift["schema"] = changes
    for change in changes:
        column, kind = change["column"], change["change"]
        # another name than the check of a column of nulls has
        field = f"{column}_{kind}_{'from' if kind == 'gone' else 'in'}_source"
        table.measures[field] = 1.0
        gone = kind == "gone" and column in known
        severity = table.severity(
            "column_gone" if gone else "column_retyped" if kind == "retyped" else "column_new"
        )
        text = f"the source's columns are those of {change['since']}: {change['text']}"
        table.day_checks.append(measure(field, text, 0, 0, severity, source=column))


def _landing_note(table: "_Table") -> None:
    """Compare with the rows that landing wrote down: files changed since are worth a look."""
    note = table.folders[0] / "_landed.json"
    rows = read_json(note).get("rows") if note.exists() else None
    if isinstance(rows, int):
        table.measures["rows_since_landing"] = table.rows - rows
        text = f"the partition still holds the {rows} rows that were landed"
        table.day_checks.append(measure("rows_since_landing", text, 0, 0, "warning"))


def _days(folder: Path) -> list[date]:
    return sorted(date.fromisoformat(path.name.removeprefix("dt=")) for path in folder.glob("dt=*"))


def _recent(settings: Settings, day: date, days: Sequence[date], stage: str) -> list[date]:
    """The last days before this one that did not fail their own validation."""
    before = [d for d in days if d < day]
    sound = [
        d
        for d in before
        if (read_record(settings.layout, d, stage) or {"success": True}).get("success", True)
    ]
    return sound[-settings.validation.recent_days :]


@dataclass
class _Table:
    """One table's way through validation: what was found, and the suites it makes."""

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
        """Volume, measures and scores against those of the recent days."""
        if self.rules.table in (USERS, TRAINING_SET):
            return  # a day's new users follow no rhythm; a window is no day
        today = profiles.of_day(self.settings, self.rules, self.day, self.folders[0])
        recent: dict[date, Profile] = {}
        for day, folder in self.recent_folders.items():
            try:
                found = profiles.of_day(self.settings, self.rules, day, folder)
            except duckdb.Error as error:
                self.leave_out("day", f"{day} as a recent day", f"it cannot be read: {error}"[:300])
                continue
            if found.rows:
                recent[day] = found
        self.predicted_lately = {
            name for p in recent.values() for name, found in p.scopes[ALL].histograms.items() if found
        }
        if recent:
            self._volume([profile.rows for profile in recent.values()])
            self._bands(today, list(recent.values()))
        else:
            self.leave_out("day", "volume and rates", "there is no recent day to hold them against")
        self.drift["recent_days"] = [str(day) for day in recent]
        if self.rules.histograms:
            self._score_drift(today, list(recent.values()))

    def _volume(self, recent: Sequence[int]) -> None:
        limits = self.settings.validation
        median = statistics.median(recent)
        self.measures["recent_median_rows"] = median
        self.measures["rows_to_recent_median"] = self.rows / median
        self.day_checks.append(
            measure(
                "rows_to_recent_median",
                f"{self.rows} rows are between {limits.min_volume_ratio:g} and {limits.max_volume_ratio:g} "
                f"times the median of the last {len(recent)} days, {median:g}",
                limits.min_volume_ratio,
                limits.max_volume_ratio,
                self.severity("volume"),
                source="rows",
            )
        )

    def _bands(self, today: Profile, recent: Sequence[Profile]) -> None:
        limits, rare = self.settings.validation, []
        for name, value in today.measures.items():
            past = [p.measures[name] for p in recent if p.measures.get(name) is not None]
            if value is None or not past:
                continue
            expected = drift.band(
                past,
                days_to_learn=limits.band_days,
                alarm_rate=limits.band_alarm_rate,
                floor=limits.band_floor,
                unlearnt=limits.max_rate_change,
            )
            if abs(expected.middle) <= NO_LEVEL:
                continue  # a share of nothing has no relative width
            if name in self.rules.signals and expected.middle * self.rows < limits.min_rate_count:
                rare.append(name)
                continue
            self.measures[name] = value
            self.bands[name] = {"value": value} | asdict(expected)
            how = "learnt from" if expected.learnt else f"{limits.max_rate_change:.0%} around the mean of"
            text = (
                f"{name}, {value:.4g}, lies between {expected.low:.4g} and {expected.high:.4g}, "
                f"{how} the last {expected.days} days"
            )
            source = self._measured_column(name)
            self.day_checks.append(
                measure(name, text, expected.low, expected.high, self.severity("bands"), source)
            )
            if name in self.rules.signals:
                self.measures[f"{name}_rate"] = value
                share = f"{expected.middle:.2%} of the rows of the last {len(past)} days"
                text = f"{name} occurs at all (on {share})"
                self.day_checks.append(measure(f"{name}_rate", text, 0.0, source=name, strict_min=True))
        if rare:
            self.leave_out(
                "day", "rates of " + ", ".join(rare), f"fewer than {limits.min_rate_count} positives expected"
            )

    def _measured_column(self, name: str) -> str:
        """The log's column that a measure speaks of: ``p_like`` for ``p_like_p90``."""
        if name in self.rules.rates:
            return self.rules.rates[name][1][0]
        return name.rpartition("_")[0]

    def _score_drift(self, today: Profile, recent: Sequence[Profile]) -> None:
        """Stability and calibration of each head; what was found goes to the record ``drift``."""
        heads: dict[str, Any] = {}
        for name in self.rules.predictions:
            heads[name] = self._stability(name, today, recent) | self._calibration(name, today, recent)
        self.drift["heads"] = {name: found for name, found in heads.items() if found}

    def _stability(self, name: str, today: Profile, recent: Sequence[Profile]) -> dict[str, Any]:
        limits = self.settings.validation
        now = {scope: found.histograms.get(name, {}) for scope, found in today.scopes.items()}
        before = {
            scope: drift.pooled(
                [p.scopes[scope].histograms.get(name, {}) for p in recent if scope in p.scopes]
            )
            for scope in now
        }
        for scope in (CONTROL, ALL):  # the control's where it has enough of them
            rows = min(sum(now.get(scope, {}).values()), sum(before.get(scope, {}).values()))
            if rows >= limits.min_drift_rows:
                break
        else:
            if sum(before.get(ALL, {}).values()):
                few = f"fewer than {limits.min_drift_rows} scores of the day or of the recent days"
                self.leave_out("day", f"stability of {name}", few)
            return {}
        index = drift.psi(now[scope], before[scope])
        self.measures[f"{name}_psi"] = self.measures[f"{name}_psi_warn"] = index
        what = "static arm's scores" if scope == CONTROL else "scores"
        text = f"the {what} {name} are spread as on the last {len(recent)} days: index {index:.3g} is at most"
        self.day_checks.append(
            measure(
                f"{name}_psi",
                f"{text} {limits.max_psi:g}",
                maximum=limits.max_psi,
                severity=self.severity("score_drift"),
                source=name,
            )
        )
        if index <= limits.max_psi:  # else it is said already
            self.day_checks.append(
                measure(
                    f"{name}_psi_warn",
                    f"{text} {limits.warn_psi:g}",
                    maximum=limits.warn_psi,
                    severity="warning",
                    source=name,
                )
            )
        return {"psi": index, "psi_scope": scope}

    def _calibration(self, name: str, today: Profile, recent: Sequence[Profile]) -> dict[str, Any]:
        """A change counts when its whole interval is beyond what is allowed."""
        limits = self.settings.validation
        confidence = 1.0 - limits.band_alarm_rate
        found: dict[str, Any] = {}
        if ALL in today.scopes and name in today.scopes[ALL].calibration:
            sums = today.scopes[ALL].calibration[name]
            ratio = drift.calibration(sums, confidence)
            if ratio is not None:
                found = {"predicted": sums.p / sums.rows, "observed": sums.y / sums.rows}
                found["calibration"] = asdict(ratio)
        for scope in (CONTROL, ALL):
            if scope not in today.scopes or name not in today.scopes[scope].calibration:
                continue
            now = today.scopes[scope].calibration[name]
            before = sum(
                (
                    p.scopes[scope].calibration[name]
                    for p in recent
                    if name in p.scopes.get(scope, Scope()).calibration
                ),
                CalibrationSums(),
            )
            change = drift.calibration_change(now, before, confidence)
            # a share is read off its positives; seconds of play are positive on most rows
            if change is None or before.y / before.rows * now.rows < limits.min_rate_count:
                continue
            allowed = limits.max_calibration_change
            beyond = max(change.lower - 1.0, 1.0 / change.upper - 1.0)
            self.measures[f"{name}_calibration"] = beyond
            text = (
                f"{name} comes true as on the last {len(recent)} days, within {allowed:.0%}: predicted / "
                f"observed is {change.value:.3g} times theirs ({change.lower:.3g} to {change.upper:.3g})"
            )
            severity = self.severity("calibration")
            self.day_checks.append(
                measure(f"{name}_calibration", text, maximum=allowed, severity=severity, source=name)
            )
            return found | {"calibration_change": asdict(change), "calibration_scope": scope}
        return found

    def severity(self, verdict: str) -> Severity:
        return "critical" if getattr(self.settings.validation.verdicts, verdict) == "fail" else "warning"

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
                    measure(f"{name}_gone", text, 0, 0, self.severity("column_gone"), source=name)
                )
                continue
            column = f"{name}_null_share"
            self.measures[column] = share
            text = f"{name} is there in every row or in none"
            self.day_checks.append(measure(column, text, 0, 0, "warning", name))

    def finished_suites(self) -> list[Suite]:
        if not self.day_checks:
            return self.suites
        values = {check.column: self.measures[check.column] for check in self.day_checks}
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


def _fallbacks(settings: Settings, decided: _Table) -> None:
    """Requests that got the static weights because something failed while serving."""
    if decided.partition is None or "fallback" not in decided.partition.columns or not decided.rows:
        return
    most = settings.validation.max_fallback_share
    share = decided.partition.measures({"share": "count(fallback) / count(*)"})["share"]
    decided.measures["fallback_share"] = share
    text = f"at most {most:.0%} of the decisions fell back to static weights"
    decided.day_checks.append(measure("fallback_share", text, 0, most, "warning", "fallback"))


def _match_requests(shown: _Table, decided: _Table) -> None:
    """Decisions of the day whose request has no impression, or those of another user."""
    if shown.partition is None or decided.partition is None or not decided.rows:
        return
    if not ({"request_id"} <= shown.partition.columns and {"request_id"} <= decided.partition.columns):
        return
    share = decided.partition.unmatched(shown.partition, "request_id") / decided.rows
    decided.measures["share_without_impressions"] = share
    text = f"at most {MOST_UNMATCHED_SHARE:.0%} of the decisions have no impression"
    decided.day_checks.append(
        measure("share_without_impressions", text, 0, MOST_UNMATCHED_SHARE, "warning", "request_id")
    )
    if {"user_id"} <= shown.partition.columns & decided.partition.columns:
        others = decided.partition.contradicting(shown.partition, "request_id", "user_id")
        decided.measures["decisions_for_another_user"] = others
        text = "a decision and what it showed are of one user"
        decided.day_checks.append(measure("decisions_for_another_user", text, 0, 0, source="user_id"))


def _training_measures(settings: Settings, table: _Table) -> None:
    version = settings.state_spec.version
    columns = table.partition.columns
    wanted: dict[str, tuple[str, str]] = {
        "current_transitions": ("state_spec", f"count(*) FILTER (WHERE state_spec = '{version}')"),
        "reward_std": ("reward", "coalesce(stddev_pop(CASE WHEN isfinite(reward) THEN reward END), 0)"),
    }
    wanted |= {f"{arm}_transitions": ("arm", f"count(*) FILTER (WHERE arm = '{arm}')") for arm in MIXED_ARMS}
    table.measures |= table.partition.measures({n: sql for n, (c, sql) in wanted.items() if c in columns})
    found = table.measures
    if "current_transitions" in found:
        minimum = settings.validation.min_transitions
        share = found["current_transitions"] / table.rows if table.rows else 0.0
        found["current_spec_share"] = share
        table.day_checks += [
            measure(
                "current_transitions",
                f"there are at least {minimum} transitions of the current state specification {version}",
                minimum,
                source="state_spec",
            ),
            measure(
                "current_spec_share",
                f"at least {LEAST_SPEC_SHARE:.0%} of the transitions are of the current state specification",
                LEAST_SPEC_SHARE,
                severity="warning",
                source="state_spec",
            ),
        ]
    if "reward_std" in found and table.rows:
        text = "rewards differ: a constant reward teaches nothing"
        table.day_checks.append(measure("reward_std", text, 0.0, source="reward", strict_min=True))
    if settings.learner.mixed_exploration and "arm" in columns and table.rows:
        _overlap(settings, table)
    if "action" in columns and table.rows:
        _coverage(settings, table)
    if "reward" in columns:
        _reward_range(settings, table)


def _overlap(settings: Settings, table: _Table) -> None:
    """Mixed exploration trains on equal parts of the two groups: a tiny one is seen over and over."""
    least = settings.validation.min_exploring_share
    for arm in MIXED_ARMS:
        share = table.measures[f"{arm}_transitions"] / table.rows
        table.measures[f"{arm}_share"] = share
        text = f"at least {least:.1%} of the transitions are of the {arm} group ({share:.2%} are)"
        table.day_checks.append(
            measure(
                f"{arm}_share", text, least, None, table.severity("overlap"), "arm", strict_min=least == 0
            )
        )


def _coverage(settings: Settings, table: _Table) -> None:
    """Share of the tenths of a head's interval [-1, 1] that hold a transition's action."""
    least = settings.validation.min_action_coverage
    tenths = {
        head.name: f"count(DISTINCT least(floor((action[{i}] + 1.0) * 5.0), 9)::INT) / 10.0"
        for i, head in enumerate(settings.heads, start=1)
    }
    for head, share in table.partition.measures(tenths).items():
        table.measures[f"{head}_coverage"] = share
        text = f"the logged actions of {head} reach {least:.0%} of its interval's tenths or more"
        table.day_checks.append(
            measure(f"{head}_coverage", text, least, None, table.severity("coverage"), "action")
        )


def _reward_range(settings: Settings, table: _Table) -> None:
    """Rewards of the window within those of the recent days before it, give or take their breadth."""
    before = Partition(inspect(parquet_files(list(table.recent_folders.values()))))
    if before.empty or "reward" not in before.columns or not table.rows:
        table.leave_out("day", "range of rewards", "there is no day before the window to hold them against")
        return
    wanted = {name: f"{name}(CASE WHEN isfinite(reward) THEN reward END)" for name in ("min", "max")}
    past, now = before.measures(wanted), table.partition.measures(wanted)
    if None in (*past.values(), *now.values()):
        return  # said already: no reward is a finite number
    breadth = past["max"] - past["min"]
    low, high = past["min"] - breadth, past["max"] + breadth
    for name, found in now.items():
        table.measures[f"reward_{name}"] = found
        text = f"the {name} reward, {found:.4g}, lies within that of the days before, {low:.4g} to {high:.4g}"
        table.day_checks.append(
            measure(f"reward_{name}", text, low, high, table.severity("reward_range"), "reward")
        )


def _finish(settings: Settings, day: date, tables: Sequence[str], found: Sequence[_Table]) -> dict[str, Any]:
    from training.validation import data_docs

    layout = settings.layout
    stale = [f"{table}_{part}" for table in tables for part in PARTS]
    if IMPRESSIONS in tables:
        stale.append(LANDING)  # what was refused before has landed since
    suites = [suite for table in found for suite in table.finished_suites()]
    subjects = {suite.name: table for table in found for suite in table.finished_suites()}
    outcomes = data_docs.run(layout.validation, day, suites, stale)
    described = {outcome.suite.name: _describe(outcome, subjects[outcome.suite.name]) for outcome in outcomes}
    for table in set(tables) - {one.rules.table for one in found}:
        (layout.quarantine(table, day) / "validation.parquet").unlink(missing_ok=True)
    kept = {table.rules.table: table.quarantine() for table in found}
    return {
        "success": all(suite["success"] for suite in described.values()),
        "suites": described,
        "quarantined": {table: rows for table, rows in kept.items() if rows},
        "not_judged": [entry for table in found for entry in table.not_judged],
        "measures": {table.rules.table: _plain(table.measures) for table in found},
        "bands": {table.rules.table: table.bands for table in found if table.bands},
        "data_docs": f"{layout.validation.name}/data_docs/index.html",
    }


def _describe(outcome: Any, table: _Table) -> dict[str, Any]:
    failed = [
        {
            "expectation": one.check.expectation,
            "column": one.check.source or one.check.column,
            "field": one.check.column,
            "severity": one.check.severity,
            "observed": _plain(one.observed),
            "unexpected_count": one.check.bad_rows if one.unexpected is None else one.unexpected,
            "message": _message(table, one),
        }
        for one in outcome.outcomes
        if not one.success
    ]
    return {
        "success": not any(entry["severity"] == "critical" for entry in failed),
        "evaluated": len(outcome.outcomes),
        "failed": sorted(failed, key=lambda entry: entry["severity"] != "critical"),
        "page": outcome.page,
    }


def _message(table: _Table, one: Any) -> str:
    if one.check.expectation == "ExpectColumnToExist":
        return f"{table.subject}: the column {one.check.column} is missing"
    observed = _plain(one.observed)
    shown = f"{observed:.6g}" if isinstance(observed, float) else observed
    rows = "" if one.check.bad_rows is None else f", {one.check.bad_rows} of {table.rows} rows break it"
    return f"{table.subject}: expected that {one.check.text}; found {shown}{rows}"


def _plain(value: Any) -> Any:
    """The value as JSON can say it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not abs(value) < 0.99 * NOT_FINITE:
        return "not a finite number"
    return value
