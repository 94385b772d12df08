"""The demo: whole days of the simulated world through the real service and the real DAGs.

It must show the loop, not imitate it: every stage runs as an Airflow task, every request is HTTP, and
the truth it compares arms by is the world's own ledger. What could break it: a stage that hangs (every
wait is bounded), a port in use (said before anything starts), a day that fails (it ends with the
failed task's name, and what was done so far is in the summary).
"""

import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dags.command_line import stack
from dags.command_line.stack import StackError
from dags.command_line.world import fit_world, prepare_past
from training.contract import in_service
from training.contract.files import write_json_atomic
from training.contract.records import STAGES, read_records
from training.contract.settings import Settings, settings_path

LOOP = ("mtf_ingest", "mtf_transform", "mtf_features", "mtf_retrain", "mtf_promote")
DAY_TIMEOUT_S = 900
TRUTH_SESSIONS = 6_000


def run_demo(settings: Settings, days: int, *, keep: bool, console: Console) -> None:
    """Prepare the history, start the stack, run the days, write ``summary.json``, show the table.

    Raises :class:`StackError` naming the task that failed; the summary is written all the same.
    """
    started = time.monotonic()
    settings, real = fit_world(settings, console)
    first = date.fromisoformat(settings.world.start_day)
    calendar = [first + timedelta(days=n) for n in range(days)]
    running = stack.services(settings, settings_path())
    prepared, truth = 0.0, None
    try:
        for service in running:  # they start up while the past is prepared
            stack.start(settings, service)
        prepare_past(settings, real, console)
        prepared = time.monotonic() - started
        for service in running:
            told = stack.wait_ready(settings, service)
            console.print(f"{service.name:8s} {service.address}  {told}")
        airflow = stack.Airflow(settings)
        airflow.ensure_pool()
        airflow.wait_for_dags([*LOOP, "mtf_traffic"])
        for day in calendar:
            began = time.monotonic()
            _run_dag(airflow, "mtf_traffic", day, console)
            _run_loop(airflow, settings, day, console)
            console.print(f"{day} done in {time.monotonic() - began:.0f} s")
        with console.status("the last day's champion and static weights on the same simulated sessions"):
            truth = _truth(settings, calendar[-1])
    finally:
        summary = summarise(settings, calendar)
        summary["truth"] = truth
        summary["verdict"] = verdict(summary)
        summary["wall_seconds"] = {
            "history": round(prepared, 1),
            "total": round(time.monotonic() - started, 1),
        }
        write_json_atomic(settings.layout.summary, summary)
        if not keep:
            for service in running:
                stack.stop(settings, service.name)
    _show(settings, summary, console, keep)


def _run_dag(airflow: stack.Airflow, dag: str, day: date, console: Console) -> None:
    run_id = airflow.trigger(dag, day.isoformat())
    with console.status(f"{day} {dag}"):
        _wait(airflow, dag, day, run_id)


def _run_loop(airflow: stack.Airflow, settings: Settings, day: date, console: Console) -> None:
    """Trigger the producer; its assets start the consumers. Waits for the last of them."""
    end = time.monotonic() + DAY_TIMEOUT_S
    airflow.trigger("mtf_ingest", day.isoformat())
    with console.status(f"{day}") as status:
        for dag in LOOP:
            status.update(f"{day} {dag}")
            while not airflow.runs(dag, day.isoformat()):
                if time.monotonic() > end:
                    raise StackError(f"{dag} of {day} was not started within {DAY_TIMEOUT_S} s")
                time.sleep(0.5)
            _wait(airflow, dag, day, airflow.runs(dag, day.isoformat())[-1]["dag_run_id"])


def _wait(airflow: stack.Airflow, dag: str, day: date, run_id: str) -> None:
    end = time.monotonic() + DAY_TIMEOUT_S
    while time.monotonic() < end:
        run = next(run for run in airflow.runs(dag, day.isoformat()) if run["dag_run_id"] == run_id)
        if run["state"] == "success":
            return
        if run["state"] == "failed":
            failed = [t["task_id"] for t in airflow.tasks(dag, run_id) if t["state"] == "failed"]
            raise StackError(
                f"{dag} of {day} failed in {', '.join(failed) or 'no task'}: see its log in Airflow"
            )
        time.sleep(0.5)
    raise StackError(f"{dag} of {day} did not end within {DAY_TIMEOUT_S} s")


def summarise(settings: Settings, calendar: list[date]) -> dict[str, Any]:
    """What every day did, from the stages' own records, and what the world knows of the arms."""
    days = {str(day): _summarise_day(read_records(settings.layout, day)) for day in calendar}
    pointer = in_service.read(settings).champion
    return {
        "world": settings.world.build,
        "days": days,
        "champion": None if pointer is None else {"version": pointer.version, "sha256": pointer.sha256},
    }


def _summarise_day(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    get = records.get
    traffic, gate = get("traffic", {}), get("gate", {})
    return {
        "requests": traffic.get("requests"),
        "failures": traffic.get("failures"),
        "latency_ms": traffic.get("latency_ms"),
        "arms": traffic.get("arms"),
        "rows": {t: r["rows"] for t, r in get("land", {}).get("tables", {}).items()},
        "valid": {s: records[s]["success"] for s in records if s.startswith("validate_")},
        "pool": get("evaluate", {}).get("pool"),
        "challenger": get("evaluate", {}).get("chosen"),
        "estimates": {
            name: {key: estimate[key] for key in ("lower", "value", "upper")}
            for name, estimate in get("evaluate", {}).get("estimates", {}).items()
        },
        "gate": {"decision": gate.get("decision"), "reasons": gate.get("reasons")},
        # who serves after the day: the promoted challenger, else who served before
        "champion": get("promote", {}).get("version") or (gate.get("champion") or {}).get("version"),
        "seconds": {s: records[s].get("seconds") for s in STAGES if s in records and s != "drift"},
    }


def _truth(settings: Settings, day: date) -> dict[str, Any] | None:
    """What only the world knows: the champion that served on the last day against static weights.

    Both rank the same ``TRUTH_SESSIONS`` sessions of that day in this process, with the same luck; an
    arm of the day's own traffic has too few sessions to tell policies apart. None without a champion.
    """
    from training import promotion
    from training.world.simulator.drivers import open_world
    from training.world.simulator.references import Bench, compare_with_static

    champion = promotion.champion_policy(settings, before=day)
    if champion.version == "static":
        return None
    bench = Bench(open_world(settings, day), day, sessions=TRUTH_SESSIONS)
    return {"day": str(day), "version": champion.version, **compare_with_static(bench, champion)}


def verdict(summary: dict[str, Any]) -> str:
    """Whether the last day's champion beats static weights in the world's true session return."""
    truth = summary["truth"]
    unfinished = [day for day, facts in summary["days"].items() if facts["gate"]["decision"] is None]
    if unfinished:
        return f"not shown: {', '.join(unfinished)} did not reach the gate"
    if truth is None:
        reasons = {
            day: "; ".join(facts["gate"]["reasons"] or ["no decision"])
            for day, facts in summary["days"].items()
        }
        return (
            "not shown: no policy had been promoted before the last day, so its champion arm served static "
            f"weights too. The gate said: {reasons}"
        )
    policy, static, difference = truth["policy"], truth["static"], truth["difference"]
    text = (
        f"the champion of {truth['day']}, {truth['version']}, has a true session return of "
        f"{_interval(policy)}, static weights {_interval(static)}; the difference on the same "
        f"{truth['sessions']} simulated sessions is {_interval(difference)}"
    )
    if policy["lower"] > static["upper"]:
        return f"better, intervals apart: {text}"
    if policy["upper"] < static["lower"]:
        return f"WORSE, intervals apart: {text}"
    return f"not shown, intervals overlap: {text}"


def in_words(truth: dict[str, Any] | None) -> str:
    """What the policy brings, for anyone; shares of what static weights bring, with the interval."""
    if truth is None:
        return "In short: the weights that were found in place serve on; nothing better was shown yet."
    gain, static = truth["difference"], truth["static"]["mean"]
    lower, mean, upper = (gain[end] / static for end in ("lower", "mean", "upper"))
    said = "more" if mean >= 0.0 else "less"
    sure = "" if lower > 0.0 or upper < 0.0 else " That could be chance."
    return (
        f"In short: ranked by what was learnt, a session brings {abs(mean):.0%} {said} than by the "
        f"hand-tuned weights ({lower:+.0%} to {upper:+.0%}).{sure}"
    )


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.2f} ({value['lower']:.2f} to {value['upper']:.2f})"


def _half_width(arm: dict[str, Any]) -> float:
    low, high = arm["session_return_ci"]
    return (high - low) / 2.0


def _show(settings: Settings, summary: dict[str, Any], console: Console, keep: bool) -> None:
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title="true session return of the sessions served, by arm (95 % interval)",
    )
    arms = sorted({arm for day in summary["days"].values() for arm in day["arms"] or {}})
    for column in ("day", "requests", "failed", *arms, "gate"):
        table.add_column(column)
    for day, facts in summary["days"].items():
        cells = [
            f"{facts['arms'][arm]['session_return_mean']:.1f} ±{_half_width(facts['arms'][arm]):.1f}"
            if arm in (facts["arms"] or {})
            else "-"
            for arm in arms
        ]
        table.add_row(
            day[5:],
            str(facts["requests"]),
            str(facts["failures"]),
            *cells,
            str(facts["gate"]["decision"]),
        )
    console.print(table)
    console.print(summary["verdict"])
    console.print(f"wall time {summary['wall_seconds']['total']:.0f} s")
    layout = settings.layout
    console.print(f"summary   {layout.summary}")
    console.print(f"report    {layout.reports / 'index.html'}")
    console.print(f"data docs {_data_docs(settings, summary)}")
    console.print(in_words(summary["truth"]))
    console.print("`mtf up` starts Airflow, the service and MLflow over the same data folder")
    if keep:
        for service in stack.services(settings, settings_path()):
            console.print(f"{service.name:8s} {service.address}")


def _data_docs(settings: Settings, summary: dict[str, Any]) -> Path:
    last = date.fromisoformat(list(summary["days"])[-1])
    record = read_records(settings.layout, last).get("validate_landed", {})
    return settings.layout.root / record.get("data_docs", "validation")
