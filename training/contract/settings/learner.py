"""The learner: what a retrain reads, how long and with what it learns."""

from typing import Literal

from pydantic import Field

from training.contract.settings.algorithms import (
    Algorithm,
    BatchRLMTFSettings,
    CQLSACSettings,
    IQLSettings,
    ReBRACSettings,
    ReturnRegressionSettings,
    TD3BCSettings,
    TD3Settings,
    UnifiedRLSettings,
    UWACSettings,
    XMTFSettings,
)
from training.contract.settings.section import Positive, Section


class LearnerSettings(Section):
    algorithms: tuple[Algorithm, ...] = Field(
        ("constant", "return_regression", "batchrl_mtf"),
        min_length=1,
        description="trained every night; the judge says which of them is the day's challenger (ours)",
    )
    window_days: int = Field(3, ge=1, description="trajectories of the last days (paper)")
    steps: int = Field(300_000, ge=1, description="gradient steps of a retrain (paper)")
    batch_size: int = Field(256, ge=1, description="transitions a step (paper)")
    gamma: float = Field(0.95, ge=0.0, lt=1.0, description="discount (paper)")
    target_steps: int = Field(
        5,
        ge=1,
        le=100,
        description="requests whose logged rewards a target sums before it bootstraps (ours; paper: 1)",
    )
    critic_lr: Positive = Field(2e-4, description="(paper)")
    actor_lr: Positive = Field(1e-4, description="of the other algorithms' actors (ours: perturbation_lr's)")
    target_rate: float = Field(0.05, gt=0.0, le=1.0, description="η of the target update (paper)")
    target_interval: int = Field(10, ge=1, description="L: steps between target updates (paper)")
    replay_capacity: int = Field(
        100_000, ge=1, description="FIFO replay: only the newest transitions are kept (paper)"
    )
    max_user_requests: int = Field(
        2_000,
        ge=1,
        description="of one user and local day that are learnt from, the first ones: one that asks more, a "
        "crawler as a rule, would speak for all; the data are kept (ours)",
    )
    max_session_requests: int = Field(
        500, ge=1, description="of one session that are learnt from, likewise: one that never ends (ours)"
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
    return_regression: ReturnRegressionSettings = Field(
        ReturnRegressionSettings(), description="of constant and return_regression"
    )
    batchrl_mtf: BatchRLMTFSettings = Field(
        BatchRLMTFSettings(), description="of batchrl_mtf, bandit and xmtf"
    )
    td3: TD3Settings = Field(TD3Settings(), description="of td3, td3_bc, rebrac and uwac_td3")
    td3_bc: TD3BCSettings = TD3BCSettings()
    rebrac: ReBRACSettings = ReBRACSettings()
    uwac: UWACSettings = UWACSettings()
    unified_rl: UnifiedRLSettings = UnifiedRLSettings()
    cql_sac: CQLSACSettings = CQLSACSettings()
    iql: IQLSettings = IQLSettings()
    xmtf: XMTFSettings = XMTFSettings()
