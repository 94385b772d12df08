"""Run by the peer's Python: sessions of RecSim's environments, many in step, driven over a pipe.

A message with ``sessions`` int64[n] begins the sessions of these numbers; one with ``slates`` int64[m, slate]
shows these places of the candidates to those that still run, in their order. Every answer is what a
recommender then sees of those that run: ``running`` int64[m], places among the begun, ``users`` float64[m,
u], the features that RecSim shows of them, and ``predictions`` float64[m, candidates, heads]. After a step
there are also ``rewards`` float64 and ``ended`` bool of the sessions that were shown something.

A number seeds all the luck of its session: user and candidates by RecSim's samplers, and what the user does,
for which RecSim draws from numpy's global generator, by number and step. So a session has the same user,
candidates and luck whatever it is shown.

The environments are put together as RecSim's ``create_environment`` does it, but for the samplers' seeds, and
the reward is the one that RecSim has there. What the heads say of a candidate, from what RecSim shows:

- ``long_term_satisfaction``: its clickbait score c, and 1 − c;
- ``interest_evolution``: how far the user's interests favour its topic, as the choice model has it, and the
  mean quality of its topic, each scaled to [0, 1]. RecSim shows a video's quality once it was served, so that
  the topics' means can be learnt from any log.
"""

import contextlib
import io
import json
import sys

import gin
import numpy as np
import wire

with contextlib.redirect_stderr(io.StringIO()):  # gym, which RecSim imports, asks to be replaced
    from recsim import choice_model
    from recsim.environments import interest_evolution, long_term_satisfaction
    from recsim.simulator.environment import SingleUserEnvironment

ABOUT = json.loads(
    sys.argv[1]
)  # world, candidates, slate, and bindings: parameters of RecSim's, by gin's names


class LongTermSatisfaction:
    reward = staticmethod(long_term_satisfaction.clicked_engagement_reward)

    def __init__(self, seed: int) -> None:
        self.user = long_term_satisfaction.LTSUserModel(
            ABOUT["slate"],
            user_state_ctor=long_term_satisfaction.LTSUserState,
            response_model_ctor=long_term_satisfaction.LTSResponse,
            seed=seed,
        )
        self.documents = long_term_satisfaction.LTSDocumentSampler(seed=seed + 1)

    def predictions(self, user: np.ndarray, documents: np.ndarray) -> np.ndarray:
        return np.concatenate([documents, 1.0 - documents], axis=1)


class InterestEvolution:
    reward = staticmethod(interest_evolution.clicked_watchtime_reward)

    def __init__(self, seed: int) -> None:
        self.user = interest_evolution.IEvUserModel(
            ABOUT["slate"],
            choice_model_ctor=choice_model.MultinomialProportionalChoiceModel,
            response_model_ctor=interest_evolution.IEvResponse,
            user_state_ctor=interest_evolution.IEvUserState,
            seed=seed,
        )
        self.documents = interest_evolution.UtilityModelVideoSampler(
            doc_ctor=interest_evolution.IEvVideo, seed=seed + 1
        )
        means = self.documents.cluster_means
        self.quality = (means - means.min()) / (means.max() - means.min())

    def predictions(self, user: np.ndarray, documents: np.ndarray) -> np.ndarray:
        return np.stack([(documents @ user + 1.0) / 2.0, documents @ self.quality], axis=1)


WORLDS = {"long_term_satisfaction": LongTermSatisfaction, "interest_evolution": InterestEvolution}


class Session:
    def __init__(self, number: int) -> None:
        self.number, self.step_count = number, 0
        self.parts = WORLDS[ABOUT["world"]](2 * number)
        self.environment = SingleUserEnvironment(
            self.parts.user, self.parts.documents, ABOUT["candidates"], ABOUT["slate"]
        )
        self.see(*self.environment.reset())

    def see(self, user: np.ndarray, documents: dict[str, np.ndarray]) -> None:
        self.shows_of_user = np.array(user, dtype=np.float64)
        self.predictions = self.parts.predictions(self.shows_of_user, np.stack(list(documents.values())))

    def step(self, slate: np.ndarray) -> tuple[float, int, bool]:
        np.random.seed([self.number, self.step_count])
        self.step_count += 1
        user, documents, responses, ended = self.environment.step(slate)
        self.see(user, documents)
        return float(self.parts.reward(responses)), sum(response.clicked for response in responses), ended


FELT = ("rewards", "clicks", "ended")
running: dict[int, Session] = {}


def answer(message: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    told = {}
    if "sessions" in message:
        running.clear()
        running.update(enumerate(map(Session, message["sessions"].tolist())))
    else:
        sessions = list(running.items())
        felt = [session.step(slate) for (_, session), slate in zip(sessions, message["slates"], strict=True)]
        told = {name: np.array(column) for name, column in zip(FELT, zip(*felt, strict=True), strict=True)}
        for (place, _), ended in zip(sessions, told["ended"], strict=True):
            if ended:
                del running[place]
    return told | {
        "running": np.array(list(running), dtype=np.int64),
        "users": np.array([session.shows_of_user for session in running.values()]),
        "predictions": np.array([session.predictions for session in running.values()]),
    }


for name, value in ABOUT["bindings"].items():
    gin.bind_parameter(name, value)
wire.serve(answer)
