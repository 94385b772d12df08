"""The off-policy estimators that judge a policy."""

from typing import Literal

from pydantic import Field

from training.contract.settings.section import Positive, Section

Estimator = Literal["session_return", "lstd_q", "fqe", "conservative_ope", "pdis", "dr"]


class EvaluationSettings(Section):
    test_share: float = Field(0.1, gt=0.0, lt=1.0, description="last share by time (paper)")
    cql_weight: float = Field(5e-4, ge=0.0, description="α_c of eq. (10) (paper)")
    lr: Positive = Field(1e-4, description="(paper)")
    batch_size: int = Field(512, ge=1, description="m (paper)")
    initial_states: int = Field(5_000, ge=1, description="n of eq. (9) (paper)")
    steps: int = Field(5_000, ge=1, description="K (paper)")
    replicates: int = Field(5, ge=2, description="estimators on session bootstraps (ours)")
    hidden: tuple[int, ...] = Field((256, 256), description="widths of Q (ours)")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of the interval (ours)")
    estimators: tuple[Estimator, ...] = Field(
        ("session_return", "lstd_q", "fqe", "conservative_ope"),
        min_length=1,
        description="session returns and LSTD-Q in closed form, fitted Q, the paper's; pdis and dr weigh "
        "logged decisions (ours)",
    )
    gamma: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="discount of session_return and lstd_q; 1 is what a report means by return. The others "
        "have learner.gamma (ours)",
    )
    lstd_q_penalty: Positive = Field(1e4, description="of standardised features of the action (ours)")
    transitions: int = Field(
        50_000, ge=1_000, description="newest of all arms that lstd_q reads and policies act on (ours)"
    )
    min_arm_sessions: int = Field(
        100, ge=2, description="of an arm, for its known return to test session_return (ours)"
    )
    target_rate: float = Field(0.05, gt=0.0, le=1.0, description="of FQE's target networks, a step (ours)")
    bandwidth: Positive | None = Field(
        None,
        description="σ around a policy's action for pdis and dr; none means serving.noise_std (ours)",
    )
    weight_clip: Positive | None = Field(
        None, description="largest product of density ratios; none leaves them, clipping is biased (ours)"
    )
    steadiness_days: int = Field(
        7,
        ge=1,
        description="the champion from so many days before is replayed on its states and today's (ours)",
    )
    bootstraps: int = Field(400, ge=50, description="resamples of the sessions for pdis (ours)")
    min_effective_sessions: Positive = Field(
        30.0, description="fewer effective sessions of pdis and dr are warned of (ours)"
    )
