"""Which policy is served? The gate, the model registry, promotion and rollback."""

from collections.abc import Mapping
from datetime import date
from typing import Any

from training.contract.settings import Settings
from training.promotion.champion import champion_before, champion_policy, history, promote, rollback
from training.promotion.gate import gate

__all__ = ["champion_before", "champion_policy", "gate", "history", "promote", "rollback"]
