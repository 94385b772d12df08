"""What a table's day looks like in numbers, so that days can be held against each other.

A profile is measured once and kept below ``validation/profiles``: the recent days of a large log need
not be read again every day. It is measured anew when the day's files or what is measured change.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from training.contract.files import read_json, write_json_atomic
from training.contract.layout import DECISIONS, IMPRESSIONS
from training.contract.settings import Settings
from training.validation.drift import BINS_AN_OCTAVE, LEAST_SCORE, CalibrationSums, quantile
from training.validation.partitions import Partition, inspect, parquet_files
from training.validation.rules import Rules

VERSION = 1
ALL, CONTROL = "all", "control"
# Which items are shown, and so whose scores are logged, is the policy's doing. The static arm's
# requests are ranked with the same weights every day: a shift of their scores is the upstream's.
CONTROL_ARM = "static"
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Scope:
    """Score histograms and calibration sums by column, of all rows or of the control's."""

    histograms: dict[str, dict[int, int]] = field(default_factory=dict)
    calibration: dict[str, CalibrationSums] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """``measures`` are numbers by name, None where there is nothing to measure."""

    rows: int
    measures: dict[str, float | None]
    scopes: dict[str, Scope]


def of_day(settings: Settings, rules: Rules, day: date, folder: Path) -> Profile:
    """The profile of one day's partition, of the columns that it has in their types.

    Raises ``duckdb.Error`` for a file that cannot be read to its end.
    """
    files = inspect(parquet_files([folder]))
    sound = {
        name
        for name, types in rules.types.items()
        if files and all(f.types.get(name) in types for f in files)
    }
    wanted = _Wanted.of(rules, sound)
    decided = parquet_files([settings.layout.partition(DECISIONS, day)]) if rules.table == IMPRESSIONS else []
    key = _key(wanted, [file.path for file in files] + decided)
    path = settings.layout.validation / "profiles" / rules.table / f"{folder.name}.json"
    if path.exists():
        kept = read_json(path)
        if kept["key"] == key:
            return _from_json(kept)
    profile = _measure(Partition(files), wanted, Partition(inspect(decided)))
    write_json_atomic(path, {"key": key, **_to_json(profile)})
    return profile


@dataclass(frozen=True)
class _Wanted:
    """SQL of what is measured, by name."""

    measures: Mapping[str, str]
    histograms: Mapping[str, str]
    calibrated: Mapping[str, str]

    @classmethod
    def of(cls, rules: Rules, sound: set[str]) -> "_Wanted":
        def known(expressions: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, str]:
            return {name: sql for name, (sql, needs) in expressions.items() if sound.issuperset(needs)}

        calibrated = known(rules.calibrated) if "user_id" in sound else {}
        return cls(known(rules.rates), known(rules.histograms), calibrated)


def _key(wanted: _Wanted, paths: Sequence[Path]) -> str:
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    content = json.dumps([VERSION, BINS_AN_OCTAVE, asdict(wanted), stats])
    return hashlib.sha256(content.encode()).hexdigest()


def _measure(partition: Partition, wanted: _Wanted, decided: Partition) -> Profile:
    if partition.empty:
        return Profile(0, {}, {})
    measures = partition.measures({"rows": "count(*)", **wanted.measures})
    rows = measures.pop("rows")
    scopes = {ALL: _scope(partition, wanted)}
    if wanted.histograms and {"request_id", "arm"} <= decided.columns and "request_id" in partition.columns:
        control = partition.matching(decided, "request_id", f"arm = '{CONTROL_ARM}'")
        scopes[CONTROL] = _scope(control, wanted)
    for name, histogram in scopes[ALL].histograms.items():
        for q in QUANTILES:
            measures[f"{name}_p{q * 100:.0f}"] = quantile(histogram, q)
    # a share of no rows is not a number
    found = {n: float(v) if v is not None and math.isfinite(v) else None for n, v in measures.items()}
    return Profile(rows, found, scopes)


def _scope(partition: Partition, wanted: _Wanted) -> Scope:
    histograms = {}
    for name, sql in wanted.histograms.items():
        place = f"floor({BINS_AN_OCTAVE} * log2(greatest({sql}, {LEAST_SCORE!r})))::INT"
        histograms[name] = partition.counts(place, f"isfinite({sql})")
    calibration = {}
    for name, observed in wanted.calibrated.items():
        sums = partition.grouped(
            "user_id",
            {"n": "count(*)", "p": f'sum("{name}"::DOUBLE)', "y": f"sum({observed})"},
            ("sum(n)", "sum(p)", "sum(y)", "sum(p * p)", "sum(p * y)", "sum(y * y)"),
            f'isfinite("{name}")',
        )
        calibration[name] = CalibrationSums(*(float(value or 0.0) for value in sums))
    return Scope(histograms, calibration)


def _to_json(profile: Profile) -> dict[str, Any]:
    scopes = {
        name: {
            "histograms": scope.histograms,
            "calibration": {n: s.values for n, s in scope.calibration.items()},
        }
        for name, scope in profile.scopes.items()
    }
    return {"rows": profile.rows, "measures": profile.measures, "scopes": scopes}


def _from_json(kept: Mapping[str, Any]) -> Profile:
    scopes = {
        name: Scope(
            {n: {int(place): count for place, count in h.items()} for n, h in scope["histograms"].items()},
            {n: CalibrationSums(*values) for n, values in scope["calibration"].items()},
        )
        for name, scope in kept["scopes"].items()
    }
    return Profile(kept["rows"], kept["measures"], scopes)
