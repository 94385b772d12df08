"""`mtf` as a person at a shell meets it: a process of its own, with nobody to answer its questions."""

import os
import subprocess
import sys
from pathlib import Path


def mtf(*arguments: str, settings: Path, folder: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(Path(sys.executable).parent / "mtf"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "MTF_SETTINGS": str(settings), "TZ": "UTC"},
    )
