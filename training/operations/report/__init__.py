"""What does a person read? The page of a day, and the index: what is asked first, and all days."""

from training.operations.report.page import build, index
from training.operations.report.standing import Answer, standing

__all__ = ["Answer", "build", "index", "standing"]
