"""A page of results: the command, date, machine and versions above its tables, and its way into the docs."""

import os
import platform
import re
import shutil
import textwrap
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.contract.files import write_text_atomic

WIDTH = 120  # of a line of prose
PACKAGES = ("mtf", "torch", "numpy", "duckdb", "dbt-core", "feast", "bentoml", "apache-airflow")
# what makes a training step fast or slow: the kernels ask for the last two
AVX512 = {"avx512f": "AVX-512", "avx512_bf16": "bfloat16", "avx512_vnni": "int8"}


def provenance(command: str) -> dict[str, Any]:
    """``command``, ``date`` (UTC, ISO), ``machine`` and ``versions``, as plain JSON."""
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "avx512": [name for flag, name in AVX512.items() if flag in _cpuinfo("flags").split()],
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "load_1m": round(os.getloadavg()[0], 1),
        },
        "versions": {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def header(facts: dict[str, Any]) -> str:
    """The facts of :func:`provenance` as the paragraphs below the title of a page of results."""
    machine = facts["machine"]
    avx512 = ", ".join(machine["avx512"]) or "no AVX-512"
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return "\n\n".join(
        wrapped(line)
        for line in (
            f"Written by `{facts['command']}` on {facts['date']}.",
            f"Machine: {machine['processor']}, {machine['cores']} cores ({avx512}), "
            f"{machine['memory_gib']} GiB of memory, {machine['system']}; load of the last minute when it "
            f"was written: {machine['load_1m']}.",
            f"Versions: {versions}.",
        )
    )


def wrapped(paragraph: str) -> str:
    """A paragraph of prose in lines of at most :data:`WIDTH` characters."""
    return textwrap.fill(paragraph, WIDTH, break_long_words=False, break_on_hyphens=False)


def publish(page: Path, name: str, folder: Path) -> Path:
    """Copy a page to ``<folder>/<name>.md`` and the pictures that it shows to ``<folder>/<name>/``."""
    text, pictures = page.read_text(encoding="utf-8"), folder / name
    shutil.rmtree(pictures, ignore_errors=True)
    for shown in re.findall(r"\]\(([^)]+\.png)\)", text):
        pictures.mkdir(parents=True, exist_ok=True)
        shutil.copy(page.parent / shown, pictures / Path(shown).name)
        text = text.replace(f"]({shown})", f"]({name}/{Path(shown).name})")
    target = folder / f"{name}.md"
    write_text_atomic(target, text)
    return target


def _processor() -> str:
    """Its name, with family and model where the name is as vague as that of a virtual machine."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def _cpuinfo(field: str) -> str:
    """A field of the first processor by Linux; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(rf"^{field}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""
