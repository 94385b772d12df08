"""A transition's columns: the export of the mart ``fct_transitions``, which learners, judge and report read.

dbt's SQL computes them and its contract is held to this declaration by a test; validation's types and what a
learner reads are made of it. What was decided keeps the names and types of the log
(:data:`training.contract.log.DECISION`).
"""

from dataclasses import replace

from training.contract.log import DECISION, FLOATS, Column

MART = "fct_transitions"

_DECIDED = {column.name: column for column in DECISION}

# in the order of the export
TRANSITION = (
    _DECIDED["request_id"],
    Column("session_id", "string", description="the session, cut by its served id and by the idle gap"),
    _DECIDED["user_id"],
    _DECIDED["event_ts"],
    Column("step", "int32", description="0 for the first request of the session"),
    _DECIDED["arm"],
    _DECIDED["policy_version"],
    _DECIDED["fallback"],
    replace(_DECIDED["state"], required=True, description="s, as served"),
    _DECIDED["action"],
    _DECIDED["action_mean"],
    _DECIDED["log_density"],
    _DECIDED["exploration_unit"],
    _DECIDED["epoch"],
    Column("reward", "double", description="r, eq. (2), summed over the shown items"),
    Column("next_state", FLOATS, False, "s', the state of the session's next request; null at its end"),
    Column("done", "bool", description="last request of a session that is known to have ended by itself"),
    Column("truncated", "bool", description="s' is unknown though the session is not known to be over"),
    Column("next_request_id", "string", False, "the session's next request; null for its last"),
    _DECIDED["state_spec"],
    Column("impressions", "int32", description="shown items"),
    Column("play_s", "double", description="seconds played"),
    Column("positive_interactions", "int32", description="shown items with a positive interaction"),
    Column("watch_reward", "double", description="the terms of r that are play time and integrity"),
    Column("item_scores", FLOATS, False, "predictions of the shown items, all heads of the first one first"),
    Column("item_rewards", FLOATS, False, "eq. (2) of each shown item"),
    Column("dt", "date", description="local day of the request"),
)

# What only some learners read. Exports of an older version lack these.
OF_SOME_LEARNERS = ("watch_reward", "item_scores", "item_rewards")
# What every learner and the judge read; validation and the report also read what is beside it.
OF_EVERY_LEARNER = tuple(
    column.name
    for column in TRANSITION
    if column.name
    not in (
        *("fallback", "epoch", "impressions", "play_s", "positive_interactions", "dt"),
        *OF_SOME_LEARNERS,
    )
)
