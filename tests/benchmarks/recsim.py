"""RecSim's sessions as this project's: a fusion weight vector is the action, and the log a learner's
transitions.

RecSim (Ie et al., arXiv 1909.04847; ``recsim-no-tf``) runs in an environment of its own (``make peers``), in
:mod:`tests.peers.recsim_sessions`. What is added here:

- **Action.** A weight a head in [0, 2], static 1 (equal weights): our formula, eq. (1), orders the candidates
  by them, and the first ones are the slate. Candidates and slate are as many as in RecSim's own ``main.py``.
- **State.** The state specification of the settings, filled as a service would fill it for users that it has
  never seen before, because RecSim draws a new user for every session: what RecSim shows of a user is the
  profile, clicks and the reward (as play time) are what was felt, the heads what was predicted. The hidden
  variables, satisfaction and time budget, are in no entry.
- **Reward.** RecSim's, a session's return is its sum.
- **End.** RecSim's. A session of more than ``limit`` steps is cut, which is no end: its last row is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.peers.wire import Peer
from training.contract import exploration
from training.contract.fusion import top
from training.contract.session import DECAY
from training.contract.settings import HeadSettings, Settings
from training.contract.settings.reward import SignalSettings
from training.contract.settings.state import ProfileFeature, StateSettings
from training.contract.state import history_columns, session_columns
from training.trajectories import Transitions, sequence

ROOT = Path(__file__).parents[2]
CANDIDATES, SLATE = 5, 2  # RecSim's main.py
_AT_ONCE = 2_000  # sessions in step
_NOON = 12.0
ARMS = ("random", "noise")

# (states [m, d], places of their sessions [m]) → actions [m, k]
Act = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class World:
    """One of RecSim's environments; ``bindings`` are RecSim's parameters that are not its defaults."""

    name: str
    environment: str
    heads: tuple[str, ...]
    users: int  # features that RecSim shows of a user
    limit: int  # steps
    bindings: Mapping[str, float]

    @cached_property
    def profile(self) -> list[str]:
        return [f"user_{i}" for i in range(self.users)]

    def settings(self, **more: Any) -> Settings:
        """Ours, with the heads, signals and profile of this world."""
        return Settings(
            heads=tuple(HeadSettings(name=name, low=0.0, high=2.0, static=1.0) for name in self.heads),
            signals=(SignalSettings(name="click", column="is_click"),),
            state=StateSettings(profile=tuple(ProfileFeature(column=name) for name in self.profile)),
            **more,
        )


WORLDS = {
    "long_term_satisfaction": World(
        "long_term_satisfaction", "long_term_satisfaction", ("clickbait", "quality"), 0, 60, {}
    ),
    "sensitive": World(
        "sensitive",
        "long_term_satisfaction",
        ("clickbait", "quality"),
        0,
        60,
        {"LTSStaticUserSampler.sensitivity": 0.1},
    ),
    "interest_evolution": World(
        "interest_evolution", "interest_evolution", ("interest", "quality"), 20, 300, {}
    ),
}


@dataclass(frozen=True)
class Played:
    """What sessions returned and how many steps they took, [n]; ``rows`` are their requests."""

    returns: np.ndarray
    steps: np.ndarray
    rows: Mapping[str, np.ndarray]


class Sessions:
    """Sessions of one world; a number is a session with its user, candidates and luck."""

    def __init__(self, world: World) -> None:
        self.world, self.settings = world, world.settings()
        self.peer = Peer(
            ROOT / "build/peers/recsim",
            ROOT / "tests/peers/recsim_sessions.py",
            {
                "world": world.environment,
                "candidates": CANDIDATES,
                "slate": SLATE,
                "bindings": dict(world.bindings),
            },
        )

    def __enter__(self) -> "Sessions":
        return self

    def __exit__(self, *exception: object) -> None:
        self.peer.__exit__(None, None, None)

    def play(self, numbers: np.ndarray, act: Act) -> Played:
        """Every session of ``numbers`` to its end, with the actions of ``act``."""
        parts = []
        for at in range(0, len(numbers), _AT_ONCE):
            part = self._play(numbers[at : at + _AT_ONCE], lambda s, places, at=at: act(s, places + at))
            part["session"] += at
            parts.append(part)
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        returns = np.bincount(rows["session"], weights=rows["reward"], minlength=len(numbers))
        return Played(returns, np.bincount(rows["session"], minlength=len(numbers)), rows)

    def constant(self, numbers: np.ndarray, action: np.ndarray) -> Played:
        return self.play(numbers, lambda states, places: np.repeat(action[None], len(states), axis=0))

    def _play(self, numbers: np.ndarray, act: Act) -> dict[str, np.ndarray]:
        spec, fusion, rows = self.settings.state_spec, self.settings.fusion, []
        seen, felt = self.peer.ask(sessions=numbers), _Felt(self.settings, len(numbers))
        for step in range(self.world.limit):
            running = seen["running"]
            if not len(running):
                break
            states = spec.assemble(
                felt.raw(running) | dict(zip(self.world.profile, seen["users"].T, strict=True))
            )
            actions = act(states, running)
            slates = top(fusion.score(seen["predictions"], fusion.to_weights(actions)), SLATE)
            shown = np.take_along_axis(seen["predictions"], slates[..., None], axis=1)
            seen = self.peer.ask(slates=slates)
            felt.add(running, seen["clicks"], seen["rewards"], shown)
            rows.append(
                {
                    "session": running,
                    "step": np.full(len(running), step),
                    "state": states,
                    "action": actions,
                    "reward": seen["rewards"],
                    "ended": seen["ended"],
                }
            )
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


class _Felt:
    """The raw columns of session features, of n sessions."""

    def __init__(self, settings: Settings, n: int) -> None:
        self.heads = settings.head_names
        columns = [
            *session_columns(settings.signal_names, self.heads),
            *history_columns(settings.signal_names),
        ]
        self.columns = {name: np.zeros(n) for name in columns}
        self.columns["hour"] = np.full(n, _NOON)

    def raw(self, sessions: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[sessions] for name, column in self.columns.items()}

    def add(self, sessions: np.ndarray, clicks: np.ndarray, plays: np.ndarray, shown: np.ndarray) -> None:
        """A request's feedback; ``shown`` [m, slate, heads] are the predictions of what was shown."""
        told = {"impressions": np.full(len(sessions), shown.shape[1]), "click_count": clicks, "play_s": plays}
        predicted = dict(zip([f"p_{head}" for head in self.heads], shown.sum(axis=1).T, strict=True))
        self.columns["sess_requests"][sessions] += 1.0
        for name, values in told.items():
            self.columns[f"sess_{name}"][sessions] += values
        for name, values in (told | predicted).items():
            self.columns[f"last_{name}"][sessions] = values
            decayed = self.columns[f"decayed_{name}"]
            decayed[sessions] = DECAY * decayed[sessions] + values


def collect(sessions: Sessions, numbers: np.ndarray, seed: int) -> Transitions:
    """A log of exploration: half of the sessions of the random group, half of noise around static weights,
    each session's deviation drawn once. Rows by session, then step."""
    settings = sessions.settings
    k, how = len(settings.heads), settings.serving
    rng = np.random.default_rng([seed, 5])
    arm = rng.integers(0, len(ARMS), len(numbers))
    uniforms = rng.random((len(numbers), k))
    means = np.where(arm[:, None] == 0, np.zeros(k), settings.fusion.static_action)
    actions, densities = np.empty((len(numbers), k)), np.empty(len(numbers))
    for index, std in enumerate((how.random_std, how.noise_std)):
        own = arm == index
        actions[own] = exploration.sample_at(means[own], std, uniforms[own])
        densities[own] = exploration.log_density(actions[own], means[own], std)
    played = sessions.play(numbers, lambda states, places: actions[places]).rows
    own = played["session"]
    rows = {f"{name}s": played[name] for name in ("state", "action", "reward", "session", "step")}
    rows |= {"action_means": means[own], "log_densities": densities[own], "users": numbers[own]}
    rows |= {"by_session": np.ones(len(own), dtype=bool), "arms": arm[own]}
    return sequence(rows, played["ended"], ARMS)
