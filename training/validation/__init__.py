"""May a day be learnt from? Great Expectations suites as code, Data Docs, quarantine of bad rows.

Each function returns the stage's record (plain JSON) and raises nothing for bad data: the caller
stops the day when ``record["success"]`` is false. What they need is imported when they are called: Great
Expectations takes seconds, and who asks for the state of things reads records alone.
"""

from datetime import date
from typing import Any

from training.contract.errors import DataError
from training.contract.settings import Settings

__all__ = ["refused", "validate_landed", "validate_training_set", "validate_transitions"]


def validate_landed(settings: Settings, day: date) -> dict[str, Any]:
    """:func:`training.validation.stages.validate_landed`."""
    from training.validation import stages

    return stages.validate_landed(settings, day)


def validate_transitions(settings: Settings, day: date) -> dict[str, Any]:
    """:func:`training.validation.stages.validate_transitions`."""
    from training.validation import stages

    return stages.validate_transitions(settings, day)


def validate_training_set(settings: Settings, day: date) -> dict[str, Any]:
    """:func:`training.validation.stages.validate_training_set`."""
    from training.validation import stages

    return stages.validate_training_set(settings, day)


def refused(settings: Settings, day: date, error: DataError) -> dict[str, Any]:
    """:func:`training.validation.refusals.refused`."""
    from training.validation import refusals

    return refusals.refused(settings, day, error)
