"""Fits what a build leaves free: intercepts to the target rates, expectations to what users get."""

from dataclasses import replace
from datetime import date

import numpy as np
from scipy.special import logit

from training.contract.settings import Settings
from training.simulator.constants import HEADS, KINDS, TARGET_RATES, WorldConstants
from training.simulator.population import Population
from training.simulator.sessions import Calibration, Scene, Sessions, top

ROUNDS = 6
SESSIONS = 600


def calibrate(
    settings: Settings, constants: WorldConstants, population: Population, day: date, seed: int
) -> Calibration:
    """Rates per shown item under the static weights meet :data:`TARGET_RATES` on ``day``, eq. (W12).

    Each round plays sessions with static weights, moves every intercept by what the mean true
    probability lacks, and sets each kind's expectation to the worth it got. A kind too rare to be
    measured takes the mean of all.
    """
    calibration = Calibration(population.response.intercept.astype(float), np.zeros(len(KINDS)))
    weights = settings.fusion.to_weights(settings.fusion.static_action)
    target = np.array([TARGET_RATES[head] for head in HEADS])
    target[0] /= 1.0 - constants.click_exception * target[1] / target[0]
    weight_by_activity = population.activity / population.activity.sum()
    users = np.random.default_rng([seed, 3]).choice(
        len(population.user_id), size=SESSIONS, p=weight_by_activity
    )
    for _ in range(ROUNDS):
        scene = Scene(settings, constants, population, calibration, day, seed)
        start = np.full(SESSIONS, scene.day_start_us)
        sessions = Sessions(scene, users, np.arange(SESSIONS) + 1_000, start, np.zeros(SESSIONS))
        rates, worth, kinds = [], [], []
        live = np.arange(SESSIONS)
        while len(live):
            requests = sessions.requests(live)
            scores = settings.fusion.score(requests.predictions, weights)
            outcome = sessions.respond_places(requests, top(scores, settings.world.page))
            rates.append(outcome.rates)
            worth.append(outcome.worth)
            kinds.append(population.kind[requests.user_row])
            live = live[outcome.ended == ""]
        mean = np.concatenate(rates).mean(axis=0)
        worths, kind = np.concatenate(worth), np.concatenate(kinds)
        expectation = np.array(
            [
                worths[kind == k].mean() if (kind == k).sum() >= 30 else worths.mean()
                for k in range(len(KINDS))
            ]
        )
        step = np.concatenate([logit(target[:-1]) - logit(mean[:-1]), np.log(target[-1:] / mean[-1:])])
        calibration = replace(calibration, intercept=calibration.intercept + step, expectation=expectation)
    return calibration
