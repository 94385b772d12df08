"""Tables of methods × seeds × worlds, measured against the simulated world's truth."""

from training.experiments.run import run
from training.experiments.table import Table, load_table

__all__ = ["Table", "load_table", "run"]
