"""Which engine makes the tables: DuckDB, within this machine, or Spark."""

from typing import Annotated, Literal

from pydantic import Field

from training.contract.settings.section import Name, Section


class SparkSettings(Section):
    """For engine: spark. Every process and every executor has to see the data folder, by the same path."""

    target: Literal["session", "thrift"] = Field(
        "session", description="session: Spark within dbt's own process; thrift: a Spark Thrift server (ours)"
    )
    master: str = Field(
        "local[2]",
        pattern=r"^(local(\[[0-9*,]+\])?|(spark|k8s)://\S+|yarn)$",
        description="of Feast's session, and of dbt's for target: session (ours)",
    )
    memory: Annotated[str, Field(pattern=r"^[1-9][0-9]*[mg]$")] = Field(
        "4g", description="of the sessions' drivers; of all of a session where the master is local (ours)"
    )
    partitions: int = Field(
        8, ge=1, description="tasks of a session's shuffle, at most; 2 to 4 a core (ours)"
    )
    host: str = Field("localhost", pattern=r"^[A-Za-z0-9._-]+$", description="for target: thrift")
    port: int = Field(10000, ge=1, le=65535, description="for target: thrift")
    database: Name = Field("mtf", description="that the tables are named in")


class WarehouseSettings(Section):
    engine: Literal["duckdb", "spark"] = Field(
        "duckdb", description="what makes the tables; `make scale` installs what Spark needs (ours)"
    )
    spark: SparkSettings = SparkSettings()
