"""Distil a small glyph recogniser: every character an identity, every font face a photograph."""
