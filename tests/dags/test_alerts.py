"""An alert says what happened and what to do, reaches its webhook, and never fails a day."""

import json
import re
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dags import alerts
from dags.stages import DAY_STAGES
from training.contract.errors import DataError, MtfError, PolicyError, SettingsError
from training.contract.settings import Settings

DAY = date(2026, 1, 5)
ROOT = Path(__file__).parents[2]


class Receiver(HTTPServer):
    """A webhook's other end: keeps what it was sent, answers with ``status``, or not at all when None."""

    status: int | None = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict] = []
        self.quiet = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?token=secret"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.status is None:
            self.server.quiet.wait(10)
        else:
            self.send_response(self.server.status)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.quiet.set()
    server.shutdown()
    server.server_close()


def settings_for(url: str, timeout_s: float = 5.0) -> Settings:
    return Settings(alerts={"webhook": url, "timeout_s": timeout_s})


def test_an_alert_is_a_structured_line_and_a_post_with_what_to_do(receiver: Receiver):
    alert = alerts.failed_stage(DAY, "validate_landed", DataError("p_like above 1"))
    with capture_logs() as lines:
        assert alerts.send(settings_for(receiver.url), alert)
    assert lines[0]["event"] == "alert" and lines[0]["what"] == "p_like above 1"
    (body,) = receiver.bodies
    assert body["name"] == "day_stopped" and body["stage"] == "validate_landed" and body["day"] == str(DAY)
    assert "mtf day --date 2026-01-05" in body["todo"] and body["todo"] in body["text"]
    assert f"{alerts.RUNBOOK}#" in body["text"]


@pytest.mark.parametrize("status", [500, 404])
def test_a_webhook_that_refuses_is_a_line_without_its_address(receiver: Receiver, status: int):
    receiver.status = status
    with capture_logs() as lines:
        assert not alerts.send(settings_for(receiver.url), alerts.failed_stage(DAY, "land", OSError("disk")))
    assert lines[-1]["event"] == "webhook failed"
    assert "secret" not in json.dumps(lines)


def test_a_webhook_that_does_not_answer_is_given_up(receiver: Receiver):
    receiver.status = None
    assert not alerts.send(settings_for(receiver.url, 0.2), alerts.failed_stage(DAY, "land", OSError("disk")))
    assert len(receiver.bodies) == 1


def test_a_webhook_that_is_not_there_or_no_address_fails_nothing():
    for url in ("http://127.0.0.1:1/x", "not a url"):
        assert not alerts.send(settings_for(url), alerts.missed_deadline(str(DAY), "mtf_ingest", 180))


def test_every_alert_leads_to_a_section_of_the_runbook():
    text = (ROOT / alerts.RUNBOOK).read_text()
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    errors = [DataError("x"), PolicyError("x"), SettingsError("x"), MtfError("x"), OSError("x"), "killed"]
    every = [alerts.failed_stage(DAY, stage, error) for stage in DAY_STAGES for error in errors]
    for alert in (*every, alerts.missed_deadline(str(DAY), "mtf_ingest", 180)):
        page, _, anchor = alert.runbook.partition("#")
        assert page == alerts.RUNBOOK and anchor in anchors, alert.runbook
        assert alert.todo
