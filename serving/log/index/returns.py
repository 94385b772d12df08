"""What did a session bring? Its return, and its items with feedback of negative weight.

The request and its feedback write here; :mod:`serving.log.index.tallies` adds a session that rests to its
user's sums, and ``told_*`` is what it has added of it so far.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from serving.log.index.file import connect

TABLE = """
CREATE TABLE IF NOT EXISTS returns (
    session_id TEXT PRIMARY KEY, user_id NOT NULL, arm TEXT NOT NULL, policy TEXT NOT NULL,
    mixed INTEGER NOT NULL, reward REAL NOT NULL, negative INTEGER NOT NULL, began REAL NOT NULL,
    seen REAL NOT NULL, open INTEGER NOT NULL, told_sessions INTEGER NOT NULL, told_reward REAL NOT NULL,
    told_negative INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS returns_seen ON returns (open, seen);
"""
ON_SERVED = """
-- a session that saw two policies or arms speaks of neither
INSERT INTO returns VALUES (NEW.session_id, NEW.user_id, NEW.arm, NEW.policy, NEW.aside, 0, 0, NEW.now,
    NEW.now, 1, 0, 0, 0)
    ON CONFLICT DO UPDATE SET mixed = max(mixed, excluded.mixed, arm <> excluded.arm OR
    policy <> excluded.policy), seen = NEW.now, open = 1;
"""
FORGET = "DELETE FROM returns WHERE open IN (0, 1) AND seen < ?"


def add_reward(
    connection: sqlite3.Connection, session_id: str, gained: float, negative: int, now: float
) -> None:
    """Within the caller's transaction."""
    connection.execute(
        "UPDATE returns SET reward = reward + ?, negative = negative + ?, seen = ?, open = 1 "
        "WHERE session_id = ?",
        (gained, negative, now, session_id),
    )


@dataclass(frozen=True)
class ArmReturns:
    """Number, sum and sum of squares of the rewards of an arm's sessions; when the first one began."""

    sessions: int = 0
    total: float = 0.0
    squares: float = 0.0
    first: float = 0.0


class Returns:
    """Belongs to one thread, the guardrail's."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)

    def of_sessions(self, began: float, idle_since: float) -> dict[tuple[str, str], ArmReturns]:
        """Rewards of the sessions that began at ``began`` or later and saw nothing since ``idle_since``.

        By (arm, policy), in epoch seconds; without those of two policies. Raises sqlite3.Error.
        """
        rows = self._connection.execute(
            "SELECT arm, policy, count(*), sum(reward), sum(reward * reward), min(began) FROM returns "
            "WHERE open IN (0, 1) AND seen >= ?1 AND seen <= ?2 AND began >= ?1 AND NOT mixed "
            "GROUP BY arm, policy",
            (began, idle_since),
        )
        return {(arm, policy): ArmReturns(*numbers) for arm, policy, *numbers in rows}

    def close(self) -> None:
        self._connection.close()
