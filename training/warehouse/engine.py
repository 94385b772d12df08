"""What an engine of the warehouse does, DuckDB or Spark: to all others the two are the same."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import duckdb

LOOKING_BACK = ("fct_transitions", "fct_policy_daily")  # meta.look_back of the models


@dataclass(frozen=True)
class Window:
    """The days that a run replaces: from ``look_back`` on in the tables that look back, else ``first``."""

    look_back: date
    first: date
    last: date

    def since(self, table: str) -> date:
        return self.look_back if table in LOOKING_BACK else self.first


@dataclass(frozen=True)
class Answer:
    """What dbt said in the end, and by failed test the first rows that it found."""

    success: bool
    said: str
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


class Engine(Protocol):
    target: str  # of dbt's profile
    namespace: str  # of its tables, in lineage

    def built(self) -> bool:
        """Whether there are tables; else the next run builds all days."""
        ...

    def make_room(self, window: Window, full_refresh: bool) -> None:
        """Before dbt builds: take away what dbt on this engine would not, of the days that it replaces."""
        ...

    def environment(self) -> dict[str, str]:
        """What dbt's profile reads; raises :class:`MtfError` where the engine cannot run."""
        ...

    def invoke(self, arguments: list[str], environment: dict[str, str], folder: Path) -> Answer:
        """Run dbt in a process of its own, which works in ``folder`` and ends with this one."""
        ...

    def examples(self, answer: Answer, result: dict[str, Any], most: int) -> list[dict[str, Any]]:
        """The first rows that a failed data test found."""
        ...

    def connect(self) -> "AbstractContextManager[tuple[duckdb.DuckDBPyConnection, set[str]]]":
        """The tables, to be read as ``main.<name>``, and their names: one without any row may be absent."""
        ...
