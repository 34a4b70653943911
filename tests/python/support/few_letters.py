"""Fonts that draw few characters, so that rendering glyphs takes no time."""

from examples.glyphs import data


def limited(codes):
    """Fonts that draw these characters only, so that rendering takes no time."""
    real = data.FT2Font

    class Few:
        def __init__(self, path):
            self.drawn = real(path).get_charmap()

        def get_charmap(self):
            return {code: glyph for code, glyph in self.drawn.items() if code in codes}

    return Few
