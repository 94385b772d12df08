"""What does a policy learn from, and what is it judged on? The last days' transitions, split by time.

The test split is the last sessions by their start, of *every* arm: the estimators need the actions of
the policies that they judge, wherever these were served. The training split follows the paper's mixed
exploration rule (equal numbers of trajectories of the random and of the noise group) and is cut to the
newest ``learner.replay_capacity`` transitions, as a FIFO replay buffer would hold.
"""

from training.trajectories.columns import OPTIONAL
from training.trajectories.returns import whole_sessions
from training.trajectories.transitions import Trajectories, Transitions, sequence
from training.trajectories.window import load

__all__ = ["OPTIONAL", "Trajectories", "Transitions", "load", "sequence", "whole_sessions"]
