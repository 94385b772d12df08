"""The pages of Data Docs, drawn without a network.

Great Expectations' own pages take their styles, icons, logo and the whole index table from servers
on the internet. These show the same content in one file each, and tell nobody that they were opened.
"""

import html
import json
from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from great_expectations.data_context.types.resource_identifiers import ValidationResultIdentifier
from great_expectations.render.renderer.site_builder import DefaultSiteIndexBuilder
from great_expectations.render.view.view import DefaultJinjaPageView
from jinja2 import ChoiceLoader, DictLoader

INDEX_RESULTS = 1_000  # newest results listed on the index page; older pages stay where they are

_STYLE = """\
body { font-family: system-ui, sans-serif; line-height: 1.45; margin: 0 2rem 3rem; color: #212529; }
table { border-collapse: collapse; }
td, th { padding: .3rem .8rem .3rem 0; border-top: 1px solid #dee2e6; text-align: left; vertical-align: top; }
a { color: #0b5cad; }
.pass, .text-success { color: #1e7e34; }
.warning { color: #8a5300; }
td { overflow-wrap: anywhere; }
td:first-child { white-space: nowrap; }
summary { cursor: pointer; }
@media (max-width: 480px) { body { margin: 0 .8rem 2rem; } td, th { padding-right: .5rem; } }
a:focus-visible { outline: 3px solid #0b5cad; outline-offset: 2px; }
.stop, .text-danger { color: #bd2130; font-weight: 600; }
"""

_PAGE = (
    """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ page_title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
"""
    + _STYLE
    + """\
nav { columns: 14rem; font-size: .9rem; }
nav a { display: block; }
.ge-section { margin-top: 1.5rem; }
.ge-section table { width: 100%; table-layout: auto; }
.ge-section td:first-child { white-space: normal; }
.ge-section td:first-child, .ge-section th:first-child { width: 4rem; }
.ge-section td:last-child, .ge-section th:last-child { width: 30%; }
h5, h4 { font-size: 1.05rem; margin: .5rem 0 .2rem; }
h6 { font-size: .9rem; margin: .8rem 0 .2rem; }
i { font-style: normal; }
.fa-check-circle::before { content: "\\2714"; }
.fa-times::before { content: "\\2718"; }
.fa-exclamation-triangle::before { content: "\\26A0"; }
body:has(#all):not(:has(#all:checked)) .holds,
body:has(#all):not(:has(#all:checked)) .failed tr:has(.text-success) { display: none; }
</style></head><body>
{% set result = renderer_type == "ValidationResultsPageRenderer" %}
{% set names = page_title.split(" / ") %}
{% set found = namespace(failed=[], holds=[]) %}
{% for section in sections %}{% if not (result and loop.first) %}
{% set _ = (found.failed if "text-danger" in section|string else found.holds).append((loop.index, section)) %}
{% endif %}{% endfor %}
<p><a href="{{ "../../../../" if result else "../" }}index.html">Data Docs</a></p>
<h1>{{ names[1] ~ " of " ~ names[2] if result and names|length > 2 else page_title }}</h1>
{% if result %}
{% if found.failed %}
{% set all = found.failed|length + found.holds|length %}
<p class="stop">{{ found.failed|length }} of {{ all }} columns or measures failed.</p>
<p><label><input type="checkbox" id="all"> also what holds</label></p>
{% else %}<p class="pass">All of it holds.</p>{% endif %}
{% endif %}
<nav aria-label="Columns and measures">
{% for index, section in found.failed %}<a href="#section-{{ index }}">{{ section["section_name"] }}</a>
{% endfor %}{% if not found.failed %}{% for index, section in found.holds %}
<a href="#section-{{ index }}">{{ section["section_name"] }}</a>{% endfor %}{% endif %}</nav>
{% for kind, some in (("failed", found.failed), ("holds", found.holds)) %}
<div class="{{ kind }}">
{% for index, section in some %}
{% set section_loop = {"index": index} -%}
{% include "section.j2" %}
{% endfor %}</div>
{% endfor %}
{% if result %}
<details><summary>About this run</summary>
{% set section_loop = {"index": 1} %}
{% for section in sections[:1] %}{% include "section.j2" %}{% endfor %}
</details>
{% endif %}
</body></html>
"""
)

_INDEX = (
    """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Data Docs</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
"""
    + _STYLE
    + """\
</style></head><body>
<p><a href="../../reports/index.html">Daily loop</a></p>
<h1>Data Docs</h1>
<p>Every day, newest first, with what failed. A <span class="stop">stop</span> keeps the day from training;
a <span class="warning">warning</span> is for a person to look at.</p>
<table><thead>
<tr><th scope="col">Day</th><th scope="col">Result</th><th scope="col">What failed</th></tr></thead>
<tbody>
<!-- rows -->
</tbody></table></body></html>
"""
)


class OfflinePageView(DefaultJinjaPageView):
    """A page of a result or of a suite: GX's rendered content in a template of ours."""

    def __init__(self, **directories: Any) -> None:
        super().__init__(**directories)
        assert self.env.loader is not None  # which the base class has set
        self.env.loader = ChoiceLoader([DictLoader({"page.j2": _PAGE}), self.env.loader])


class OfflineIndexBuilder(DefaultSiteIndexBuilder):
    """The index: one row a day, newest first, with what failed; suites that hold are folded away.

    As with GX's own, pages whose result or suite is gone are removed.
    """

    def build(
        self, skip_and_clean_missing: bool = True, build_index: bool = True
    ) -> tuple[Any, OrderedDict[str, Any] | None]:
        if not build_index:
            return None, None
        self._add_expectations_to_index_links(OrderedDict(), skip_and_clean_missing)
        keys = self._build_validation_and_profiling_result_site_keys(skip_and_clean_missing)
        keys.sort(key=lambda key: key.expectation_suite_identifier.name)
        keys.sort(key=lambda key: key.run_id.run_time, reverse=True)
        backend = self.data_context.validation_results_store.store_backend
        found = [(key, json.loads(backend.get(key.to_tuple()))) for key in keys[:INDEX_RESULTS]]
        rows = [_day_row(day, list(some)) for day, some in groupby(found, lambda one: one[0].run_id.run_name)]
        return self.target_store.write_index_page(_INDEX.replace("<!-- rows -->", "\n".join(rows))), None


def _day_row(day: str, results: Sequence[tuple[ValidationResultIdentifier, dict[str, Any]]]) -> str:
    """A day's suites, those that stop it first, then those that warn."""
    judged = [(_state(result), key, result) for key, result in results]
    failed = sorted((one for one in judged if one[0] != "pass"), key=lambda one: one[0])
    state = failed[0][0] if failed else "pass"
    told = "".join(
        f'<div><a href="{html.escape(page_path(key))}">{_suite(key)}</a> '
        f'<span class="{found}">{found}</span><br>{_texts(result)}</div>'
        for found, key, result in failed
    )
    holding = [(key, result) for found, key, result in judged if found == "pass"]
    checks = sum(len(result["results"]) for _, result in holding)
    links = ", ".join(f'<a href="{html.escape(page_path(key))}">{_suite(key)}</a>' for key, _ in holding)
    folded = f"<details><summary>{len(holding)} suites of {checks} checks hold</summary>{links}</details>"
    return (
        f'<tr><td>{html.escape(day)}</td><td class="{state}">{state}</td>'
        f"<td>{told}{folded if holding else ''}</td></tr>"
    )


def _state(result: dict[str, Any]) -> str:
    failed = [one["expectation_config"] for one in result["results"] if not one["success"]]
    severities = {config.get("severity") for config in failed}
    return "stop" if "critical" in severities else "warning" if failed else "pass"


def _suite(key: ValidationResultIdentifier) -> str:
    return html.escape(key.expectation_suite_identifier.name)


def _texts(result: dict[str, Any]) -> str:
    failed = [one["expectation_config"] for one in result["results"] if not one["success"]]
    failed.sort(key=lambda config: config.get("severity") != "critical")
    texts = "<br>".join(html.escape(str(config.get("description"))) for config in failed[:5])
    return texts + (f"<br>and {len(failed) - 5} more" if len(failed) > 5 else "")


def page_path(key: ValidationResultIdentifier) -> str:
    """Path of a result's page below the Data Docs folder."""
    return "/".join(("validations", *key.to_tuple())) + ".html"
