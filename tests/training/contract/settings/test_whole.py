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


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"store": {"redis_cluster": True}}, "redis_cluster is for online: redis"),
        ({"store": {"online": "redis", "redis_url": "a:1,b:1"}}, "set redis_cluster: true"),
        (
            {"store": {"online": "redis", "redis_cluster": True}, "serving": {"index": "redis"}},
            "serving.index: redis needs one Redis server",
        ),
    ],
)
def test_a_redis_cluster_is_named_as_one_and_holds_states_alone(sections, said) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**sections)


def test_a_file_as_online_store_is_for_local_executors() -> None:
    warehouse = {"engine": "spark", "spark": {"master": "spark://a.internal:7077"}}
    with pytest.raises(ValueError, match=r"executors of spark://a.internal:7077 .* set store.online: redis"):
        Settings(warehouse=warehouse)
    Settings(warehouse=warehouse, store={"online": "redis"})
    Settings(warehouse=warehouse | {"engine": "duckdb"})
