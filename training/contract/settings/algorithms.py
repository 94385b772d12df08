"""The algorithms, and the section of those that have settings of their own."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from training.contract.settings.section import Positive, Section

Algorithm = Literal[
    "constant",
    "return_regression",
    "batchrl_mtf",
    "unified_rl",
    "xmtf",
    "td3",
    "td3_bc",
    "rebrac",
    "uwac_td3",
    "cql_sac",
    "iql",
    "bandit",
    "supervised",
]


class ReturnRegressionSettings(Section):
    gamma: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="discount of the return-to-go; 1 is what a report means by return (ours)",
    )
    caution: float = Field(
        1.0, ge=0.0, description="κ: posterior deviations that a gain over static must be worth (ours)"
    )
    margin: float = Field(
        0.02,
        ge=0.0,
        lt=1.0,
        description="kept from the bounds of an action, so that none counts as one at its bound (ours)",
    )
    rank: int = Field(
        3, ge=0, le=20, description="traits of the state along which users may want other weights (ours)"
    )
    menu: int = Field(16, ge=1, description="J: weight vectors that a state's is chosen from, at most (ours)")
    menu_caution: float = Field(
        1.0, ge=0.0, description="κ': posterior deviations that a gain over the constant must be worth (ours)"
    )
    leanings: tuple[Annotated[float, Field(gt=0.0, le=100.0)], ...] = Field(
        (0.25, 0.5, 1.0, 2.0, 4.0),
        max_length=20,
        description="factors of the reward's interaction part (all signals, against play time and integrity) "
        "of which a policy each is made and judged every night, for a person to choose from (`mtf pareto`); "
        "empty: none (ours)",
    )

    @field_validator("leanings")
    @classmethod
    def _once_each(cls, leanings: tuple[float, ...]) -> tuple[float, ...]:
        names = [f"{factor:g}" for factor in leanings]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice} is there twice")
        return tuple(sorted(leanings))


class BatchRLMTFSettings(Section):
    members: int = Field(
        5,
        ge=1,
        le=50,
        description="K: seeds that act as one policy, by the mean of their actions; a retrain and a request "
        "take K times as long (ours; not xmtf)",
    )
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
    latent_clip: Positive = Field(3.0, description="|z| when generating (ours; BCQ's .5; paper silent)")
    kl_weight: float = Field(0.02, ge=0.0, description="of eq. (3) (ours; BCQ's .5; paper silent)")
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


class ReBRACSettings(Section):
    actor_weight: float = Field(
        0.01, ge=0.0, description="β₁ of imitation in the actor's loss, of λQ about 1 (of their .001 to .1)"
    )
    critic_weight: float = Field(
        0.01, ge=0.0, description="β₂ of the distance to what was served at s', in units of reward (likewise)"
    )


class UWACSettings(Section):
    dropout: float = Field(0.1, gt=0.0, lt=1.0, description="of the critics' hidden units (Wu et al. 2021)")
    samples: int = Field(10, ge=2, description="dropout passes behind a variance (ours; their code: 100)")
    beta: Positive = Field(0.5, description="weight of a loss = beta / Var Q, clipped (their code's)")
    clip: Positive = Field(1.0, description="largest such weight (their code's)")


class UnifiedRLSettings(Section):
    critics: int = Field(24, ge=2, description="E: critics of each of the two groups (UnifiedRL)")
    watch_weight: float = Field(1.0, ge=0.0, description="w of the play-time and integrity group (ours)")
    interaction_weight: float = Field(1.0, ge=0.0, description="w of the interaction group (ours)")
    box: Positive = Field(0.15, description="half-width around the present mean (UnifiedRL)")
    outside: float = Field(1.0, ge=0.0, description="η: weight of squared distances to the box (ours)")
    spread: float = Field(0.1, ge=0.0, description="λ: weight of the critics' spread (ours)")
    decay: float = Field(2.0, ge=0.0, description="bootstrap x exp(-decay x distance to the box) (ours)")


class CQLSACSettings(Section):
    conservative_weight: float = Field(5.0, ge=0.0, description="of the penalty (Kumar et al. 2020)")
    actions: int = Field(10, ge=1, description="drawn thrice a state for it (Kumar et al. 2020)")
    temperature: Positive = Field(1.0, description="SAC's entropy weight at the start (d3rlpy's)")
    temperature_lr: Positive = Field(
        1e-4, description="of it (d3rlpy's); it has fallen after about 2 over this many steps"
    )


class IQLSettings(Section):
    expectile: float = Field(0.7, gt=0.5, lt=1.0, description="τ of V (Kostrikov et al. 2021)")
    inverse_temperature: Positive = Field(3.0, description="β of the actor (Kostrikov et al. 2021)")
    max_weight: Positive = Field(100.0, description="of an imitated action (Kostrikov et al. 2021)")


class XMTFSettings(Section):
    hidden: tuple[int, ...] = Field((64,), description="widths of the cells' network of the state (ours)")
    units: int = Field(4, ge=1, description="bends of a cell (ours)")
    lr: Positive = Field(1e-3, description="of the cells (ours)")
    states: int = Field(32, ge=1, description="states a step whose order is taught (ours)")
    pairs: int = Field(32, ge=1, description="pairs of shown items a state (ours)")
