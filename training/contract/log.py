"""The log's contract: what the service writes of every request, and what landing reads.

The log is JSON lines, one object a request (``decisions``) or a delivery of feedback (``feedback``), in files
of a local day each. A line's fields are declared here once: the service writes a line by
:func:`decision_line` and :func:`feedback_line`, and landing's types, the lake's decisions
(:func:`training.contract.columns.decision_columns`), dbt's staging model and validation's checks are made of
the same declaration. A field keeps its name from the line to the transition that is learnt from
(:mod:`training.contract.transitions`).

A later version adds fields and keeps reading the lines of older ones, which lack them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

# ``v`` of every line: raised when a field is added, so that a reader that does not know the field says so.
# Lines of older versions are read, and lack it. 2 added ``exploration_unit`` and ``epoch`` to the decisions,
# 3 ``shown`` to both and ``shown_top`` to the feedback.
LINE_VERSION = 3
LINE_VERSIONS = range(1, LINE_VERSION + 1)  # that are read
# Of the lake's tables, in the note beside each partition, raised when a column is added: 2 added
# ``features_until`` to the decisions, 3 ``exploration_unit`` and ``epoch``.
LAKE_VERSION = 3

# Feedback may come on the local day of its request and on so many after it: landing reads a day's feedback
# until then, and retention leaves the files of the days after a landed one. The service knows a request for
# so many times 24 hours from when it was served; later feedback names its user and session itself.
LATE_DAYS = 2

# the arms
CHAMPION = "champion"  # the promoted policy, served as it is
CHALLENGER = "challenger"  # a policy on its way to be the champion: its canary's users
STATIC = "static"  # hand-tuned weights: the control
RANDOM = "random"  # exploration: Gaussian without a prior
NOISE = "noise"  # exploration: the champion's action + Gaussian noise
BOX = "box"  # exploration: uniform in a box around the champion's action
EXPLORING = (RANDOM, NOISE, BOX)  # their actions are drawn, so they have a density
ARMS = (CHAMPION, CHALLENGER, STATIC, *EXPLORING)
MIXED_ARMS = (RANDOM, NOISE)  # the groups of the paper's mixed exploration

Id = int | str  # of a user or an item: int64, or text (settings: ids)

REQUEST, SESSION = UNITS = ("request", "session")  # what an action is drawn once for

STATIC_VERSION = "static"  # the policy version of static weights

# why static weights were served instead of the arm's own
NO_POLICY = "no_policy"  # before the first promotion
STORE = "store"  # the state could not be read in time
STALE = "stale"  # the store's features are older than serving.max_features_age_hours
POLICY = "policy"  # the policy gave no usable action
POLICY_SLOW = "policy_slow"  # or not within serving.policy_budget_ms
POLICY_FAILURES = (POLICY, POLICY_SLOW)
FALLBACKS = (NO_POLICY, STORE, STALE, *POLICY_FAILURES)


@dataclass(frozen=True)
class Column:
    """A line's field, or a table's column.

    Types are named as Parquet writers name them (``int64``, ``float``, ``list<float>``,
    ``timestamp[us, UTC]``); a time in a line is ISO-8601 text with its offset, and ``map`` an object whose
    keys the settings name.
    """

    name: str
    type: str
    required: bool = True  # a required column has no nulls
    description: str = ""


TIME = "timestamp[us, UTC]"
FLOATS = "list<float>"

# the decision's own fields, which the lake keeps as they are; items and scores become its impressions
DECISION = (
    Column("request_id", "string", description="one ranking request"),
    Column("session_id", "string", description="as it was served"),
    Column("user_id", "int64", description="who asked"),
    Column("event_ts", TIME, description="when it was answered"),
    Column("policy_version", "string", description="'static' when no policy was used"),
    Column("arm", "string", description="of training.contract.log.ARMS"),
    Column("state", FLOATS, False, "as served; null when the store gave none"),
    Column("action", FLOATS, description="served action in [-1, 1], one entry a head"),
    Column("action_mean", FLOATS, description="mean of the action's distribution"),
    Column("log_density", "double", False, "of the action; null when it was not drawn"),
    Column(
        "exploration_unit",
        "string",
        False,
        "what the action was drawn once for, 'request' or 'session'; null when it was not drawn, and in "
        "lines of version 1, whose actions were drawn for each request",
    ),
    Column(
        "epoch", "int64", False, "of the assignment, in which its session began; null in lines of version 1"
    ),
    Column("fallback", "string", False, "why static weights were served, else null"),
    Column("state_spec", "string", description="version of the state specification"),
    Column(
        "features_until",
        TIME,
        False,
        "up to when profiles and histories were materialised that it was served with; null: not known",
    ),
)
_VERSION = Column("v", "int32", description="LINE_VERSION")
DECISION_LINE = (
    _VERSION,
    *DECISION,
    Column("items", "list<int64>", description="what was answered, the top of the list first"),
    Column(
        "shown",
        "int32",
        False,
        "how many of the items, from the top, are taken as shown where no feedback says which; null in lines "
        "of versions 1 and 2: all",
    ),
    Column("scores", f"map<string, {FLOATS}>", False, "of each head that was given, one an item"),
)
FEEDBACK_LINE = (
    _VERSION,
    Column("request_id", "string", description="the request that showed the items"),
    Column("user_id", "int64", description="who was shown them"),
    Column("event_ts", TIME, description="when the feedback arrived"),
    Column(
        "events",
        "list<map<string, int64>>",
        description="an item each: its item_id, play_time_ms, duration_ms and signals; 0 where left out",
    ),
    Column("shown", "list<int64>", False, "items that were shown; null where the caller named none"),
    Column("shown_top", "int32", False, "so many of the top of the list were shown; null where not said"),
)
LINES = {"decisions": DECISION_LINE, "feedback": FEEDBACK_LINE}  # by the log's folder
# A line without it is landed all the same, for validation to judge with the rest of the day.
LEFT_TO_VALIDATION = ("session_id",)


def decision(**fields: Any) -> dict[str, Any]:
    """The fields of decisions as the lake has them, of one row or as columns. Raises as the lines do."""
    return _complete(tuple(column.name for column in DECISION), fields)


def decision_line(**fields: Any) -> dict[str, Any]:
    """A line of the decisions, its fields but ``v`` given. Raises TypeError for one missing or unknown."""
    return _line(_DECISION_FIELDS, fields)


def feedback_line(**fields: Any) -> dict[str, Any]:
    """A line of the feedback, as :func:`decision_line`."""
    return _line(_FEEDBACK_FIELDS, fields)


def _names(line: Sequence[Column]) -> tuple[str, ...]:
    return tuple(column.name for column in line if column is not _VERSION)


_DECISION_FIELDS, _FEEDBACK_FIELDS = _names(DECISION_LINE), _names(FEEDBACK_LINE)


def _line(names: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"v": LINE_VERSION} | _complete(names, fields)


def _complete(names: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    if fields.keys() != {*names}:
        raise TypeError(f"a line has the fields {', '.join(names)}; given: {', '.join(fields)}")
    return {name: fields[name] for name in names}


def file_name(day: str, worker: str, sequence: int) -> str:
    """Name of a log file; ``day`` is the local day of its lines, YYYY-MM-DD."""
    return f"{day}.{worker}.{sequence:06d}.jsonl"


def worker_of(path: Path) -> str:
    """The process that wrote a log file."""
    return path.name.split(".")[1]


def files_of(folder: Path, day: date) -> list[Path]:
    """The files of a local day in one log's folder, sorted."""
    return sorted(folder.glob(f"{day.isoformat()}.*.jsonl"))


def day_of(path: Path) -> date:
    """The local day of a log file."""
    return date.fromisoformat(path.name.partition(".")[0])
