"""Which method is better, and is the judge right? Methods × seeds × worlds, against the world's truth."""

from training.experiments.run import run
from training.experiments.table import Table, load_table

__all__ = ["Table", "load_table", "run"]
