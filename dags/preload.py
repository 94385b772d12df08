"""The stages' heavy libraries, imported once by the scheduler; their versions and our sources, read once.

LocalExecutor forks its workers from the scheduler, and a task from its worker, so what the scheduler has
imported a task need not import again: seconds a task, and most of a small day. Nothing is opened or
started here; a library that starts threads on import would not survive the fork.
"""

import dbt.adapters.duckdb
import dbt.cli.main  # noqa: F401
import duckdb  # noqa: F401
import feast  # noqa: F401
import great_expectations  # noqa: F401
import torch
import torch._dynamo  # noqa: F401  (PyTorch's optimisers import it: seconds)

from dags import sources
from training.contract.records import STAGES

# parsed sources are kept by their text, so what is edited later is still seen
for stage in STAGES:
    sources.fingerprint(stage)
