"""The mutants of tools.mutate still fit the sources; whether tests kill them takes a build."""

from pathlib import Path

import pytest

from tools.mutate.mutant import Mutant
from tools.mutate.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_applies_just_once(mutant):
    assert mutant.mutated(ROOT) != (ROOT / mutant.file).read_text()
    for killer in mutant.killers:
        if killer.program is None:
            assert (ROOT / killer.arguments[0]).is_file()
        else:
            assert f"add_executable({killer.program}" in (ROOT / "CMakeLists.txt").read_text()


def test_there_are_enough_and_no_two_of_a_name():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 25


def test_a_text_that_is_not_there_once_is_refused(tmp_path):
    (tmp_path / "source").write_text("a b a")
    refused = Mutant("twice", "", "source", "a", "c", ())
    with pytest.raises(ValueError, match="occurs 2 times in source"):
        refused.mutated(tmp_path)
    assert Mutant("once", "", "source", "b", "c", ()).mutated(tmp_path) == "a c a"
