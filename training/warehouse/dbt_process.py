"""dbt on Spark, in a process of its own: ``python -m training.warehouse.dbt_process answer.json < order``.

An order has dbt's ``arguments``, an ``environment`` and the ``folder`` to work in. The answer has
``success``, ``exception``, and ``examples``: by failed data test the first rows that it found. These are
asked for here, because staging's views live no longer than the session does.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from training.contract.files import write_json_atomic

MOST = 3  # rows of an example
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent() -> None:
    """Die with the stage: else a dbt without one would hold the warehouse."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(answer: Path) -> None:
    end_with_parent()
    order = json.load(sys.stdin)
    os.environ.update(order["environment"])
    os.chdir(order["folder"])

    from dbt.cli.main import dbtRunner

    outcome = dbtRunner().invoke(order["arguments"])
    failed = [one for one in getattr(outcome.result, "results", []) if str(one.status) == "fail"]
    told = {
        "success": bool(outcome.success),
        "exception": str(outcome.exception or ""),
        "examples": {one.node.unique_id: _rows(one.node.compiled_code) for one in failed},
    }
    write_json_atomic(answer, told)


def _rows(query: str) -> list[dict[str, Any]]:
    from dbt.adapters.factory import get_adapter_by_type

    adapter = get_adapter_by_type("spark")  # type: ignore[no-untyped-call]
    with adapter.connection_named("examples"):
        _, rows = adapter.execute(f"select * from ({query}) order by all limit {MOST}", fetch=True)  # noqa: S608
        return [dict(zip(rows.column_names, row.values(), strict=True)) for row in rows.rows]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
