"""What a change map over time means, on a ball that crosses the picture and a model whose denoiser is known exactly."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from benchmarks.moving_ball import BLUE, FRAMES, RED, ClipMixture, ball_maps, draw_clip, edit, make_pipeline

from .helpers import seeded


CLIP, TARGET = draw_clip(RED, "stripes"), draw_clip(BLUE, "stripes")


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def difference(video, other) -> np.ndarray:
    """(F, H, W): the largest of the three channels, of 255."""
    return abs(np.stack(video).astype(int) - np.stack(other)).max(-1)


@pytest.mark.parametrize("sigma", [0.9, 0.5, 0.1])
def test_the_denoiser_is_exact(sigma):
    """Tweedie's formula on the density, differentiated by torch."""
    means, weights, deviation = torch.randn(3, 8, generator=seeded(1)), torch.tensor([0.2, 0.5, 0.3]), 0.4
    x = torch.randn(8, generator=seeded(2), requires_grad=True)
    spread = ((1 - sigma) ** 2 * deviation**2 + sigma**2) ** 0.5
    density = MixtureSameFamily(Categorical(weights), Independent(Normal((1 - sigma) * means, spread), 1))
    (score,) = torch.autograd.grad(density.log_prob(x), x)
    expected = (x.detach() + sigma**2 * score) / (1 - sigma)
    denoised = ClipMixture(means, deviation).denoise(x.detach(), sigma, weights)
    torch.testing.assert_close(denoised, expected, rtol=1e-4, atol=1e-5)


def test_a_map_that_moves_changes_what_moves_and_nothing_else(pipe):
    maps = ball_maps()
    edited = edit(pipe, CLIP, maps, steps=4)
    assert not difference(edited, CLIP)[maps == 1].any()
    missed = difference(edited, TARGET)
    for frame in range(FRAMES):
        assert missed[frame][maps[frame] == 0].mean() < 8, frame
        assert difference(CLIP, TARGET)[frame][maps[frame] == 0].mean() > 80, frame


def test_the_same_map_backwards_misses_it(pipe):
    """But in the middle, where both are the same."""
    maps = ball_maps()
    edited = edit(pipe, CLIP, maps[::-1].copy(), steps=4)
    assert not difference(edited, CLIP)[maps[::-1] == 1].any()
    for frame in (0, 1, 2, FRAMES - 2, FRAMES - 1):
        assert difference(edited, TARGET)[frame][maps[frame] == 0].mean() > 40, frame
