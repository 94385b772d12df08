"""The one settings file: typed, checked, and refused with the offending line.

Every default says where it is from: ``(paper)`` is BatchRL-MTF, KDD 2022; ``(ours)`` is a choice
the paper leaves open. Any value can be overridden by the environment: ``MTF__LEARNER__STEPS=5000``
sets ``learner.steps``; lists and mappings are given as JSON.
"""

import os
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from training.contract.errors import SettingsError
from training.contract.fusion import Form, Fusion, Head
from training.contract.layout import Layout
from training.contract.state import StateFeature, StateSpec, default_features

ENV_PREFIX = "MTF__"
SETTINGS_VARIABLE = "MTF_SETTINGS"
DEFAULT_FILE = "mtf.yaml"

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HeadSettings(Section):
    name: Name = Field(description="the log and the requests carry it as p_<name> / scores.<name>")
    beta: Positive = Field(0.1, description="smoothing inside the logarithm of eq. (1) (ours)")
    low: float = Field(0.0, description="lower end of the weight's interval (ours)")
    high: float = Field(1.0, description="upper end of the weight's interval (ours)")
    static: float = Field(description="hand-tuned weight: the fallback, and the arm to beat")
    maximum: Positive = Field(1.0, description="largest allowed score: 1 for a probability")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if not self.low <= self.static <= self.high:
            raise ValueError(f"static {self.static} must lie within [{self.low}, {self.high}]")
        return self


class SignalSettings(Section):
    name: Name = Field(description="name of the feedback signal in features, rewards and reports")
    column: Name = Field(description="its 0/1 column in the impressions")
    weight: float = Field(0.0, description="its weight in the reward, eq. (2) (ours)")
    positive_interaction: bool = Field(False, description="counts as a positive interaction in UPIRate")


class RewardSettings(Section):
    play_time_weight: float = Field(0.02, description="reward per second played, eq. (2) (ours)")
    play_time_cap_s: Positive = Field(120.0, description="seconds of one play that count (ours)")
    integrity_weight: float = Field(
        0.3, description="reward per unit of min(play / duration, 1), eq. (2) (ours)"
    )


class ProfileFeature(Section):
    column: Name = Field(description="column of the users table")
    kind: Literal["numeric", "log", "flag", "categorical"] = "numeric"
    categories: tuple[str, ...] = Field((), description="for kind categorical: the known values")

    @model_validator(mode="after")
    def _categories(self) -> Self:
        if (self.kind == "categorical") != bool(self.categories):
            raise ValueError("categories belong to kind 'categorical', and it needs at least one")
        return self


class StateSettings(Section):
    history_length: int = Field(500, ge=1, description="interactions of the history (paper)")
    profile: tuple[ProfileFeature, ...] = Field(
        (
            ProfileFeature(
                column="user_active_degree",
                kind="categorical",
                categories=("full_active", "high_active", "middle_active", "low_active"),
            ),
            ProfileFeature(column="is_lowactive_period", kind="flag"),
            ProfileFeature(column="is_video_author", kind="flag"),
            ProfileFeature(column="follow_user_num", kind="log"),
            ProfileFeature(column="fans_user_num", kind="log"),
            ProfileFeature(column="friend_user_num", kind="log"),
            ProfileFeature(column="register_days", kind="log"),
        ),
        description="columns of the users table that are part of the state",
    )


class CalendarSettings(Section):
    utc_offset_hours: int = Field(
        8, ge=-12, le=14, description="a day and an hour of day are cut in this offset (KuaiRand: 8)"
    )


class SessionSettings(Section):
    gap_minutes: Positive = Field(30.0, description="idle minutes that end a session (ours)")


class BatchRLMTFSettings(Section):
    rho: float = Field(0.15, ge=0.0, le=2.0, description="perturbation bound, eq. (5) (paper)")
    candidates: int = Field(10, ge=1, description="n of eq. (4) and (7) in training (BCQ's; paper silent)")
    serving_candidates: int = Field(
        10,
        ge=1,
        description="n of eq. (4) in the exported policy; xmtf has 20 at least (ours; paper silent; BCQ's "
        "100 act no better, `mtf experiment ablations`)",
    )
    serving_pool: int = Field(
        100,
        ge=1,
        description="latents drawn at export, of which the serving candidates are the best together on "
        "logged states; no more than serving_candidates: as drawn (ours; not xmtf)",
    )
    latent_size: int | None = Field(
        None, ge=1, description="of the generator; none means 2 x heads (BCQ's; paper silent)"
    )
    latent_clip: Positive = Field(0.5, description="|z| when generating (BCQ's; paper silent)")
    kl_weight: float = Field(0.5, ge=0.0, description="of eq. (3) (BCQ's; paper silent)")
    freeze_generator_after: int | None = Field(
        None,
        ge=1,
        description="steps after which the generator is fixed and each state keeps its n actions; none "
        "trains it throughout, as the paper and BCQ do (ours)",
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="of a step's products (weights, Q and Adam stay float32). float32 runs anywhere; "
        "bfloat16, and int8 (8 bits in the hidden layers of the candidates at s'), need AVX-512 for both "
        "and a C compiler; auto is int8 where that runs, else float32 (ours)",
    )
    generator_lr: Positive = Field(1e-3, description="(paper)")
    perturbation_lr: Positive = Field(1e-4, description="(paper)")
    generator_hidden: tuple[int, ...] = Field((256, 256), description="widths (ours)")
    perturbation_hidden: tuple[int, ...] = Field((256, 256), description="widths (ours)")


class TD3Settings(Section):
    policy_noise: float = Field(0.2, ge=0.0, description="σ on the target's actions (Fujimoto et al. 2018)")
    noise_clip: float = Field(0.5, ge=0.0, description="largest |noise| of it (Fujimoto et al. 2018)")
    policy_delay: int = Field(2, ge=1, description="critic steps an actor step (Fujimoto et al. 2018)")


class TD3BCSettings(Section):
    alpha: Positive = Field(2.5, description="weight of Q against imitation (Fujimoto and Gu 2021)")


class UWACSettings(Section):
    dropout: float = Field(0.1, gt=0.0, lt=1.0, description="of the critics' hidden units (Wu et al. 2021)")
    samples: int = Field(10, ge=2, description="dropout passes behind a variance (ours; their code: 100)")
    beta: Positive = Field(0.5, description="weight of a loss = beta / Var Q, clipped (their code's)")
    clip: Positive = Field(1.0, description="largest such weight (their code's)")


class UnifiedRLSettings(Section):
    critics: int = Field(24, ge=2, description="E: critics of each of the two groups (UnifiedRL)")
    watch_weight: float = Field(1.0, ge=0.0, description="w of the play-time and integrity group (ours)")
    interaction_weight: float = Field(1.0, ge=0.0, description="w of the interaction group (ours)")
    box: Positive = Field(0.15, description="half-width around the logged mean (UnifiedRL)")
    outside: float = Field(1.0, ge=0.0, description="η: weight of squared distances to the box (ours)")
    spread: float = Field(0.1, ge=0.0, description="λ: weight of the critics' spread (ours)")
    decay: float = Field(2.0, ge=0.0, description="bootstrap x exp(-decay x distance to the box) (ours)")


class CQLSACSettings(Section):
    conservative_weight: float = Field(5.0, ge=0.0, description="of the penalty (Kumar et al. 2020)")
    actions: int = Field(10, ge=1, description="drawn thrice a state for it (Kumar et al. 2020)")
    temperature_lr: Positive = Field(1e-4, description="of SAC's entropy weight (d3rlpy's)")


class IQLSettings(Section):
    expectile: float = Field(0.7, gt=0.5, lt=1.0, description="τ of V (Kostrikov et al. 2021)")
    inverse_temperature: Positive = Field(3.0, description="β of the actor (Kostrikov et al. 2021)")
    max_weight: Positive = Field(100.0, description="of an imitated action (Kostrikov et al. 2021)")


Algorithm = Literal[
    "batchrl_mtf",
    "unified_rl",
    "xmtf",
    "td3",
    "td3_bc",
    "uwac_td3",
    "cql_sac",
    "iql",
    "bandit",
    "supervised",
]


class XMTFSettings(Section):
    hidden: tuple[int, ...] = Field((64,), description="widths of the cells' network of the state (ours)")
    units: int = Field(4, ge=1, description="bends of a cell (ours)")
    lr: Positive = Field(1e-3, description="of the cells (ours)")
    states: int = Field(32, ge=1, description="states a step whose order is taught (ours)")
    pairs: int = Field(32, ge=1, description="pairs of shown items a state (ours)")


class LearnerSettings(Section):
    algorithm: Algorithm = "batchrl_mtf"
    window_days: int = Field(3, ge=1, description="trajectories of the last days (paper)")
    steps: int = Field(300_000, ge=1, description="gradient steps of a retrain (paper)")
    batch_size: int = Field(256, ge=1, description="transitions a step (paper)")
    gamma: float = Field(0.95, ge=0.0, lt=1.0, description="discount (paper)")
    target_steps: int = Field(
        1,
        ge=1,
        le=100,
        description="requests whose logged rewards a target sums before it bootstraps (paper: 1)",
    )
    critic_lr: Positive = Field(2e-4, description="(paper)")
    actor_lr: Positive = Field(1e-4, description="of the other algorithms' actors (ours: perturbation_lr's)")
    target_rate: float = Field(0.05, gt=0.0, le=1.0, description="η of the target update (paper)")
    target_interval: int = Field(10, ge=1, description="L: steps between target updates (paper)")
    replay_capacity: int = Field(
        100_000, ge=1, description="FIFO replay: only the newest transitions are kept (paper)"
    )
    map_above_bytes: int = Field(
        1024**3,
        ge=0,
        description="a larger training set lies in mapped files of the data folder, not in memory; what "
        "is learnt is the same (ours)",
    )
    critic_hidden: tuple[int, ...] = Field((256, 256), description="widths (ours)")
    actor_hidden: tuple[int, ...] = Field((256, 256), description="of the other algorithms' actors (ours)")
    mixed_exploration: bool = Field(
        True, description="train on equal amounts of the random and the noise group (paper)"
    )
    warm_start: bool = Field(False, description="start from the champion of the day before (ours)")
    checkpoint_every: int = Field(5_000, ge=1, description="steps between checkpoints (ours)")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto is CUDA where there is one (ours)"
    )
    threads: int = Field(0, ge=0, description="PyTorch threads; 0 takes PyTorch's default (ours)")
    batchrl_mtf: BatchRLMTFSettings = Field(
        BatchRLMTFSettings(), description="of batchrl_mtf, bandit and xmtf"
    )
    td3: TD3Settings = Field(TD3Settings(), description="of td3, td3_bc and uwac_td3")
    td3_bc: TD3BCSettings = TD3BCSettings()
    uwac: UWACSettings = UWACSettings()
    unified_rl: UnifiedRLSettings = UnifiedRLSettings()
    cql_sac: CQLSACSettings = CQLSACSettings()
    iql: IQLSettings = IQLSettings()
    xmtf: XMTFSettings = XMTFSettings()


Estimator = Literal["conservative_ope", "fqe", "pdis", "dr"]


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
        ("conservative_ope", "fqe", "pdis", "dr"),
        min_length=1,
        description="the paper's, fitted Q, importance sampling by decisions, doubly robust (ours)",
    )
    target_rate: float = Field(0.05, gt=0.0, le=1.0, description="of FQE's target networks, a step (ours)")
    bandwidth: Positive | None = Field(
        None,
        description="σ around a policy's action for pdis and dr; none means serving.noise_std (ours)",
    )
    weight_clip: Positive | None = Field(
        None, description="largest product of density ratios; none leaves them, clipping is biased (ours)"
    )
    bootstraps: int = Field(400, ge=50, description="resamples of the sessions for pdis (ours)")
    min_effective_sessions: Positive = Field(
        30.0, description="fewer effective sessions of pdis and dr are warned of (ours)"
    )


class GateSettings(Section):
    estimator: Estimator = Field(
        "fqe", description="whose intervals are compared; the paper's is far noisier on small logs (ours)"
    )
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


Verdict = Literal["fail", "warn"]


class VerdictSettings(Section):
    """What a broken expectation does: ``fail`` stops the day, ``warn`` is shown and the day goes on."""

    volume: Verdict = Field("fail", description="far fewer or more rows than on recent days (ours)")
    bands: Verdict = Field("warn", description="a measure outside its band of recent days (ours)")
    score_drift: Verdict = Field("fail", description="a head's scores are distributed otherwise (ours)")
    calibration: Verdict = Field("warn", description="a head's calibration has changed (ours)")
    column_gone: Verdict = Field("fail", description="the source no longer has a column we read (ours)")
    column_new: Verdict = Field("warn", description="the source has a column it had not (ours)")
    column_retyped: Verdict = Field("warn", description="a source's column has another type (ours)")
    overlap: Verdict = Field("warn", description="too few explored transitions to learn from (ours)")
    coverage: Verdict = Field("warn", description="logged actions leave a head's interval empty (ours)")
    reward_range: Verdict = Field("warn", description="rewards beyond those of recent days (ours)")


class ValidationSettings(Section):
    recent_days: int = Field(7, ge=1, description="days that volumes and rates are held against")
    min_volume_ratio: Share = Field(0.6, description="least rows against the recent days' median")
    max_volume_ratio: Positive = Field(2.5, description="most rows, likewise")
    max_rate_change: Positive = Field(
        0.5, description="half-width of a measure's band, relative, until its spread can be learnt (ours)"
    )
    band_days: int = Field(5, ge=3, description="recent days from which on a band's width is learnt (ours)")
    band_alarm_rate: float = Field(
        1e-3, gt=0.0, lt=0.5, description="chance that a good day lies outside one learnt band (ours)"
    )
    band_floor: Share = Field(0.1, description="least half-width of a learnt band, relative (ours)")
    min_rate_count: int = Field(100, ge=0, description="expected positives below which a rate is not judged")
    warn_psi: Positive = Field(0.1, description="population stability index of a head that warns (ours)")
    max_psi: Positive = Field(0.25, description="and that is drift; see verdicts.score_drift (ours)")
    min_drift_rows: int = Field(2_000, ge=1, description="fewest scores that such an index is made of (ours)")
    max_calibration_change: Positive = Field(
        0.3, description="relative change of predicted / observed against recent days that is drift (ours)"
    )
    max_fallback_share: Share = Field(0.05, description="of the decisions; more is warned of (ours)")
    min_exploring_share: Share = Field(
        0.01, description="least share of the random and of the noise group's transitions (ours)"
    )
    min_action_coverage: Share = Field(
        0.5, description="least share of a head's interval, in tenths, that logged actions reach (ours)"
    )
    verdicts: VerdictSettings = VerdictSettings()
    max_null_share: Share = Field(0.0, description="of required columns")
    quarantine_rows: int = Field(10_000, ge=1, description="bad rows kept a day and table")
    min_transitions: int = Field(500, ge=1, description="fewest transitions to train on (ours)")


class ShareSettings(Section):
    """Shares of users; what is left goes to the champion. ``shadow`` is beside them: nobody sees it."""

    static: Share = Field(0.05, description="hand-tuned weights: the control")
    random: Share = Field(0.02, description="exploration: Gaussian without a prior (paper)")
    noise: Share = Field(0.02, description="exploration: policy + Gaussian noise (paper)")
    box: Share = Field(0.0, description="exploration: uniform around the policy's action (UnifiedRL)")
    challenger: Share = Field(0.0, description="canary: the challenger's policy, when there is one")
    shadow: Share = Field(0.0, description="users whose requests the challenger ranks beside, unseen")


def check_shares(shares: ShareSettings, max_exploration: float) -> None:
    """Raises ValueError for shares that cannot be in force together."""
    exploration = shares.random + shares.noise + shares.box
    if shares.static + exploration + shares.challenger > 1.0 + 1e-9:
        raise ValueError("serving.shares add up to more than 1")
    if exploration > max_exploration + 1e-9:
        raise ValueError(
            f"random, noise and box of serving.shares add up to {exploration:g}, more than "
            f"serving.max_exploration, {max_exploration:g}"
        )


class CanaryStep(Section):
    """A share of users for the challenger, for at least so long and so many of its requests."""

    share: float = Field(gt=0.0, le=1.0)
    minutes: float = Field(ge=0.0)
    requests: int = Field(0, ge=0)


class GuardrailSettings(Section):
    """When the service takes a champion or challenger out by itself; see docs/serving-operations.md."""

    check_seconds: Positive = Field(5.0, description="between two looks (ours)")
    window_seconds: Positive = Field(60.0, description="of requests that a look takes in (ours)")
    min_requests: int = Field(200, ge=1, description="fewer of an arm in the window are not judged (ours)")
    max_failed_share: Share = Field(
        0.02, description="requests without a usable action of the policy in time (ours)"
    )
    slow_ms: Positive = Field(50.0, description="a request that takes longer until it is logged is slow")
    max_slow_share: Share = Field(0.05, description="slow requests beyond the static arm's share (ours)")
    max_bound_share: Share = Field(0.5, description="action entries within 0.01 of a bound (ours)")
    confidence: float = Field(
        0.95, gt=0.5, lt=1.0, description="of the reward's comparison with static, over all looks (ours)"
    )
    min_sessions: int = Field(200, ge=2, description="of an arm, for its reward to be judged (ours)")
    idle_minutes: float | None = Field(
        None, ge=0.0, description="a session idle for so long has its reward; none means session.gap_minutes"
    )


class ServingSettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(3000, ge=1, le=65535)
    workers: int = Field(1, ge=1)
    shares: ShareSettings = ShareSettings()
    max_exploration: Share = Field(
        0.1, description="most that random, noise and box may take of the users together (ours)"
    )
    no_exploration_for: tuple[str, ...] = Field(
        (),
        description="entries of the state made of the profile, as is_lowactive_period or "
        "user_active_degree=low_active: users who have one are not explored on (ours)",
    )
    canary: tuple[CanaryStep, ...] = Field(
        (), description="steps of a new policy before it is the champion; none promotes at once (ours)"
    )
    guardrail: GuardrailSettings = GuardrailSettings()
    salt: str = Field("mtf", min_length=1, description="of the hash that assigns users to arms")
    random_std: Positive = Field(1.0, description="σ of the random group, truncated to [-1, 1] (ours)")
    noise_std: Positive = Field(0.1, description="σ of the noise group (paper)")
    box_width: float = Field(
        0.15, gt=0.0, le=2.0, description="of the box group, to either side of the action (UnifiedRL)"
    )
    max_candidates: int = Field(2_000, ge=1)
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    default_k: int = Field(6, ge=1, description="items returned when the request names no k")
    max_k: int = Field(200, ge=1)
    rate_limit: Positive | None = Field(
        None,
        description="requests a second to /rank and /feedback from one address, in each worker; none has no "
        "limit (ours)",
    )
    rate_burst: int = Field(100, ge=1, description="requests that may come at once within rate_limit (ours)")
    accept_event_ts: bool = Field(
        False, description="let requests carry their own time: for simulated and replayed traffic"
    )
    follow_seconds: Positive = Field(1.0, description="how often the champion pointer is looked at")
    state_budget_ms: Positive = Field(50.0, description="longest wait for the online store")
    queue_budget_ms: Positive = Field(
        1_000.0,
        description="longest wait of a request to be ranked or logged; beyond it the answer is 503 (ours)",
    )
    policy_budget_ms: Positive = Field(
        50.0, description="longest time of a policy for one state; beyond it static weights serve (ours)"
    )
    max_features_age_hours: Positive = Field(
        50.0,
        description="materialised features older than this are stale, and static weights serve: a day, its "
        "run and one that was missed (ours)",
    )


class StoreSettings(Section):
    online: Literal["sqlite", "redis"] = "sqlite"
    redis_url: str = Field("localhost:6379", description="host:port, for online: redis")
    redis_password: bool = Field(False, description="whether Redis asks for $MTF_REDIS_PASSWORD")
    history_ttl_days: int | None = Field(
        None,
        ge=1,
        description="a history older than this is unknown, and leaves SQLite; none keeps it (ours)",
    )
    redis_key_ttl_days: int | None = Field(
        None, ge=1, description="Redis forgets a user whom nothing was written of for so long (ours)"
    )

    @model_validator(mode="after")
    def _ttl_of_its_store(self) -> Self:
        if self.history_ttl_days and self.online == "redis":
            raise ValueError("history_ttl_days is for online: sqlite; Redis has redis_key_ttl_days")
        if self.redis_key_ttl_days and self.online == "sqlite":
            raise ValueError("redis_key_ttl_days is for online: redis; SQLite has history_ttl_days")
        return self

    @property
    def online_type(self) -> str:
        """What Feast calls the online store."""
        return {"sqlite": "feature_repo.online_store.WideSqliteOnlineStore", "redis": "redis"}[self.online]


class PostgresSettings(Section):
    """A PostgreSQL server; its password comes from ``$PGPASSWORD`` or ``$PGPASSFILE``."""

    uses: tuple[Literal["airflow", "feast", "mlflow"], ...] = Field(
        (), description="what is kept there, each in its database mtf_<name>, instead of in files"
    )
    host: str = Field("localhost", pattern=r"^[A-Za-z0-9._-]+$")
    port: int = Field(5432, ge=1, le=65535)
    user: Name = "mtf"

    def url(self, use: str) -> str:
        """SQLAlchemy's address of the database of one use."""
        return f"postgresql+psycopg://{self.user}@{self.host}:{self.port}/mtf_{use}"


class OrchestrationSettings(Section):
    airflow_port: int = Field(8080, ge=1, le=65535)
    mlflow_port: int = Field(5000, ge=1, le=65535)
    schedule: str = Field("30 1 * * *", description="cron of the producer, in calendar's offset")
    retries: int = Field(2, ge=0)
    retry_seconds: int = Field(30, ge=1, description="first delay; doubles")
    deadline_minutes: int = Field(180, ge=1, description="of a DAG's run, from its queueing: then an alert")
    stage_minutes: int = Field(120, ge=1, description="of one try of a stage: then it counts as failed")
    reopen_days: int = Field(
        7, ge=0, description="days back that late rows or mended files start anew; 0: by `mtf backfill` only"
    )
    retrain_reopened: bool = Field(
        False,
        description="train a reopened day's model again, also where a later day learns from its late rows",
    )


class AlertSettings(Section):
    webhook: SecretStr | None = Field(
        None, description="URL that alerts are posted to as JSON; give it as $MTF__ALERTS__WEBHOOK"
    )
    timeout_s: Positive = Field(5.0, le=60.0, description="for the webhook's answer, once per alert")


class KeepingSettings(Section):
    """Days are counted back from the newest landed one; what is still needed stays."""

    lake_days: int = Field(400, ge=1, description="of landed logs and the service's own log files (ours)")
    warehouse_days: int = Field(400, ge=1, description="of the marts' rows and exports (ours)")
    models_days: int = Field(90, ge=1, description="of challengers, their MLflow runs and Bentos (ours)")
    reports_days: int = Field(400, ge=1, description="of pages, Data Docs and the stages' records (ours)")
    serving_policies: int = Field(
        30, ge=0, description="promoted policy files kept beside those a rollback can go back to (ours)"
    )
    schedule: str = Field("0 5 * * 0", description="cron of the DAG mtf_keep, in calendar's offset (ours)")
    history_days: int = Field(
        400, ge=1, description="a user not seen for so long holds no old day for his history (ours)"
    )


class LineageSettings(Section):
    enabled: bool = Field(True, description="OpenLineage events of stages, DAGs and dbt models (ours)")
    url: str | None = Field(
        None, description="HTTP endpoint that takes them; none writes <data>/lineage/<day>.jsonl (ours)"
    )
    namespace: str = Field("mtf", min_length=1, description="of the jobs (ours)")


class LogsSettings(Section):
    source: Literal["service", "files"] = Field(
        "service",
        description="what the daily run lands: the service's own log, or files in logs.folder",
    )
    folder: Path | None = Field(None, description="for source: files; see training/ingest/template.py")

    @model_validator(mode="after")
    def _folder(self) -> Self:
        if self.source == "files" and self.folder is None:
            raise ValueError("source 'files' needs logs.folder")
        return self


class WorldSettings(Section):
    """The simulated world of ``mtf simulate`` and the demo; nothing of it is used on real logs."""

    build: Literal["synthetic", "kuairand"] = "synthetic"
    logs: Path | None = Field(None, description="folder of KuaiRand's CSVs, for build: kuairand")
    users: int = Field(3_000, ge=1)
    items: int = Field(5_000, ge=10)
    candidates: int = Field(40, ge=2, description="candidates a request")
    page: int = Field(6, ge=1, description="items shown a request")
    max_requests: int = Field(30, ge=1, description="hard end of a session (a truncation)")
    start_day: str = Field(
        "2026-01-05", pattern=r"^\d{4}-\d{2}-\d{2}$", description="first day of traffic through HTTP"
    )
    past_days: int = Field(
        1, ge=1, description="days before it, simulated without HTTP: the log that learning starts from"
    )
    concurrency: int = Field(16, ge=1, description="requests in flight of the HTTP driver")
    requests_per_day: int = Field(
        20_000, ge=1, description="traffic of a day through HTTP, about; users are sampled to fit"
    )


class UpstreamSettings(Section):
    """The PLE multi-task model for logs without predictions."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(1024, ge=1)
    lr: Positive = 4e-3
    experts: int = Field(2, ge=1, description="task experts, and as many shared ones, a layer")
    layers: int = Field(2, ge=1)
    hidden: int = Field(64, ge=1)
    embedding: int = Field(16, ge=1)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    calibration_share: float = Field(0.1, gt=0.0, lt=0.5, description="last share by time")


DEFAULT_HEADS = (
    HeadSettings(name="click", beta=0.1, low=0.0, high=2.0, static=1.0),
    HeadSettings(name="long_view", beta=0.1, low=0.0, high=2.0, static=0.5),
    HeadSettings(name="like", beta=0.01, low=0.0, high=1.0, static=0.3),
    HeadSettings(name="follow", beta=0.01, low=0.0, high=1.0, static=0.1),
    HeadSettings(name="comment", beta=0.01, low=0.0, high=1.0, static=0.1),
    HeadSettings(name="forward", beta=0.01, low=0.0, high=1.0, static=0.1),
    HeadSettings(name="hate", beta=0.01, low=-2.0, high=0.0, static=-0.2),
    HeadSettings(name="play_time", beta=1.0, low=0.0, high=2.0, static=0.3, maximum=36_000.0),
)

DEFAULT_SIGNALS = (
    SignalSettings(name="click", column="is_click", weight=0.1),
    SignalSettings(name="long_view", column="long_view", weight=0.3),
    SignalSettings(name="like", column="is_like", weight=0.5, positive_interaction=True),
    SignalSettings(name="follow", column="is_follow", weight=1.0, positive_interaction=True),
    SignalSettings(name="comment", column="is_comment", weight=0.5, positive_interaction=True),
    SignalSettings(name="forward", column="is_forward", weight=0.5, positive_interaction=True),
    SignalSettings(name="hate", column="is_hate", weight=-2.0),
)


class Settings(BaseSettings):
    """All settings. Load them with :func:`load_settings`; construct them directly in tests."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        allow_inf_nan=False,
    )

    version: Literal[1] = 1
    data: Path = Field(Path("data"), description="the data folder, relative to the settings file")
    seed: int = Field(7, ge=0)
    heads: tuple[HeadSettings, ...] = Field(DEFAULT_HEADS, min_length=1, max_length=64)
    fusion_form: Form = Field("log_sum", description="eq. (1) (paper), or sum: the plain weighted sum (xMTF)")
    signals: tuple[SignalSettings, ...] = Field(DEFAULT_SIGNALS, min_length=1, max_length=64)
    reward: RewardSettings = RewardSettings()
    state: StateSettings = StateSettings()
    calendar: CalendarSettings = CalendarSettings()
    session: SessionSettings = SessionSettings()
    logs: LogsSettings = LogsSettings()
    keeping: KeepingSettings = KeepingSettings()
    lineage: LineageSettings = LineageSettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gate: GateSettings = GateSettings()
    validation: ValidationSettings = ValidationSettings()
    serving: ServingSettings = ServingSettings()
    store: StoreSettings = StoreSettings()
    postgres: PostgresSettings = PostgresSettings()
    orchestration: OrchestrationSettings = OrchestrationSettings()
    alerts: AlertSettings = AlertSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    world: WorldSettings = WorldSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @field_validator("heads", "signals")
    @classmethod
    def _unique(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [value.name for value in values]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"named twice: {', '.join(repeated)}")
        return values

    @model_validator(mode="after")
    def _shares(self) -> Self:
        shares = self.serving.shares
        check_shares(shares, self.serving.max_exploration)
        largest = max((step.share for step in self.serving.canary), default=0.0)
        if shares.static + shares.random + shares.noise + shares.box + largest > 1.0 + 1e-9:
            raise ValueError("serving.shares and the largest step of serving.canary add up to more than 1")
        return self

    @model_validator(mode="after")
    def _cohorts(self) -> Self:
        known = [
            name
            for feature in self.state_spec.features
            if feature.source == "profile" and feature.transform in ("identity", "onehot")
            for name in ([f"{feature.name}={c}" for c in feature.categories] or [feature.name])
        ]
        for name in self.serving.no_exploration_for:
            if name not in known:
                raise ValueError(
                    f"serving.no_exploration_for: {name!r} is no flag or category of the profile; there are "
                    f"{', '.join(known)}"
                )
        return self

    @model_validator(mode="after")
    def _gate_has_its_estimator(self) -> Self:
        if self.gate.estimator not in self.evaluation.estimators:
            raise ValueError(f"gate.estimator {self.gate.estimator!r} is not among evaluation.estimators")
        return self

    @property
    def layout(self) -> Layout:
        return Layout(self.data)

    @property
    def fusion(self) -> Fusion:
        return Fusion(tuple(Head(**head.model_dump()) for head in self.heads), self.fusion_form)

    @property
    def signal_names(self) -> list[str]:
        return [signal.name for signal in self.signals]

    def day_start(self, day: date) -> datetime:
        """The instant at which a local day starts, in UTC."""
        return datetime.combine(day, time(), UTC) - timedelta(hours=self.calendar.utc_offset_hours)

    @property
    def state_spec(self) -> StateSpec:
        """Profile features as the settings name them, then history, session and context."""
        kinds = {"numeric": "identity", "flag": "identity", "log": "log1p", "categorical": "onehot"}
        profile = [
            StateFeature(p.column, "profile", kinds[p.kind], (p.column,), p.categories)
            for p in self.state.profile
        ]
        return StateSpec((*profile, *default_features(self.signal_names)))


def settings_path() -> Path:
    """``$MTF_SETTINGS``, else ``mtf.yaml`` in the working folder."""
    return Path(os.environ.get(SETTINGS_VARIABLE, DEFAULT_FILE)).resolve()


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings file and the environment; a relative ``data`` is beside the file.

    Raises :class:`SettingsError` that lists every fault with its file and line.
    """
    path = (path or settings_path()).resolve()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings file {path}: {error.strerror}. "
            f"Write one with `mtf init`, or name yours in ${SETTINGS_VARIABLE}."
        ) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path}:1: expected a mapping of settings")
    _refuse_repeated(node, path)
    _refuse_unknown_environment(os.environ)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(_explain(error, node, path)) from None
    if not settings.data.is_absolute():
        settings = settings.model_copy(update={"data": path.parent / settings.data})
    return settings


def _refuse_repeated(node: yaml.Node | None, path: Path) -> None:
    """YAML takes the last of two equal keys, which hides that the first has no effect."""
    nodes = [node]
    while nodes:
        match nodes.pop():
            case yaml.MappingNode(value=pairs):
                seen: dict[str, int] = {}
                for key, value in pairs:
                    line = key.start_mark.line + 1
                    if key.value in seen:
                        raise SettingsError(
                            f"{path}:{line}: {key.value} is set in line {seen[key.value]} already"
                        )
                    seen[key.value] = line
                    nodes.append(value)
            case yaml.SequenceNode(value=items):
                nodes += items


def _refuse_unknown_environment(environment: Mapping[str, str]) -> None:
    for name in sorted(environment):
        if not name.upper().startswith(ENV_PREFIX):
            continue
        section = name[len(ENV_PREFIX) :].split("__")[0].lower()
        if section not in Settings.model_fields:
            raise SettingsError(f"${name}: there is no setting {section!r}")


def _explain(error: ValidationError, node: yaml.Node | None, path: Path) -> str:
    lines = []
    faults = error.errors()
    for fault in faults:
        if any(
            len(f["loc"]) > len(fault["loc"]) and f["loc"][: len(fault["loc"])] == fault["loc"]
            for f in faults
        ):
            continue  # a list whose items were refused also counts as too short: name the items only
        where, line = _locate(node, fault["loc"])
        kind = "unknown setting" if fault["type"] == "extra_forbidden" else fault["msg"]
        place = f"{path}:{line}" if line else f"{path} or the environment"
        lines.append(f"{place}: {'.'.join(where) or 'settings'}: {kind}")
    return "\n".join(lines)


def _locate(node: yaml.Node | None, loc: tuple[int | str, ...]) -> tuple[list[str], int | None]:
    """Names of a fault's place, and its line in the file when the file holds it."""
    line = None
    names = [str(part) for part in loc]
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(part)]
            if not found:
                return names, line
            key, node = found[0]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return names, line
