"""The vocabulary of the suites: fields of a batch, checks on them, suites of checks.

A check is data, so that one line of :mod:`training.validation.rules` gives both the Great
Expectations expectation and the SQL predicate that finds the rows which break it. Bounds on rows are
checked through a column's smallest and largest value: on millions of rows this costs a pass over
numpy memory, where an expectation on every value costs seconds a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from training.contract.settings import Settings

Severity = Literal["critical", "warning"]

# Stands for NaN and the infinities in a batch, so that they break the bounds of their column.
NOT_FINITE = 3e38


@dataclass(frozen=True)
class Field:
    """A column of a batch as it is validated: its name there, its SQL, the log columns it is made of."""

    name: str
    sql: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """One expectation. ``text`` says what must hold; ``bad`` is true (in SQL) of a row that breaks it.

    ``column`` is the field in the batch, ``source`` the log's column that a person is told of.
    """

    expectation: str
    column: str | None
    arguments: dict[str, Any]
    text: str
    severity: Severity = "critical"
    source: str | None = None
    bad: str | None = None
    bad_rows: int | None = None

    def with_bad_rows(self, count: int) -> "Check":
        return replace(self, bad_rows=count)

    @property
    def is_bound(self) -> bool:
        """Whether the check is about values, so that a column of nulls leaves nothing to judge."""
        return self.expectation in ("ExpectColumnMinToBeBetween", "ExpectColumnMaxToBeBetween")

    def suspects(self, frame: pd.DataFrame) -> bool:
        """Whether a row of the batch may break this check, so that its bad rows are worth counting."""
        values = frame[self.column]
        if self.expectation == "ExpectColumnMinToBeBetween":
            return bool(values.min() < self.arguments["min_value"])
        if self.expectation == "ExpectColumnMaxToBeBetween":
            return bool(values.max() > self.arguments["max_value"])
        return bool(values.hasnans)


@dataclass(frozen=True)
class Suite:
    """Checks on one batch; ``about`` heads its page."""

    name: str
    frame: pd.DataFrame
    checks: Sequence[Check]
    about: str
    not_judged: list[dict[str, str]] = field(default_factory=list)


def severity_of(settings: Settings, verdict: str) -> Severity:
    """Of a check whose verdict the settings choose: ``validation.verdicts``."""
    return "critical" if getattr(settings.validation.verdicts, verdict) == "fail" else "warning"


def at_least(entry: Field, minimum: float, text: str, severity: Severity = "critical") -> Check:
    return Check(
        "ExpectColumnMinToBeBetween",
        entry.name,
        {"min_value": minimum},
        text,
        severity,
        entry.needs[0],
        f"({entry.sql}) < {minimum!r}",
    )


def at_most(entry: Field, maximum: float, text: str, severity: Severity = "critical") -> Check:
    return Check(
        "ExpectColumnMaxToBeBetween",
        entry.name,
        {"max_value": maximum},
        text,
        severity,
        entry.needs[0],
        f"({entry.sql}) > {maximum!r}",
    )


def within(entry: Field, minimum: float, maximum: float, what: str) -> list[Check]:
    return [
        at_least(entry, minimum, f"{what} is at least {minimum:g}"),
        at_most(entry, maximum, f"{what} is at most {maximum:g}"),
    ]


def present(entry: Field, max_null_share: float = 0.0, severity: Severity = "critical") -> Check:
    allowed = f" in all but {max_null_share:.2%} of the rows" if max_null_share else " in every row"
    return Check(
        "ExpectColumnProportionOfNonNullValuesToBeBetween",
        entry.name,
        {"min_value": 1.0 - max_null_share},
        f"{entry.name} is there{allowed}",
        severity,
        entry.needs[0],
        f"({entry.sql}) IS NULL",
    )


def measure(
    column: str,
    text: str,
    minimum: float | None = None,
    maximum: float | None = None,
    severity: Severity = "critical",
    source: str | None = None,
    strict_min: bool = False,
) -> Check:
    """A bound on a column of a one-row batch of measures of the day."""
    arguments: dict[str, Any] = {}
    if minimum is not None:
        arguments |= {"min_value": minimum, "strict_min": strict_min}
    if maximum is not None:
        arguments["max_value"] = maximum
    return Check("ExpectColumnMaxToBeBetween", column, arguments, text, severity, source or column)
