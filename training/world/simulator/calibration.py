"""Fits what a build leaves free: intercepts to the target rates, expectations to what users get."""

from datetime import date

import numpy as np
from scipy.special import logit

from training.contract.fusion import top
from training.contract.settings import Settings
from training.world.simulator.constants import HEADS, KINDS, TARGET_RATES, WorldConstants
from training.world.simulator.population import Population
from training.world.simulator.scene import Calibration, Scene
from training.world.simulator.sessions import ALIVE, Outcome, Requests, Sessions

SESSIONS = (500, 500, 500, 2_000, 2_000, 2_000)  # of each round
# what is shown follows the intercepts: rare heads answer with more than their shift (their logarithm in
# eq. (1) wakes up), long views with less (they are bounded by clicks)
GAIN = np.array([1.0, 1.8, 0.6, 0.6, 0.6, 0.6, 0.6, 1.0])
FIRST_PAGES = 6_000
RIDGE = 3.0
_OUTSIDE = 1_000_000  # session numbers that no simulated day uses


def calibrate(
    settings: Settings, constants: WorldConstants, population: Population, day: date, seed: int
) -> Calibration:
    """Rates per shown item under the static weights meet :data:`TARGET_RATES` on ``day``, eq. (W12).

    Each round plays sessions with static weights, moves every intercept by what the mean true
    probability lacks, and sets expectations to the worth that users got: how users of a kind differ is
    a ridge regression on their latents over first pages, the level of a kind that of whole sessions.
    """
    intercept = population.response.intercept.astype(float)
    expectation = np.zeros(len(population.user_id))
    target = np.array([TARGET_RATES[head] for head in HEADS])
    target[0] += constants.click_exception * target[1]  # long views logged without their click
    rng = np.random.default_rng([seed, 3])
    activity = population.activity / population.activity.sum()
    for sessions in SESSIONS:
        users = rng.choice(len(activity), size=sessions, p=activity)
        scene = Scene(settings, constants, population, Calibration(intercept, expectation), day, seed)
        rates, worth, kind = _play(scene, users)
        mean = rates.mean(axis=0)
        step = np.concatenate([logit(target[:-1]) - logit(mean[:-1]), np.log(target[-1:] / mean[-1:])])
        spread = _spread(scene, rng.choice(len(activity), size=FIRST_PAGES))
        level = np.array(
            [worth[kind == k].mean() if (kind == k).sum() >= 30 else worth.mean() for k in range(len(KINDS))]
        )
        intercept, expectation = intercept + GAIN * step, level[population.kind] + spread
    return Calibration(intercept, expectation)


def _answer(scene: Scene, sessions: Sessions, live: np.ndarray) -> tuple[Requests, Outcome]:
    settings = scene.settings
    requests = sessions.requests(live)
    weights = settings.fusion.to_weights(settings.fusion.static_action)
    scores = settings.fusion.score(requests.predictions, weights)
    return requests, sessions.respond_places(requests, top(scores, settings.world.page))


def _sessions(scene: Scene, users: np.ndarray) -> Sessions:
    start = np.full(len(users), scene.day_start_us)
    return Sessions(scene, users, _OUTSIDE + np.arange(len(users)), start, np.zeros(len(users)))


def _play(scene: Scene, users: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole sessions: true rates [pages, h], worth and kind [pages]."""
    sessions = _sessions(scene, users)
    rates, worth, rows = [], [], []
    live = np.arange(len(users))
    while len(live):
        requests, outcome = _answer(scene, sessions, live)
        rates.append(outcome.rates)
        worth.append(outcome.worth)
        rows.append(requests.user_row)
        live = live[outcome.ended == ALIVE]
    return np.concatenate(rates), np.concatenate(worth), scene.population.kind[np.concatenate(rows)]


def _spread(scene: Scene, users: np.ndarray) -> np.ndarray:
    """[n]: how each user's worth of a page differs from the mean of their kind, as their latents tell."""
    population = scene.population
    _, outcome = _answer(scene, _sessions(scene, users), np.arange(len(users)))
    latents = population.user - population.user.mean(axis=0)
    latents = latents / np.maximum(latents.std(axis=0), 1e-9)
    spread = np.zeros(len(latents))
    for kind in range(len(KINDS)):
        mine, everyone = population.kind[users] == kind, population.kind == kind
        if mine.sum() < 30:
            continue
        x = latents[users[mine]]
        centre = x.mean(axis=0)
        y = outcome.worth[mine] - outcome.worth[mine].mean()
        gram = (x - centre).T @ (x - centre) + RIDGE * np.eye(x.shape[1])
        spread[everyone] = (latents[everyone] - centre) @ np.linalg.solve(gram, (x - centre).T @ y)
    return spread
