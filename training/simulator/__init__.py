"""A world of users in sessions: the embedded default's traffic, and a bench for fusion policies.

``docs/world.md`` holds its equations; :mod:`training.simulator.constants` holds every number of them.
"""
