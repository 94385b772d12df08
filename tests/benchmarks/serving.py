"""The service under load, beside the same job written plainly and two bare floors, in one run.

500 candidates × 12 heads, the state from the online store, the decision on disk before the answer.

python -m tests.benchmarks.serving                            # about seven minutes
python -m tests.benchmarks.serving --soak-minutes 30          # only the load at 70 % of the peak
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
import yaml
from threadpoolctl import threadpool_limits

from serving.http.requests import BINARY, JSON
from serving.release import bento
from tests.benchmarks import publish
from tests.benchmarks.load import Plan, bodies
from training import features
from training.contract.pointer import PolicyPointer, write_pointer
from training.contract.policy import PolicyHeader, save_policy
from training.contract.settings import Settings, load_settings
from training.contract.state import history_columns, session_columns

REPOSITORY = Path(__file__).parents[2]
CANDIDATES, K = 500, 6
HEADS = [*[f"event_{n}" for n in range(11)], "play_time"]
USERS = 2_000
CLIENTS = (1, 16, 64)
OPEN_CLIENTS = 256  # connections of the open loop: more than can wait within a time-out
PEAK_SHARE = 0.7
TOKEN = "benchmark-token"  # noqa: S105


@dataclass(frozen=True)
class Target:
    """One server and one kind of body."""

    name: str
    server: str
    media_type: str = JSON


SERVERS = {
    "service": [sys.executable, "-m", "bentoml", "serve", "serving.service:RankService"],
    "documented": [sys.executable, "-m", "bentoml", "serve", "tests.benchmarks.peers.documented:Documented"],
    "lean": [sys.executable, "-m", "bentoml", "serve", "tests.benchmarks.peers.lean:Lean"],
    "bare": [sys.executable, "-m", "uvicorn", "tests.benchmarks.peers.bare:app", "--no-access-log"],
}
TARGETS = (
    Target("service, JSON", "service"),
    Target("service, binary", "service", BINARY),
    Target("(a) as documented", "documented"),
    Target("(b) lean BentoML, no state, policy or log", "lean"),
    Target("(c) bare FastAPI, no state, policy or log", "bare"),
    Target("(c) bare FastAPI, binary", "bare", BINARY),
)


def scenario(folder: Path, online: str = "sqlite", redis_url: str = "") -> Settings:
    """Settings, a filled online store and a champion of the default size with random weights."""
    heads = [
        {"name": name, "beta": 0.1, "low": 0.0, "high": 2.0, "static": 0.5, "maximum": maximum}
        for name, maximum in ((name, 36_000.0 if name == "play_time" else 1.0) for name in HEADS)
    ]
    path = folder / "mtf.yaml"
    store = {"online": online} | ({"redis_url": redis_url} if redis_url else {})
    # neither a fallback nor the guardrail may spare the service its policy on a machine that is busy
    serving = {
        "state_budget_ms": 5_000.0,
        "policy_budget_ms": 5_000.0,
        "guardrail": {"slow_ms": 60_000.0, "min_sessions": 10**9},
    }
    path.write_text(
        yaml.safe_dump({"data": str(folder / "data"), "heads": heads, "store": store, "serving": serving})
    )
    settings = load_settings(path)
    features.apply(settings)
    _fill_store(settings)
    write_pointer(settings.layout.champion, _champion(settings))
    return settings


def _fill_store(settings: Settings) -> None:
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(settings.layout.feast))
    generator = np.random.default_rng(settings.seed)
    now = datetime.now(UTC).replace(microsecond=0)
    users = {"user_id": np.arange(USERS), "event_timestamp": now}
    numbers = {
        "user_history": history_columns(settings.signal_names),
        "user_session": session_columns(settings.signal_names, settings.head_names),
    }
    own = {
        "user_history": {"hist_last_ts": now},
        "user_session": {
            "sess_last_ts": now,
            "sess_session_id": [f"s{user}" for user in range(USERS)],
            "request_id": [f"r{user}" for user in range(USERS)],
        },
    }
    for name, columns in numbers.items():
        view = store.get_feature_view(name)
        rows = pd.DataFrame(
            users | {column: generator.random(USERS) * 9.0 for column in columns} | own[name]
        ).rename(columns={"event_timestamp": view.batch_source.timestamp_field})
        store.write_to_online_store(name, rows)


def _champion(settings: Settings) -> PolicyPointer:
    generator = np.random.default_rng(settings.seed)
    learner, own = settings.learner, settings.learner.batchrl_mtf
    d, k = settings.state_spec.width, len(settings.heads)
    latent = own.latent_size or 2 * k
    nets = {
        "decoder": [d + latent, *own.generator_hidden, k],
        "perturbation": [d + k, *own.perturbation_hidden, k],
        "critic": [d + k, *learner.critic_hidden, 1],
    }
    tensors: dict[str, Any] = {
        "latents": generator.normal(size=(own.serving_candidates, latent)),
        "state_mean": np.zeros(d),
        "state_scale": np.ones(d),
    }
    for net, widths in nets.items():
        for layer, (a, b) in enumerate(itertools.pairwise(widths)):
            tensors[f"{net}.{layer}.weight"] = generator.normal(size=(b, a)) / np.sqrt(a)
            tensors[f"{net}.{layer}.bias"] = np.zeros(b)
    header = PolicyHeader(
        "batchrl_mtf",
        "benchmark",
        settings.state_spec,
        settings.fusion,
        {"rho": own.rho, "state_clip": 10.0},
    )
    path = settings.layout.models / "benchmark.safetensors"
    digest = save_policy(path, header, tensors)
    return PolicyPointer(
        policy=str(path.relative_to(settings.data)),
        sha256=digest,
        version="benchmark",
        day="2026-01-05",
        model_version="1",
        promoted_ts=datetime(2026, 1, 6, tzinfo=UTC).isoformat(),
    )


@dataclass(frozen=True)
class Running:
    """A server that answers at ``url``; ``process`` is the one that started its workers."""

    url: str
    process: psutil.Process

    def cpu(self) -> float:
        """Seconds of a core that it and its workers have used."""
        total = 0.0
        for one in (self.process, *self.process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
        return total


@contextmanager
def served(name: str, settings_path: Path) -> Iterator[Running]:
    """A running, ready server; gone with its workers when the block ends."""
    folder = settings_path.parent
    port = bento.free_port()
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*SERVERS[name], "--host", "127.0.0.1", "--port", str(port)],
            cwd=REPOSITORY,
            env=os.environ
            | {
                "MTF_SETTINGS": str(settings_path),
                "MTF_TOKEN": TOKEN,
                "BENTOML_HOME": str(folder / f"bentoml-{name}"),
                "PYTHONPATH": str(REPOSITORY),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 240.0
            while not _ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{name} did not start:\n{log.read_text()[-4000:]}")
                time.sleep(0.2)
            yield Running(url, psutil.Process(process.pid))
        finally:
            if process.poll() is None:
                bento.kill_tree(process)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def load(
    settings: Settings,
    target: Target,
    server: Running,
    clients: int,
    seconds: float,
    rate: float = 0.0,
    by_second: bool = False,
) -> dict:
    """A :class:`tests.benchmarks.load.Result` with ``server_cpu_ms``, ms of a core for each request."""
    plan = replace(
        _plan(settings, target),
        url=f"{server.url}/rank",
        clients=clients,
        seconds=seconds,
        rate=rate,
        by_second=by_second,
    )
    before = server.cpu()
    finished = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.load"],
        cwd=REPOSITORY,
        input=json.dumps(asdict(plan)),
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(f"the load on {target.name} ended:\n{finished.stderr[-4000:]}")
    result = json.loads(finished.stdout)
    used = server.cpu() - before
    return result | {"server_cpu_ms": round(1000.0 * used / max(1, result["requests"]), 3)}


def _plan(settings: Settings, target: Target) -> Plan:
    return Plan(
        url="",
        heads={head.name: head.maximum for head in settings.heads},
        users=USERS,
        candidates=CANDIDATES,
        k=K,
        clients=1,
        seconds=0.0,
        media_type=target.media_type,
    )


def middle(rounds: list[dict]) -> dict:
    """Medians over rounds of everything counted or timed; failures are added up."""
    result = {
        name: round(statistics.median(one[name] for one in rounds), 3)
        for name in rounds[0]
        if name not in ("failed", "by_second")
    }
    failed: dict[str, int] = {}
    for one in rounds:
        for reason, count in one["failed"].items():
            failed[reason] = failed.get(reason, 0) + count
    return result | {"failed": failed}


def stages(url: str) -> dict[str, tuple[float, float]]:
    """(seconds, requests) spent in each stage of a request since the service started."""
    text = httpx.get(f"{url}/metrics").text
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        for part in ("sum", "count"):
            if line.startswith(f"mtf_stage_seconds_{part}{{"):
                stage = line.split('stage="')[1].split('"')[0]
                found.setdefault(stage, {})[part] = float(line.rsplit(" ", 1)[1])
        for part in ("sum", "count"):
            if line.startswith(f'mtf_http_seconds_{part}{{endpoint="/rank"'):
                found.setdefault("whole", {})[part] = float(line.rsplit(" ", 1)[1])
    return {stage: (value["sum"], value["count"]) for stage, value in found.items()}


def where_the_time_goes(url: str, run: Callable[[], object]) -> dict[str, float]:
    """Mean ms of each stage over the requests of ``run``."""
    before = stages(url)
    run()
    after = stages(url)
    table = {}
    for stage, (seconds, count) in after.items():
        earlier = before.get(stage, (0.0, 0.0))
        if count > earlier[1]:
            table[stage] = round(1000.0 * (seconds - earlier[0]) / (count - earlier[1]), 4)
    return table


def parts(settings: Settings) -> dict[str, float]:
    """CPU ms of each part of one request by itself, in this process on one thread: the least of many."""
    from serving.http.parser import Parser
    from serving.log.day_files import DayFiles
    from serving.log.index.request_index import RequestIndex, ServedRequest
    from serving.policy.compiled import compiled
    from serving.state.online_state import OnlineState
    from serving.state.questions import StateRequest
    from training.contract.fusion import top
    from training.contract.policy import load_policy

    parser, store = Parser(settings), OnlineState(settings)
    body, binary = (bodies(_plan(settings, target), 1)[0] for target in TARGETS[:2])
    request = parser.rank(body)
    plain = load_policy(settings.data / _champion(settings).policy)
    policy = compiled(plain)
    generator = np.random.default_rng(settings.seed)
    states = generator.normal(size=(16, settings.state_spec.width)).astype(np.float32)
    hidden = generator.normal(size=(settings.learner.batchrl_mtf.serving_candidates, 256)).astype(np.float32)
    square = generator.normal(size=(256, 256)).astype(np.float32)
    weights = settings.fusion.to_weights(settings.fusion.static_action)
    numbers = itertools.count()

    def asked(count: int) -> list[StateRequest]:
        users = [next(numbers) % USERS for _ in range(count)]
        return [StateRequest(user, f"s{user}", datetime.now(UTC)) for user in users]

    with tempfile.TemporaryDirectory() as folder:
        files = DayFiles(Path(folder), "parts")
        index = RequestIndex(Path(folder) / "requests.sqlite", settings.session.gap_minutes)

        def log(count: int) -> None:
            files.write([("2026-01-05", b" " * 1_500)] * count)
            ids = [next(numbers) for _ in range(count)]
            index.add(
                [ServedRequest(f"r{n}", n % USERS, f"s{n % USERS}", time.time(), "champion") for n in ids]
            )

        table = {
            "parse, JSON": _least(lambda: parser.rank(body)),
            "parse, binary": _least(lambda: parser.rank(binary, BINARY)),
            "state, one alone": _least(lambda: store.read(asked(1))),
            "state, of 16 read together": _least(lambda: store.read(asked(16))) / 16,
            "policy, one alone": _least(lambda: policy.act(states[:1])),
            "policy, of 16 together": _least(lambda: policy.act(states)) / 16,
            "policy by numpy": _least(lambda: plain.act(states[:1])),
            "policy, only its 3 products of 256 x 256": 3 * _least(lambda: hidden @ square),
            "fuse": _least(lambda: top(settings.fusion.score(request.scores, weights), K)),
            "log, one alone": _least(lambda: log(1)),
            "log, of 16 written together": _least(lambda: log(16)) / 16,
        }
        files.close()
        index.close()
    return {name: round(value, 4) for name, value in table.items()}


def _least(run: Callable[[], object], rounds: int = 15, calls: int = 20) -> float:
    """Mean CPU ms of a call in the best of the rounds: what else the machine does is in the others."""
    run()
    means = []
    for _ in range(rounds):
        started = time.thread_time()
        for _ in range(calls):
            run()
        means.append((time.thread_time() - started) / calls)
    return 1000.0 * min(means)


def http_alone(server: Running, body: bytes, count: int = 1_000) -> float:
    """CPU ms of the service for a body of this size that it refuses: what HTTP and BentoML take."""
    before = server.cpu()
    with httpx.Client(headers={"content-type": JSON}) as client:
        for _ in range(count):
            client.post(f"{server.url}/rank", content=body)
    return round(1000.0 * (server.cpu() - before) / count, 3)


def compare(
    settings: Settings,
    path: Path,
    targets: Sequence[Target],
    clients: Sequence[int],
    seconds: float,
    rounds: int,
) -> dict[str, Any]:
    """Every target at every number of clients, closed and open loop, in turns.

    The other servers' processes wait meanwhile. ``fallbacks`` of the service must be 0: an answer by
    static weights has spared it the policy.
    """
    results: dict[str, Any] = {target.name: {"closed": {}} for target in targets}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(served(name, path))
            for name in dict.fromkeys(target.server for target in targets)
        }
        for target in targets:
            load(settings, target, servers[target.server], 8, min(seconds, 2.0))  # warm
        for count in clients:
            kept: dict[str, list[dict]] = {target.name: [] for target in targets}
            for _ in range(rounds):
                for target in targets:
                    kept[target.name].append(load(settings, target, servers[target.server], count, seconds))
            for target in targets:
                results[target.name]["closed"][str(count)] = row = middle(kept[target.name])
                _print(target.name, f"closed, {count} clients", row)
        for target in targets:
            peak = max(row["per_second"] for row in results[target.name]["closed"].values())
            row = load(settings, target, servers[target.server], OPEN_CLIENTS, seconds, peak * PEAK_SHARE)
            results[target.name]["open"] = row | {"rate": round(peak * PEAK_SHARE, 1)}
            _print(target.name, f"open, {peak * PEAK_SHARE:.0f} a second", row)
        for target in targets:
            if target.server == "service":
                for count in (1, 16):
                    table = where_the_time_goes(
                        servers["service"].url,
                        lambda: load(settings, target, servers["service"], count, seconds),  # noqa: B023
                    )
                    results[target.name].setdefault("stages_ms", {})[str(count)] = table
                    print(f"{target.name}, {count} clients, mean ms: {table}", flush=True)
                size = len(bodies(_plan(settings, target), 1)[0])
                results[target.name]["http_cpu_ms"] = http_alone(servers["service"], b"x" * size)
    return results


def ratios(results: dict[str, Any], clients: int = 16) -> dict[str, float]:
    """The service held against the others at one number of clients, by the goals of issue 4."""

    def row(name: str) -> dict | None:
        found = [result for target, result in results.items() if target.startswith(name)]
        return found[0]["closed"].get(str(clients)) if found else None

    ours, binary = row("service, JSON"), row("service, binary")
    documented, lean = row("(a)"), row("(b)")
    bare, bare_binary = row("(c) bare FastAPI, no"), row("(c) bare FastAPI, binary")
    made = {}
    if ours and documented:
        made["throughput over (a), goal 5"] = ours["per_second"] / documented["per_second"]
        made["CPU of (a) over ours"] = documented["server_cpu_ms"] / ours["server_cpu_ms"]
    if ours and lean:
        made["p99 over (b), goal 1.5 at most"] = ours["p99"] / lean["p99"]
        made["CPU of (b) over ours"] = lean["server_cpu_ms"] / ours["server_cpu_ms"]
    if ours and bare:
        made["throughput over (c), goal 0.6"] = ours["per_second"] / bare["per_second"]
        made["CPU of (c) over ours"] = bare["server_cpu_ms"] / ours["server_cpu_ms"]
    if binary and bare_binary:
        made["binary: throughput over (c) with the same body"] = (
            binary["per_second"] / bare_binary["per_second"]
        )
    if binary and ours:
        made["binary over JSON"] = binary["per_second"] / ours["per_second"]
    return {name: round(value, 2) for name, value in made.items()}


def logged(settings: Settings) -> int:
    """Lines of the decision log: as many as requests were acknowledged, when nothing is lost."""
    folder = settings.layout.serving_log / "decisions"
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


def soak(settings: Settings, path: Path, minutes: float, target: Target, seconds: float) -> dict:
    """Load at 70 % of the peak: memory, errors and lag of the log every few seconds, latencies by second."""
    with served("service", path) as server:
        load(settings, target, server, 8, 2.0)
        peak = max(load(settings, target, server, 16, seconds)["per_second"] for _ in range(3))
        before = logged(settings)
        rate = peak * PEAK_SHARE
        print(f"peak {peak:.0f} a second; {rate:.0f} a second for {minutes:g} minutes", flush=True)
        samples: list[dict[str, float]] = []
        missed = 0
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(load, settings, target, server, OPEN_CLIENTS, minutes * 60.0, rate, True)
            started = time.monotonic()
            while not running.done():
                second = round(time.monotonic() - started, 1)
                try:
                    samples.append({"second": second} | _sample(server))
                except httpx.HTTPError:  # an overloaded service must not cost the record of half an hour
                    missed += 1
                time.sleep(min(5.0, minutes * 60.0 / 20.0))
            result = running.result()
        seconds_seen = result.pop("by_second")
        # the first tenth is where caches fill
        settled = samples[len(samples) // 10 :]
        slope, _ = np.polyfit([one["second"] for one in settled], [one["rss_mb"] for one in settled], 1)
        record = {
            "target": target.name,
            "peak": peak,
            "rate": round(rate, 1),
            "minutes": minutes,
            "load": result,
            "decisions_logged": logged(settings) - before,
            "rss_mb_after_start": settled[0]["rss_mb"],
            "rss_mb_at_end": settled[-1]["rss_mb"],
            "rss_mb_an_hour": round(3600.0 * float(slope), 1),
            "log_lag_s_worst": max(sample["log_lag_s"] for sample in samples),
            "samples_missed": missed,
            # where a p99 over everything is high: in many seconds, or in few?
            "p99_of_seconds": dict(
                zip(
                    ("p50", "p90", "p99", "slowest"),
                    np.quantile([p99 for *_, p99, _ in seconds_seen], [0.5, 0.9, 0.99, 1.0]).tolist(),
                    strict=True,
                )
            ),
            "slowest_seconds": sorted(seconds_seen, key=lambda row: -row[4])[:20],
            "samples": samples,
            "by_second": seconds_seen,
        }
        long = ("samples", "by_second")
        print({name: value for name, value in record.items() if name not in long}, flush=True)
        return record


def _sample(server: Running) -> dict[str, float]:
    workers = server.process.children(recursive=True)
    lags = [
        float(line.rsplit(" ", 1)[1])
        for line in httpx.get(f"{server.url}/metrics", timeout=30.0).text.splitlines()
        if line.startswith("mtf_log_lag_seconds{")
    ]
    memory = sum(worker.memory_info().rss for worker in workers)
    return {"rss_mb": round(memory / 2**20, 1), "log_lag_s": max(lags, default=0.0)}


def _print(name: str, what: str, row: dict) -> None:
    print(
        f"{name:44s} {what:20s} {row['per_second']:8.1f}/s  p50 {row['p50']:7.2f}  p99 {row['p99']:7.2f} ms"
        f"  CPU {row['server_cpu_ms']:6.2f} ms  client {row['client_cpu']:.0%}"
        f"  {row['failed'] or ''} {row['fallbacks'] or ''}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--only", nargs="+", default=list(SERVERS), choices=list(SERVERS))
    parser.add_argument("--soak-minutes", type=float, help="only this load, at 70 %% of the peak")
    publish.add_options(parser)
    parser.set_defaults(**publish.DEFAULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtf-bench-") as folder:
        settings = scenario(Path(folder))
        path = Path(folder) / "mtf.yaml"
        if arguments.soak_minutes:
            record = soak(settings, path, arguments.soak_minutes, TARGETS[0], arguments.seconds)
            publish.keep("serving_soak", "The service under a long load", record, arguments, soak_tables)
            return
        with threadpool_limits(1):
            alone = parts(settings)
        for name, value in alone.items():
            print(f"{name:44s} {value:7.3f} ms of CPU")
        targets = [target for target in TARGETS if target.server in arguments.only]
        results = compare(settings, path, targets, arguments.clients, arguments.seconds, arguments.rounds)
    held = {str(count): ratios(results, count) for count in arguments.clients}
    for count, table in held.items():
        for name, value in table.items():
            print(f"{count + ' clients':12s} {name:50s} {value:6.2f}")
    found = {
        "candidates": CANDIDATES,
        "heads": len(HEADS),
        "k": K,
        "parts_cpu_ms": alone,
        "results": results,
        "ratios": held,
    }
    publish.keep("serving", "The service beside other ways to write it", found, arguments, tables)


def tables(found: dict[str, Any]) -> str:
    """Throughput and latency by server and clients, the goals, and where a request's time goes."""
    results = found["results"]
    text = f"{found['candidates']} candidates × {found['heads']} heads, {found['k']} of them returned.\n\n"
    text += "## Closed loop\n\n"
    columns = (
        "server",
        "clients",
        "requests a second",
        "p50 ms",
        "p99 ms",
        "CPU ms a request",
        "client's CPU",
    )
    keys = ("per_second", "p50", "p99", "server_cpu_ms", "client_cpu")

    def row(name: str, at: Any, one: dict[str, Any]) -> list[Any]:
        return [name, at, *(one[key] for key in keys), one["fallbacks"], sum(one["failed"].values())]

    text += publish.table(
        (*columns, "fallbacks", "failed"),
        (row(name, int(count), one) for name, r in results.items() for count, one in r["closed"].items()),
    )
    text += f"## Open loop, {PEAK_SHARE:.0%} of the peak\n\n"
    text += publish.table(
        (columns[0], "asked for a second", *columns[2:], "fallbacks", "failed"),
        (row(name, one["open"]["rate"], one["open"]) for name, one in results.items()),
    )
    text += "## Against the goals\n\n"
    held = {
        name: [r.get(name) for r in found["ratios"].values()] for r in found["ratios"].values() for name in r
    }
    text += publish.table(
        ("", *(f"{count} clients" for count in found["ratios"])), ([name, *v] for name, v in held.items())
    )
    for name, one in results.items():
        if "stages_ms" in one:
            by_stage = {stage: None for at in one["stages_ms"].values() for stage in at}
            text += f"## {name}: mean ms of each stage\n\n"
            text += publish.table(
                ("stage", *(f"{count} clients" for count in one["stages_ms"])),
                ([stage, *(at.get(stage) for at in one["stages_ms"].values())] for stage in by_stage),
            )
            text += f"HTTP and BentoML alone, for a body of this size: {one['http_cpu_ms']} ms of CPU.\n\n"
    text += "## CPU ms of each part by itself\n\n"
    return text + publish.table(("part", "CPU ms"), found["parts_cpu_ms"].items())


def soak_tables(record: dict[str, Any]) -> str:
    left_out = ("load", "p99_of_seconds", "slowest_seconds", "samples", "by_second")
    text = publish.nested({name: value for name, value in record.items() if name not in left_out})
    text += publish.nested(record["load"], "Latencies in ms, and failures")
    text += publish.nested(record["p99_of_seconds"], "The p99 of a second, ms")
    text += "## The slowest seconds\n\n"
    return text + publish.table(("second", "requests", "p50", "p99", "slowest"), record["slowest_seconds"])


if __name__ == "__main__":
    main()
