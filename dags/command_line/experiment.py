"""`mtf experiment`: tables of methods, and the judge's estimators, in the simulated world."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TaskID

from dags.command_line import days
from dags.command_line.console import console
from training.contract.settings import load_settings


def experiment(
    table: Annotated[
        str,
        typer.Argument(help="a table's YAML, the name of a shipped one, or `estimators` or `closed_forms`"),
    ],
    workers: Annotated[int, typer.Option(min=1, help="processes, of one thread each")] = 2,
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; build/experiments/<table> by default")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="for `estimators`: logs for the coverage")] = 60,
    publish: Annotated[
        Path | None,
        typer.Option(help="folder that also gets the page and its pictures, such as docs/results"),
    ] = None,
) -> None:
    """Measure a table of methods, seeds and worlds against the simulated world's truth.

    Shipped: `pool`, `log_sizes`, `paper_table1`, `successors`, `ablations`, `formula`, `cheaper_steps`. A run
    that was stopped or killed goes on where it was when it is started again. Writes `results.json`,
    `results.md` and plots; see docs/experiments.md.

    `estimators` measures the judge instead: the rank correlation of every estimator with the true return
    over policies of very different quality, and the coverage of its intervals over many logs, with the
    world and the judge's sizes of the settings file. `closed_forms` measures those in closed form alone, on
    20 large logs. They write `.json` and `.md` of their name; see docs/judging.md.
    """
    from training.experiments import estimators, load_table
    from training.experiments.run import run as measure
    from training.experiments.run import units

    if table in ("estimators", "closed_forms"):
        folder = out or Path("build/experiments/estimators")
        with days.progress_bar(console) as progress:
            bar = progress.add_task(f"{table}: units", total=None)

            def told(done: int, known: int, name: str) -> None:
                progress.update(bar, completed=done, total=known)
                progress.console.print(f"done   {name}")

            if table == "estimators":
                estimators.run(load_settings(), folder, told, workers=workers, draws=draws)
            else:
                estimators.run_closed(load_settings(), folder, told, workers=workers)
        _tell(folder / f"{table}.md", table, publish)
        return
    chosen = load_table(table)
    folder = out or Path("build/experiments") / chosen.name
    with days.progress_bar(console) as progress:
        total = progress.add_task(f"{chosen.name}: units", total=len(units(chosen)))
        cells = {str(unit) for unit in units(chosen)}
        bars: dict[str, TaskID] = {}

        def follow(job: str, share: float, what: str) -> None:
            if share >= 1.0:
                if job in bars:
                    progress.remove_task(bars.pop(job))
                progress.advance(total, job in cells)
                if what != "kept":
                    progress.console.print(f"{what:6s} {job}")
            else:
                if job not in bars:
                    bars[job] = progress.add_task(job, total=1.0)
                progress.update(bars[job], completed=share, description=f"{job}: {what}")

        measure(chosen, folder, workers, follow)
    _tell(folder / "results.md", chosen.name, publish)


def _tell(page: Path, name: str, published: Path | None) -> None:
    from training.experiments import pages

    console.print(f"results: {page if published is None else pages.publish(page, name, published)}")
