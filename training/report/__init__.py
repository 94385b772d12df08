"""The page of a day, which a person reads in a minute, and the index over all days."""

from training.report.page import build, index

__all__ = ["build", "index"]
