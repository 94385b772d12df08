"""Which private names of Feast do we rely on? All of them are here.

``tests/test_private_hooks.py`` says for which versions they hold, and checks that they do.
"""

from typing import Any

from feast import RepoConfig
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore


def redis_client(store: OnlineStore, config: RepoConfig) -> Any:
    """The redis-py client, ``Redis`` or ``RedisCluster``, that a store in Redis reads and writes by; it is
    made at the first call."""
    assert isinstance(store, RedisOnlineStore)
    return store._get_client(config.online_store)


def redis_field(view: str, feature: str) -> bytes:
    """The name of a feature's field in a user's hash."""
    return _mmh3(f"{view}:{feature}")
