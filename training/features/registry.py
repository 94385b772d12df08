"""Register what ``feature_repo`` defines, and make the stores ready to be read."""

from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from training.contract import databases
from training.contract.files import write_atomic, write_text_atomic
from training.contract.settings import Settings
from training.features import offline
from training.features.store import PROJECT, quiet

if TYPE_CHECKING:
    from feast import FeatureView

EMPTY_DAY = date(1970, 1, 1)


def apply(settings: Settings) -> dict[str, Any]:
    """Register every definition of ``feature_repo`` and make the online store ready to be read.

    Idempotent. It writes ``feature_store.yaml``, the one configuration that Feast's own command line
    and the service read too, and an empty partition for each mart, so that features can be read
    before the first day was transformed. A view whose columns changed or whose rows live longer than
    before is materialised anew, and so are all of them in another online store.
    Returns ``{"project", "service", "views": {name: columns}}``.
    """
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    from feature_repo import entities, feature_services, features

    folder = settings.layout.feast.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = _configuration(settings, folder)
    _drop_broken(folder / "registry.db")
    if _place(folder / "feature_store.yaml") not in (None, _online(configuration)):
        # of this folder: where it was moved, the file still names the registry of the other place
        before = FeatureStore(config=RepoConfig(**configuration, repo_path=folder))
        for view in before.list_feature_views():  # how far it was materialised is true of that store only
            before.registry.delete_feature_view(view.name, PROJECT)
    write_text_atomic(folder / "feature_store.yaml", yaml.safe_dump(configuration))
    store = FeatureStore(repo_path=str(folder))
    views = features.views(settings)
    service = feature_services.state(settings)
    for view in views:
        _write_empty_partition(settings, view)
    registered = {view.name: view for view in store.list_feature_views()}
    for view in views:
        known = registered.get(view.name)
        if known is not None and (_columns(known) != _columns(view) or _outlives(view.ttl, known.ttl)):
            # forgets how far it was materialised: what is new is wanted for all days
            store.registry.delete_feature_view(view.name, PROJECT)
    with quiet():
        store.apply([entities.user(settings), *views, service])
    return {
        "project": PROJECT,
        "service": service.name,
        "views": {view.name: _columns(view) for view in views},
    }


def _configuration(settings: Settings, folder: Path) -> dict[str, Any]:
    # not by its name alone: who follows the imports (dags/sources.py) sees what Feast will load
    from feature_repo.materialisation import ArrowComputeEngineConfig

    online: dict[str, Any] = {"type": settings.store.online_type, "path": str(folder / "online.db")}
    if settings.store.online == "redis":
        # skip_dedup: a row corrected by late data keeps its timestamp and must still be written;
        # going backwards is prevented by the window of materialise() and by the session rules
        online = {
            "type": "redis",
            "connection_string": databases.redis(settings),
            "skip_dedup": True,
        }
        if settings.store.redis_cluster:
            online["redis_type"] = "redis_cluster"
        if settings.store.redis_key_ttl_days:
            online["key_ttl_seconds"] = settings.store.redis_key_ttl_days * 86_400
    registry = {"path": str(folder / "registry.db"), "cache_ttl_seconds": 0}  # never expires
    if "feast" in settings.postgres.uses:
        registry |= {"registry_type": "sql", "path": settings.postgres.url("feast")}
    return {
        "project": PROJECT,
        "provider": "local",
        "registry": registry,
        "offline_store": offline.configuration(settings),
        "online_store": online,
        "entity_key_serialization_version": 3,
        "batch_engine": {"type": ArrowComputeEngineConfig().type},
    }


def _online(configuration: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and place of a configuration's online store."""
    online = configuration["online_store"]
    place = online["path"] if "path" in online else online["connection_string"].split(",")[0]
    return online.get("redis_type", online["type"]), place


def _place(file: Path) -> tuple[str, str] | None:
    return _online(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.exists() else None


def _outlives(ttl: timedelta | None, before: timedelta | None) -> bool:
    """Whether rows live longer than before; no ttl is for ever."""
    if not before:
        return False
    return not ttl or ttl > before


def _drop_broken(registry: Path) -> None:
    """Remove a registry that a kill left half-written: it is made again from the definitions."""
    from feast.protos.feast.core.Registry_pb2 import Registry
    from google.protobuf.message import DecodeError

    if registry.exists():
        try:
            Registry.FromString(registry.read_bytes())
        except DecodeError:
            registry.unlink()


def _columns(view: "FeatureView") -> dict[str, str]:
    return {field.name: str(field.dtype) for field in view.features}


def _write_empty_partition(settings: Settings, view: "FeatureView") -> None:
    """A partition without rows, first in the order of days, so that there is one to read.

    It fixes the mart's column types for DuckDB. Spark wants every day's to be the same, and casts itself.
    """
    assert view.batch_source is not None  # every view of ours has one
    mart = settings.layout.mart(view.batch_source.name)
    path = mart / f"dt={EMPTY_DAY.isoformat()}" / "part-0.parquet"
    schema = _schema(settings, view)
    if settings.warehouse.engine == "spark":
        days = sorted(other for other in mart.glob("dt=*/part-0.parquet") if other != path)
        schema = pq.read_schema(days[-1]) if days else schema
    if not path.exists() or pq.read_schema(path) != schema:
        write_atomic(path, lambda temporary: pq.write_table(schema.empty_table(), temporary))


def _schema(settings: Settings, view: "FeatureView") -> pa.Schema:
    """The columns that the view reads, of its types."""
    from feast.types import FeastType, Float64, Int64, String, UnixTimestamp

    instant = pa.timestamp("us", "UTC")
    types: dict[FeastType, pa.DataType] = {
        Float64: pa.float64(),
        Int64: pa.int64(),
        String: pa.string(),
        UnixTimestamp: instant,
    }
    assert view.batch_source is not None
    return pa.schema(
        [
            *[pa.field(column.name, types[column.dtype]) for column in view.entity_columns],
            pa.field(view.batch_source.timestamp_field, instant),
            *[pa.field(field.name, types[field.dtype]) for field in view.features],
        ]
    )
