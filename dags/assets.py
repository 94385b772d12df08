"""Every asset of the daily loop, in the order in which a day makes them.

The day is the partition key (``YYYY-MM-DD``) that each asset event carries to its consumers.
"""

from airflow.sdk import Asset

landed = Asset(name="landed_logs", uri="mtf://lake/landed")
trajectories = Asset(name="trajectories", uri="mtf://warehouse/trajectories")
features = Asset(name="features", uri="mtf://feast/features")
challenger = Asset(name="challenger", uri="mtf://models/challenger")
champion = Asset(name="champion", uri="mtf://serving/champion")
