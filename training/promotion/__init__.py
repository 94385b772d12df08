"""Which policy is served? The gate, the model registry, promotion and rollback."""

from training.promotion.champion import champion_before, champion_policy, history, promote, rollback
from training.promotion.choice import choose, swept
from training.promotion.gate import gate

__all__ = [
    "champion_before",
    "champion_policy",
    "choose",
    "gate",
    "history",
    "promote",
    "rollback",
    "swept",
]
