"""What does a person read? The page of a day, and the index: what is asked first, and all days."""

from training.operations.report.index_page import index
from training.operations.report.page import build
from training.operations.report.standing import Answer, standing, todos
from training.operations.report.todo import Todo

__all__ = ["Answer", "Todo", "build", "index", "standing", "todos"]
