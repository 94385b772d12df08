"""Taking a user out of the online store, whichever the settings name."""

from training.contract.log import Id
from training.contract.settings import Settings
from training.features.store import open_store, quiet


def forget(settings: Settings, user: Id) -> int:
    """Remove the user's features; how many rows (of SQLite, one a view) or hashes (of Redis) there were."""
    from feature_repo import forgetting

    if not (settings.layout.feast / "feature_store.yaml").exists():
        return 0
    with quiet():
        return forgetting.forget(open_store(settings), user)
