"""`mtf` teaches, writes settings that load, and says what is wrong without a stack trace."""

import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.table import Table
from typer.testing import CliRunner

from dags.command_line import stack
from dags.command_line.console import console
from dags.command_line.demo import verdict
from dags.command_line.main import app
from dags.command_line.settings_file import render
from tests.dags.command import mtf
from training.contract.files import read_json, write_json_atomic
from training.contract.settings import Settings, load_settings

COMMANDS = (
    *("init", "ingest", "day", "backfill", "train", "evaluate", "promote", "rollback", "serve"),
    *("simulate", "status", "report", "reward", "experiment", "up", "down", "demo"),
    *("quarantine", "keep", "backup", "restore", "forget"),
)


def test_help_lists_every_command():
    text = CliRunner().invoke(app, ["--help"]).output
    for command in COMMANDS:
        assert f" {command} " in text


def test_it_tells_its_version():
    assert CliRunner().invoke(app, ["--version"]).output == f"mtf {version('mtf')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output) > 200


def test_init_writes_settings_that_give_the_defaults_back(tmp_path: Path):
    path = tmp_path / "mtf.yaml"
    assert CliRunner().invoke(app, ["init", str(path), "--timezone", "UTC"]).exit_code == 0
    assert load_settings(path) == Settings(data=tmp_path / "data")
    assert "(paper)" in path.read_text()


def test_init_takes_the_zone_that_is_named_or_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "mtf.yaml"
    CliRunner().invoke(app, ["init", str(path), "--timezone", "Asia/Kolkata"])
    assert load_settings(path).calendar.timezone == "Asia/Kolkata"
    monkeypatch.setenv("TZ", "Europe/Berlin")
    said = CliRunner().invoke(app, ["init", str(path), "--force"]).output
    assert load_settings(path).calendar.timezone == "Europe/Berlin"
    assert "days are cut in Europe/Berlin, the zone of this machine" in said


def test_init_takes_the_users_own_heads(tmp_path: Path):
    path = tmp_path / "mtf.yaml"
    CliRunner().invoke(app, ["init", str(path), "--heads", "click, share"])
    assert [head.name for head in load_settings(path).heads] == ["click", "share"]


def test_rendered_settings_keep_changed_values(tmp_path: Path):
    changed = Settings(seed=99, learner={"steps": 12}, serving={"shares": {"static": 0.5}})
    path = tmp_path / "mtf.yaml"
    path.write_text(render(changed))
    assert load_settings(path) == changed.model_copy(update={"data": tmp_path / "data"})


def test_a_wrong_setting_ends_with_its_line_and_no_stack_trace(tmp_path: Path):
    path = tmp_path / "mtf.yaml"
    path.write_text("seed: 1\nlearner:\n  stepz: 3\n")
    result = mtf("status", settings=path)
    assert result.returncode == 2
    assert f"{path}:3: learner.stepz: unknown setting" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_day_without_logs_says_so_and_leaves_a_page(tmp_path: Path):
    path = tmp_path / "mtf.yaml"
    path.write_text("seed: 1\n")
    result = mtf("day", "--date", "2026-01-05", settings=path)
    assert result.returncode == 1
    assert "there is no log of 2026-01-05" in result.stderr
    assert "Stopped at land" in (tmp_path / "data/reports/dt=2026-01-05/index.html").read_text()


LOUD = """
import logging, sys, warnings
{quiet}
warnings.warn("of a library", DeprecationWarning)
logging.basicConfig(level=logging.INFO)
logging.captureWarnings(True)
warnings.simplefilter("default")
warnings.warn("of a library that undoes filters", FutureWarning)
import mlflow
logging.getLogger("mlflow.store").info("Creating initial MLflow database tables")
logging.getLogger("alembic.runtime.migration").info("Running upgrade")
"""


@pytest.mark.parametrize("option", [(), ("-W", "default")])
def test_no_word_of_a_library_is_on_the_console_unless_it_is_asked_for(option: tuple[str, ...]):
    def said(quiet: str) -> str:
        command = [sys.executable, *option, "-c", LOUD.format(quiet=quiet)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stderr

    assert "of a library" in said("") and "MLflow database" in said("")
    told = said("from dags.command_line.quiet import quiet; quiet()")
    assert told == "" if not option else "of a library" in told


def test_serving_on_a_taken_port_says_so_and_names_the_setting(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = tmp_path / "mtf.yaml"
        path.write_text(f"serving: {{port: {port}}}\n")
        result = mtf("serve", settings=path)
    assert (result.returncode, result.stdout) == (1, "")
    said = f"error: port {port} of service is taken by another program: stop it, or change serving.port\n"
    assert result.stderr == said


@pytest.mark.parametrize(
    ("host", "said"),
    [("203.0.113.7", "203.0.113.7 is no address of this machine: set serving.host"), ("::1", "taken")],
)
def test_serving_where_nobody_can_listen_says_so(host: str, said: str):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as taken:
        if family == socket.AF_INET6:
            taken.bind((host, 0))
            taken.listen()
            port = taken.getsockname()[1]
        else:
            port = 3000
        service = stack.Service("service", [], {}, port, "/readyz", "serving.port", host)
        with pytest.raises(stack.StackError, match=said):
            stack.refuse_taken(service)


@pytest.mark.parametrize("arguments", [("backup", "--to"), ("restore", "--force", "--from")])
def test_while_the_stack_runs_its_folder_is_neither_copied_nor_replaced(
    tmp_path: Path, arguments: tuple[str, ...]
):
    path, file = tmp_path / "mtf.yaml", tmp_path / "b.tar.gz"
    path.write_text("seed: 1\n")
    stands_in = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    entry = {"pid": stands_in.pid, "started": stack._started(stands_in.pid)}
    write_json_atomic(tmp_path / "data/processes/airflow.json", entry)
    result = mtf(*arguments, str(file), settings=path)
    stands_in.communicate()
    assert result.returncode == 1 and not file.exists()
    said = f"error: airflow runs over {tmp_path / 'data'}: stop it first with `mtf down`\n"
    assert result.stderr == said
    if arguments[0] == "backup":
        assert mtf(*arguments, str(file), settings=path).returncode == 0 and file.exists()


def test_files_that_are_refused_leave_data_docs_a_page_and_a_record_as_a_refused_stage_does(tmp_path: Path):
    path = tmp_path / "mtf.yaml"
    path.write_text("seed: 1\n")
    broken = tmp_path / "logs/impressions/dt=2026-01-05/a.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"PAR1")
    ingest = ("ingest", "--source", "files", "--from", str(tmp_path / "logs"), "--date", "2026-01-05")
    result = mtf(*ingest, settings=path)
    assert result.returncode == 1 and f"{broken}: unreadable Parquet" in result.stderr
    data = tmp_path / "data"
    assert "Stopped at land" in (data / "reports/dt=2026-01-05/index.html").read_text()
    record = read_json(data / "runs/dt=2026-01-05/land.json")
    assert not record["success"] and record["suites"]["landing"]["failed"][0]["column"] == "readable"
    assert (data / record["data_docs"]).exists()


def test_what_a_user_wrote_is_shown_as_it_is(tmp_path: Path):
    """Nothing of it is taken for markup or an emoji, in errors as in tables."""
    path = tmp_path / "mtf.yaml"
    path.write_text("heads:\n- {name: Click, static: 1.0}\n")
    assert "should match pattern '^[a-z][a-z0-9_]{0,40}$'" in mtf("status", settings=path).stderr
    path.write_text("{}\n")
    folder = tmp_path / "[bold]logs:x:"
    result = mtf("ingest", "--from", str(folder), "--date", "2026-01-05", settings=path)
    assert f"no file of 2026-01-05: expected {folder}/impressions/dt=2026-01-05/" in result.stderr
    table = Table("[red]column")
    table.add_row("[null] :x: [/]")
    with console.capture() as shown:
        console.print(table)
    assert "[red]column" in shown.get() and "[null] :x: [/]" in shown.get()


def test_ingest_reads_what_it_is_given(tmp_path: Path):
    """A folder means files; the service's own log is read without one; both at once is refused."""
    path = tmp_path / "mtf.yaml"
    path.write_text("{}\n")
    file = tmp_path / "logs/impressions/dt=2026-01-05/a.csv"
    file.parent.mkdir(parents=True)
    file.write_text("request_id\n")
    given = ("--from", str(tmp_path / "logs"), "--date", "2026-01-05")
    assert "a.csv: missing column" in mtf("ingest", *given, settings=path).stderr
    assert "no log of 2026-01-05" in mtf("ingest", "--date", "2026-01-05", settings=path).stderr
    both = mtf("ingest", "--source", "service", *given, settings=path)
    assert both.returncode == 2 and "no --from: leave one of the two out" in both.stderr
    assert "needs --from FOLDER" in mtf("ingest", "--source", "kuairand", settings=path).stderr


@pytest.mark.parametrize(
    ("policy", "static", "begins"),
    [
        ((26.0, 25.5, 26.5), (24.0, 23.5, 24.5), "better, intervals apart"),
        ((22.0, 21.5, 22.5), (24.0, 23.5, 24.5), "WORSE, intervals apart"),
        ((24.6, 24.1, 25.1), (24.0, 23.5, 24.5), "not shown, intervals overlap"),
    ],
)
def test_the_demos_verdict_names_both_values_and_their_difference(policy, static, begins):
    def interval(values):
        return dict(zip(("mean", "lower", "upper"), values, strict=True))

    truth = {
        "day": "2026-01-08",
        "version": "v",
        "sessions": 10,
        "policy": interval(policy),
        "static": interval(static),
        "difference": interval((policy[0] - static[0], 0.1, 0.9)),
    }
    text = verdict({"days": {}, "truth": truth})
    assert text.startswith(begins)
    assert f"{policy[0]:.2f} ({policy[1]:.2f} to {policy[2]:.2f})" in text and "(0.10 to 0.90)" in text


def test_a_demo_without_a_champion_says_what_the_gate_said():
    days = {"2026-01-05": {"gate": {"decision": "refuse", "reasons": ["below"]}}}
    text = verdict({"days": days, "truth": None})
    assert text.startswith("not shown: no policy") and "below" in text


def test_a_demo_that_broke_off_claims_nothing():
    days = {
        "2026-01-05": {"gate": {"decision": "promote", "reasons": []}},
        "2026-01-06": {"gate": {"decision": None, "reasons": None}},
    }
    assert verdict({"days": days, "truth": None}) == "not shown: 2026-01-06 did not reach the gate"
