"""Taking a user out of the online store, whichever the settings name."""

from feast import FeatureStore
from feast.infra.online_stores.redis import RedisOnlineStore

from feature_repo.feast_hooks import redis_client
from feature_repo.online_store import WideSqliteOnlineStore, key_of


def forget(store: FeatureStore, user: int | str) -> int:
    """Remove the user's features; how many rows (of SQLite, one a view) or hashes (of Redis) there were."""
    online, config = store.provider.online_store, store.config
    views = store.list_feature_views()
    if not views:
        return 0
    entity = views[0].entity_columns[0]  # all views have the one entity
    key = key_of(config, entity.name, entity.dtype.to_value_type())(user)
    if isinstance(online, WideSqliteOnlineStore):
        return online.forget(config, key)
    assert isinstance(online, RedisOnlineStore)
    return int(redis_client(online, config).delete(key + config.project.encode()))
