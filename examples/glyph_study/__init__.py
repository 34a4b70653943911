"""The study of the losses on glyphs: see the README of examples/glyphs."""
