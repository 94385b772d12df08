"""Loading and learning at 0.1, 1 and 10 million transitions, in memory and in mapped files.

Exports of random transitions are written as the transform writes them, three days to a window. Each way is
loaded and learnt from in a process of its own, whose memory is told apart: anonymous (nothing but swap can
take it back) and all that is resident, with the pages of mapped files that the kernel may drop.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from tests.benchmarks.learner import ACTION, STATE, WIDTHS, best_seconds, child, learner_settings
from tests.benchmarks.publish import table
from training import trajectories
from training.contract.settings import HeadSettings, ProfileFeature, Settings, SignalSettings, StateSettings
from training.contract.transitions import MART
from training.policies.batchrl_mtf import BatchRLMTF
from training.policies.retrain import reproducible

LAST = date(2026, 1, 7)
DAYS = 3
SESSION, AT_ONCE = 8, 1_000  # requests of a session, sessions that run at the same time
ROW_GROUP = 122_880  # DuckDB's


def settings(folder: Path, count: int, mapped: bool) -> Settings:
    """State 64, action 12, every transition kept."""
    signals = (SignalSettings(name="h0", column="is_h0", weight=1.0),)
    heads = tuple(HeadSettings(name=f"h{i}", static=1.0) for i in range(ACTION))
    bare = Settings(data=folder, heads=heads, signals=signals, state=StateSettings(profile=()))
    more = range(STATE - bare.state_spec.width)
    profile = tuple(ProfileFeature(column=f"flag_{i}", kind="flag") for i in more)
    learner = learner_settings(
        WIDTHS["all nets 256-256"], replay_capacity=count, map_above_bytes=0 if mapped else 1 << 40
    )
    return bare.model_copy(update={"state": StateSettings(profile=profile), "learner": learner})


def write_exports(settings: Settings, count: int) -> int:
    """``count`` transitions of whole sessions over :data:`DAYS` days; the bytes of the files."""
    rng, size = np.random.default_rng(0), 0
    for back in range(DAYS):
        day = LAST - timedelta(days=back)
        folder = settings.layout.mart(MART) / f"dt={day}"
        folder.mkdir(parents=True)
        rows, writer = count // DAYS, None
        for at in range(0, rows, ROW_GROUP):
            table = _rows(settings, rng, day, np.arange(at, min(at + ROW_GROUP, rows)), rows)
            writer = writer or pq.ParquetWriter(folder / "part-0.parquet", table.schema, compression="zstd")
            writer.write_table(table)
        writer.close()
        size += (folder / "part-0.parquet").stat().st_size
    return size


def _rows(
    settings: Settings, rng: np.random.Generator, day: date, numbers: np.ndarray, rows: int
) -> pa.Table:
    n = len(numbers)
    session = numbers // (SESSION * AT_ONCE) * AT_ONCE + numbers % AT_ONCE
    step = numbers % (SESSION * AT_ONCE) // AT_ONCE
    done = (step == SESSION - 1) | (numbers + AT_ONCE >= rows)
    midnight = settings.day_start(day)
    stamps = int(midnight.timestamp()) * 1_000_000 + numbers * (86_400_000_000 // rows)

    def named(values: np.ndarray) -> pa.Array:  # as long as the service's
        return pc.binary_join_element_wise(f"{day}-", pc.utf8_lpad(pa.array(values).cast("str"), 21, "0"), "")

    def lists(values: np.ndarray, absent: np.ndarray | None = None) -> pa.Array:
        offsets = pa.array(np.arange(n + 1, dtype=np.int32) * values.shape[1])
        mask = None if absent is None else pa.array(absent)
        return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)), mask=mask)

    def normal(width: int) -> np.ndarray:
        return rng.standard_normal((n, width), dtype=np.float32)

    actions = rng.uniform(-1, 1, (n, ACTION)).astype(np.float32)
    return pa.table(
        {
            "request_id": named(numbers),
            "session_id": named(session),
            "user_id": session,
            "event_ts": pa.array(stamps).cast(pa.timestamp("us", "UTC")),
            "step": step,
            "arm": pa.array(np.where(session % 2 == 0, "random", "noise")),
            "state": lists(normal(STATE)),
            "action": lists(actions),
            "action_mean": lists(actions),
            "log_density": np.zeros(n),
            "reward": rng.standard_normal(n),
            "next_state": lists(normal(STATE), done),
            "done": done,
            "truncated": np.zeros(n, dtype=bool),
            "next_request_id": pc.if_else(pa.array(done), None, named(numbers + AT_ONCE)),
            "state_spec": pa.array([settings.state_spec.version] * n),
        }
    )


class Memory:
    """By how much this process grows at most while the block runs, sampled every 5 ms."""

    def __enter__(self) -> "Memory":
        self._start, self._most, self._over = resident(), {}, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            for kind, size in resident().items():
                self._most[kind] = max(size, self._most.get(kind, 0))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def grown(self) -> dict[str, int]:
        return {f"{kind}_bytes": self._most[kind] - self._start[kind] for kind in self._start}


def resident() -> dict[str, int]:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    names = {"anonymous": "RssAnon", "resident": "VmRSS"}
    return {kind: int(lines[name].split()[0]) * 1024 for kind, name in names.items()}


def load_and_learn(folder: str, count: int, mapped: bool, threads: int) -> dict[str, Any]:
    chosen = settings(Path(folder), count, mapped)
    torch.randn(64, 64) @ torch.randn(64, 64)  # libraries that load late are not the data's
    started = time.perf_counter()
    with Memory() as loading:
        data = trajectories.load(chosen, LAST)
    seconds = time.perf_counter() - started
    train = data.train
    with reproducible(threads), Memory() as learning:
        learner = BatchRLMTF(chosen.learner, train, seed=0)
        step = best_seconds(learner.step, 100, 3, before=25)
    tensors = [c for s in (train, data.test) for c in vars(s).values() if isinstance(c, torch.Tensor)]
    return {
        "set_bytes": sum(tensor.nbytes for tensor in tensors),
        "load_seconds": seconds,
        "loading": loading.grown(),
        "steps_a_second": 1.0 / step,
        "learning_over_loaded": learning.grown(),
        "sha256": data.sha256(),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--transitions", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    threads, results = os.cpu_count() or 1, []
    for count in arguments.transitions:
        with tempfile.TemporaryDirectory(prefix="mtf-bench-", dir=os.environ.get("TMPDIR")) as folder:
            size = write_exports(settings(Path(folder), count, mapped=False), count)
            ways = {
                name: child("tests.benchmarks.scale", "load_and_learn", folder, count, mapped, threads)
                for name, mapped in (("in memory", False), ("mapped", True))
            }
        assert ways["in memory"].pop("sha256") == ways["mapped"].pop("sha256")
        results.append({"transitions": count, "export_bytes": size, **ways})
        print(json.dumps(results[-1], indent=1), flush=True)
    return results


def tables(results: list[dict[str, Any]]) -> str:
    rows = []
    for one in results:
        for where in ("in memory", "mapped"):
            way = one[where]
            grown = [
                f"{way[when]['anonymous_bytes'] / 1e6:,.0f} ({way[when]['resident_bytes'] / 1e6:,.0f})"
                for when in ("loading", "learning_over_loaded")
            ]
            size, rate = f"{way['set_bytes'] / 1e6:,.0f}", round(way["steps_a_second"])
            rows.append([one["transitions"], size, where, way["load_seconds"], grown[0], rate, grown[1]])
    grew = "anonymous (resident) MB"
    columns = ("transitions", "set, MB", "where", "load s", f"loading: {grew}", "steps a second")
    return table((*columns, f"learning adds: {grew}"), rows)
