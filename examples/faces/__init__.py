"""Distil a face recogniser from the field's own files: `python -m examples.faces --help`."""
