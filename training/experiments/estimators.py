"""How good the judge's estimators are: rank correlation with the truth, and coverage of their intervals.

In the simulated world the return of a policy can be measured. Policies of very different quality are
estimated from one log, and a few of them from many fresh and smaller logs:

- *rank*: Spearman's and Kendall's correlation of every estimator with the true session return;
- *coverage*: the share of logs on which an interval holds the truth, for values and for differences to
  static weights; and how often the gate's bar would have let the policy pass. pdis and dr are held
  against the truth of the smoothed policy that they estimate.

All estimators are measured, whichever the settings name. Each unit is a JSON file with the fingerprint of
its settings, sizes and sources; a run that was killed goes on with the units it lacks, and one with more
draws adds to those that are there.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import date
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import cma
import matplotlib
import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from scipy.stats import t as student_t

from training.contract import exploration
from training.contract.files import read_json, write_atomic, write_json_atomic, write_text_atomic
from training.contract.policy import (
    Policy,
    PolicyHeader,
    constant_policy,
    load_policy,
    save_policy,
)
from training.contract.settings import Estimator, EvaluationSettings, LearnerSettings, Settings
from training.evaluation import acting, stability
from training.evaluation.estimators import estimate
from training.experiments.unit import sources_sha256
from training.policies.learner import Learner
from training.policies.retrain import ALGORITHMS, reproducible
from training.trajectories import Transitions
from training.world.simulator.collect import Arm, collect, random_arm
from training.world.simulator.references import Bench, Choose, best_constants
from training.world.simulator.world import World

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Progress = Callable[[int, int, str], None]
Unit = tuple[str, tuple[Any, ...]]  # the name of a function of this module, and what it is called with

# benches of their own for each purpose: no session is used for two
TRAIN, SEARCH, LOG, TRUTH, DRAWS = 101, 102, 103, 104, 1_000
STATIC, CHAMPION = "static", "champion"


@dataclass(frozen=True)
class Sizes:
    """What the study costs."""

    train_sessions: int = 3_000
    learner_steps: tuple[int, ...] = (200, 1_000, 3_000)
    learner_seeds: int = 2
    random_constants: int = 6
    random_networks: int = 3
    search_sessions: int = 800
    log_sessions: int = 3_000
    truth_sessions: int = 8_000
    draws: int = 60
    draw_sessions: int = 1_000
    batch: int = 6  # policies judged at once


# --- policies -------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _world(settings_json: str) -> World:
    torch.set_num_threads(1)
    return World(Settings.model_validate_json(settings_json))


def _bench(settings_json: str, sessions: int, seed: int) -> Bench:
    world = _world(settings_json)
    return Bench(world, date.fromisoformat(world.settings.world.start_day), sessions, seed)


def _around(policy: Policy) -> Choose:
    return lambda states, requests: policy.act_in_parts(states)


def _log(settings_json: str, folder: Path, sessions: int, seed: int) -> Transitions:
    """A day as it is served: exploration, the control, and a champion with noise around it."""
    bench = _bench(settings_json, sessions, seed)
    static = _around(_constant(bench.settings, bench.settings.fusion.static_action, STATIC))
    champion = _around(load_policy(folder / f"{CHAMPION}.safetensors"))
    arms = [
        random_arm(len(bench.settings.heads), bench.settings.serving.random_std, share=0.3),
        Arm("noise", champion, bench.settings.serving.noise_std, share=0.3),
        Arm("champion", champion, share=0.2),
        Arm("static", static, share=0.2),
    ]
    return collect(bench, arms, seed)


def _constant(settings: Settings, action: np.ndarray, name: str) -> Policy:
    return constant_policy(settings.state_spec, settings.fusion, np.asarray(action), name)


def make_constants(settings_json: str, sizes: Sizes, folder: Path) -> list[str]:
    """Static weights and others around and far from them; the best by return and by immediate reward."""
    bench = _bench(settings_json, sizes.search_sessions, SEARCH)
    settings = bench.settings
    rng = np.random.default_rng(settings.seed)
    static, heads = settings.fusion.static_action.astype(float), len(settings.heads)
    best = best_constants(bench)
    actions = {STATIC: static, "best": best, "myopic": best_myopic(bench)}
    for i in range(sizes.random_constants):
        actions[f"random_{i}"] = rng.uniform(-1.0, 1.0, heads)
    for i, (name, centre) in enumerate((("static", static), ("best", best))):
        for j, std in enumerate((0.2, 0.5)):
            noise = np.random.default_rng([settings.seed, i, j]).normal(0.0, std, heads)
            actions[f"{name}_perturbed_{j}"] = np.clip(centre + noise, -1.0, 1.0)
    actions["opposite_of_best"] = -best
    for name, action in actions.items():
        header = PolicyHeader("constant", name, settings.state_spec, settings.fusion)
        save_policy(folder / f"{name}.safetensors", header, {"action": action})
    return list(actions)


def best_myopic(bench: Bench, generations: int = 12, seed: int = 2) -> np.ndarray:
    """Constant action float[k] with the highest reward *a request*: γ = 0, sessions may end as they like."""

    def reward_a_request(action: np.ndarray) -> float:
        result = bench.evaluate_constant(action)
        return float(result.session_return.sum() / result.requests.sum())

    start = np.clip(bench.settings.fusion.static_action.astype(float), -0.95, 0.95)
    options = {"bounds": [-1.0, 1.0], "popsize": 14, "seed": seed, "verbose": -9}
    search = cma.CMAEvolutionStrategy(start, 0.5, options)
    for _ in range(generations):
        asked = search.ask()
        search.tell(asked, [-reward_a_request(action) for action in asked])
    return np.clip(search.result.xfavorite, -1.0, 1.0)


def make_random_networks(settings_json: str, sizes: Sizes, folder: Path) -> list[str]:
    """Networks that were never trained."""
    settings = Settings.model_validate_json(settings_json)
    names = []
    for i in range(sizes.random_networks):
        name = f"untrained_{i}"
        save_policy(folder / f"{name}.safetensors", *untrained(settings, name, seed=i))
        names.append(name)
    return names


def untrained(settings: Settings, version: str, seed: int) -> tuple[PolicyHeader, dict[str, np.ndarray]]:
    """Header and tensors of π(s) = tanh(MLP(s)) with random weights, wide enough to use its bounds."""
    rng, hidden = np.random.default_rng([settings.seed, seed]), 64
    d, k = settings.state_spec.width, len(settings.heads)
    tensors = {
        "state_mean": np.zeros(d),
        "state_scale": np.ones(d),
        "actor.0.weight": rng.normal(size=(hidden, d)) / math.sqrt(d),
        "actor.0.bias": rng.normal(size=hidden),
        "actor.1.weight": rng.normal(size=(k, hidden)) / math.sqrt(hidden / 2),
        "actor.1.bias": np.zeros(k),
    }
    return PolicyHeader("deterministic", version, settings.state_spec, settings.fusion), tensors


def make_learnt(settings_json: str, sizes: Sizes, folder: Path, algorithm: str, seed: int) -> list[str]:
    """A learner on random and static-with-noise sessions, exported after each of ``learner_steps``."""
    bench = _bench(settings_json, sizes.train_sessions, TRAIN)
    settings = bench.settings
    static = _around(_constant(settings, settings.fusion.static_action, STATIC))
    random = random_arm(len(settings.heads), settings.serving.random_std, share=0.5)
    data = collect(bench, [random, Arm("noise", static, settings.serving.noise_std, share=0.5)], seed=TRAIN)
    learner_settings = LearnerSettings(
        **settings.learner.model_dump() | {"algorithm": algorithm, "threads": 1, "device": "cpu"}
    )
    names = []
    with reproducible(1):
        learner = ALGORITHMS[algorithm](learner_settings, data, settings.seed + seed)
        for steps in sizes.learner_steps:
            while learner.step_count < steps:
                learner.step()
            name = f"{algorithm}_{steps}_seed{seed}"
            _export(settings, learner, name, folder)
            names.append(name)
        if algorithm == "batchrl_mtf" and seed == 0:
            _export(settings, learner, CHAMPION, folder)  # of the logs, and not judged
    return names


def _export(settings: Settings, learner: Learner, name: str, folder: Path) -> None:
    tensors, options = learner.export()
    header = PolicyHeader(learner.actor, name, settings.state_spec, settings.fusion, options)
    save_policy(folder / f"{name}.safetensors", header, tensors)


# --- truth and estimates --------------------------------------------------------------------------


def measure_truth(settings_json: str, sizes: Sizes, folder: Path, name: str) -> dict[str, Any]:
    """True returns of the policy, and of the smoothed policy that pdis and dr are estimates of."""
    bench = _bench(settings_json, sizes.truth_sessions, TRUTH)
    policy = load_policy(folder / f"{name}.safetensors")
    bandwidth = bench.settings.evaluation.bandwidth or bench.settings.serving.noise_std
    rng = np.random.default_rng([bench.settings.seed, TRUTH])
    plain = bench.evaluate(_around(policy))
    smoothed = bench.evaluate(
        lambda states, requests: exploration.sample(
            policy.act_in_parts(states).astype(np.float64), bandwidth, rng
        )
    )
    return {
        "session_return": float(plain.session_return.mean()),
        "discounted": float(plain.discounted.mean()),
        "smoothed_discounted": float(smoothed.discounted.mean()),
        "discounted_error": float(plain.discounted.std() / math.sqrt(len(plain.discounted))),
        "reward_a_request": float(plain.session_return.sum() / plain.requests.sum()),
    }


def judge(
    settings_json: str, sizes: Sizes, folder: Path, names: tuple[str, ...], seed: int, sessions: int
) -> dict[str, Any]:
    """Every estimator of the named policies on a fresh log, and differences to the first of them."""
    data = _log(settings_json, folder, sessions, seed)
    settings = _world(settings_json).settings
    policies = {name: load_policy(folder / f"{name}.safetensors") for name in names}
    with reproducible(1):
        judgement = estimate(data, acting.act(data, policies), settings, seed)
    return {
        "transitions": len(data),
        "estimates": {e: {n: v.interval(n) for n in names} for e, v in judgement.estimates.items()},
        "differences": {
            e: {n: v.difference(n, names[0]) for n in names[1:]} for e, v in judgement.estimates.items()
        },
        "effective_sessions": {n: judgement.overlap[n]["effective_sessions"] for n in names},
    }


# --- units ----------------------------------------------------------------------------------------


def run(
    settings: Settings, out: Path, progress: Progress | None = None, *, workers: int = 2, **sizes: Any
) -> dict[str, Any]:
    """Run what is missing below ``out``; write ``estimators.json``, ``.md`` and ``.png`` there.

    ``sizes`` are those of :class:`Sizes`. ``progress(done, units, name)`` is called after every unit.
    Returns the result.
    """
    how = Sizes(**sizes)
    out = out.resolve()
    measured = settings.evaluation.model_copy(update={"estimators": get_args(Estimator)})
    settings = settings.model_copy(update={"evaluation": measured})
    settings_json, folder = settings.model_dump_json(), out / "policies"
    folder.mkdir(parents=True, exist_ok=True)
    algorithms = [a for a in ("batchrl_mtf", "td3") if a in ALGORITHMS]
    makers: dict[str, Unit] = {
        "constants": ("make_constants", ()),
        "untrained": ("make_random_networks", ()),
    }
    for algorithm in algorithms:
        for seed in range(how.learner_seeds):
            makers[f"learnt_{algorithm}_{seed}"] = ("make_learnt", (algorithm, seed))

    total = 0

    def stage(units: Mapping[str, Unit]) -> dict[str, Any]:
        nonlocal total
        total += len(units)
        return _units(settings_json, how, out, units, workers, lambda name, done: tell(name, done))

    finished = 0

    def tell(name: str, done: int) -> None:
        nonlocal finished
        finished += done
        if progress is not None:
            progress(finished, max(total, finished), name)

    made = stage(makers)
    names = [name for unit in made.values() for name in unit]
    truth = stage({f"truth_{name}": ("measure_truth", (name,)) for name in names})
    truth = {name: truth[f"truth_{name}"] for name in names}
    others = [name for name in names if name != STATIC]
    groups = [others[at : at + how.batch] for at in range(0, len(others), how.batch)]
    longest = f"batchrl_mtf_{how.learner_steps[-1]}_seed{how.learner_seeds - 1}"
    few = (STATIC, "best", "myopic", "untrained_0", longest)
    units: dict[str, Unit] = {
        f"rank_{i}": ("judge", ((STATIC, *group), LOG, how.log_sessions)) for i, group in enumerate(groups)
    }
    units |= {f"draw_{i}": ("judge", (few, DRAWS + i, how.draw_sessions)) for i in range(how.draws)}
    judged = stage(units)
    result = {
        "sizes": asdict(how),
        "gate": {"tolerance": settings.gate.tolerance},
        "evaluation": settings.evaluation.model_dump(mode="json"),
        "truth": truth,
        "rank": _rank(truth, [judged[f"rank_{i}"] for i in range(len(groups))]),
        "coverage": _coverage(
            truth, few, [judged[f"draw_{i}"] for i in range(how.draws)], settings.gate.tolerance, measured
        ),
        "seed_spread": _seed_spread(settings_json, how, folder, algorithms),
    }
    write_json_atomic(out / "estimators.json", result)
    write_text_atomic(out / "estimators.md", markdown(result))
    _plot(out / "estimators.png", result)
    return result


def _units(
    settings_json: str,
    sizes: Sizes,
    out: Path,
    units: Mapping[str, Unit],
    workers: int,
    tell: Callable[[str, int], None],
) -> dict[str, Any]:
    """Results of the units, by name; those whose file is there and of the same inputs are not run."""
    found, missing = {}, {}
    compared = {k: v for k, v in json.loads(settings_json).items() if k not in ("gate", "data")}  # not read
    own = {k: v for k, v in asdict(sizes).items() if k != "draws"}  # more draws are more units
    sources = hashlib.sha256(Path(__file__).read_bytes()).hexdigest() + sources_sha256()
    for name, (function, arguments) in units.items():
        inputs = json.dumps([compared, own, function, arguments, sources])
        fingerprint = hashlib.sha256(inputs.encode()).hexdigest()
        path = out / "units" / f"{name}.json"
        saved = read_json(path) if path.is_file() else {}
        if saved.get("fingerprint") == fingerprint:
            found[name] = saved["result"]
            tell(name, 1)
        else:
            missing[name] = (function, arguments, fingerprint, path)
    if missing:
        # spawn: PyTorch's threads do not survive a fork
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            running = {
                pool.submit(_run_unit, function, settings_json, sizes, out / "policies", arguments): name
                for name, (function, arguments, _, _) in missing.items()
            }
            for future in as_completed(running):
                name = running[future]
                _, _, fingerprint, path = missing[name]
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json_atomic(path, {"fingerprint": fingerprint, "result": future.result()})
                found[name] = read_json(path)["result"]  # as a resumed run sees it, keys in its order too
                tell(name, 1)
    return {name: found[name] for name in units}


def _run_unit(function: str, settings_json: str, sizes: Sizes, folder: Path, arguments: tuple) -> Any:
    torch.set_num_threads(1)
    return globals()[function](settings_json, sizes, folder, *arguments)


# --- results --------------------------------------------------------------------------------------


def _target(estimator: str) -> str:
    """Which of the true returns an estimator estimates."""
    return "smoothed_discounted" if estimator in ("pdis", "dr") else "discounted"


def _rank(truth: Mapping[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    result = {}
    for estimator in parts[0]["estimates"]:
        estimates = {name: i for part in parts for name, i in part["estimates"][estimator].items()}
        differences = {name: i for part in parts for name, i in part["differences"][estimator].items()}
        values = [i["value"] for i in estimates.values()]
        result[estimator] = {
            "policies": len(values),
            "estimates": estimates,
            "differences": differences,
            "root_mean_square_error": float(
                np.sqrt(
                    np.mean([(i["value"] - truth[n][_target(estimator)]) ** 2 for n, i in estimates.items()])
                )
            ),
            **{
                against: {
                    "spearman": float(spearmanr(values, true).statistic),
                    "kendall": float(kendalltau(values, true).statistic),
                }
                for against in ("discounted", "session_return")
                for true in [[truth[name][against] for name in estimates]]
            },
        }
    sizes = {name: size for part in parts for name, size in part["effective_sessions"].items()}
    return {"transitions": parts[0]["transitions"], "estimators": result, "effective_sessions": sizes}


def _coverage(
    truth: Mapping[str, Any],
    names: tuple[str, ...],
    draws: list[dict[str, Any]],
    tolerance: float,
    how: EvaluationSettings,
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for estimator in draws[0]["estimates"] if draws else ():
        target, own = _target(estimator), {}
        rival = [d["estimates"][estimator][names[0]]["value"] for d in draws]
        # half an interval of 95 % is so many times half of one of the settings' confidence
        freedom = (how.bootstraps if estimator == "pdis" else how.replicates) - 1
        of_95 = float(np.divide(*student_t.ppf([0.975, 0.5 + how.confidence / 2.0], freedom)))
        for name in names:
            found = [d["estimates"][estimator][name] for d in draws]
            own[name] = _covered(found, truth[name][target], of_95)
        for name in names[1:]:
            difference = truth[name][target] - truth[names[0]][target]
            found = [d["differences"][estimator][name] for d in draws]
            own[f"{name} - {names[0]}"] = {
                **_covered(found, difference, of_95),
                "better": float(np.mean([i["lower"] > 0 for i in found])),
                "worse": float(np.mean([i["upper"] < 0 for i in found])),
                "passed": float(
                    np.mean([i["lower"] >= -tolerance * abs(v) for i, v in zip(found, rival, strict=True)])
                ),
            }
        result[estimator] = own
    return result


def _covered(intervals: list[dict[str, float]], truth: float, of_95: float) -> dict[str, float]:
    values = np.array([i["value"] for i in intervals])
    halves = np.array([i["upper"] - i["value"] for i in intervals])
    error = np.abs(values - truth)
    return {
        "truth": truth,
        "coverage": float((error <= halves).mean()),
        "coverage_95": float((error <= of_95 * halves).mean()),
        "draws": len(values),
        "bias": float(values.mean() - truth),
        "deviation": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "mean_half_width": float(halves.mean()),
        "mean_lower": float(np.mean([i["lower"] for i in intervals])),
    }


def _seed_spread(settings_json: str, sizes: Sizes, folder: Path, algorithms: list[str]) -> dict[str, Any]:
    """Deviation over seeds of the action in one state, per learner: the paper's case is its stability."""
    if sizes.learner_seeds < 2:
        return {}
    states = _log(settings_json, folder, 300, LOG).states.numpy()
    steps = sizes.learner_steps[-1]
    return {
        algorithm: stability.seed_spread(
            np.stack(
                [
                    load_policy(folder / f"{algorithm}_{steps}_seed{seed}.safetensors").act_in_parts(states)
                    for seed in range(sizes.learner_seeds)
                ]
            )
        )
        for algorithm in algorithms
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The result as tables for the docs."""
    lines = [
        f"{len(result['truth'])} policies, one log of {result['rank']['transitions']} transitions.",
        "",
        "| estimator | Spearman | Kendall | Spearman, undiscounted | error (rms) |",
        "|---|---|---|---|---|",
    ]
    for name, own in result["rank"]["estimators"].items():
        lines.append(
            f"| {name} | {own['discounted']['spearman']:.2f} | {own['discounted']['kendall']:.2f} | "
            f"{own['session_return']['spearman']:.2f} | {own['root_mean_square_error']:.2f} |"
        )
    lines += [
        "",
        f"Intervals of {result['evaluation']['confidence']:.0%} over {result['sizes']['draws']} logs of "
        f"{result['sizes']['draw_sessions']} sessions. *Better* and *worse*: shares of logs on which the "
        f"interval of the difference lies above or below 0; *passed*: on which its lower bound is above "
        f"-{result['gate']['tolerance']:.0%} of the value of {STATIC}, the gate's bar.",
        "",
        "| estimator | of | truth | bias | deviation | half width | coverage | of 95 % |"
        " better | worse | passed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in result["coverage"].items():
        for of, c in own.items():
            said = [f"{c[key]:.0%}" if key in c else "" for key in ("better", "worse", "passed")]
            lines.append(
                f"| {name} | {of} | {c['truth']:.2f} | {c['bias']:+.2f} | {c['deviation']:.2f} | "
                f"{c['mean_half_width']:.2f} | {c['coverage']:.0%} | {c['coverage_95']:.0%} | "
                f"{' | '.join(said)} |"
            )
    if result["seed_spread"]:
        lines += ["", "| learner | deviation over seeds in a state | of the worst head |", "|---|---|---|"]
        lines += [
            f"| {name} | {s['mean']:.3f} | {s['worst']:.3f} |" for name, s in result["seed_spread"].items()
        ]
    return "\n".join(lines) + "\n"


def _plot(path: Path, result: Mapping[str, Any]) -> None:
    """Estimate against truth, a panel an estimator."""
    estimators, truth = result["rank"]["estimators"], result["truth"]
    figure, axes = plt.subplots(1, len(estimators), figsize=(3.6 * len(estimators), 3.6), squeeze=False)
    for ax, (estimator, own) in zip(axes[0], estimators.items(), strict=True):
        target = _target(estimator)
        x = np.array([truth[name][target] for name in own["estimates"]])
        y = np.array([i["value"] for i in own["estimates"].values()])
        half = np.array([i["upper"] - i["value"] for i in own["estimates"].values()])
        ax.errorbar(x, y, half, fmt="o", ms=3, lw=0.7, color="#2a5d84", ecolor="#a9c3d6")
        ends = [x.min() - 0.5, x.max() + 0.5]
        ax.plot(ends, ends, lw=0.8, color="#999999")
        middle, reach = np.median(y), max(np.ptp(x), 3 * np.median(np.abs(y - np.median(y)))) + 1.0
        ax.set_ylim(middle - reach, middle + reach)
        ax.set_title(f"{estimator}: Spearman {own['discounted']['spearman']:.2f}", fontsize=9)
        ax.set_xlabel(
            "true discounted return" + (" (smoothed)" if target != "discounted" else ""), fontsize=8
        )
    axes[0][0].set_ylabel("estimate", fontsize=8)
    figure.tight_layout()
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
    plt.close(figure)
