"""How did the requests of an arm go, over all workers? Counted a second, for the guardrail."""

from dataclasses import dataclass
from pathlib import Path

from serving.log.index.file import connect

TABLE = """
CREATE TABLE IF NOT EXISTS counts (
    slot INTEGER NOT NULL, arm TEXT NOT NULL, policy TEXT NOT NULL, requests INTEGER NOT NULL,
    failed INTEGER NOT NULL, slow INTEGER NOT NULL, bounded INTEGER NOT NULL, entries INTEGER NOT NULL,
    PRIMARY KEY (slot, arm, policy)
) WITHOUT ROWID;
"""
ON_SERVED = """
INSERT INTO counts VALUES (CAST(NEW.now AS INTEGER), NEW.arm, NEW.policy, 1, NEW.failed, NEW.slow,
    NEW.bounded, NEW.entries)
    ON CONFLICT DO UPDATE SET requests = requests + 1, failed = failed + NEW.failed,
    slow = slow + NEW.slow, bounded = bounded + NEW.bounded, entries = entries + NEW.entries;
"""
FORGET = "DELETE FROM counts WHERE slot < ?"


@dataclass(frozen=True)
class ArmCounts:
    """What was counted of an arm and policy; see :class:`ServedRequest`."""

    requests: int = 0
    failed: int = 0
    slow: int = 0
    bounded: int = 0
    entries: int = 0


class Counts:
    """Belongs to one thread, the guardrail's."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)

    def between(self, since: float, until: float) -> dict[tuple[str, str], ArmCounts]:
        """Requests from one epoch second to another, both with it, by (arm, policy). Raises sqlite3.Error."""
        rows = self._connection.execute(
            "SELECT arm, policy, sum(requests), sum(failed), sum(slow), sum(bounded), sum(entries) "
            "FROM counts WHERE slot BETWEEN ? AND ? GROUP BY arm, policy",
            (int(since), int(until)),
        )
        return {(arm, policy): ArmCounts(*numbers) for arm, policy, *numbers in rows}

    def close(self) -> None:
        self._connection.close()
