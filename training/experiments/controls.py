"""World-side controls: they may play the simulated world, within a stated budget of sessions.

All members of a generation play the same sessions with the same luck, in one pass; every generation has
sessions of its own, so that no search learns one set of sessions by heart (Bayesian optimisation excepted:
its model needs values that can be held against each other).
"""

import copy
import warnings
from collections.abc import Callable

import numpy as np
from scipy.stats import norm, qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from training.world.simulator.references import Bench
from training.world.simulator.sessions import Requests

Search = Callable[[int, int], Bench]  # (sessions, part) → sessions to search on
Progress = Callable[[float], None]  # share of the budget that is spent


def cross_entropy(
    search: Search, budget: int, seed: int, progress: Progress, *, generations: int = 10, population: int = 20
) -> np.ndarray:
    """Best constant action float[k] by the cross-entropy method (Rubinstein 1999).

    Members are drawn from a Gaussian around the static weights, σ 0.5, clipped to [-1, 1]; its mean and
    deviation are refitted to the best fifth of each generation, smoothed by 0.7. Returns the last mean.
    """
    rng = np.random.default_rng([seed, 11])
    elite, smoothing = population // 5, 0.7
    sessions = max(budget // (generations * population), 1)
    mean = std = np.zeros(0)
    for generation in range(generations):
        bench = search(sessions, generation)
        if generation == 0:
            mean = bench.settings.fusion.static_action.astype(float)
            std = np.full(len(mean), 0.5)
        members = np.clip(rng.normal(mean, std, (population, len(mean))), -1.0, 1.0)
        best = members[np.argsort(-constant_returns(bench, members))[:elite]]
        mean = smoothing * best.mean(axis=0) + (1.0 - smoothing) * mean
        std = smoothing * best.std(axis=0) + (1.0 - smoothing) * std
        progress((generation + 1) / generations)
    return mean


def bayesian(
    search: Search, budget: int, seed: int, progress: Progress, *, first: int = 20, further: int = 40
) -> np.ndarray:
    """Best constant action float[k] by Bayesian optimisation: the baseline of the paper's §5.

    A Gaussian process (Matérn 5/2, a length scale a head, noise) on ``first`` Sobol points, static weights
    among them, then ``further`` points of largest expected improvement. Returns the evaluated point with
    the largest posterior mean, which is less optimistic than the largest observation.
    """
    rng = np.random.default_rng([seed, 12])
    bench = search(max(budget // (first + further), 1), 0)
    static = bench.settings.fusion.static_action.astype(float)
    heads = len(static)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # 20 is no power of 2: balance is not needed here
        sobol = qmc.Sobol(heads, rng=rng).random(first - 1) * 2.0 - 1.0
    points = np.vstack([static, sobol])
    values = constant_returns(bench, points)
    progress(first / (first + further))
    kernel = ConstantKernel(1.0) * Matern(np.ones(heads), (0.1, 20.0), nu=2.5) + WhiteKernel(0.1, (1e-4, 1.0))
    for count in range(further):
        fit = {} if count % 5 == 0 else {"optimizer": None}  # the kernel changes little with one more point
        model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed, **fit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound is an answer
            model.fit(points, values)
        kernel = model.kernel_
        best = model.predict(points).max()
        near = points[values.argmax()] + rng.normal(0.0, 0.2, (1_000, heads))
        pool = np.clip(np.vstack([rng.uniform(-1.0, 1.0, (1_000, heads)), near]), -1.0, 1.0)
        mean, std = model.predict(pool, return_std=True)
        z = (mean - best) / np.maximum(std, 1e-9)
        improvement = (mean - best) * norm.cdf(z) + std * norm.pdf(z)
        chosen = pool[improvement.argmax()]
        points = np.vstack([points, chosen])
        values = np.append(values, constant_returns(bench, chosen[None]))
        progress((first + count + 1) / (first + further))
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points, values)
    return points[model.predict(points).argmax()]


def evolution_strategies(
    search: Search,
    budget: int,
    seed: int,
    progress: Progress,
    state_mean: np.ndarray,
    state_scale: np.ndarray,
    *,
    generations: int = 50,
    pairs: int = 16,
    sigma: float = 0.05,
    rate: float = 0.05,
) -> dict[str, np.ndarray]:
    """State → weights by evolution strategies (Salimans et al. 2017): tensors of a deterministic actor.

    π(s) = tanh(W s + b) on standardised states, from the static weights (W = 0). Antithetic pairs θ ± σε,
    utilities by centred ranks, and the gradient's estimate followed by Adam's rule.
    """
    rng = np.random.default_rng([seed, 13])
    sessions = max(budget // (generations * 2 * pairs), 1)
    d = len(state_mean)
    theta = first = second = np.zeros(0)
    heads = 0
    for generation in range(generations):
        bench = search(sessions, generation)
        if generation == 0:
            static = bench.settings.fusion.static_action.astype(float)
            heads = len(static)
            theta = np.concatenate([np.zeros(heads * d), np.arctanh(np.clip(static, -0.95, 0.95))])
            first, second = np.zeros_like(theta), np.zeros_like(theta)
        noise = rng.standard_normal((pairs, len(theta)))
        members = np.concatenate([theta + sigma * noise, theta - sigma * noise])
        weight, bias = members[:, : heads * d].reshape(-1, heads, d), members[:, heads * d :]

        def act(
            states: np.ndarray, member: np.ndarray, weight: np.ndarray = weight, bias: np.ndarray = bias
        ) -> np.ndarray:
            s = (states - state_mean) / state_scale
            return np.tanh(np.einsum("nkd,nd->nk", weight[member], s) + bias[member])

        returns = state_returns(bench, 2 * pairs, act)
        ranks = np.argsort(np.argsort(returns)) / (2 * pairs - 1) - 0.5
        gradient = (ranks[:pairs] - ranks[pairs:]) @ noise / (2 * pairs * sigma)
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        unbiased = first / (1.0 - 0.9 ** (generation + 1))
        scale = np.sqrt(second / (1.0 - 0.99 ** (generation + 1))) + 1e-8
        theta = theta + rate * unbiased / scale
        progress((generation + 1) / generations)
    return {
        "actor.0.weight": theta[: heads * d].reshape(heads, d),
        "actor.0.bias": theta[heads * d :],
        "state_mean": state_mean,
        "state_scale": state_scale,
    }


def constant_returns(bench: Bench, actions: np.ndarray) -> np.ndarray:
    """Mean session return float[m] of constant actions float[m, k] on the same sessions."""
    fusion, own = bench.settings.fusion, len(bench.user_row)
    weights = fusion.to_weights(actions)

    def score(requests: Requests) -> np.ndarray:
        return fusion.score(requests.predictions, weights[requests.session // own])

    played = _repeated(bench, len(actions)).evaluate_ranker(score)
    return played.session_return.reshape(len(actions), own).mean(axis=1)


def state_returns(
    bench: Bench, members: int, act: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Mean session return float[members] of ``act(states [n, d], member int[n])`` on the same sessions."""
    own = len(bench.user_row)
    played = _repeated(bench, members).evaluate(lambda states, requests: act(states, requests.session // own))
    return played.session_return.reshape(members, own).mean(axis=1)


def _repeated(bench: Bench, times: int) -> Bench:
    """The same sessions several times over, one copy a member."""
    out = copy.copy(bench)
    out.user_row, out.number = np.tile(bench.user_row, times), np.tile(bench.number, times)
    return out
