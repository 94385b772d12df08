"""The gate: what a challenger has to show before it is promoted."""

from typing import Literal

from pydantic import Field

from training.contract.settings.evaluation import Estimator
from training.contract.settings.section import Positive, Section, Share


class GateSettings(Section):
    estimator: Estimator = Field("session_return", description="whose intervals are compared (ours)")
    evidence: Literal["canary", "offline"] = Field(
        "canary",
        description="what makes a challenger the champion: a gain that its canary shows, or the gate alone, "
        "for too few users to show one (ours)",
    )
    gain: float = Field(
        0.0,
        description="the lower bounds of the differences to static weights and to the log's best constant "
        "must lie above this, as a share of the rival's estimated value (ours)",
    )
    delta: float = Field(
        0.02,
        ge=0.0,
        description="the lower bound of the difference to the champion may lie so far below 0, as a share of "
        "the champion's estimated value (ours)",
    )
    delta_budget: float = Field(
        0.04, ge=0.0, description="of delta, spent by promotions since the last that showed a gain (ours)"
    )
    max_bound_share: Share = Field(
        0.5, description="largest share of action entries within 0.01 of a bound (ours)"
    )
    max_action_jump: Positive = Field(
        1.0, description="largest mean |action - champion's| over the day's states (ours)"
    )
    max_parity_mismatch: Share = Field(
        0.01, description="largest share of served states that differ from Feast's (ours)"
    )
    parity_sample: int = Field(500, ge=1, description="decisions compared a day (ours)")
    min_parity_states: int = Field(
        100, ge=1, description="fewer left to compare are few, where more are left out for late rows (ours)"
    )
    few_parity: Literal["fail", "warn"] = Field(
        "fail", description="few states left to compare: refuse the policy, or say so and pass (ours)"
    )
    max_policy_bytes: int = Field(64 * 1024 * 1024, ge=1, description="(ours)")
    max_latency_ms: Positive = Field(20.0, description="p99 of one state through the exported policy (ours)")
