"""What does every room agree on? Settings, log columns, fusion formula, state and policy file.

Light to import: numpy, pydantic and YAML; it is the only part of ``training`` that ``serving`` imports.
"""
