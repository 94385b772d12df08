"""May a day be learnt from? Great Expectations suites as code, Data Docs, quarantine of bad rows.

Each function returns the stage's record (plain JSON) and raises nothing for bad data: the caller
stops the day when ``record["success"]`` is false.
"""

from training.validation.mended import broken_rows
from training.validation.refusals import refused
from training.validation.stages import validate_landed, validate_training_set, validate_transitions

__all__ = ["broken_rows", "refused", "validate_landed", "validate_training_set", "validate_transitions"]
