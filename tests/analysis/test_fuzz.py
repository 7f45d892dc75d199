"""Files damaged at random are decoded or refused; `make fuzz` does the same for longer."""

from __future__ import annotations

from . import fuzz


def test_no_mutation_crashes_hangs_or_fails_without_a_class() -> None:
    outcomes = fuzz.run(20_261_130, seconds=170, most=600)
    assert (outcomes.crashes, outcomes.hangs, outcomes.unclassified) == ([], [], [])
    assert outcomes.kinds["decoded"] > 50  # damage that is survived, and damage that is not
    assert outcomes.kinds["undecodable"] > 50
    assert str(outcomes) == f"fuzz: {outcomes.files} files, 0 crashes, 0 hangs, 0 unclassified"
