"""Seeded bugs, and whether the tests notice: ``python -m tests.mutate --help``."""
