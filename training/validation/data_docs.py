"""Great Expectations: its context under the data folder, running suites, Data Docs.

The only module here that imports Great Expectations (seconds), so import it inside functions.
"""

import fcntl
import html
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import great_expectations as gx
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.store import TupleFilesystemStoreBackend
from great_expectations.data_context.types.resource_identifiers import (
    ExpectationSuiteIdentifier,
    ValidationResultIdentifier,
)
from great_expectations.render.renderer.site_builder import DefaultSiteIndexBuilder

from training.contract.errors import MtfError
from training.contract.files import write_atomic, write_text_atomic
from training.validation.checks import Check, Suite

DATASOURCE = "lake"
INDEX_RESULTS = 1_000  # newest results listed on the index page; older pages stay where they are

_CONFIG = """\
# Written by training/validation/data_docs.py before every run; open this folder with
# great_expectations.get_context(context_root_dir=...). Edits are overwritten.
config_version: 4.0
plugins_directory: plugins/
analytics_enabled: false
data_context_id: 5f0d35b6-7f3c-4c55-9d9b-6b1d0f6d1c11
progress_bars:
  globally: false
stores:
  expectations_store:
    class_name: ExpectationsStore
    store_backend: {backend: suites/}
  validation_results_store:
    class_name: ValidationResultsStore
    store_backend: {backend: results/}
  checkpoint_store:
    class_name: CheckpointStore
    store_backend: {backend: checkpoints/}
  validation_definition_store:
    class_name: ValidationDefinitionStore
    store_backend: {backend: validation_definitions/}
expectations_store_name: expectations_store
validation_results_store_name: validation_results_store
checkpoint_store_name: checkpoint_store
data_docs_sites:
  local_site:
    class_name: SiteBuilder
    show_how_to_buttons: false
    store_backend: {backend: data_docs/}
    site_index_builder:
      module_name: training.validation.data_docs
      class_name: StaticIndexBuilder
"""

# Data Docs take Bootstrap and its icons from a CDN. Without a network these few lines keep the pages
# readable; with one, Bootstrap says the same.
_OFFLINE_STYLE = """\
body { font-family: system-ui, sans-serif; line-height: 1.5; margin: 0; }
.container-fluid { padding: 1rem 2rem; }
.table, .fixed-table-body > table { border-collapse: collapse; width: 100%; }
.table td, .table th { border-top: 1px solid #dee2e6; padding: .5rem; text-align: left; vertical-align: top; }
.badge { border-radius: .25rem; padding: 0 .3em; background: #e9ecef; color: #212529; }
.alert { padding: .5rem 1rem; border: 1px solid #dee2e6; }
.text-success { color: #1e7e34 !important; }
.text-danger { color: #bd2130 !important; }
.list-inline-item { display: inline-block; }
i.fas { font-style: normal; }
i.fa-check-circle::before { content: "\\2714"; }
i.fa-times::before { content: "\\2718"; }
i.fa-exclamation-triangle::before { content: "\\26A0"; }
"""


class AtomicFilesystemStoreBackend(TupleFilesystemStoreBackend):
    """GX's store of files, written so that a kill leaves the old file or the new one."""

    def _set(self, key: Any, value: str | bytes, **_: Any) -> str:
        if not isinstance(key, tuple):
            key = key.to_tuple()
        path = Path(self.full_base_directory) / self._convert_key_to_filepath(key)
        content = value.encode() if isinstance(value, str) else value
        if not path.exists() or path.read_bytes() != content:
            write_atomic(path, lambda temporary: temporary.write_bytes(content))
        return str(path)


class StaticIndexBuilder(DefaultSiteIndexBuilder):
    """The index of Data Docs as plain HTML: GX's own is drawn by scripts that a CDN serves.

    One row a day and suite, newest first, with what failed; results without a page and pages
    without a result are left out, as in GX's index.
    """

    def build(
        self, skip_and_clean_missing: bool = True, build_index: bool = True
    ) -> tuple[Any, dict[str, Any] | None]:
        if not build_index:
            return None, None
        self._add_expectations_to_index_links({}, skip_and_clean_missing)  # drops pages of gone suites
        keys = self._build_validation_and_profiling_result_site_keys(skip_and_clean_missing)
        keys.sort(key=lambda key: key.expectation_suite_identifier.name)
        keys.sort(key=lambda key: key.run_id.run_time, reverse=True)
        backend = self.data_context.validation_results_store.store_backend
        rows = [_index_row(key, json.loads(backend.get(key.to_tuple()))) for key in keys[:INDEX_RESULTS]]
        return self.target_store.write_index_page(_INDEX_PAGE.replace("<!-- rows -->", "\n".join(rows))), None


_INDEX_PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Data Docs</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font-family: system-ui, sans-serif; margin: 2rem; color: #212529; }
table { border-collapse: collapse; } td, th { padding: .35rem .8rem; border-top: 1px solid #dee2e6; }
td, th { text-align: left; vertical-align: top; }
.pass { color: #1e7e34; } .warning { color: #b36b00; } .stop { color: #bd2130; font-weight: 600; }
</style></head><body>
<h1>Data Docs</h1>
<p>Every suite of every day, newest first. A <span class="stop">stop</span> keeps the day from training;
a <span class="warning">warning</span> is for a person to look at.</p>
<table><thead><tr><th>Day</th><th>Suite</th><th>Result</th><th>Checks</th><th>What failed</th></tr></thead>
<tbody>
<!-- rows -->
</tbody></table></body></html>
"""


def _index_row(key: ValidationResultIdentifier, result: dict[str, Any]) -> str:
    failed = [one["expectation_config"] for one in result["results"] if not one["success"]]
    severities = {config.get("severity") for config in failed}
    state = "stop" if "critical" in severities else "warning" if failed else "pass"
    suite = key.expectation_suite_identifier.name
    page = html.escape(_page(key))
    texts = "<br>".join(html.escape(str(config.get("description"))) for config in failed[:5])
    more = f"<br>and {len(failed) - 5} more" if len(failed) > 5 else ""
    return (
        f'<tr><td>{html.escape(key.run_id.run_name)}</td><td><a href="{page}">{html.escape(suite)}</a></td>'
        f'<td class="{state}">{state}</td><td>{len(result["results"])}</td><td>{texts}{more}</td></tr>'
    )


def _page(key: ValidationResultIdentifier) -> str:
    """Path of a result's page below the Data Docs folder."""
    return "/".join(("validations", *key.to_tuple())) + ".html"


@dataclass(frozen=True)
class Outcome:
    """What Great Expectations found of one check."""

    check: Check
    success: bool
    observed: Any


@dataclass(frozen=True)
class SuiteOutcome:
    suite: Suite
    page: str  # relative to the data folder
    outcomes: list[Outcome]


@contextmanager
def _context(folder: Path, forget: Sequence[str]) -> Iterator[Any]:
    """The file context of ``folder``, one process at a time: stages of different days share it.

    Stored suites named in ``forget`` are dropped first: they are code, and GX adds a suite in
    milliseconds but compares an update with the stored one pair by pair, for seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = _CONFIG
        for place in ("suites/", "results/", "checkpoints/", "validation_definitions/", "data_docs/"):
            backend = (
                "{class_name: AtomicFilesystemStoreBackend, module_name: training.validation.data_docs, "
                f"base_directory: {place}}}"
            )
            text = text.replace(f"{{backend: {place}}}", backend)
        write_text_atomic(folder / "great_expectations.yml", text)
        for kind in ("suites", "validation_definitions", "checkpoints"):
            for name in forget:
                (folder / kind / f"{name}.json").unlink(missing_ok=True)
        style = folder / "plugins" / "custom_data_docs" / "styles" / "data_docs_custom_styles.css"
        write_text_atomic(style, _OFFLINE_STYLE)
        with warnings.catch_warnings(), _quiet("great_expectations"):
            warnings.simplefilter("ignore")
            yield gx.get_context(context_root_dir=folder, mode="file")


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """GX logs at INFO every object that it stores."""
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.WARNING)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)


def run(folder: Path, day: date, suites: Sequence[Suite], stale: Sequence[str]) -> list[SuiteOutcome]:
    """Validate each suite's batch and build Data Docs of them.

    Results are kept by suite and day: a second run of a day takes the place of the first.
    ``stale`` names every suite that this stage may run, so that results of an earlier run which this
    one does not give again are dropped. GX's own exceptions (an expectation that cannot be computed)
    count as failures and carry their text as what was observed.
    """
    run_id = RunIdentifier(
        run_name=day.isoformat(), run_time=datetime(day.year, day.month, day.day, tzinfo=UTC)
    )
    with _context(folder, forget=stale) as context:
        for name in stale:
            shutil.rmtree(folder / "results" / name / day.isoformat(), ignore_errors=True)
        source = context.data_sources.add_pandas(DATASOURCE)
        pages = []
        outcomes = []
        for suite in suites:
            key, results = _run_suite(context, source, suite, run_id)
            pages += [key, ExpectationSuiteIdentifier(suite.name)]
            found = [_outcome(suite, result) for result in results]
            outcomes.append(SuiteOutcome(suite, f"{folder.name}/data_docs/{_page(key)}", found))
        context.build_data_docs(resource_identifiers=pages)
    for outcome in outcomes:  # GX only logs a page that it could not render
        if not (folder.parent / outcome.page).is_file():
            raise MtfError(f"Great Expectations rendered no Data Docs page {outcome.page}; see its log")
    return outcomes


def _run_suite(
    context: Any, source: Any, suite: Suite, run_id: RunIdentifier
) -> tuple[ValidationResultIdentifier, list[ExpectationValidationResult]]:
    asset = source.add_dataframe_asset(suite.name)
    batch = asset.add_batch_definition_whole_dataframe("day")
    expectations = [_expectation(index, check) for index, check in enumerate(suite.checks)]
    meta = {"notes": suite.about}
    kept = context.suites.add(gx.ExpectationSuite(suite.name, expectations=expectations, meta=meta))
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=suite.name, data=batch, suite=kept)
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=suite.name,
            validation_definitions=[definition],
            result_format={"result_format": "SUMMARY"},
        )
    )
    [(key, result)] = checkpoint.run(
        batch_parameters={"dataframe": suite.frame}, run_id=run_id
    ).run_results.items()
    return key, result.results


def _expectation(index: int, check: Check) -> Any:
    kind = getattr(gx.expectations, check.expectation)
    column = {} if check.column is None else {"column": check.column}
    text = check.text if check.severity == "critical" else f"{check.text} (warning)"
    if check.bad_rows:
        text += f": {check.bad_rows} rows break it"
    meta = {"check": index}
    return kind(**column, **check.arguments, description=text, severity=check.severity, meta=meta)


def _outcome(suite: Suite, result: ExpectationValidationResult) -> Outcome:
    check = suite.checks[result.expectation_config.meta["check"]]
    raised = [
        info.get("exception_message")
        for info in (result.exception_info or {}).values()
        if isinstance(info, dict) and info.get("raised_exception")
    ]
    if result.exception_info.get("raised_exception"):
        raised.append(result.exception_info.get("exception_message"))
    if raised:
        return Outcome(check, False, f"could not be computed: {raised[0]}")
    observed = result.result.get("observed_value", result.result.get("partial_unexpected_list"))
    return Outcome(check, bool(result.success), observed)
