"""Seeded bugs, and whether the tests notice: ``python -m tools.mutate --help``."""
