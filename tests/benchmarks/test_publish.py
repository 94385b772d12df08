"""A benchmark's page says the command, the date, the machine and the versions, and holds every number."""

import argparse
import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.benchmarks import publish
from training.experiments import pages


def test_results_are_kept_as_json_and_as_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "PAGES", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["x", "speed", "--publish", "--rounds", "3", "--out", str(tmp_path)])
    options = argparse.Namespace(out=tmp_path, publish=True)
    publish.keep("speed", "Speed", {"fast": {"ms": 1.25}, "slow": {"ms": 20, "failed": 1}}, options)
    kept, page = (
        json.loads((tmp_path / "speed.json").read_text()),
        (tmp_path / "results/speed.md").read_text(),
    )
    assert kept["results"]["fast"] == {"ms": 1.25}
    assert kept["command"].endswith("speed --rounds 3")
    assert page.startswith("# Speed\n\nWritten by `python -m ")
    today = datetime.now(UTC).date().isoformat()
    assert today in page and kept["versions"]["Python"] == platform.python_version()
    assert {"mtf", "torch", "numpy"} <= kept[
        "versions"
    ].keys() and f"Python {platform.python_version()}" in page
    assert f"{kept['machine']['cores']} cores" in page and kept["machine"]["memory_gib"] > 0
    assert "|  | ms | failed |" in page and "| fast | 1.25 |  |" in page and "| slow | 20 | 1 |" in page
    publish.keep("other", "Other", {}, argparse.Namespace(out=tmp_path, publish=False))
    assert not (tmp_path / "results/other.md").exists()


@pytest.mark.parametrize("module", ["tests.benchmarks", "tests.benchmarks.serving"])
def test_every_benchmark_can_be_imported_and_says_its_options(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--publish" in done.stdout, done.stderr


def test_nested_results_lose_no_number() -> None:
    turns = [{"ours": {"default": {"ms": 1.5}}, "peer_ms": 3.5}]
    results = {
        "threads": 2,
        "training": {"256": {"turns": turns, "median": {"ms": 2.5}}},
        "acting": [{"ms": 4.5}],
    }
    text = publish.nested(results)
    assert set(re.findall(r"\d\.5", text)) == {"1.5", "2.5", "3.5", "4.5"}
    assert "| threads | 2 |" in text and "## training: 256: turns" in text


def test_a_page_is_published_with_the_pictures_that_it_shows(tmp_path: Path) -> None:
    made, docs = tmp_path / "made", tmp_path / "docs"
    (made / "plots").mkdir(parents=True)
    docs.mkdir()
    (made / "plots/curves.png").write_bytes(b"new")
    (made / "results.md").write_text("# Table\n\n![curves](plots/curves.png)\n")
    (docs / "table").mkdir()
    (docs / "table/gone.png").write_bytes(b"old")
    page = pages.publish(made / "results.md", "table", docs)
    assert page.read_text() == "# Table\n\n![curves](table/curves.png)\n"
    assert [path.name for path in (docs / "table").iterdir()] == ["curves.png"]
