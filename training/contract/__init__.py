"""What every room agrees on: settings, log columns, fusion formula, state and policy file.

Plain Python and numpy; it is the only part of ``training`` that ``serving`` imports.
"""
