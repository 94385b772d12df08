"""The pages in a real browser: they ask nobody for anything, fit a phone, and can be read and used by all.

Needs Debian's chromium: wheels that ship a browser engine need system libraries (X11, NSS, EGL) that a fresh
machine lacks, so this runs under `make test-all`, and fails saying what to install.
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.training.operations.report.chromium import Page, chromium
from tests.training.validation.conftest import DAYS, Lake, _settings
from training.contract.files import write_json_atomic
from training.contract.layout import IMPRESSIONS
from training.contract.records import write_record
from training.contract.settings import Settings
from training.operations.report.index_page import index
from training.operations.report.page import build
from training.validation.stages import validate_landed

pytestmark = pytest.mark.slow
WIDTHS = (1200, 390, 320)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Three days: two good ones, and one that validation stopped with rows in quarantine."""
    settings = _settings(tmp_path_factory.mktemp("pages") / "data")
    lake = Lake(settings)
    for day in DAYS:
        lake.add_day(day)
        if day == DAYS[-1]:
            lake.set_value(IMPRESSIONS, day, "p_like", [3, 4], 1.7)
        rows = pq.ParquetFile(lake.path(IMPRESSIONS, day)).metadata.num_rows
        tables = {"impressions": {"rows": rows, "days": [str(day)], "duplicates_removed": 0}}
        write_record(settings.layout, day, "land", {"success": True, "seconds": 1.0, "tables": tables})
        write_record(settings.layout, day, "validate_landed", validate_landed(settings, day))
        _decide(settings, day)
        build(settings, day)
    index(settings)
    return settings


def _decide(settings: Settings, day: date) -> None:
    if day == DAYS[-1]:
        return
    estimates = {
        name: {
            **{"lower": 1.0, "value": 1.5, "upper": 2.0, "alarm": False, "bound_share": 0.1},
            "version": f"{day}-p",
        }
        for name in ("challenger", "static")
    }
    difference = {"challenger - static": {"lower": -0.2, "value": 0.1, "upper": 0.4}}
    record = {"success": True, "estimates": estimates, "differences": difference}
    write_record(settings.layout, day, "evaluate", record)
    rule = {
        "rule": "estimate",
        "passed": True,
        "observed": 1,
        "threshold": 0,
        "reason": "not below " + "9" * 30,
    }
    gate = {"success": True, "decision": "promote", "rules": [rule], "reasons": ["all passed"]}
    write_record(settings.layout, day, "gate", {**gate, "challenger": {"version": f"{day}-p"}})
    curves = {"step": [1, 2], "critic_loss": [2.0, 1.0]}
    write_json_atomic(settings.layout.model(day) / "batchrl_mtf/curves.json", curves)
    trained = {"policy": "x", "version": f"{day}-p", "sha256": "a" * 64, "curves": curves, "summary": {}}
    pool = {"batchrl_mtf": {**trained, "steps": 2}, "constant": {**trained, "steps": 0}}
    write_record(settings.layout, day, "train", {"success": True, "pool": pool, "transitions": 9})


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as found:
        yield found


def addresses(settings: Settings) -> list[str]:
    docs = settings.layout.validation / "data_docs"
    result = next((docs / "validations" / "impressions_rows" / str(DAYS[-1])).rglob("*.html"))
    files = [
        settings.layout.reports / "index.html",
        settings.layout.reports / f"dt={DAYS[-1]}" / "index.html",
        settings.layout.reports / f"dt={DAYS[0]}" / "index.html",
        docs / "index.html",
        result,
    ]
    return [file.as_uri() for file in files]


def test_a_page_asks_nobody_for_anything_and_throws_nothing(settings: Settings, page: Page) -> None:
    for address in addresses(settings):
        page.open(address)
        assert set(page.requests) == {address}
        assert page.errors == []


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_of_ours_is_wider_than_the_screen(settings: Settings, page: Page, width: int) -> None:
    for address in addresses(settings)[:3]:
        page.open(address, width)
        assert page.value("document.documentElement.scrollWidth") <= width, address


TARGETS = """[...document.querySelectorAll('a[href]')].map(a => a.href)"""


def test_every_link_leads_to_something_that_is_there(settings: Settings, page: Page) -> None:
    for address in addresses(settings):
        page.open(address)
        for target in page.value(TARGETS):
            if target.startswith("http://127.0.0.1:"):
                continue  # of the stack, which need not run; any other address is refused below
            path, _, fragment = target.removeprefix("file://").partition("#")
            assert Path(path.replace("%3D", "=")).exists(), f"{address} links to {target}"
            if fragment and target.startswith(address):
                assert page.value(f"document.getElementById('{fragment}') !== null"), target


# relative luminance and contrast of WCAG 2, of each element with a text of its own on its nearest background
CONTRAST = """(() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('svg') || !e.checkVisibility()) continue;
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${e.tagName} ${e.textContent.trim().slice(0, 40)}`);
  }
  return bad;
})()"""


def test_text_stands_out_from_its_background(settings: Settings, page: Page) -> None:
    for address in addresses(settings):
        page.open(address)
        assert page.value(CONTRAST) == [], address


UNNAMED = """[...document.querySelectorAll('svg[role], img, [role=region], nav, input')]
  .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('alt') || e.closest('label')))
  .concat([...document.querySelectorAll('svg:not(svg svg)')].filter(e => !e.getAttribute('aria-label')))
  .map(e => e.outerHTML.slice(0, 80))"""


def test_what_is_no_text_has_a_text(settings: Settings, page: Page) -> None:
    for address in addresses(settings)[:3]:
        page.open(address)
        assert page.value(UNNAMED) == [], address
        assert page.value("document.documentElement.lang") == "en"
        assert page.value("document.querySelectorAll('h1').length") == 1
        assert page.value("document.querySelectorAll('main').length") == 1
        assert page.value(
            "[...document.querySelectorAll('thead th, tr:first-child > th')].every(t => t.scope)"
        )


def test_the_keyboard_reaches_every_link_and_scrolls_wide_tables(settings: Settings, page: Page) -> None:
    page.open(addresses(settings)[0], width=390)
    wanted = page.value("document.querySelectorAll('a[href], [tabindex=\"0\"]').length")
    reached = set()
    for _ in range(wanted + 2):
        page.press("Tab")
        where = "[...document.querySelectorAll('a[href], [tabindex=\"0\"]')].indexOf(document.activeElement)"
        place = page.value(where)
        reached.add(place)
        if place >= 0:  # -1 is the page itself, after the last of them
            assert page.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert set(range(wanted)) <= reached
    page.value("document.querySelector('.scroll').focus()")
    before = page.value("document.querySelector('.scroll').scrollLeft")
    for _ in range(5):
        page.press("ArrowRight")
    moved = "document.querySelector('.scroll').scrollLeft"
    for _ in range(200):
        if page.value(moved) > before:
            break
    assert page.value(moved) > before


def test_the_index_answers_and_leads_to_what_stopped(settings: Settings, page: Page) -> None:
    page.open(addresses(settings)[0])
    answers = page.value("[...document.querySelectorAll('.answers > div')].map(d => d.innerText)")
    assert len(answers) == 3 and "Stopped at validate_landed" in answers[1]
    todo = page.value("[...document.querySelectorAll('.todo > li')].map(d => d.innerText)")
    assert any("values out of range: p_like" in one and "mtf day --date 2026-01-07" in one for one in todo)
    page.value("document.querySelector('[aria-label=\"All days\"] tbody th a').click()")
    while not page.value("document.querySelector('.outcome') !== null"):
        pass
    assert "p_like" in page.value("document.querySelector('#broken + ol').innerText")
    while page.value("document.readyState") != "complete":
        pass
    page.value("[...document.querySelectorAll('nav a')].find(a => a.innerText === 'Data Docs').click()")
    while page.value("document.title") != "Data Docs":
        pass
    assert "stop" in page.value("document.querySelector('tbody').innerText")
