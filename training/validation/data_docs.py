"""Great Expectations: its context under the data folder, running suites, Data Docs.

The only module here that imports Great Expectations (seconds), so import it inside functions.
"""

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
from great_expectations.data_context.store.tuple_store_backend import TupleFilesystemStoreBackend
from great_expectations.data_context.types.resource_identifiers import (
    ExpectationSuiteIdentifier,
    ValidationResultIdentifier,
)

from training.contract.errors import MtfError
from training.contract.files import locked, write_atomic, write_text_atomic
from training.validation.checks import Check, Suite
from training.validation.pages import page_path

DATASOURCE = "lake"

_CONFIG = """\
# Written by training/validation/data_docs.py before every run: edits are overwritten. To look around:
# great_expectations.get_context(context_root_dir=<this folder>)
config_version: 4.0
analytics_enabled: false
data_context_id: 5f0d35b6-7f3c-4c55-9d9b-6b1d0f6d1c11
progress_bars:
  globally: false
stores:
  expectations_store: {class_name: ExpectationsStore, store_backend: SUITES}
  validation_results_store: {class_name: ValidationResultsStore, store_backend: RESULTS}
  checkpoint_store: {class_name: CheckpointStore, store_backend: CHECKPOINTS}
  validation_definition_store: {class_name: ValidationDefinitionStore, store_backend: DEFINITIONS}
expectations_store_name: expectations_store
validation_results_store_name: validation_results_store
checkpoint_store_name: checkpoint_store
data_docs_sites:
  local_site:
    class_name: SiteBuilder
    show_how_to_buttons: false
    store_backend: DATA_DOCS
    site_index_builder: {module_name: training.validation.pages, class_name: OfflineIndexBuilder}
    site_section_builders:
      expectations: {view: {module_name: training.validation.pages, class_name: OfflinePageView}}
      validations: {view: {module_name: training.validation.pages, class_name: OfflinePageView}}
      profiling: None
"""
_FOLDERS = {
    "SUITES": "suites/",
    "RESULTS": "results/",
    "CHECKPOINTS": "checkpoints/",
    "DEFINITIONS": "validation_definitions/",
    "DATA_DOCS": "data_docs/",
}


class AtomicFilesystemStoreBackend(TupleFilesystemStoreBackend):
    """GX's store of files, written so that a kill leaves the old file or the new one."""

    def _set(self, key: Any, value: str | bytes, **_: Any) -> str:  # type: ignore[override]  # GX's gives it, too
        if not isinstance(key, tuple):
            key = key.to_tuple()
        file = self._convert_key_to_filepath(key)  # type: ignore[no-untyped-call]  # GX's has no types
        path = Path(self.full_base_directory) / file
        content = value.encode() if isinstance(value, str) else value
        if not path.exists() or path.read_bytes() != content:
            write_atomic(path, lambda temporary: temporary.write_bytes(content))
        return str(path)


@dataclass(frozen=True)
class CheckOutcome:
    """What Great Expectations found of one check; ``unexpected`` counts values, where it counted."""

    check: Check
    success: bool
    observed: Any
    unexpected: int | None


@dataclass(frozen=True)
class SuiteOutcome:
    suite: Suite
    page: str  # relative to the data folder
    outcomes: list[CheckOutcome]


@contextmanager
def _context(folder: Path, forget: Sequence[str]) -> Iterator[Any]:
    """The file context of ``folder``, one process at a time: stages of different days share it.

    Stored suites named in ``forget`` are dropped first: they are code, and GX adds a suite in
    milliseconds but compares an update with the stored one pair by pair, for seconds.
    """
    with locked(folder / ".lock"):
        text = _CONFIG
        for name, place in _FOLDERS.items():
            backend = "{module_name: training.validation.data_docs, class_name: AtomicFilesystemStoreBackend"
            text = text.replace(
                f"store_backend: {name}", f"store_backend: {backend}, base_directory: {place}}}"
            )
        write_text_atomic(folder / "great_expectations.yml", text)
        for kind in ("suites", "validation_definitions", "checkpoints"):
            for name in forget:
                (folder / kind / f"{name}.json").unlink(missing_ok=True)
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
        asset = context.data_sources.add_pandas(DATASOURCE).add_dataframe_asset("partition")
        batch = asset.add_batch_definition_whole_dataframe("whole")
        pages = []
        outcomes = []
        for suite in suites:
            key, results = _run_suite(context, batch, suite, run_id)
            pages += [key, ExpectationSuiteIdentifier(suite.name)]
            found = [_outcome(suite, result) for result in results]
            outcomes.append(SuiteOutcome(suite, f"{folder.name}/data_docs/{page_path(key)}", found))
        context.build_data_docs(resource_identifiers=pages)
    for outcome in outcomes:  # GX only logs a page that it could not render
        if not (folder.parent / outcome.page).is_file():
            raise MtfError(f"Great Expectations rendered no Data Docs page {outcome.page}; see its log")
    return outcomes


def rebuild_index(folder: Path) -> None:
    """Make the index again after results were deleted; pages of results that are gone go too."""
    with _context(folder, forget=()) as context:
        context.build_data_docs(resource_identifiers=[], build_index=True)


def _run_suite(
    context: Any, batch: Any, suite: Suite, run_id: RunIdentifier
) -> tuple[ValidationResultIdentifier, list[ExpectationValidationResult]]:
    expectations = [_expectation(index, check) for index, check in enumerate(suite.checks)]
    kept = context.suites.add(gx.ExpectationSuite(suite.name, expectations=expectations, notes=suite.about))
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


def _outcome(suite: Suite, result: ExpectationValidationResult) -> CheckOutcome:
    assert result.expectation_config is not None  # which GX gives with every result of a suite
    check = suite.checks[result.expectation_config.meta["check"]]
    info = result.exception_info or {}
    infos = [info, *(one for one in info.values() if isinstance(one, dict))]
    raised = [one.get("exception_message") for one in infos if one.get("raised_exception")]
    if raised:
        return CheckOutcome(check, False, f"could not be computed: {raised[0]}", None)
    values = sorted({str(value) for value in result.result.get("partial_unexpected_list", [])})
    observed = result.result.get("observed_value", values or None)
    return CheckOutcome(check, bool(result.success), observed, result.result.get("unexpected_count"))
