"""All settings together: frozen, and what the sections make in common."""

import pytest

from training.contract.settings import Settings


def test_settings_are_frozen_and_the_spec_follows_the_profile() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 8
    names = settings.state_spec.entry_names
    assert names[:2] == ["user_active_degree=full_active", "user_active_degree=high_active"]
    assert settings.fusion.names == tuple(head.name for head in settings.heads)
