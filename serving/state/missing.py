"""Is there an online store at all? Told without importing what reads it, which takes seconds."""

from pathlib import Path

from training.contract.errors import MtfError
from training.contract.settings import Settings

NONE_YET = "there is no feature store yet"


class StoreError(MtfError):
    """The online store gave no state, or took none: missing, failing, or too slow."""


def configuration(settings: Settings) -> Path:
    """Feast's own file, which names registry and store. Raises :class:`StoreError` before a day wrote it."""
    path = _file(settings)
    if not path.exists():
        raise StoreError(f"{NONE_YET}: {path} is written by the first `mtf day`")
    return path


def is_there(settings: Settings) -> bool:
    """Whether a day has made a store; a service that runs may not have opened it yet."""
    return _file(settings).exists()


def _file(settings: Settings) -> Path:
    return settings.layout.feast.absolute() / "feature_store.yaml"


def named(settings: Settings) -> str:
    """The online store, by its setting."""
    store = settings.store
    where = f"store.redis_url: {store.redis_url}" if store.online == "redis" else "store.online: sqlite"
    return f"the online store ({where})"
