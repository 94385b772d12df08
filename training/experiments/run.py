"""Run a table: units over processes, one file a finished unit, results made from the files."""

import multiprocessing
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.contract.errors import MtfError
from training.contract.files import json_sha256, read_json, write_atomic, write_json_atomic
from training.experiments.ground import Ground
from training.experiments.results import write_results
from training.experiments.table import Method, Table, slug
from training.experiments.unit import run_unit, sources_sha256

# (job, share of it that is done, what it does)
Progress = Callable[[str, float, str], None]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_reports: Any = None  # of a worker: where it puts its progress


@dataclass(frozen=True)
class Unit:
    """A cell of the table before it is measured."""

    world: str
    seed: int
    method: str

    def __str__(self) -> str:
        return f"{self.world} / seed {self.seed} / {self.method}"

    def path(self, folder: Path) -> Path:
        """Its JSON; the arrays lie beside it as ``.npz``."""
        return folder / "units" / slug(self.world) / f"seed={self.seed}" / f"{slug(self.method)}.json"


def units(table: Table) -> list[Unit]:
    """Every unit, seeds outermost: a table that is stopped early is complete for some seeds."""
    return [Unit(w, seed, m.name) for seed in table.seeds for w in table.worlds for m in table.methods]


def run(table: Table, folder: Path, workers: int = 1, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Measure every unit that is not measured yet, and write the results below ``folder``.

    A unit's file carries the fingerprint of all that it depends on (settings, sources, seed); one that
    fits is not measured again, so a run that was killed goes on where it was. Returns the results
    (``results.json``; see :func:`training.experiments.results.write_results`). Raises :class:`MtfError`
    that names the units which failed, after all others are done and the results of these are written.
    """
    ground = folder / "ground" / _ground_fingerprint(table)[:12]
    for stale in (folder / "ground").glob("*"):
        if stale != ground:
            shutil.rmtree(stale)
    todo = [unit for unit in units(table) if not finished(table, unit, folder)]
    for unit in set(units(table)) - set(todo):
        progress(str(unit), 1.0, "kept")
    failures: dict[str, str] = {}
    if todo:
        grounds = sorted(
            {(unit.world, unit.seed) for unit in todo} | {(w, table.seeds[0]) for w in table.worlds}
        )
        with _Pool(workers, progress) as pool:
            failures |= pool.run({f"{w}: days": (_prepare, (table, w, ground)) for w in table.worlds})
            if not failures:
                logs = {
                    f"{world} / seed {seed}: logs": (_collect, (table, world, seed, ground))
                    for world, seed in grounds
                }
                failures |= pool.run(logs)
            if not failures:
                jobs = {str(unit): (_measure, (table, unit, ground, folder)) for unit in todo}
                failures |= pool.run(jobs)
    measured = {unit: unit.path(folder) for unit in units(table) if finished(table, unit, folder)}
    paths = {(u.world, u.seed, u.method): path for u, path in measured.items()}
    results = write_results(table, folder, paths, f"mtf experiment {table.name} --workers {workers}")
    if failures:
        listed = [f"  {job}: {reason}" for job, reason in failures.items()]
        raise MtfError(f"{len(failures)} of the table's jobs failed; run it again to repeat these:", *listed)
    return results


def finished(table: Table, unit: Unit, folder: Path) -> bool:
    """Whether the unit's files are there, and made from what the table says now."""
    path = unit.path(folder)
    if not path.is_file() or not path.with_suffix(".npz").is_file():
        return False
    return read_json(path)["fingerprint"] == fingerprint(table, unit)


def fingerprint(table: Table, unit: Unit) -> str:
    """Of all that the unit's result depends on: equal fingerprints, equal results on one machine."""
    method = table.method(unit.method)
    settings = table.method_settings(unit.world, method)
    parts = {
        "ground": _ground_fingerprint(table),
        "unit": [unit.world, unit.seed, table.seeds[0]],
        "method": method.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json", exclude={"data"}),
        "judge": table.judge.model_dump(mode="json"),
        "leaning": table.reward_leaning,
        "sources": sources_sha256(),
    }
    return json_sha256(parts)


def _ground_fingerprint(table: Table) -> str:
    parts = table.model_dump(mode="json", include={"past_days", "log_days", "logs", "settings", "worlds"})
    evaluated = {
        world: [
            s.model_dump(mode="json", exclude={"data", "learner", "evaluation", "gate"})
            for s in (table.world_settings(world), table.ranking_settings(world))
        ]
        for world in table.worlds
    }
    # a learner's or the judge's settings do not change what is logged
    parts = {name: parts[name] for name in ("past_days", "log_days", "logs")}
    return json_sha256(
        {"parts": parts, "worlds": evaluated, "sources": sources_sha256(), "torch": torch.__version__}
    )


# jobs, each in a worker


def _prepare(table: Table, world: str, ground: Path) -> None:
    Ground(table, world, table.seeds[0], ground).prepare()


def _collect(table: Table, world: str, seed: int, ground: Path) -> None:
    for name in table.logs:
        Ground(table, world, seed, ground).prepare_log(name)


def _measure(table: Table, unit: Unit, ground: Path, folder: Path) -> None:
    def report(share: float, what: str) -> None:
        if _reports is not None:
            _reports.put((str(unit), share, what))

    made_from = fingerprint(table, unit)
    method: Method = table.method(unit.method)
    result, columns = run_unit(Ground(table, unit.world, unit.seed, ground), method, report)
    arrays: dict[str, Any] = {**columns}
    path = unit.path(folder)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_atomic(path.with_suffix(".npz"), write)
    about = {"world": unit.world, "seed": unit.seed, "method": unit.method}
    write_json_atomic(path, {"fingerprint": made_from, "unit": about, "result": result})


def _start_worker(reports: Any) -> None:
    """One thread a worker; and a worker whose parent was killed ends, too."""
    global _reports
    _reports = reports
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class _Pool:
    """Processes of one thread each, and the progress that they report."""

    def __init__(self, workers: int, progress: Progress) -> None:
        self.workers, self.progress = workers, progress

    def __enter__(self) -> "_Pool":
        self.before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, "1"))  # read by the workers when they start
        context = multiprocessing.get_context("spawn")
        self.reports = context.Queue()
        self.executor = ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=_start_worker, initargs=(self.reports,)
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.executor.shutdown(cancel_futures=True)
        self.reports.close()
        for name, value in self.before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

    def run(self, jobs: Mapping[str, tuple[Callable[..., None], Iterable[Any]]]) -> dict[str, str]:
        """Run all jobs; returns the reasons of those that failed."""
        waiting: dict[Future[None], str] = {
            self.executor.submit(function, *arguments): job for job, (function, arguments) in jobs.items()
        }
        failures = {}
        while waiting:
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            self._drain()
            for future in done:
                job = waiting.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise MtfError(f"a worker died during {job} or beside it (out of memory?): {error}")
                if error is not None:
                    failures[job] = f"{type(error).__name__}: {error}"
                self.progress(job, 1.0, "failed" if error else "done")
        return failures

    def _drain(self) -> None:
        try:
            while True:
                self.progress(*self.reports.get_nowait())
        except queue.Empty:
            return
