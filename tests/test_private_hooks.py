"""Private names of libraries that we rely on: for which versions each holds, and that it does what we need.

An upgrade beyond these versions fails here first: look at each hook again, then name the new version.
Nothing else in ``serving``, ``feature_repo``, ``training/features``, ``training/warehouse`` and the model
registry reads a library's private name.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
from feast import FeatureView, Field, FileSource, RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feature_repo.entities import user
from feature_repo.feast_hooks import redis_client, redis_field
from serving.control.gathered import Gathered, GatheredCounter
from tests.servers import redis_server
from training.contract.code_sources import ROOMS
from training.contract.settings import Settings

ROOT = Path(__file__).parents[1]
HOLDS_FOR = {
    "feast": "0.67.",  # feature_repo/feast_hooks.py
    "mlflow": "3.17.",  # training/promotion/registry.py
    "prometheus-client": "0.24.",  # serving/control/gathered.py, and the file names in metrics.py
}
# modules that may read them, and which
HOOKS = {
    "feature_repo/feast_hooks.py": {"_get_client", "_mmh3"},
    "serving/control/gathered.py": {
        "_metric_init",
        "_metrics",
        "_labelnames",
        "_upper_bounds",
        "_buckets",
        "_sum",
    },
    # tests/training/warehouse/test_sums.py has the version, and says what it does
    "training/warehouse/sums_on_spark.py": {"_gateway", "_jvm"},
    # tests/training/operations/test_retention.py says what it does
    "training/promotion/registry.py": {"_hard_delete_run"},
}


@pytest.mark.parametrize("library", HOLDS_FOR)
def test_the_library_is_of_a_version_that_the_hooks_hold_for(library):
    assert version(library).startswith(HOLDS_FOR[library]), f"look at the hooks into {library} again"


def private(path: Path) -> Iterator[str]:
    """Private names that a module takes from another one, or reads of objects that it did not make: those
    that no assignment, function, class or slot of its own defines, nor a class of ours that it extends."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {"_fields", "_replace", "_asdict"}  # of a NamedTuple: documented
    ours = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ROOMS
        for alias in node.names
    }
    inherited = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.bases
        if all(isinstance(base, ast.Name) and base.id in ours for base in node.bases)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self"
    }
    read = []
    for node in ast.walk(tree):
        if id(node) in inherited:
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute):
            if isinstance(node.ctx, ast.Store) and getattr(node.value, "id", "") == "self":
                own.add(node.attr)
            else:
                read.append(node.attr)
        elif isinstance(node, ast.ImportFrom):
            read += [part for part in (node.module or "").split(".") if part.startswith("_")]
            read += [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            read += [part for alias in node.names for part in alias.name.split(".")]
    overridden = HOOKS.get(path.relative_to(ROOT).as_posix(), set())
    for name in read:
        if name.startswith("_") and not name.startswith("__") and name not in own - overridden:
            yield name


def test_no_other_module_reads_a_private_name():
    modules = [
        *(ROOT / "serving").rglob("*.py"),
        *(ROOT / "feature_repo").rglob("*.py"),
        *(ROOT / "training" / "features").rglob("*.py"),
        *(ROOT / "training" / "warehouse").rglob("*.py"),
        ROOT / "training" / "promotion" / "registry.py",
    ]
    found = {path.relative_to(ROOT).as_posix(): set(private(path)) for path in modules}
    assert {path: names for path, names in found.items() if names} == HOOKS


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Iterator[tuple[RedisOnlineStore, RepoConfig]]:
    """A real Redis store of Feast's with one user's feature in it, and its configuration."""
    folder = tmp_path_factory.mktemp("redis")
    with redis_server() as port:
        config = RepoConfig(
            project="hooks",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "redis", "connection_string": f"127.0.0.1:{port}"},
            entity_key_serialization_version=3,
        )
        view = FeatureView(
            name="seen",
            entities=[user(Settings())],
            schema=[Field(name="clicks", dtype=Float64)],
            source=FileSource(path=str(folder / "none.parquet"), timestamp_field="ts"),
        )
        store = RedisOnlineStore()
        key = EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=5)])
        now = datetime(2026, 1, 5, tzinfo=UTC)
        store.online_write_batch(config, view, [(key, {"clicks": Value(double_val=3.0)}, now, None)], None)
        yield store, config


def test_feasts_redis_client_is_the_one_that_it_goes_on_with(written):
    store, config = written
    client = redis_client(store, config)
    assert isinstance(client, Redis) and client is redis_client(store, config)
    client.set_retry(Retry(NoBackoff(), 0))
    assert redis_client(store, config).get_retry().get_retries() == 0
    with client.lock("a lock", timeout=1, blocking_timeout=1):
        assert client.exists("a lock")


def test_a_feature_is_in_the_field_that_feast_reads_it_from(written):
    store, config = written
    client = redis_client(store, config)
    (key,) = client.keys("*hooks")
    fields = client.hgetall(key)
    assert set(fields) == {b"_ts:seen", redis_field("seen", "clicks")}
    assert Value.FromString(fields[redis_field("seen", "clicks")]).double_val == 3.0


def text(metric: Histogram | Counter) -> list[str]:
    registry = CollectorRegistry()
    registry.register(metric)
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@pytest.mark.parametrize("labels", [(), ("arm",)])
def test_gathered_metrics_wait_for_their_write_with_and_without_labels(labels):
    values = labels and ("one",)
    ours = GatheredCounter("name", "text", labels, registry=None)
    library = Counter("name", "text", labels, registry=None)
    for metric in (ours, library):
        (metric.labels(*values) if values else metric).inc(2.0)
    assert text(ours) != text(library)
    ours.write()
    assert text(ours) == text(library)
    ours = Gathered("name", "text", labels, registry=None, buckets=(1.0, 2.0))
    library = Histogram("name", "text", labels, registry=None, buckets=(1.0, 2.0))
    for metric in (ours, library):
        for amount in (0.5, 1.0, 1.5, 9.0):
            (metric.labels(*values) if values else metric).observe(amount)
    assert text(ours) != text(library)
    ours.write()
    assert text(ours) == text(library)


WORKER = """
import os
from serving.control import metrics
metrics.store_up.set(1.0)
metrics.stage_seconds.labels("parse").observe(0.001)
metrics.write()
print(os.getpid())
"""
SCRAPE = """
from serving.control import metrics
metrics.forget_dead_workers()
print(metrics.exposition().decode())
"""


def test_a_dead_workers_live_gauges_are_forgotten_by_their_files_names_and_its_sums_are_kept(tmp_path):
    def run(code: str) -> str:
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        ).stdout

    pid = run(WORKER).strip()
    assert (tmp_path / f"gauge_livemin_{pid}.db").exists()
    scraped = run(SCRAPE)
    assert not (tmp_path / f"gauge_livemin_{pid}.db").exists()
    assert 'mtf_stage_seconds_count{stage="parse"} 1.0' in scraped
