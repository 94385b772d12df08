"""The feature store that is registered: opening it, its views' names, and up to when a row is usable."""

import contextlib
import io
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import pandas as pd

from training.contract.errors import DataError
from training.contract.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore, FeatureView

Instants = TypeVar("Instants", datetime, pd.Series)

PROJECT = "mtf"
# never materialised: its online row is pushed by the service and is at least as new as the batch row
PUSHED = "user_session"
HISTORY = "user_history"
CHANGED = "user_profile"  # its rows are stamped when they changed, on the day that brings them
MICROSECOND = timedelta(microseconds=1)


def open_store(settings: Settings) -> "FeatureStore":
    """The store that :func:`training.features.apply` made; :class:`DataError` where it has not yet."""
    from feast import FeatureStore

    folder = settings.layout.feast.absolute()
    if not (folder / "feature_store.yaml").exists():
        raise DataError(f"{folder} holds no feature store yet: training.features.apply makes it")
    return FeatureStore(repo_path=str(folder))


def state_service(settings: Settings, store: "FeatureStore") -> "FeatureService":
    """The inputs of the settings' state specification."""
    return store.get_feature_service(f"state_{settings.state_spec.version}")


def usable(view: str, midnight: Instants) -> Instants:
    """The last stamp of a view's rows that a day beginning at ``midnight`` is served with."""
    return midnight - MICROSECOND if view == CHANGED else midnight


@contextlib.contextmanager
def readable(view: "FeatureView") -> Iterator[None]:
    """Turns what cannot be read of the view's mart into a :class:`DataError` that names it."""
    try:
        yield
    except _unreadable(view) as error:
        source: Any = view.batch_source
        raise DataError(f"cannot read the export of {source.name} ({source.path}): {error}") from error


def _unreadable(view: "FeatureView") -> type[Exception]:
    """What the offline store raises of files and columns; of Spark all else may pass with another try."""
    from feast import FileSource

    if isinstance(view.batch_source, FileSource):
        return duckdb.Error
    from pyspark.errors import AnalysisException

    return AnalysisException


def quiet() -> contextlib.redirect_stdout[io.StringIO]:
    """Feast prints what it does; a stage's account of itself is its record."""
    return contextlib.redirect_stdout(io.StringIO())
