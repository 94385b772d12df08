"""Benchmarks, run by `make bench`: never asserted on, written as JSON."""
