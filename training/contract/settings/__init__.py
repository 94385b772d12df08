"""The one settings file: typed, checked, and refused with the offending line.

A file a section, put together in :mod:`training.contract.settings.whole` and read by
:mod:`training.contract.settings.loader`. Every default says where it is from: ``(paper)`` is BatchRL-MTF,
KDD 2022; ``(ours)`` is a choice the paper leaves open. Any value can be overridden by the environment:
``MTF__LEARNER__STEPS=5000`` sets ``learner.steps``; lists and mappings are given as JSON.
"""

from training.contract.settings.algorithms import (
    Algorithm,
    BatchRLMTFSettings,
    CQLSACSettings,
    IQLSettings,
    ReturnRegressionSettings,
    TD3BCSettings,
    TD3Settings,
    UnifiedRLSettings,
    UWACSettings,
    XMTFSettings,
)
from training.contract.settings.days import CalendarSettings, SessionSettings, is_zone
from training.contract.settings.evaluation import Estimator, EvaluationSettings
from training.contract.settings.gate import GateSettings
from training.contract.settings.heads import DEFAULT_HEADS, HeadSettings
from training.contract.settings.ids import IdKind, IdSettings
from training.contract.settings.learner import LearnerSettings
from training.contract.settings.loader import DEFAULT_FILE, SETTINGS_VARIABLE, load_settings, settings_path
from training.contract.settings.logs import LogsSettings
from training.contract.settings.orchestration import AlertSettings, LineageSettings, OrchestrationSettings
from training.contract.settings.retention import RetentionSettings
from training.contract.settings.reward import DEFAULT_SIGNALS, RewardSettings, SignalSettings
from training.contract.settings.serving import (
    CanaryStep,
    GuardrailSettings,
    ServingSettings,
    ShareSettings,
    ShipSettings,
    check_shares,
)
from training.contract.settings.state import ProfileFeature, StateSettings
from training.contract.settings.stores import PostgresSettings, StoreSettings
from training.contract.settings.validation import ValidationSettings, Verdict, VerdictSettings
from training.contract.settings.warehouse import SparkSettings, WarehouseSettings
from training.contract.settings.whole import ENV_PREFIX, Settings
from training.contract.settings.world import UpstreamSettings, WorldSettings

__all__ = [
    "DEFAULT_FILE",
    "DEFAULT_HEADS",
    "DEFAULT_SIGNALS",
    "ENV_PREFIX",
    "SETTINGS_VARIABLE",
    "AlertSettings",
    "Algorithm",
    "BatchRLMTFSettings",
    "CQLSACSettings",
    "CalendarSettings",
    "CanaryStep",
    "Estimator",
    "EvaluationSettings",
    "GateSettings",
    "GuardrailSettings",
    "HeadSettings",
    "IQLSettings",
    "IdKind",
    "IdSettings",
    "LearnerSettings",
    "LineageSettings",
    "LogsSettings",
    "OrchestrationSettings",
    "PostgresSettings",
    "ProfileFeature",
    "RetentionSettings",
    "ReturnRegressionSettings",
    "RewardSettings",
    "ServingSettings",
    "SessionSettings",
    "Settings",
    "ShareSettings",
    "ShipSettings",
    "SignalSettings",
    "SparkSettings",
    "StateSettings",
    "StoreSettings",
    "TD3BCSettings",
    "TD3Settings",
    "UWACSettings",
    "UnifiedRLSettings",
    "UpstreamSettings",
    "ValidationSettings",
    "Verdict",
    "VerdictSettings",
    "WarehouseSettings",
    "WorldSettings",
    "XMTFSettings",
    "check_shares",
    "is_zone",
    "load_settings",
    "settings_path",
]
