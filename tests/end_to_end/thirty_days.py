"""Thirty simulated days by Airflow's scheduler, with five planted faults and nobody who helps.

    python -m tests.end_to_end.thirty_days --out build/thirty_days --report docs/results/thirty_days.md

Real are: Airflow (scheduler, DAGs, assets, retries), the service over HTTP, dbt, Feast on a Redis server,
Great Expectations, PyTorch, the gate with its Bento, MLflow, and a receiver of the alerts' webhook. This
program is the clock and the misfortune: it sends a day's users to the service, plants the day's fault, starts
``mtf_ingest`` with the day as its partition key (what the cron does at night), and waits until nothing runs.
It never mends, clears or reruns anything; the late log arrives before the next night, and the store comes
back by itself.

The report says of every day which stage ended how. Exit code 1 when a day ended otherwise than it should.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from dags import stages
from dags.command_line import stack
from dags.command_line.demo import LOOP
from dags.command_line.world import prepare_past, simulate_day
from serving.release.bento import free_port
from tests.end_to_end import small_days
from tests.servers import Redis
from training.contract.files import read_json, write_json_atomic, write_text_atomic
from training.contract.pointer import read_pointer
from training.contract.records import read_records
from training.contract.settings import SETTINGS_VARIABLE, Settings, load_settings
from training.experiments.pages import header, provenance, wrapped

DAY_TIMEOUT_S = 1_200
LATE, BROKEN, DRIFTED, KILLED, STORE_DOWN = 4, 7, 10, 13, 16  # the day of the month that each fault meets
PLANTED = {
    LATE: "late: the service's log of the day is not there at night, and is there before the next",
    BROKEN: "broken file: a line in the middle of the decision log is cut; nobody mends it",
    DRIFTED: "drifted predictions: every logged p_like is replaced by its square root",
    KILLED: "killed task: SIGKILL to the process of the task `transform` while dbt runs",
    STORE_DOWN: "store down: the Redis server is stopped before `features`, and back after its first failure",
}
EXPECTED = {LATE: "recovered", BROKEN: "stopped", DRIFTED: "stopped"}  # all others: promoted on their night
console = Console(log_path=False)


# --- the world around the loop


class Webhook(HTTPServer):
    """Receives the alerts."""

    def __init__(self, port: int, alerts: list[dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", port), _Receiver)
        self.alerts = alerts
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Receiver(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.alerts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Stage:
    """A task of one run of a DAG, as Airflow tells it."""

    dag: str
    stage: str
    state: str
    tries: int
    seconds: float


@dataclass
class Day:
    day: date
    planted: str | None
    requests: int = 0
    wall_s: float = 0.0
    night: list[Stage] = field(default_factory=list)  # of its own night
    later: list[Stage] = field(default_factory=list)  # of runs that a later night started

    @classmethod
    def told(cls, one: dict[str, Any]) -> "Day":
        """A day of an earlier run's result."""
        stages_of = {when: [Stage(**stage) for stage in one[when]] for when in ("night", "later")}
        kept = {name: one[name] for name in ("planted", "requests", "wall_s")}
        return cls(date.fromisoformat(one["day"]), **kept, **stages_of)


# --- one night


@dataclass
class Night:
    """Airflow's view of what runs."""

    settings: Settings
    airflow: stack.Airflow

    def new_runs(self, seen: set[str]) -> list[dict[str, Any]]:
        answer = self.airflow.client.get("/dags/~/dagRuns", params={"limit": 100, "order_by": "-id"})
        answer.raise_for_status()
        runs = [r for r in answer.json()["dag_runs"] if r["dag_id"] in LOOP]
        return [r for r in runs if r["dag_run_id"] + r["dag_id"] not in seen]

    def wait(self, day: date, seen: set[str], watch: Callable[[], None]) -> list[dict[str, Any]]:
        """Until every chain that the night began has ended; its runs."""
        runs: list[dict[str, Any]] = []
        end = time.monotonic() + DAY_TIMEOUT_S
        while time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):  # a busy API server: ask again
                watch()
                runs = self.new_runs(seen)
                ended = bool(runs) and all(r["state"] in ("success", "failed") for r in runs)
                if ended and not self._awaited(runs):
                    return runs
            time.sleep(1.0)
        raise TimeoutError(f"{day} did not end within {DAY_TIMEOUT_S} s: {runs}")

    def _awaited(self, runs: list[dict[str, Any]]) -> bool:
        """Whether an asset was made whose consumer has not run yet."""
        started = {(r["dag_id"], r["partition_key"]) for r in runs}
        for run in runs:
            if run["state"] == "success" and run["dag_id"] != LOOP[-1]:
                consumer = LOOP[LOOP.index(run["dag_id"]) + 1]
                if (consumer, run["partition_key"]) not in started:
                    return True
            if run["dag_id"] == LOOP[0] and any((LOOP[1], key) not in started for key in self._reopened(run)):
                return True
        return False

    def _reopened(self, run: dict[str, Any]) -> list[str]:
        place = f"/dags/{LOOP[0]}/dagRuns/{run['dag_run_id']}/taskInstances/reopen/xcomEntries/return_value"
        answer = self.airflow.client.get(place)
        if answer.status_code == 404:  # skipped: no earlier day waited
            return []
        answer.raise_for_status()
        keys = answer.json()["value"]
        return json.loads(keys) if isinstance(keys, str) else keys

    def stages(self, runs: list[dict[str, Any]]) -> Iterator[tuple[str, Stage]]:
        """(day, stage) of every task of the runs."""
        for run in sorted(runs, key=lambda r: r["run_after"]):
            for task in self.airflow.tasks(run["dag_id"], run["dag_run_id"]):
                yield (
                    run["partition_key"],
                    Stage(
                        run["dag_id"],
                        task["task_id"],
                        str(task["state"]),
                        task["try_number"],
                        round(task["duration"] or 0.0, 1),
                    ),
                )


def night_of(seen: set[str], night: Night, day: date, watch: Callable[[], None]) -> list[dict[str, Any]]:
    night.airflow.trigger(LOOP[0], day.isoformat())
    runs = night.wait(day, seen, watch)
    seen |= {r["dag_run_id"] + r["dag_id"] for r in runs}
    return runs


# --- the faults


def log_files(settings: Settings, day: date, kind: str = "*") -> list[Path]:
    return sorted(settings.layout.serving_log.glob(f"{kind}/{day}.*.jsonl"))


def hide(settings: Settings, day: date, shelf: Path) -> Callable[[], None]:
    """Move the day's log away; the answer brings it back."""
    moved = []
    for path in log_files(settings, day):
        target = shelf / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
        moved.append((target, path))

    def bring() -> None:
        for target, path in moved:
            shutil.move(target, path)

    return bring


def cut_a_line(settings: Settings, day: date) -> None:
    path = log_files(settings, day, "decisions")[0]
    lines = path.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    lines[middle] = lines[middle][: len(lines[middle]) // 2] + b"\n"
    path.write_bytes(b"".join(lines))


def drift(settings: Settings, day: date) -> None:
    for path in log_files(settings, day, "decisions"):
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        for line in lines:
            line["scores"]["like"] = [score**0.5 for score in line["scores"]["like"]]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def killer(settings: Settings) -> Callable[[], None]:
    """SIGKILL the task above the dbt process that has the warehouse open, once."""
    warehouse, killed = str(settings.layout.warehouse), []

    def watch() -> None:
        pid = stack.pid_of(settings, "airflow")
        for process in [] if killed or pid is None else psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(file.path == warehouse for file in process.open_files()):
                    killed.append(process.ppid())
                    os.kill(killed[0], signal.SIGKILL)
                    return

    return watch


def outage(redis: Redis, night: Night, day: date) -> Callable[[], None]:
    """Stop Redis once the day is being transformed, start it again once `features` has failed."""
    phase = ["up"]

    def watch() -> None:
        if phase[0] == "up" and night.airflow.runs("mtf_transform", day.isoformat()):
            redis.stop()
            phase[0] = "down"
        elif phase[0] == "down":
            for run in night.airflow.runs("mtf_features", day.isoformat()):
                for task in night.airflow.tasks("mtf_features", run["dag_run_id"]):
                    if task["task_id"] == "features" and task["state"] in ("up_for_retry", "failed"):
                        redis.start()
                        phase[0] = "back"

    return watch


# --- the whole run

asked_to_stop = threading.Event()  # by SIGTERM: after the day, so that --go-on finds a whole one


def write_settings(folder: Path) -> None:
    more = {
        "serving": {"port": free_port()},
        "store": {"online": "redis", "redis_url": f"localhost:{free_port()}"},
        "orchestration": {
            "airflow_port": free_port(),
            "mlflow_port": free_port(),
            "retries": 3,
            "retry_seconds": 5,
            "schedule": "0 0 29 2 *",  # nights are begun here: the real one would find no log of today
        },
        "alerts": {"webhook": f"http://127.0.0.1:{free_port()}"},
        "learner": {"window_days": 3},
        "gate": {"parity_sample": 200},
        "world": {"requests_per_day": 400, "past_days": 2, "start_day": "2026-01-01"},
    }
    small_days.write_settings(folder, more)


def run(out: Path, days: int, go_on: bool) -> dict[str, Any]:
    """Run the days, or (``go_on``) those that an earlier run over the same folder did not come to."""
    out = out.resolve()
    before = read_json(out / "result.json") if go_on else {"days": [], "wall_s": 0.0, "starts": 0}
    if go_on and len(before["days"]) >= days:
        return before
    if not go_on:
        shutil.rmtree(out, ignore_errors=True)
        write_settings(out)
    file = out / "mtf.yaml"
    os.environ[SETTINGS_VARIABLE] = str(file)
    settings = load_settings(file)
    hook = settings.alerts.webhook
    assert hook is not None
    alerts = [alert for one in before["days"] for alert in one["alerts"]]
    webhook = Webhook(int(hook.get_secret_value().rpartition(":")[2]), alerts)
    kept = out / "redis"  # what the online store holds outlives its stop
    kept.mkdir(exist_ok=True)
    port = int(settings.store.redis_url.rpartition(":")[2])
    redis = Redis("--dir", str(kept), "--appendonly", "yes", port=port)
    redis.start()
    first = date.fromisoformat(settings.world.start_day)
    services = [s for s in stack.services(settings, file) if s.name != "mlflow"]
    told = [Day.told(one) for one in before["days"]]
    began = time.monotonic() - before["wall_s"]
    try:
        for service in services:
            stack.start(settings, service)
        if not go_on:
            prepare_past(settings, [], Console(quiet=True))
        for service in services:
            stack.wait_ready(settings, service, timeout=600)
        airflow = stack.Airflow(settings)
        airflow.ensure_pool()
        airflow.wait_for_dags(list(LOOP), timeout=600)
        night = Night(settings, airflow)
        seen = {run["dag_run_id"] + run["dag_id"] for run in night.new_runs(set())}
        arrive: Callable[[], None] | None = None
        for number in range(len(told) + 1, days + 1):
            if asked_to_stop.is_set():
                break
            day, started = first.replace(day=number), time.monotonic()
            entry = Day(day, PLANTED.get(number))
            told.append(entry)
            traffic = simulate_day(settings, day)
            entry.requests = traffic["requests"]
            assert traffic["failures"] == 0, traffic
            if arrive is not None:
                arrive()
                arrive = None
            watch: Callable[[], None] = lambda: None  # noqa: E731
            if number == LATE:
                arrive = hide(settings, day, out / "late")
            elif number == BROKEN:
                cut_a_line(settings, day)
            elif number == DRIFTED:
                drift(settings, day)
            elif number == KILLED:
                watch = killer(settings)
            elif number == STORE_DOWN:
                watch = outage(redis, night, day)
            runs = night_of(seen, night, day, watch)
            for key, stage in night.stages(runs):
                of = next(d for d in told if d.day.isoformat() == key)
                (of.night if of is entry else of.later).append(stage)
            entry.wall_s = round(time.monotonic() - started, 1)
            result = collect(settings, told, webhook, time.monotonic() - began)
            result["starts"] = before.get("starts", 1) + 1
            write_json_atomic(out / "result.json", result)
            console.log(f"{day} {entry.wall_s:.0f} s  {result['days'][-1]['ended']}")
    finally:
        for service in services:
            stack.stop(settings, service.name)
        redis.stop()
        webhook.shutdown()
    return read_json(out / "result.json")


def collect(settings: Settings, told: list[Day], webhook: Webhook, seconds: float) -> dict[str, Any]:
    days = []
    for one in told:
        records = read_records(settings.layout, one.day)
        days.append(
            {
                "day": str(one.day),
                "planted": one.planted,
                "requests": one.requests,
                "wall_s": one.wall_s,
                "night": [vars(stage) for stage in one.night],
                "later": [vars(stage) for stage in one.later],
                "ended": ended(one, records),
                "reason": reason(records),
                "champion": records.get("promote", {}).get("version"),
                "alerts": [a for a in webhook.alerts if a["day"] == str(one.day)],
            }
        )
    champion = read_pointer(settings.layout.champion)
    return {
        "days": days,
        "champion": None if champion is None else champion.version,
        "wall_s": round(seconds, 1),
    }


def ended(one: Day, records: dict[str, dict[str, Any]]) -> str:
    """promoted (on its night), recovered (by a later night), refused (by the gate), or stopped."""
    decision = records.get("gate", {}).get("decision")
    if any(not record.get("success", True) for record in records.values()) or decision is None:
        return "stopped"
    if any(stage.state == "failed" for stage in one.night):
        return "recovered"
    return "refused" if decision == "refuse" else "promoted"


def reason(records: dict[str, dict[str, Any]]) -> str | None:
    for record in records.values():
        if not record.get("success", True):
            return record.get("error") or stages._failures(record)
    gate = records.get("gate", {})
    return "; ".join(gate["reasons"]) if gate.get("decision") == "refuse" else None


def unexpected(result: dict[str, Any]) -> list[str]:
    """Days that ended otherwise than they should."""
    found = []
    for number, one in enumerate(result["days"], 1):
        wanted = EXPECTED.get(number, "promoted")
        if one["ended"] != wanted:
            found.append(f"{one['day']} {one['ended']} and not {wanted}: {one['reason']}")
    return found


# --- the report

SHORT = {"success": "✓", "failed": "✗", "skipped": "–", "upstream_failed": "·"}


def report(result: dict[str, Any], command: str) -> str:
    names = list(stages.DAY_STAGES)
    head = "| day | " + " | ".join(name.replace("_", " ") for name in names) + " | reopen | ended | s |"
    lines = [head, "|" + "---|" * (len(names) + 4)]
    for one in result["days"]:
        for when, ran in (("night", one["night"]), ("later", one["later"])):
            if not ran:
                continue
            cells = [cell([s for s in ran if s["stage"] == name]) for name in [*names, "reopen"]]
            label = (
                f"{one['day'][5:]}{' **!**' if one['planted'] else ''}"
                if when == "night"
                else "↳ later night"
            )
            last = [one["ended"], f"{one['wall_s']:.0f}"] if when == "night" else ["", ""]
            lines.append("| " + " | ".join([label, *cells, *last]) + " |")
    planted = [
        f"| {one['day']} | {one['planted']} | {one['ended']} | {came_of(one)} | "
        f"{'; '.join(sorted({a['name'] + ' (' + a['stage'] + ')' for a in one['alerts']})) or 'none'} |"
        for one in result["days"]
        if one["planted"]
    ]
    count = {name: sum(one["ended"] == name for one in result["days"]) for name in ENDINGS}
    faults = unexpected(result)
    others = [
        f"- {one['day']} {one['ended']}: {came_of(one)}"
        for one in result["days"]
        if one["ended"] == "refused" or (one["ended"] == "stopped" and not one["planted"])
    ]
    average = sum(one["requests"] for one in result["days"]) // len(result["days"])
    verdict = f"Not as it should: {'; '.join(faults)}." if faults else "Every day ended as it should."
    starts = result.get("starts", 1)
    again = "" if len(result["days"]) >= 30 else " The run was stopped there: thirty days were meant."
    again += f" The program was started {starts} times over the same data (`--go-on`)." if starts > 1 else ""
    title = "Thirty" if len(result["days"]) == 30 else len(result["days"])
    what = f"""{len(result["days"])} simulated days, one after the other, by Airflow's scheduler with the
LocalExecutor; real service, dbt, Feast on Redis, gate and Bento. The program is the clock (it starts
`mtf_ingest` with the day as partition key, as the cron does at night) and plants five faults; it mends,
clears and reruns nothing. The days are small ({average} requests on average), the networks tiny, and the
gate asks for no gain: the right days stop is what is shown, not what is learnt."""
    came = f"""{count["promoted"]} days promoted on their night, {count["recovered"]} recovered by a later
night, {count["stopped"]} stopped, {count["refused"]} refused by the gate. {verdict} The champion after the
last day is `{result["champion"]}`. It took {result["wall_s"] / 60:.0f} minutes.{again}"""
    text = f"""\
# {title} days without a person

{header(provenance(command))}

{wrapped(what)}

{wrapped(came)}

## What was planted, and what came of it

| day | planted | ended | what stopped it, or tries | alerts |
|---|---|---|---|---|
"""
    also = ["", "Also stopped or refused:", "", *others] if others else []
    legend = """
## Every day

✓ done, ✗ failed, – skipped, · not begun because one before it failed; a number: tries. A second line of a day
is what a later night's run did for it (`reopen`). **!** marks the planted days.
"""
    return text + "\n".join([*planted, *also, legend, *lines, ""])


ENDINGS = ("promoted", "recovered", "stopped", "refused")


def cell(ran: list[dict[str, Any]]) -> str:
    if not ran:
        return " "
    last = ran[-1]
    return SHORT.get(last["state"], last["state"]) + (f" {last['tries']}" if last["tries"] > 1 else "")


def came_of(one: dict[str, Any]) -> str:
    """What stopped a day, also when it was taken up later; else which stage needed another try."""
    again = [
        f"`{stage['stage']}` done at try {stage['tries']}" for stage in one["night"] if stage["tries"] > 1
    ]
    told = (
        one["reason"] or "; ".join(alert["what"] for alert in one["alerts"]) or ", ".join(again) or "nothing"
    )
    return re.sub(r"/\S*/data/", "<data>/", told).replace("|", "/")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/thirty_days"))
    parser.add_argument(
        "--report",
        type=Path,
        help="Markdown, such as docs/results/thirty_days.md; <out>/report.md by default",
    )
    parser.add_argument("--days", type=int, default=30, choices=range(1, 32))
    parser.add_argument(
        "--go-on", action="store_true", help="with the days that an earlier run did not reach"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: asked_to_stop.set())
    result = run(options.out, options.days, options.go_on)
    path = options.report or options.out / "report.md"
    command = f"python -m tests.end_to_end.thirty_days --out {options.out} --report {path}"
    write_text_atomic(path, report(result, command))
    for line in unexpected(result):
        console.print(line)
    console.print(f"report: {path}; index page: {options.out / 'data' / 'reports' / 'index.html'}")
    return 1 if unexpected(result) else 0


if __name__ == "__main__":
    raise SystemExit(main())
