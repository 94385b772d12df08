"""The gate: what a challenger has to show before it is promoted."""

from typing import Literal

from pydantic import Field

from training.contract.settings.evaluation import Estimator
from training.contract.settings.section import Positive, Section, Share


class GateSettings(Section):
    estimator: Estimator = Field("session_return", description="whose intervals are compared (ours)")
    compare: Literal["difference", "lower", "value"] = Field(
        "difference",
        description="the lower bound of the paired difference to the champion must reach minus the "
        "tolerance; or the challenger's lower bound this of the champion (ours)",
    )
    tolerance: float = Field(
        0.05, ge=0.0, description="of a difference, as a share of the rival's estimated value (ours)"
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
