"""A day against the recent days before it: volume, measures, spread and calibration of scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from training.contract.records import read_record
from training.contract.settings import Settings
from training.validation import drift, profiles, volumes
from training.validation.checks import Check, measure, severity_of
from training.validation.drift import CalibrationSums
from training.validation.profiles import ALL, CONTROL, Profile, Scope
from training.validation.rules import PROFILE, Rules

# A measure of this size is nothing: the least score, or a rate of no positives.
NO_LEVEL = 1e-5


def sound_days(settings: Settings, day: date, days: Sequence[date], stage: str) -> list[date]:
    """The last days before this one that did not fail their own validation."""
    before = [d for d in days if d < day]
    sound = [
        d
        for d in before
        if (read_record(settings.layout, d, stage) or {"success": True}).get("success", True)
    ]
    return sound[-settings.validation.recent_days :]


def compare(
    settings: Settings, rules: Rules, day: date, folder: Path, rows: int, recent_folders: Mapping[date, Path]
) -> "Comparison":
    """The partition ``folder`` of ``day``, of so many ``rows``, against the partitions of the recent days.

    Raises ``duckdb.Error`` when a page of the day itself is broken; a recent day that cannot be read is
    left out and told of.
    """
    found = Comparison(settings, rules, rows)
    today = profiles.of_day(settings, rules, day, folder)
    recent: dict[date, Profile] = {}
    for one, place in recent_folders.items():
        try:
            profile = profiles.of_day(settings, rules, one, place)
        except duckdb.Error as error:
            found.leave_out(f"{one} as a recent day", f"it cannot be read: {error}"[:300])
            continue
        if profile.rows:
            recent[one] = profile
    found.predicted_lately = {
        name for p in recent.values() for name, counts in p.scopes[ALL].histograms.items() if counts
    }
    if recent:
        of_recent = {one: (recent_folders[one], profile.rows) for one, profile in recent.items()}
        volume = volumes.judged(settings, rules.table, day, (folder, rows), of_recent)
        found.measures |= volume.measures
        found.checks += volume.checks
        found.not_judged += volume.not_judged
        found.rates(today, list(recent.values()))
    else:
        found.leave_out("volume and rates", "there is no recent day to hold them against")
    found.drift["recent_days"] = [str(one) for one in recent]
    if rules.histograms:
        found.score_drift(today, list(recent.values()))
    return found


@dataclass
class Comparison:
    """What the comparison gave: measures of the day, checks on them, and what could not be compared.

    ``not_judged`` holds (what, why); ``bands`` and ``drift`` are what the day's record says of them;
    ``predicted_lately`` names the predictions that a recent day carried.
    """

    settings: Settings
    rules: Rules
    rows: int
    measures: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    not_judged: list[tuple[str, str]] = field(default_factory=list)
    bands: dict[str, dict[str, Any]] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)
    predicted_lately: set[str] = field(default_factory=set)

    def leave_out(self, what: str, why: str) -> None:
        self.not_judged.append((what, why))

    def rates(self, today: Profile, recent: Sequence[Profile]) -> None:
        limits, rare = self.settings.validation, []
        for name, value in today.measures.items():
            past = [rate for p in recent if (rate := p.measures.get(name)) is not None]
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
            if name.startswith(PROFILE) and not expected.learnt:
                continue  # who comes differs by more than a guess, until it is known by how much
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
            self.checks.append(
                measure(name, text, expected.low, expected.high, severity_of(self.settings, "bands"), source)
            )
            if name in self.rules.signals:
                self.measures[f"{name}_rate"] = value
                share = f"{expected.middle:.2%} of the rows of the last {len(past)} days"
                text = f"{name} occurs at all (on {share})"
                self.checks.append(measure(f"{name}_rate", text, 0.0, source=name, strict_min=True))
        if rare:
            self.leave_out(
                "rates of " + ", ".join(rare), f"fewer than {limits.min_rate_count} positives expected"
            )

    def _measured_column(self, name: str) -> str:
        """The log's column that a measure speaks of: ``p_like`` for ``p_like_p90``."""
        if name.startswith(PROFILE):
            return name.removeprefix(PROFILE)
        if name in self.rules.rates:
            return self.rules.rates[name][1][0]
        return name.rpartition("_")[0]

    def score_drift(self, today: Profile, recent: Sequence[Profile]) -> None:
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
                self.leave_out(f"stability of {name}", few)
            return {}
        index = drift.psi(now[scope], before[scope])
        self.measures[f"{name}_psi"] = self.measures[f"{name}_psi_warn"] = index
        what = "static arm's scores" if scope == CONTROL else "scores"
        text = f"the {what} {name} are spread as on the last {len(recent)} days: index {index:.3g} is at most"
        self.checks.append(
            measure(
                f"{name}_psi",
                f"{text} {limits.max_psi:g}",
                maximum=limits.max_psi,
                severity=severity_of(self.settings, "score_drift"),
                source=name,
            )
        )
        if index <= limits.max_psi:  # else it is said already
            self.checks.append(
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
            severity = severity_of(self.settings, "calibration")
            self.checks.append(
                measure(f"{name}_calibration", text, maximum=allowed, severity=severity, source=name)
            )
            return found | {"calibration_change": asdict(change), "calibration_scope": scope}
        return found
