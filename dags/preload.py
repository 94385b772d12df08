"""The stages' heavy libraries, imported once by the scheduler.

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
