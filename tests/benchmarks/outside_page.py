"""The page of :mod:`tests.benchmarks.outside`."""

from collections import Counter
from typing import Any

import numpy as np

from tests.benchmarks.publish import prose, table
from tests.benchmarks.recsim import CANDIDATES, ROOT, SLATE
from training.evaluation.intervals import mean_interval

BEST, BCQ_NAME, CHOICE = "best of the constants", "BCQ (d3rlpy)", "pool's choice"
ROWS = ("static", BEST, BCQ_NAME, "constant", "return_regression", "batchrl_mtf", CHOICE)


def tables(results: dict[str, Any]) -> str:
    text = prose(
        f"Users of {locked('recsim', 'recsim-no-tf')}, {CANDIDATES} candidates a request and a slate of "
        f"{SLATE}. A seed has users, a log, constants and learners of its own; all that it compares serve "
        f"the same {results['judge']:,} fresh sessions, whose true mean return is shown. Of "
        f"{results['constants']} constants drawn at random the best on {results['search']:,} other sessions "
        f"is taken. BatchRL-MTF (five seeds as one policy) and BCQ ({locked('d3rlpy', 'd3rlpy')}) take "
        f"{results['steps']:,} steps. Means over seeds with 95 % intervals (Student's t)."
    )
    for name, about in ABOUT.items():
        seeds = results["worlds"].get(name)
        if not seeds:
            continue
        text += f"## {name}\n\n" + prose(f"{about} Seeds: {len(seeds)}.")
        for size in map(str, results["sizes"]):
            text += of_size(size, [seed["sizes"][size] for seed in seeds])
    return text


ABOUT = {
    "long_term_satisfaction": "RecSim's defaults. Clickbait engages at once and lowers a hidden "
    "satisfaction, but hardly: satisfaction stays within .49 and .51, so what engages at once is best in "
    "the long run, too.",
    "sensitive": "The same with `LTSStaticUserSampler.sensitivity` at .1, ten times RecSim's default: "
    "satisfaction is within .42 and .58, and what engages at once is worst in the long run.",
    "interest_evolution": "RecSim's defaults. Videos of low quality use up a hidden budget of time, those of "
    "high quality extend it; a user's interests, which RecSim shows, move with what is watched.",
}


def of_size(size: str, seeds: list[dict[str, Any]]) -> str:
    returns = {name: np.array([seed["returns"][name] for seed in seeds]) for name in ROWS}
    chosen = ", ".join(
        f"{name} {count}" for name, count in Counter(seed["chosen"] for seed in seeds).most_common()
    )
    gains = [seed["returns"][CHOICE] - seed["returns"]["static"] for seed in seeds]
    held = sum(
        seed["judge"][seed["chosen"]]["lower"] <= gain <= seed["judge"][seed["chosen"]]["upper"]
        for seed, gain in zip(seeds, gains, strict=True)
    )
    logged = np.mean([seed["logged"] for seed in seeds])
    text = f"### A log of {int(size):,} sessions\n\nIts sessions returned {logged:.1f} in the mean.\n\n"
    rows = []
    for name, own in returns.items():
        row = [name, of(own, 1)]
        for rival in (BEST, BCQ_NAME):
            share = own / returns[rival]
            row += [of(share, 4), f"{share.min():.4f}"]
        rows.append(row)
    text += table(("", "return", f"of the {BEST}", "worst seed", f"of {BCQ_NAME}", "worst seed"), rows)
    return text + prose(
        f"The judge chose: {chosen}. Its interval of the chosen one's difference to static weights holds the "
        f"truth in {held} of {len(seeds)} seeds; by its own test it is to be trusted in "
        f"{sum(seed['trusted'] for seed in seeds)}."
    )


def locked(peer: str, package: str) -> str:
    """The package and its version in the peer's lock."""
    lines = (ROOT / f"tests/peers/{peer}.lock").read_text(encoding="utf-8").splitlines()
    return next(line.replace("==", " ") for line in lines if line.startswith(f"{package}=="))


def of(values: np.ndarray, digits: int) -> str:
    """The mean of independent values and its interval, where there is more than one."""
    mean = f"{values.mean():,.{digits}f}"
    if len(values) < 2:
        return mean
    found = mean_interval(values, 0.95)
    return f"{mean} ({found['lower']:,.{digits}f} to {found['upper']:,.{digits}f})"
