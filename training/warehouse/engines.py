"""Which engine the settings name."""

from training.contract.settings import Settings
from training.warehouse.engine import Engine


def engine_of(settings: Settings) -> Engine:
    """What makes and holds the tables; another engine's modules are not imported."""
    if settings.warehouse.engine == "spark":
        from training.warehouse.on_spark import Spark

        return Spark(settings)
    from training.warehouse.on_duckdb import DuckDB

    return DuckDB(settings)
