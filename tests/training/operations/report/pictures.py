"""The pictures of the pages in ``docs``, out of a data folder; needs Debian's ``chromium``.

make demo
.venv/bin/python -m tests.training.operations.report.pictures --data data --to docs
"""

import argparse
from pathlib import Path

from tests.training.operations.report.chromium import chromium

WIDTH = 1280
LONGEST = {"index": 1_400, "day": 2_600, "data_docs": 1_000}  # pixels from the top


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    asked = parser.parse_args()
    newest = sorted((asked.data / "reports").glob("dt=*/index.html"))[-1]
    pages = {
        "index": asked.data / "reports/index.html",
        "day": newest,
        "data_docs": asked.data / "validation/data_docs/index.html",
    }
    with chromium() as page:
        for name, path in pages.items():
            page.open(path.resolve().as_uri(), WIDTH)
            (asked.to / f"{name}.png").write_bytes(page.picture(WIDTH, LONGEST[name]))


if __name__ == "__main__":
    main()
