"""What reward did the sessions of an arm bring, over all workers? Its return each, for the guardrail."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from serving.log.index.file import connect

TABLE = """
CREATE TABLE IF NOT EXISTS returns (
    session_id TEXT PRIMARY KEY, arm TEXT NOT NULL, policy TEXT NOT NULL, reward REAL NOT NULL,
    began REAL NOT NULL, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS returns_seen ON returns (seen);
"""
ON_SERVED = """
-- a session that saw two policies or arms speaks of neither
INSERT INTO returns VALUES (NEW.session_id, NEW.arm, NEW.policy, 0, NEW.now, NEW.now)
    ON CONFLICT DO UPDATE SET policy = CASE WHEN arm = excluded.arm AND policy = excluded.policy
    THEN policy ELSE 'mixed' END, seen = NEW.now;
"""
FORGET = "DELETE FROM returns WHERE seen < ?"


def add_reward(connection: sqlite3.Connection, session_id: str, gained: float, now: float) -> None:
    """Within the caller's transaction."""
    connection.execute(
        "UPDATE returns SET reward = reward + ?, seen = ? WHERE session_id = ?", (gained, now, session_id)
    )


@dataclass(frozen=True)
class ArmReturns:
    """Number, sum and sum of squares of the rewards of an arm's sessions."""

    sessions: int = 0
    total: float = 0.0
    squares: float = 0.0


class Returns:
    """Belongs to one thread, the guardrail's."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)

    def of_sessions(self, began: float, idle_since: float) -> dict[tuple[str, str], ArmReturns]:
        """Rewards of the sessions that began at ``began`` or later and saw nothing since ``idle_since``.

        By (arm, policy), in epoch seconds. Raises sqlite3.Error.
        """
        rows = self._connection.execute(
            "SELECT arm, policy, count(*), sum(reward), sum(reward * reward) FROM returns "
            "WHERE seen >= ?1 AND seen <= ?2 AND began >= ?1 GROUP BY arm, policy",
            (began, idle_since),
        )
        return {(arm, policy): ArmReturns(*numbers) for arm, policy, *numbers in rows}

    def close(self) -> None:
        self._connection.close()
