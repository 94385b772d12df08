"""What ``feast apply`` registers: every definition, for the settings file in ``$MTF_SETTINGS``.

``feast -c feature_repo -f <data>/feast/feature_store.yaml apply`` does what
:func:`training.features.apply` does, which also writes that ``feature_store.yaml``.
"""

from feature_repo import entities, feature_services, features
from training.contract.settings import load_settings

_settings = load_settings()

user = entities.user(_settings)
user_profile = features.user_profile(_settings)
user_history = features.user_history(_settings)
user_session = features.user_session(_settings)
state = feature_services.state(_settings)
