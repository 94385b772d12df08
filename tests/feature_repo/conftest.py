"""dbt's exports as Feast reads them, written straight as Parquet."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.contract.settings import ProfileFeature, Settings, SignalSettings, StateSettings
from training.contract.state import history_columns, session_columns

INSTANT = pa.timestamp("us", "UTC")
Rows = Sequence[Mapping[str, Any]]


class Marts:
    """Writes partitions the way the warehouse exports them; numbers not given are zero."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        history = dict.fromkeys(history_columns(settings.signal_names), pa.float64())
        sums = dict.fromkeys(session_columns(settings.signal_names, settings.head_names), pa.float64())
        # int8 and int32 as dbt gives them: the views' types are wider
        kinds = {"flag": pa.int8(), "categorical": pa.string(), "numeric": pa.float64(), "log": pa.int32()}
        profile = {p.column: kinds[p.kind] for p in settings.state.profile}
        users = {"int64": pa.int64(), "string": pa.string()}[settings.ids.kept("user_id")]
        keys = {"user_id": users, "event_timestamp": INSTANT, "dt": pa.date32()}
        self.schemas = {
            "dim_users": pa.schema({**keys, **profile}),
            "fct_user_history": pa.schema({**keys, **history, "hist_last_ts": INSTANT}),
            "fct_session_state": pa.schema(
                {
                    **keys,
                    "session_id": pa.string(),
                    **sums,
                    "sess_session_id": pa.string(),
                    "sess_last_ts": INSTANT,
                    "request_id": pa.string(),
                }
            ),
        }

    def write(self, mart: str, day: date, rows: Rows) -> Path:
        schema = self.schemas[mart]
        columns = {
            field.name: [
                day
                if field.name == "dt"
                else row.get(field.name, 0.0 if pa.types.is_floating(field.type) else None)
                for row in rows
            ]
            for field in schema
        }
        path = self.settings.layout.mart(mart) / f"dt={day.isoformat()}" / "part-0.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns, schema=schema), path)
        return path


def small_settings(data: Path, **sections: Any) -> Settings:
    """Two signals and three profile columns, one of each awkward kind."""
    sections.setdefault(
        "state",
        StateSettings(
            profile=(
                ProfileFeature(column="degree", kind="categorical", categories=("full", "low")),
                ProfileFeature(column="is_author", kind="flag"),
                ProfileFeature(column="fans", kind="log"),
            )
        ),
    )
    sections.setdefault(
        "signals",
        (SignalSettings(name="click", column="is_click"), SignalSettings(name="like", column="is_like")),
    )
    return Settings(data=data, **sections)


def local(settings: Settings, day: date, hour: float = 0.0) -> datetime:
    """``hour`` o'clock of a local day, as an instant in UTC."""
    return settings.day_start(day) + timedelta(hours=hour)


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    def make(folder: str = "data", **sections: Any) -> Settings:
        return small_settings(tmp_path / folder, **sections)

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


@pytest.fixture
def marts(settings: Settings) -> Marts:
    return Marts(settings)


@pytest.fixture
def at(settings: Settings) -> Callable[..., datetime]:
    return lambda day, hour=0.0: local(settings, day, hour)
