"""Materialising users into the online store: `feast materialize` as it comes, ours, and the floor of each.

The default state's profile and history, a row a user, in DuckDB's Parquet; every side in a process of its
own, imports left out. Feast as it comes has the SQLite or Redis store and the local engine without options.
The floor in SQLite writes the rows that a side left behind into an empty file of the same schema, one
``executemany`` a transaction; in Redis it is the processor time of the server itself.

python -m tests.benchmarks materialise --users 100000 1000000 --stores sqlite redis
"""

import argparse
import multiprocessing
import resource
import shutil
import sqlite3
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
import yaml

from tests.benchmarks.publish import table
from tests.servers import redis_server
from training.contract.settings import Settings, StoreSettings
from training.contract.state import history_columns

DAY = date(2026, 1, 5)
SAMPLE = 1_000  # users that are read back from either side and compared


def write_marts(settings: Settings, users: int) -> None:
    """A profile and a history of every user, in no order of the users."""
    rng = np.random.default_rng(settings.seed)
    ids = rng.permutation(users).astype(np.int64)
    start, end = settings.day_start(DAY), settings.day_start(DAY + timedelta(days=1))

    def stamps(instant: Any, spread: int) -> pa.Array:
        first = np.datetime64(instant.replace(tzinfo=None), "us")
        values = first + rng.integers(0, spread, users).astype("timedelta64[us]")
        return pa.array(values).cast(pa.timestamp("us", "UTC"))

    profile: dict[str, Any] = {"user_id": ids, "event_timestamp": stamps(start, 86_400 * 10**6)}
    for column in settings.state.profile:
        if column.kind == "categorical":
            profile[column.column] = rng.choice(list(column.categories), users)
        elif column.kind == "flag":
            profile[column.column] = rng.integers(0, 2, users).astype(np.int8)
        else:
            profile[column.column] = rng.integers(0, 5_000, users).astype(np.float64)
    history: dict[str, Any] = {"user_id": ids, "event_timestamp": stamps(end, 1)}
    history |= {name: rng.random(users) for name in history_columns(settings.signal_names)}
    history["hist_last_ts"] = stamps(start, 86_400 * 10**6)
    for mart, columns in (("dim_users", profile), ("fct_user_history", history)):
        path = settings.layout.mart(mart) / f"dt={DAY}" / "part-0.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)


def settings_of(folder: Path, port: int | None) -> Settings:
    store = StoreSettings(online="redis", redis_url=f"127.0.0.1:{port}") if port else StoreSettings()
    return Settings(data=folder, store=store)


def materialise(folder: Path, port: int | None, default: bool, times: int) -> list[dict[str, Any]]:
    """Apply and materialise, in this process; one measurement a time."""
    from training import features

    settings = settings_of(folder, port)
    features.apply(settings)
    if default:
        file = settings.layout.feast / "feature_store.yaml"
        configuration = yaml.safe_load(file.read_text())
        del configuration["batch_engine"]
        online = {"type": "sqlite", "path": str(settings.layout.feast / "online.db")}
        if port:
            online = {"type": "redis", "connection_string": f"127.0.0.1:{port}"}
        else:
            (settings.layout.feast / "online.db").unlink()
        file.write_text(yaml.safe_dump(configuration | {"online_store": online}))
        apply_as_it_is(settings)
    return [timed(lambda: store_materialise(settings)) for _ in range(times)]


def apply_as_it_is(settings: Settings) -> None:
    from feast import FeatureStore

    from feature_repo import entities, features

    store = FeatureStore(repo_path=str(settings.layout.feast))
    store.apply([entities.user(settings), *features.views(settings)])


def store_materialise(settings: Settings) -> None:
    """What ``feast materialize`` does, for the two views that a day materialises."""
    from feast import FeatureStore

    start, end = settings.day_start(DAY), settings.day_start(DAY + timedelta(days=1))
    FeatureStore(repo_path=str(settings.layout.feast)).materialize(
        start, end, feature_views=["user_profile", "user_history"]
    )


def timed(run: Any) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def sampled(folder: Path, users: int) -> dict[str, list[Any]]:
    """What the SDK reads of some users, by feature."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(settings_of(folder, None).layout.feast))
    views = [store.get_feature_view(name) for name in ("user_profile", "user_history")]
    names = [f"{view.name}:{feature.name}" for view in views for feature in view.features]
    ids = np.random.default_rng(1).choice(users, min(SAMPLE, users), replace=False)
    return store.get_online_features(names, [{"user_id": int(user)} for user in ids]).to_dict()


def write_again(database: Path, target: Path) -> dict[str, Any]:
    """The floor: every row of a store's tables into an empty file of the same schema."""

    def copy() -> None:
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(target)) as sink:
            sink.execute("PRAGMA journal_mode=WAL")
            sink.execute("PRAGMA synchronous=NORMAL")
            schema = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
            tables = source.execute(f"{schema} ORDER BY type DESC").fetchall()
            for _, _, statement in tables:
                sink.execute(statement)
            for kind, name, _ in tables:
                if kind != "table":
                    continue
                rows = source.execute(f'SELECT * FROM "{name}" ORDER BY entity_key')  # noqa: S608
                marks = ",".join("?" * len(rows.description))
                for part in batches(rows, 100_000):
                    with sink:
                        sink.executemany(f'INSERT INTO "{name}" VALUES ({marks})', part)  # noqa: S608

    return timed(copy)


def batches(rows: Any, size: int) -> Any:
    while part := rows.fetchmany(size):
        yield part


def alone(function: Any, *arguments: Any) -> Any:
    """In a new process, so that peak memory is its own and nobody's garbage is collected."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def stored_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in (folder / "feast").glob("online.db*")) / 1e6


def measure_sqlite(users: int, folder: Path) -> dict[str, Any]:
    sides: dict[str, dict[str, Any]] = {}
    read = []
    for name, default in (("ours", False), ("feast_default", True)):
        data = folder / name
        write_marts(settings_of(data, None), users)
        first, *later = alone(materialise, data, None, default, 1 if default else 2)
        sides[name] = first | {"stored_mb": round(stored_mb(data), 1)}
        if later:
            sides[f"{name}_again"] = later[0]
        read.append(alone(sampled, data, users))
        sides[f"{name}_floor"] = alone(write_again, data / "feast" / "online.db", data / "floor.db")
        shutil.rmtree(data)
    assert read[0] == read[1], "the two stores read back otherwise"
    return sides


def measure_redis(users: int, folder: Path) -> dict[str, Any]:
    sides: dict[str, dict[str, Any]] = {}
    held = []
    for name, default in (("ours", False), ("feast_default", True)):
        data = folder / name
        with redis_server() as port, redis.Redis(port=port) as client:
            write_marts(settings_of(data, port), users)
            (side,) = alone(materialise, data, port, default, 1)
            cpu = client.info("cpu")
            sides[name] = side | {"stored_mb": round(client.info("memory")["used_memory"] / 1e6, 1)}
            sides[f"{name}_floor"] = {"cpu_s": round(cpu["used_cpu_user"] + cpu["used_cpu_sys"], 2)}
            keys = sorted(key for key, _ in zip(client.scan_iter(), range(users), strict=False))[:SAMPLE]
            held.append({key: client.hgetall(key) for key in keys})
        shutil.rmtree(data)
    assert held[0] == held[1], "the two stores hold something else"
    return sides


MEASURES = {"sqlite": measure_sqlite, "redis": measure_redis}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--users", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--stores", nargs="+", choices=list(MEASURES), default=list(MEASURES))


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    for users in arguments.users:
        for store in arguments.stores:
            with tempfile.TemporaryDirectory(prefix="mtf-bench-") as folder:
                sides = MEASURES[store](users, Path(folder))
            for side in sides.values():
                if "stored_mb" in side:
                    side["bytes_a_user"] = round(side["stored_mb"] * 1e6 / users)
            ours, default = sides["ours"], sides["feast_default"]
            result = {
                "store": store,
                "users": users,
                "times_faster": {key: round(default[key] / ours[key], 1) for key in ("wall_s", "cpu_s")},
                "times_floor_cpu": round(ours["cpu_s"] / sides["ours_floor"]["cpu_s"], 2),
                "sides": sides,
            }
            print(f"{store} {users:>9,} users: {result['times_faster']} times faster", flush=True)
            results.append(result)
    return results


SIDES = {
    "feast_default": "Feast as it comes",
    "feast_default_floor": "*its floor*",
    "ours": "ours, an empty store",
    "ours_again": "ours, all users again",
    "ours_floor": "*our floor*",
}


def tables(results: list[dict[str, Any]]) -> str:
    columns = ("users", "store", "", "CPU s", "wall s", "peak MB", "MB stored", "bytes a user")
    keys = ("cpu_s", "wall_s", "peak_mb", "stored_mb", "bytes_a_user")
    rows = [
        [one["users"], one["store"], told, *(one["sides"][side].get(key) for key in keys)]
        for one in results
        for side, told in SIDES.items()
        if side in one["sides"]
    ]
    faster = [
        [one["users"], one["store"], *(one["times_faster"][key] for key in ("cpu_s", "wall_s"))]
        for one in results
    ]
    held = ("users", "store", "times faster by CPU", "times faster by the wall")
    return table(columns, rows) + table(held, faster)
