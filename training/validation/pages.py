"""The pages of Data Docs, drawn without a network.

Great Expectations' own pages take their styles, icons, logo and the whole index table from servers
on the internet. These show the same content in one file each, and tell nobody that they were opened.
"""

import html
import json
from collections import OrderedDict
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
td:first-child { white-space: nowrap; }
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
.ge-section td:first-child, .ge-section th:first-child { width: 5rem; }
.ge-section td:last-child, .ge-section th:last-child { width: 30%; }
h5, h4 { font-size: 1.05rem; margin: .5rem 0 .2rem; }
i { font-style: normal; }
.fa-check-circle::before { content: "\\2714"; }
.fa-times::before { content: "\\2718"; }
.fa-exclamation-triangle::before { content: "\\26A0"; }
body:has(#failed:checked) .ge-section:not(#section-1):not(:has(.text-danger)),
body:has(#failed:checked) tr:has(.text-success) { display: none; }
</style></head><body>
{% set up = "../../../../" if renderer_type == "ValidationResultsPageRenderer" else "../" %}
<p><a href="{{ up }}index.html">Data Docs</a></p>
<h1>{{ page_title }}</h1>
{% if renderer_type == "ValidationResultsPageRenderer" %}
<p><label><input type="checkbox" id="failed"> only what failed</label></p>
{% endif %}
<nav>
{% for section in sections %}<a href="#section-{{ loop.index }}">{{ section["section_name"] }}</a>
{% endfor %}</nav>
{% for section in sections %}
{% set section_loop = loop -%}
{% include "section.j2" %}
{% endfor %}
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
<p>Every suite of every day, newest first. A <span class="stop">stop</span> keeps the day from training;
a <span class="warning">warning</span> is for a person to look at.</p>
<table><thead><tr><th scope="col">Day</th><th scope="col">Suite</th><th scope="col">Result</th>
<th scope="col">Checks</th><th scope="col">What failed</th></tr></thead>
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
    """The index: one row a day and suite, newest first, with what failed.

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
        rows = [_index_row(key, json.loads(backend.get(key.to_tuple()))) for key in keys[:INDEX_RESULTS]]
        return self.target_store.write_index_page(_INDEX.replace("<!-- rows -->", "\n".join(rows))), None


def _index_row(key: ValidationResultIdentifier, result: dict[str, Any]) -> str:
    failed = [one["expectation_config"] for one in result["results"] if not one["success"]]
    severities = {config.get("severity") for config in failed}
    state = "stop" if "critical" in severities else "warning" if failed else "pass"
    suite = key.expectation_suite_identifier.name
    texts = "<br>".join(html.escape(str(config.get("description"))) for config in failed[:5])
    more = f"<br>and {len(failed) - 5} more" if len(failed) > 5 else ""
    return (
        f"<tr><td>{html.escape(key.run_id.run_name)}</td>"
        f'<td><a href="{html.escape(page_path(key))}">{html.escape(suite)}</a></td>'
        f'<td class="{state}">{state}</td><td>{len(result["results"])}</td><td>{texts}{more}</td></tr>'
    )


def page_path(key: ValidationResultIdentifier) -> str:
    """Path of a result's page below the Data Docs folder."""
    return "/".join(("validations", *key.to_tuple())) + ".html"
