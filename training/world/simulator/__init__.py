"""What would users do? A world of users in sessions: the embedded default's traffic, and a bench for fusion policies.

``docs/world.md`` holds its equations; :mod:`training.world.simulator.constants` holds every number of them.
"""
