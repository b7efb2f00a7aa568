"""Matched colours on the embedded checkpoint: a small sample of what `benchmarks.seams` measures."""

from benchmarks import seams
from benchmarks.still_life import HELD_OUT
from modular_diffdiff.still_life.scene import Scene


def test_a_shifted_decoder_leaves_no_seam():
    scenes = [Scene.random(HELD_OUT + k, pairs=1.0) for k in range(2)]
    plain, matched = (seams.jumps(scenes, match, shifted=True).mean() for match in (False, True))
    assert matched < plain / 4
