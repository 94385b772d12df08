"""What have the users of a comparison brought since it began? A row of sums a user, for the guardrail.

Compared are a challenger with the champion, and the champion with static weights. Users are what was
randomised, so their sums are what is counted: a session that rests is added to its user's row of its side
and stratum. A stratum is a time in which the same shares were in force: where a share grows, what changes
with the hour or the weekday would otherwise be taken for the policy's doing.

``weight`` and ``weighted`` say what was known of a user before the comparison: k / (k + SHRINK) after k
sessions, and that times their mean return. With an intercept they span the best linear prediction of a
user's level from k returns, where sessions vary SHRINK times as much within a user as between users.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from serving.log.index.file import connect

SHRINK = 2.0  # in the simulated world R² is .157, .158, .157 and .155 with 1, 2, 4 and 8
MEMORY = 50  # sessions of a user after which older ones fade
REMEMBERED_S = 60 * 86_400.0  # a user's past, without a new session
AT_ONCE = 20_000  # sessions that one call adds: so long may a writer have to wait

TABLE = """
CREATE TABLE IF NOT EXISTS comparisons (
    name TEXT PRIMARY KEY, key TEXT NOT NULL, since REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS strata (since REAL PRIMARY KEY, shares TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tallies (
    name TEXT NOT NULL, user_id NOT NULL, stratum REAL NOT NULL, treated INTEGER NOT NULL,
    sessions INTEGER NOT NULL, reward REAL NOT NULL, negative REAL NOT NULL, weight REAL NOT NULL,
    weighted REAL NOT NULL, PRIMARY KEY (name, user_id, stratum, treated)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS past (
    user_id INTEGER PRIMARY KEY, sessions INTEGER NOT NULL, mean REAL NOT NULL, seen REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS past_seen ON past (seen);
"""
# the purge is given the end of the sessions' retention, which is far shorter
FORGET = f"DELETE FROM past WHERE seen < ? - {REMEMBERED_S}"  # noqa: S608 -- a number of our own

_OWN = """
CREATE TEMP TABLE sides (
    name TEXT, arm TEXT, policy TEXT, treated INTEGER, PRIMARY KEY (arm, policy, name)
) WITHOUT ROWID;
CREATE TEMP TABLE resting (
    session_id TEXT, user_id, arm TEXT, policy TEXT, began REAL, seen REAL, stratum REAL,
    sessions INTEGER, reward REAL, negative INTEGER
);
CREATE TEMP TABLE terms (stratum REAL PRIMARY KEY, c REAL, level REAL, negative REAL) WITHOUT ROWID;
"""
# what a session is to be counted as, less what has been: one that was continued, or fed late, is told again
_REST = f"""
INSERT INTO resting SELECT session_id, user_id, arm, policy, began, seen,
    coalesce((SELECT max(since) FROM strata WHERE since <= began), 0),
    1 - mixed - told_sessions, (1 - mixed) * reward - told_reward, (1 - mixed) * negative - told_negative
    FROM returns WHERE open = 1 AND seen <= ? ORDER BY seen LIMIT {AT_ONCE}
"""  # noqa: S608 -- a number of our own
_KNOWN = """
    (SELECT {column} FROM tallies t WHERE t.name = c.name AND t.user_id = r.user_id LIMIT 1)"""
_TALLY = f"""
INSERT INTO tallies SELECT c.name, r.user_id, r.stratum, s.treated, r.sessions, r.reward, r.negative,
    coalesce({_KNOWN.format(column="weight")}, p.sessions / (p.sessions + {SHRINK}), 0),
    coalesce({_KNOWN.format(column="weighted")}, p.sessions / (p.sessions + {SHRINK}) * p.mean, 0)
    FROM resting r JOIN sides s ON s.arm = r.arm AND s.policy = r.policy
    JOIN comparisons c ON c.name = s.name AND c.since <= r.began
    LEFT JOIN past p ON p.user_id = r.user_id
    WHERE r.sessions <> 0 OR r.reward <> 0 OR r.negative <> 0
    ON CONFLICT DO UPDATE SET sessions = sessions + excluded.sessions, reward = reward + excluded.reward,
    negative = negative + excluded.negative
"""  # noqa: S608 -- names and numbers of our own
_REMEMBER = f"""
INSERT INTO past SELECT user_id, sessions, reward, seen FROM resting
    WHERE sessions = 1 OR (sessions = 0 AND reward <> 0)
    ON CONFLICT DO UPDATE SET seen = max(seen, excluded.seen), sessions = sessions + excluded.sessions,
    mean = mean + (excluded.mean - excluded.sessions * mean)
        / max(1, min(sessions + excluded.sessions, {MEMORY}))
"""  # noqa: S608 -- a number of our own
_TOLD = """
UPDATE returns SET open = 0, told_sessions = 1 - mixed, told_reward = (1 - mixed) * reward,
    told_negative = (1 - mixed) * negative WHERE session_id IN (SELECT session_id FROM resting)
"""
_CELLS = """
SELECT stratum, treated, count(*), sum(sessions), sum(reward), sum(negative), sum(sessions * weight),
    sum(sessions * weighted), sum(sessions * weight * weight), sum(sessions * weight * weighted),
    sum(sessions * weighted * weighted), sum(reward * weight), sum(reward * weighted),
    sum(negative * weight), sum(negative * weighted)
    FROM tallies WHERE name = ? GROUP BY stratum, treated
"""
_MEAT = """
SELECT count(*), sum(d * d), sum(e * e) FROM (
    SELECT sum(z * (reward - sessions * (level + :t * treated + :w * weight + :x * weighted))) AS d,
        sum(z * (negative - sessions * (n_level + :nt * treated + :nw * weight + :nx * weighted))) AS e
    FROM (
        SELECT user_id, treated, sessions, tallies.reward, tallies.negative, weight, weighted, level,
            terms.negative AS n_level, c + :ct * treated + :cw * weight + :cx * weighted AS z
        FROM tallies JOIN terms ON terms.stratum = tallies.stratum WHERE name = :name
    ) GROUP BY user_id
)
"""


@dataclass(frozen=True)
class Comparison:
    """``treated`` and ``control`` are (arm, policy) pairs; another ``key`` under a name begins it anew."""

    name: str
    key: str
    since: float
    treated: Collection[tuple[str, str]]
    control: Collection[tuple[str, str]]


class Cell(NamedTuple):
    """Sums over the users of a side in a stratum; ``w`` is the weight, ``x`` the weighted past return."""

    stratum: float
    treated: int
    users: int
    sessions: int
    reward: float
    negative: float
    w: float
    x: float
    ww: float
    wx: float
    xx: float
    reward_w: float
    reward_x: float
    negative_w: float
    negative_x: float


class Tallies:
    """Belongs to one thread, the guardrail's. Every method raises sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self._connection.executescript(_OWN)

    def shares(self, shares: str, now: float) -> float:
        """The shares in force; others than before begin a stratum. Returns when the present one began."""
        last = self._connection.execute(
            "SELECT since, shares FROM strata WHERE since <= ? ORDER BY since DESC LIMIT 1", (now,)
        ).fetchone()
        if last is not None and last[1] == shares:
            return float(last[0])
        self._connection.execute("INSERT OR REPLACE INTO strata VALUES (?, ?)", (now, shares))
        return now

    def add(self, comparisons: Iterable[Comparison], idle_since: float, now: float) -> int:
        """Add the sessions that saw nothing since ``idle_since``, the longest idle first, AT_ONCE at most.

        Returns how many: what is left is of the next call.
        A comparison that began in the future, of a clock that was set back since, begins now.
        """
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM sides")
            for one in comparisons:
                self._begin(one, now)
                rows = [(one.name, *key, 1) for key in one.treated] + [
                    (one.name, *key, 0) for key in one.control
                ]
                connection.executemany("INSERT INTO sides VALUES (?, ?, ?, ?)", rows)
            connection.execute("DELETE FROM resting")
            added = connection.execute(_REST, (idle_since,)).rowcount
            connection.execute(_TALLY)
            connection.execute(_REMEMBER)
            connection.execute(_TOLD)
        return added

    def cells(self, name: str) -> list[Cell]:
        return [Cell(*row) for row in self._connection.execute(_CELLS, (name,))]

    def meat(
        self, name: str, strata: Sequence[tuple[float, float, float, float]], **factors: float
    ) -> tuple[int, float, float]:
        """Users, and the sums over them of (Σ z e)² for the residuals e of reward and negative.

        ``strata`` holds for each its factor of z and its two levels; ``factors`` are those of z (c), of the
        reward's fit and of the negative's (n) for treated (t), weight (w) and weighted (x).
        """
        self._connection.execute("DELETE FROM terms")
        self._connection.executemany("INSERT INTO terms VALUES (?, ?, ?, ?)", strata)
        users, reward, negative = self._connection.execute(_MEAT, {"name": name, **factors}).fetchone()
        return users, reward or 0.0, negative or 0.0

    def close(self) -> None:
        self._connection.close()

    def _begin(self, one: Comparison, now: float) -> None:
        found = self._connection.execute(
            "SELECT key, since FROM comparisons WHERE name = ?", (one.name,)
        ).fetchone()
        if found is None or found[0] != one.key or found[1] > now:
            self._connection.execute("DELETE FROM tallies WHERE name = ?", (one.name,))
            self._connection.execute(
                "INSERT OR REPLACE INTO comparisons VALUES (?, ?, ?)",
                (one.name, one.key, min(one.since, now)),
            )
