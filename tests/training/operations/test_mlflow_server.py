"""MLflow's pages in a browser: nothing leaves the machine, nobody assists, and it is one process."""

import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from serving.release.bento import free_port
from tests.training.operations.report.chromium import chromium

ROOT = Path(__file__).parents[3]


@pytest.mark.slow  # a browser comes with no wheel
def test_the_pages_ask_nobody_else_and_have_neither_assistant_nor_banner(tmp_path):
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *[sys.executable, "-m", "training.operations.mlflow_server", "--host", "127.0.0.1"],
                *["--port", str(port), "--backend", f"sqlite:///{tmp_path}/mlflow.db"],
                *["--artifacts", str(tmp_path / "artifacts")],
            ],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + 120
        while not answers(f"{address}/health"):
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        assert psutil.Process(process.pid).children(recursive=True) == []
        assert httpx.get(f"{address}/ajax-api/3.0/mlflow/assistant/config").status_code == 404
        with chromium() as page:
            for path, text in (("/", "Recent Experiments"), ("/#/experiments", "Search experiments")):
                page.open(f"{address}/")
                page.call("Page.navigate", url=f"{address}{path}")
                inputs = "[...document.querySelectorAll('input')].map(i => i.placeholder)"
                seen = f"document.body ? document.body.innerText + {inputs} : ''"
                while text not in page.value(seen):
                    assert time.monotonic() < until, page.value(seen)
                    time.sleep(0.1)
                asked = [one for one in page.requests if not one.startswith(("data:", "blob:"))]
                assert asked and all(one.startswith(address) for one in asked)
                assert "telemetry" not in page.value("document.body.innerText")
                assert "Assistant" not in page.value("document.body.innerText")
                shown = "[...document.querySelectorAll('[data-assistant-ui]')].some(e => e.offsetParent)"
                assert not page.value(shown)
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in log.read_text()


def answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
