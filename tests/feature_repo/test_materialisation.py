"""What our engine and store write is what Feast's own write: every type and null, both stores."""

import sqlite3
from datetime import UTC, date, datetime, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from feature_repo.materialisation import ArrowComputeEngineConfig
from tests.servers import redis_server
from training import features
from training.contract.settings import StoreSettings

D1, D2, D3 = date(2026, 1, 5), date(2026, 1, 6), date(2026, 1, 7)
ENGINE = {"type": ArrowComputeEngineConfig().type}
OURS = "feature_repo.online_store.WideSqliteOnlineStore"
INSTANT = pa.timestamp("us", "UTC")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
COLUMNS = {
    "double": (Float64, pa.float64(), st.floats(allow_nan=True, allow_infinity=True)),
    "single": (Float32, pa.float32(), st.floats(width=32, allow_nan=False)),
    "long": (Int64, pa.int64(), st.integers(-(2**52), 2**52)),
    "short": (Int32, pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "flag": (Bool, pa.bool_(), st.booleans()),
    "text": (String, pa.string(), st.text(max_size=9)),
    "instant": (UnixTimestamp, INSTANT, st.datetimes(datetime(1971, 1, 1), timezones=st.just(UTC))),
    "raw": (Bytes, pa.binary(), st.binary(min_size=1, max_size=9)),
    "list": (
        Array(Float64),
        pa.list_(pa.float64()),
        st.lists(st.floats(allow_nan=False), min_size=1, max_size=3),
    ),
}
NEVER_NULL = {"long", "short", "flag"}  # pandas makes floats of them on Feast's way, and 2**52 of 2**53 + 1


def value(name):
    values = COLUMNS[name][2]
    return values if name in NEVER_NULL else st.none() | values


GENERATE = [Phase.explicit, Phase.reuse, Phase.generate]  # an example takes a second: no shrinking
NOBODY = 2**63 - 1
rows_of_users = st.dictionaries(
    st.integers(-(2**63), NOBODY - 1),
    st.lists(
        st.fixed_dictionaries({"age": st.integers(0, 10**12), **{name: value(name) for name in COLUMNS}}),
        min_size=1,
        max_size=3,
        unique_by=lambda row: row["age"] // 10**6,
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def redis_port():
    with redis_server() as port:
        yield port


def repository(folder, online, **more):
    """A project with one view of every type; ``write`` replaces its source's rows."""
    folder.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(
        config=RepoConfig(
            project="p",
            provider="local",
            registry=str(folder / "registry.db"),
            offline_store={"type": "duckdb"},
            online_store=online,
            entity_key_serialization_version=3,
            **more,
        )
    )
    source = FileSource(name="s", path=str(folder.parent / "rows.parquet"), timestamp_field="event_timestamp")
    write(folder.parent / "rows.parquet", {})
    view = FeatureView(
        name="v",
        entities=[Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)],
        ttl=timedelta(0),
        schema=[
            Field(name="user_id", dtype=Int64),
            *[Field(name=name, dtype=kind) for name, (kind, _, _) in COLUMNS.items()],
        ],
        source=source,
    )
    store.apply([Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64), view])
    return store


def write(path, users):
    flat = [
        {"user_id": user, "event_timestamp": EPOCH + timedelta(days=9000, microseconds=row["age"]), **row}
        for user, rows in users.items()
        for row in rows
    ]
    schema = {"user_id": pa.int64(), "event_timestamp": INSTANT, **{n: t for n, (_, t, _) in COLUMNS.items()}}
    pq.write_table(pa.Table.from_pylist(flat, schema=pa.schema(schema)), path)


def materialised(store, users):
    store.materialize(EPOCH, EPOCH + timedelta(days=30_000))
    entities = [{"user_id": user} for user in users]
    response = store.get_online_features([f"v:{name}" for name in COLUMNS], entities)
    stamps = response.proto.results[1].event_timestamps
    return response.to_dict(), [stamp.seconds for stamp in stamps]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return (
        folder / "rows.parquet",
        repository(folder / "theirs", {"type": "sqlite", "path": str(folder / "theirs" / "o.db")}),
        repository(
            folder / "ours", {"type": OURS, "path": str(folder / "ours" / "o.db")}, batch_engine=ENGINE
        ),
    )


@given(users=rows_of_users)
@hypothesis_settings(max_examples=8, deadline=None, phases=GENERATE)
def test_sqlite_reads_back_as_feasts_own(pair, users):
    path, theirs, ours = pair
    write(path, users)
    expected, found = materialised(theirs, users), materialised(ours, users)
    assert found == expected
    # of equal text too, since 1 == 1.0 == True; SQLite has no minus zero
    assert repr(found).replace("-0.0", "0.0") == repr(expected).replace("-0.0", "0.0")
    names = list(COLUMNS)
    view, own = ours.get_feature_view("v"), list(zip(*(found[0][name] for name in names), strict=True))
    read = ours.provider.online_store.reader(ours.config, [(view, names), (view, names[:2])])
    asked = [*users, NOBODY, *users]  # a user may be asked for twice
    rows = [*own, (None,) * len(names), *own]
    assert repr(read(asked)) == repr([row + row[:2] for row in rows])


@given(users=rows_of_users)
@hypothesis_settings(max_examples=8, deadline=None, phases=GENERATE)
def test_redis_holds_what_feasts_own_writes(redis_port, tmp_path_factory, users):
    folder = tmp_path_factory.getbasetemp() / "redis"
    client = redis.Redis(port=redis_port)
    found = []
    for name, more in (("theirs", {}), ("ours", {"batch_engine": ENGINE})):
        online = {"type": "redis", "connection_string": f"127.0.0.1:{redis_port}", "skip_dedup": True}
        if not (folder / name).exists():
            repository(folder / name, online, **more)
        write(folder / "rows.parquet", users)
        client.flushall()
        store = FeatureStore(
            config=RepoConfig(
                project="p",
                provider="local",
                registry=str(folder / name / "registry.db"),
                offline_store={"type": "duckdb"},
                online_store=online,
                entity_key_serialization_version=3,
                materialization={"pull_latest_features": True},
                **more,
            )
        )
        store.materialize(EPOCH, EPOCH + timedelta(days=30_000))
        found.append({key: client.hgetall(key) for key in client.scan_iter()})
    theirs, ours = found
    assert ours == theirs and len(ours) == len(users)


def test_redis_keys_expire_and_a_refusal_is_raised(redis_port, make_settings, marts, at):
    client = redis.Redis(port=redis_port)
    client.flushall()
    settings = make_settings(
        store=StoreSettings(online="redis", redis_url=f"127.0.0.1:{redis_port}", redis_key_ttl_days=3)
    )
    features.apply(settings)
    marts.write("fct_user_history", D1, [{"user_id": 1, "event_timestamp": at(D2), "hist_count": 7}])
    features.materialise(settings, D1)
    (key,) = client.keys()
    assert 0 < client.ttl(key) <= 3 * 86_400
    client.flushall()
    client.set(key, "no hash")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        features.materialise(settings, D1)
    client.delete(key)
    features.materialise(settings, D1)
    assert client.type(key) == b"hash"


def online(settings, user_id, *names):
    store = FeatureStore(repo_path=str(settings.layout.feast))
    found = store.get_online_features(list(names), [{"user_id": user_id}]).to_dict()
    return [found[name.split(":")[1]][0] for name in names]


def test_a_row_that_names_some_features_leaves_the_others(pair):
    _, _, ours = pair
    view = ours.get_feature_view("v")
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=5)])
    for values in ({"double": Value(double_val=1.5), "flag": Value(bool_val=True)}, {"double": Value()}):
        ours.provider.online_write_batch(ours.config, view, [(key, values, datetime.now(UTC), None)], None)
    ((_, read),) = ours.provider.online_read(ours.config, view, [key], ["double", "flag", "no such"])
    assert read == {"double": Value(), "flag": Value(bool_val=True)}
    assert ours.provider.online_read(ours.config, view, [key], ["text"])[0][1] == {"text": Value()}


def test_another_store_is_filled_with_all_days(redis_port, make_settings, marts, at):
    redis.Redis(port=redis_port).flushall()
    settings = make_settings()
    features.apply(settings)
    marts.write("fct_user_history", D1, [{"user_id": 1, "event_timestamp": at(D2), "hist_count": 7}])
    for day in range(4):
        features.materialise(settings, D1 + timedelta(days=day))
    moved = make_settings(store=StoreSettings(online="redis", redis_url=f"127.0.0.1:{redis_port}"))
    features.apply(moved)
    features.materialise(moved, D1 + timedelta(days=4))
    assert online(moved, 1, "user_history:hist_count") == [7.0]


def test_a_store_of_feasts_layout_is_made_again(settings, marts, at):
    features.apply(settings)
    marts.write("fct_user_history", D1, [{"user_id": 1, "event_timestamp": at(D2), "hist_count": 7}])
    features.materialise(settings, D1)
    configuration = settings.layout.feast / "feature_store.yaml"
    configuration.write_text(configuration.read_text().replace(OURS, "sqlite"))
    (settings.layout.feast / "online.db").unlink()
    with sqlite3.connect(settings.layout.feast / "online.db") as connection:
        connection.execute(
            "CREATE TABLE mtf_user_history (entity_key BLOB, feature_name TEXT, value BLOB, event_ts INT)"
        )
    features.apply(settings)
    features.materialise(settings, D1 + timedelta(days=9))
    assert online(settings, 1, "user_history:hist_count") == [7.0]


def test_a_feature_of_another_type_is_unknown_until_written(settings, marts, at):
    features.apply(settings)
    rows = [{"user_id": 1, "event_timestamp": at(D1, 3), "is_author": 1, "degree": "low", "fans": 5}]
    marts.write("dim_users", D1, rows)
    features.materialise(settings, D1)
    with sqlite3.connect(settings.layout.feast / "online.db") as connection:
        connection.execute("ALTER TABLE mtf_user_profile DROP COLUMN fans")
        connection.execute("ALTER TABLE mtf_user_profile ADD COLUMN fans TEXT DEFAULT 'many'")
    features.apply(settings)
    assert online(settings, 1, "user_profile:fans", "user_profile:degree") == [None, "low"]


def test_a_history_past_its_ttl_ends_online_and_offline_alike(make_settings, marts, at):
    settings = make_settings(store=StoreSettings(history_ttl_days=2))
    features.apply(settings)
    rows = [{"user_id": 1, "event_timestamp": at(D2), "hist_count": 7}]
    marts.write("fct_user_history", D1, rows)
    marts.write("dim_users", D1, [{"user_id": 1, "event_timestamp": at(D1, 3), "degree": "low"}])
    for day in range(4):
        record = features.materialise(settings, D1 + timedelta(days=day))
        known = online(settings, 1, "user_history:hist_count")[0]
        noon = at(D1 + timedelta(days=day + 1), 12)
        asked = pd.DataFrame({"user_id": [1], "event_timestamp": [pd.Timestamp(noon)]})
        offline = features.historical(settings, asked)["hist_count"][0]
        assert (known, record["purged"]["user_history"]) == ((7.0, 0) if day < 3 else (None, 1))
        assert pd.isna(offline) if known is None else offline == known
    assert online(settings, 1, "user_profile:degree") == ["low"]
    features.apply(make_settings())  # now it lives for ever: it is materialised anew
    features.materialise(make_settings(), D1 + timedelta(days=5))
    assert online(settings, 1, "user_history:hist_count") == [7.0]


def test_ended_sessions_leave_the_store(settings, at):
    features.apply(settings)
    store = FeatureStore(repo_path=str(settings.layout.feast))
    view = store.get_feature_view("user_session")
    for user, instant in ((1, at(D1, 9)), (2, at(D2, 23))):
        key = EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user)])
        values = {"sess_session_id": Value(string_val="a")}
        store.provider.online_write_batch(store.config, view, [(key, values, instant, None)], None)
    assert features.materialise(settings, D2)["purged"] == {"user_session": 1}
    assert online(settings, 1, "user_session:sess_session_id") == [None]
    assert online(settings, 2, "user_session:sess_session_id") == ["a"]
