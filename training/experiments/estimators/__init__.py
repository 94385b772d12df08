"""How good are the judge's estimators? Rank correlation with the truth, and coverage of their intervals.

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

from training.experiments.estimators.study import run, run_closed

__all__ = ["run", "run_closed"]
