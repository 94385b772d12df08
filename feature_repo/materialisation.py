"""Feast's compute engine for materialising: Arrow from the offline store straight into the online store.

Feast's local engine turns every value into a protobuf message, by way of pandas, and hands them over a
row at a time. This one, which ``feature_store.yaml`` names as the ``batch_engine``, hands a column at a
time to the two stores that it knows, and leaves everything else to Feast's. ``feast materialize`` and
``FeatureStore.materialize`` call it like any other. Where Spark is the offline store, its executors write,
and no row comes to the driver.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.compute_engines.backends.factory import BackendFactory
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore, RedisType
from feast.infra.provider import get_provider
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import load_repo_config
from feast.type_map import python_values_to_proto_values
from feast.types import FeastType, Float64
from google.protobuf.timestamp_pb2 import Timestamp
from redis import RedisCluster

from feature_repo.feast_hooks import redis_client, redis_field
from feature_repo.online_store import entity_keys, sliced

USERS_A_PIPELINE = 2_000  # Redis answers others between two of them: about 10 ms each

Write = Callable[[FeatureView, pa.Table], None]


class ArrowComputeEngineConfig(LocalComputeEngineConfig):
    type: Literal["feature_repo.materialisation.ArrowComputeEngine"] = (
        "feature_repo.materialisation.ArrowComputeEngine"  # type: ignore[assignment]  # Feast's says "local"
    )


class ArrowComputeEngine(LocalComputeEngine):
    """Materialises plain views in columns; a view that transforms or aggregates as Feast's engine does."""

    def materialize(
        self,
        registry: BaseRegistry,
        tasks: MaterializationTask | list[MaterializationTask],
        **kwargs: Any,
    ) -> list[MaterializationJob]:
        jobs: list[MaterializationJob] = []
        for task in tasks if isinstance(tasks, list) else [tasks]:
            view, write = task.feature_view, _writer(self.online_store, self.repo_config)
            if write is None or type(view) is not FeatureView or not view.online or view.offline:
                jobs += super().materialize(registry, task, **kwargs)
            else:
                jobs.append(self._in_columns(registry, task, write))
        return jobs

    def _in_columns(
        self, registry: BaseRegistry, task: MaterializationTask, write: Write
    ) -> LocalMaterializationJob:
        view = task.feature_view
        assert view.batch_source is not None  # a plain view has one
        job_id = f"{view.name}-{task.start_time}-{task.end_time}"
        try:
            columns = LocalFeatureBuilder(
                registry, task, backend=BackendFactory.from_name("pandas")
            ).get_column_info(view)
            # the latest row of each user, whatever pull_latest_features says: no other is wanted
            job = self.offline_store.pull_latest_from_table_or_query(
                config=self.repo_config,
                data_source=view.batch_source,
                join_key_columns=columns.join_keys,
                feature_name_columns=columns.feature_cols,
                timestamp_field=columns.ts_col,
                created_timestamp_column=columns.created_ts_col,
                start_date=task.start_time,
                end_date=task.end_time,
            )
            if hasattr(job, "to_spark_df"):
                _write_by_executors(job.to_spark_df(), view, self.online_store, self.repo_config)
            else:
                rows = job.to_arrow()
                if columns.field_mapping:
                    rows = rows.rename_columns([columns.field_mapping.get(c, c) for c in rows.column_names])
                if len(rows):
                    write(view, rows)
        except Exception as error:  # Feast raises it from the job
            return LocalMaterializationJob(job_id, MaterializationJobStatus.ERROR, error)
        return LocalMaterializationJob(job_id, MaterializationJobStatus.SUCCEEDED)


def _writer(store: Any, config: RepoConfig) -> Write | None:
    """Writes columns to the stores that we know."""
    if hasattr(store, "write_arrow"):
        return lambda view, rows: store.write_arrow(config, view, rows)
    if (
        isinstance(store, RedisOnlineStore)
        and config.online_store.redis_type in (RedisType.redis, RedisType.redis_cluster)
        and config.online_store.skip_dedup
    ):
        return lambda view, rows: write_redis(store, config, view, rows)
    return None


def _write_by_executors(frame: Any, view: FeatureView, store: Any, config: RepoConfig) -> None:
    """Let those of a data frame of Spark's write its rows; one of them where the store is a file."""
    if not isinstance(store, RedisOnlineStore):
        frame = frame.repartition(1)
    definition, folder = view.to_proto().SerializeToString(), str(config.repo_path)

    def written(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return _written(batches, definition, folder)

    frame.mapInArrow(written, "users bigint").agg({"users": "sum"}).collect()


def _written(batches: Iterable[pa.RecordBatch], definition: bytes, folder: str) -> Iterator[pa.RecordBatch]:
    """On an executor: it reads ``feature_store.yaml`` itself, so no password is sent to it."""
    config = load_repo_config(Path(folder), Path(folder) / "feature_store.yaml")
    view = FeatureView.from_proto(FeatureViewProto.FromString(definition))
    write = _writer(get_provider(config).online_store, config)
    assert write is not None  # the driver has one
    for batch in batches:
        if batch.num_rows:
            write(view, pa.Table.from_batches([batch]))
        yield pa.RecordBatch.from_pydict({"users": [batch.num_rows]})


def write_redis(store: RedisOnlineStore, config: RepoConfig, view: FeatureView, rows: pa.Table) -> None:
    """Write a hash a user in Feast's own layout, with the commands encoded here, many at a time.

    Of a cluster each server gets the commands of its own keys; one that is failing over fails the write.
    Raises redis-py's ``ResponseError`` for the first command that the server refused.
    """
    assert view.batch_source is not None  # a plain view has one
    name = compute_versioned_name(view, config.registry.enable_online_feature_view_versioning)
    project = config.project.encode()
    lifetime = config.online_store.key_ttl_seconds
    head = b"*%d\r\n$4\r\nHSET\r\n" % (4 + 2 * len(view.features))
    expiry = b"" if not lifetime else _bulk(str(lifetime).encode())
    client = redis_client(store, config)
    for first in range(0, len(rows), USERS_A_PIPELINE):
        part = rows.slice(first, USERS_A_PIPELINE)
        keys = [key + project for key in entity_keys(config, view, part)]
        stamps = _stamps(part[view.batch_source.timestamp_field])
        columns = [
            [_bulk(f"_ts:{name}".encode()) + stamp for stamp in stamps],
            *[
                _field(redis_field(name, field.name), part[field.name], field.dtype)
                for field in view.features
            ],
        ]
        commands: dict[Any, list[bytes]] = defaultdict(list)
        for key, *pairs in zip(keys, *columns, strict=True):
            whole, own = _bulk(key), commands[_pool(client, key)]
            own.append(head + whole + b"".join(pairs))
            if lifetime:
                own.append(b"*3\r\n$6\r\nEXPIRE\r\n" + whole + expiry)
        for pool, own in commands.items():
            _send(pool, own)


def _pool(client: Any, key: bytes) -> Any:
    """The connections to the server that has the key."""
    if isinstance(client, RedisCluster):
        cluster: Any = client  # whose methods have no types
        client = cluster.get_redis_connection(cluster.get_node_from_key(key))
    return client.connection_pool


def _send(pool: Any, commands: list[bytes]) -> None:
    connection = pool.get_connection()
    try:
        connection.send_packed_command([b"".join(commands)])
        answers = [connection.read_response() for _ in commands]
        refused = next((a for a in answers if isinstance(a, Exception)), None)
        if refused is not None:
            raise refused
    except BaseException:
        connection.disconnect()  # answers may be left in it
        raise
    finally:
        pool.release(connection)


def _field(key: bytes, column: pa.ChunkedArray, dtype: FeastType) -> list[bytes]:
    """Name and value of one feature's hash field, encoded, for every row."""
    name = _bulk(key)
    if dtype is Float64:
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        # of a double's message the tag is one byte and the value eight
        one = name + b"$9\r\n" + Value(double_val=0.0).SerializeToString() + b"\r\n"
        whole = np.empty((len(values), len(one)), dtype=np.uint8)
        whole[:] = np.frombuffer(one, np.uint8)
        whole[:, -10:-2] = values.astype("<f8").view(np.uint8).reshape(-1, 8)
        encoded = sliced(whole)
        for row in np.flatnonzero(np.isnan(values)):
            encoded[row] = name + b"$0\r\n\r\n"
        return encoded
    if pa.types.is_nested(column.type):
        distinct, places = column, range(len(column))
    else:  # few distinct values, as a rule: each is encoded once
        coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        distinct, places = coded.dictionary, coded.indices.to_numpy().tolist()
    values = python_values_to_proto_values(distinct.to_numpy(zero_copy_only=False), dtype.to_value_type())
    encoded = [name + _bulk(value.SerializeToString()) for value in values]
    return [encoded[place] for place in places]


def _stamps(column: pa.ChunkedArray) -> list[bytes]:
    micros = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    distinct, places = np.unique(micros, return_inverse=True)
    encoded = [
        _bulk(Timestamp(seconds=int(m // 1_000_000), nanos=int(m % 1_000_000) * 1_000).SerializeToString())
        for m in distinct
    ]
    return [encoded[place] for place in places.tolist()]


def _bulk(value: bytes) -> bytes:
    """One argument of a command, as Redis' protocol has it."""
    return b"$%d\r\n%b\r\n" % (len(value), value)
