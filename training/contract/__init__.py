"""What does every room agree on? Settings, log columns, fusion formula, state and policy file.

Plain Python and numpy; it is the only part of ``training`` that ``serving`` imports.
"""
