"""The original's trajectory, against what schedulers themselves do."""

import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
)

from modular_diffdiff.blocks.diffdiff_trajectory import noise_levels, put_on_trajectory, recover_noise

from .helpers import SDXL_BETAS


SCHEDULERS = [
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
]


def schedule(scheduler_class, steps: int = 7, **config):
    scheduler = scheduler_class(**SDXL_BETAS, **config)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_levels_are_the_schedulers_own_to_the_last_bit(scheduler_class, dtype):
    scheduler = schedule(scheduler_class)
    x0, noise = torch.randn(2, 1, 4, 8, 8).to(dtype)
    alphas, sigmas = noise_levels(scheduler, scheduler.timesteps, dtype)
    assert len(alphas) == len(sigmas) == len(scheduler.timesteps) + 1
    for level, timestep in enumerate(scheduler.timesteps):
        expected = scheduler.add_noise(x0, noise, timestep[None])
        assert torch.equal(alphas[level] * x0 + sigmas[level] * noise, expected)


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_levels_fall_to_the_original_and_the_scheduler_stays_as_it_was(scheduler_class):
    scheduler = schedule(scheduler_class)
    before = copy.deepcopy(vars(scheduler))
    alphas, sigmas = noise_levels(scheduler, scheduler.timesteps, torch.float32)
    # noise over signal: every level is cleaner than the one before, or the same one in a second-order step
    assert ((sigmas / alphas).diff() <= 0).all()
    assert (alphas[-1], sigmas[-1]) == (1, 0)
    assert str(vars(scheduler)) == str(before)


def test_levels_do_not_depend_on_where_the_scheduler_stands():
    scheduler = schedule(EulerDiscreteScheduler)
    fresh = noise_levels(scheduler, scheduler.timesteps, torch.float32)
    scheduler.set_begin_index(3)
    scheduler.step(torch.zeros(1), scheduler.timesteps[3], torch.zeros(1))
    again = noise_levels(scheduler, scheduler.timesteps, torch.float32)
    assert torch.equal(torch.stack(fresh), torch.stack(again))


def test_frozen_elements_move_and_no_others():
    latents, x0, noise = torch.randn(3, 2, 4, 5, 5)
    frozen = torch.rand(2, 1, 5, 5) > 0.5
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8)
    moved = put_on_trajectory(latents, x0, noise, alpha, sigma, frozen)
    for b, c, y, x in torch.cartesian_prod(*(torch.arange(side) for side in latents.shape)).tolist():
        expected = 0.6 * x0[b, c, y, x] + 0.8 * noise[b, c, y, x] if frozen[b, 0, y, x] else latents[b, c, y, x]
        assert moved[b, c, y, x] == pytest.approx(expected.item(), abs=1e-6)


def test_on_the_last_level_the_original_is_exact():
    latents, x0, noise = torch.randn(3, 1, 4, 8, 8)
    moved = put_on_trajectory(
        latents, x0, noise, torch.tensor(1.0), torch.tensor(0.0), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    )
    assert torch.equal(moved, x0)


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_noise_is_recovered_from_noised_latents(scheduler_class):
    scheduler = schedule(scheduler_class)
    x0, noise = torch.randn(2, 1, 4, 8, 8)
    alphas, sigmas = noise_levels(scheduler, scheduler.timesteps, torch.float32)
    latents = scheduler.add_noise(x0, noise, scheduler.timesteps[:1])
    torch.testing.assert_close(recover_noise(latents, x0, alphas[0], sigmas[0]), noise, rtol=0, atol=1e-5)
