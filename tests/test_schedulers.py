"""The laws of the method over every scheduler of the installed diffusers."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PNDMScheduler
from diffusers.modular_pipelines import BlockState, PipelineState

from modular_diffdiff import DiffDiffRestoreStep, DiffDiffSkipFrozenStep
from modular_diffdiff.blocks.diffdiff_map import release_by_step
from modular_diffdiff.blocks.diffdiff_trajectory import noise_levels, put_on_trajectory

from .helpers import SDXL_BETAS, diffdiff, image_to_image, picture, relative, seeded
from .scheduler_table import (
    CAN_FLOW,
    FLOW,
    FLOW_LEFT_OUT,
    INSTALLED,
    LEFT_OUT,
    OPTIONS,
    SDXL,
    TAKE_BETAS,
    parameters,
)


HALF = torch.cat([torch.ones(32, 16), torch.zeros(32, 16)], 1)


def make(name: str, **config):
    return SDXL[name](**SDXL_BETAS, **OPTIONS.get(name, {}), **config)


def run(pipe, **options):
    defaults = {
        "prompt": "a green pear",
        "image": picture(),
        "num_inference_steps": 4,
        "generator": seeded(),
        "output_type": "latent",
    }
    return pipe(**(defaults | options))


def test_the_table_knows_every_scheduler_of_the_installed_diffusers():
    assert set(LEFT_OUT) <= TAKE_BETAS
    assert {"EulerDiscreteScheduler", "DDPMScheduler", "SASolverScheduler", "TCDScheduler"} <= set(SDXL)


@pytest.mark.parametrize(("name", "error"), LEFT_OUT.items())
def test_what_is_left_out_does_no_image_to_image_upstream_either(tiny, name, error):
    scheduler = INSTALLED[name](**SDXL_BETAS)
    pipe = image_to_image(tiny, scheduler=scheduler, guidance_scale=1.0)
    if error is None:
        run(pipe, strength=1.0)
        assert (scheduler.timesteps.diff() > 0).all()
    else:
        with pytest.raises(error):
            run(pipe, strength=1.0)


# More steps than the model was trained with: timesteps repeat


@pytest.mark.parametrize("keep", [0.0, 0.2])
@pytest.mark.parametrize("name", SDXL)
def test_timesteps_that_repeat_are_run_as_image_to_image_runs_them(tiny, name, keep):
    pipes = [
        make_pipe(tiny, scheduler=make(name, num_train_timesteps=5), guidance_scale=1.0)
        for make_pipe in (image_to_image, diffdiff)
    ]
    more = {"num_inference_steps": 12, "image": picture(16, 16)}
    try:
        upstream = run(pipes[0], strength=1 - keep, **more).latents
    except ValueError as error:  # some take no more steps
        with pytest.raises(ValueError, match=re.escape(str(error)[:40])):
            run(pipes[1], diffdiff_map=torch.full((16, 16), keep), **more)
        return
    if upstream.isfinite().all():
        assert torch.equal(run(pipes[1], diffdiff_map=torch.full((16, 16), keep), **more).latents, upstream)
    else:  # multistep solvers divide by the distance of two levels
        with pytest.raises(FloatingPointError):
            run(pipes[1], diffdiff_map=torch.full((16, 16), keep), **more)


# Keep law

# upstream has not implemented it for these, and says so with this error
NO_SAMPLE_PREDICTION = {
    "DPMSolverSDEScheduler": NotImplementedError,
    "EulerAncestralDiscreteScheduler": NotImplementedError,
    "KDPM2AncestralDiscreteScheduler": NotImplementedError,
    "KDPM2DiscreteScheduler": NotImplementedError,
    "PNDMScheduler": ValueError,
}
BASE = {"steps": 4, "dtype": torch.float32, "config": {}}
AXES = {
    **{f"{steps} steps": {"steps": steps} for steps in (1, 2, 25)},
    **{spacing: {"config": {"timestep_spacing": spacing}} for spacing in ("leading", "linspace", "trailing")},
    **{sigmas: {"config": {f"use_{sigmas}_sigmas": True}} for sigmas in ("karras", "exponential", "beta")},
    **{kind: {"config": {"prediction_type": kind}} for kind in ("v_prediction", "sample")},
    **{str(dtype): {"dtype": dtype} for dtype in (torch.float16, torch.bfloat16)},
}
CASES = [
    (name, axis)
    for name, member in SDXL.items()
    for axis, changed in AXES.items()
    if set(changed.get("config", {})) <= parameters(member) and not (axis == "sample" and name in NO_SAMPLE_PREDICTION)
]


@pytest.mark.parametrize(("name", "error"), NO_SAMPLE_PREDICTION.items())
def test_upstream_refuses_the_prediction_type_that_these_lack(tiny, name, error):
    pipe = image_to_image(tiny, scheduler=make(name, prediction_type="sample"), guidance_scale=1.0)
    with pytest.raises(error, match="prediction_type"):
        run(pipe, strength=1.0)


def in_precision(components: dict, dtype: torch.dtype) -> dict:
    models = {name: part for name, part in components.items() if isinstance(part, torch.nn.Module)}
    return components | {name: copy.deepcopy(model).to(dtype) for name, model in models.items()}


@pytest.mark.parametrize(("name", "axis"), CASES)
def test_what_is_kept_ends_as_the_original_bit_for_bit(tiny, name, axis):
    case = BASE | AXES[axis]
    parts = tiny if case["dtype"] == torch.float32 else in_precision(tiny, case["dtype"])
    pipe = diffdiff(parts, scheduler=make(name, **case["config"]), guidance_scale=1.0)
    state = run(pipe, diffdiff_map=HALF, num_inference_steps=case["steps"])
    assert state.latents.dtype == case["dtype"]
    assert state.latents.isfinite().all()
    assert torch.equal(state.latents[..., :2], state.image_latents[..., :2])
    assert not torch.equal(state.latents[..., 2:], state.image_latents[..., 2:])


# Strength law


def both(tiny, name: str, steps: int, strength: float, ours: dict, guidance_scale: float = 1.0, **config):
    """Final latents of ours, and of upstream's image-to-image at this strength."""
    results = []
    for pipeline, options in ((diffdiff, ours), (image_to_image, {"strength": strength})):
        pipe = pipeline(tiny, scheduler=make(name, **config), guidance_scale=guidance_scale)
        results.append(run(pipe, num_inference_steps=steps, **options).latents)
    return results


# PNDM makes one evaluation more than it has steps, and each is a step to the map: on that grid the law holds too.
EXTRA_EVALUATIONS = {"PNDMScheduler": 1}
# steps in all, and those of them that run
GRID = [(1, 1), (2, 1), (3, 2), (8, 1), (8, 7), (40, 3)]


@pytest.mark.parametrize(("steps", "runs"), GRID)
@pytest.mark.parametrize("name", SDXL)
def test_a_constant_map_is_image_to_image_at_its_strength(tiny, name, steps, runs):
    keep = (steps - runs) / (steps + EXTRA_EVALUATIONS.get(name, 0))
    strength = (runs + 0.01) / steps  # upstream rounds down, and 0.58 of 50 is 28.999999999999996
    ours, theirs = both(tiny, name, steps, min(strength, 1.0), {"diffdiff_map": torch.full((32, 32), keep)})
    assert relative(ours, theirs) < 1e-4


@pytest.mark.parametrize("name", SDXL)
def test_a_black_map_turned_down_is_image_to_image_at_that_strength(tiny, name):
    strength = 1 - 4 / (8 + EXTRA_EVALUATIONS.get(name, 0))
    ours, theirs = both(tiny, name, 8, 0.5, {"diffdiff_map": torch.zeros(32, 32), "strength": strength})
    assert relative(ours, theirs) < 1e-4


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("name", SDXL)
def test_a_black_map_is_image_to_image_at_full_strength_bit_for_bit(tiny, name, guidance_scale):
    if make(name).order == 2 or SDXL[name] is PNDMScheduler:
        guidance_scale = 1.0  # upstream's guidance goes off before the last evaluations of their schedules
    ours, theirs = both(tiny, name, 4, 1.0, {"diffdiff_map": torch.zeros(32, 32)}, guidance_scale)
    assert torch.equal(ours, theirs)


# Flow matching, on a toy: the loop of any family, and a model that answers with its input's size


def test_the_table_of_flow_matching_knows_every_scheduler():
    assert set(FLOW_LEFT_OUT) <= CAN_FLOW
    assert {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "UniPCMultistepScheduler"} <= set(FLOW)


LEAST_STEPS = {"MiniMaxH3Scheduler": 2}


def make_flow(name: str):
    if "use_flow_sigmas" in parameters(INSTALLED[name]):
        return INSTALLED[name](prediction_type="flow_prediction", use_flow_sigmas=True)
    return INSTALLED[name]()


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 25])
@pytest.mark.parametrize("name", FLOW)
def test_flow_matching_keeps_bit_for_bit_too(name, steps):
    scheduler = make_flow(name)
    scheduler.set_timesteps(max(steps, LEAST_STEPS.get(name, 1)))
    x0, noise = torch.randn(2, 1, 4, 6, 6, generator=seeded())
    keep = torch.linspace(0, 1, 6).expand(1, 1, 6, 6)
    schedule = scheduler.timesteps
    alphas, sigmas = noise_levels(scheduler, schedule, torch.float32)
    release = release_by_step(keep, schedule[:: scheduler.order])
    latents = alphas[0] * x0 + sigmas[0] * noise
    for i, t in enumerate(schedule):
        for level in (i, None):
            if level is None:
                latents = scheduler.step(latents.tanh() - latents, t, latents, return_dict=False)[0]
                level = i + 1
            frozen = release > i // scheduler.order
            latents = put_on_trajectory(latents, x0, noise, alphas[level], sigmas[level], frozen)
    assert torch.equal(latents[..., -1], x0[..., -1])
    assert not torch.equal(latents[..., 0], x0[..., 0])


def toy_loop(scheduler, latents, timesteps):
    """Any family's denoising loop, with a model that pulls everything towards its tanh."""
    for t in timesteps:
        latents = scheduler.step(latents.tanh() - latents, t, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("runs", [1, 3, 7])
@pytest.mark.parametrize("name", [name for name in FLOW if name.startswith("FlowMatch")])
def test_a_constant_map_is_flow_matchings_image_to_image(name, runs):
    """Our blocks around the toy loop, against upstream's way: noise to the level of the strength, and run the rest."""
    steps = 8
    x0, noise = torch.randn(2, 1, 4, 6, 6, generator=seeded())
    scheduler = make_flow(name)
    scheduler.set_timesteps(steps)
    begin = (steps - runs) * scheduler.order
    rest = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    torch.manual_seed(0)  # FlowMatchLCM draws
    expected = toy_loop(scheduler, scheduler.scale_noise(x0, rest[:1], noise), rest)

    scheduler = make_flow(name)
    scheduler.set_timesteps(steps)
    alphas, sigmas = noise_levels(scheduler, scheduler.timesteps, torch.float32)
    keep = torch.full((1, 1, 6, 6), 1 - runs / steps)
    values = {
        "timesteps": scheduler.timesteps,
        "num_inference_steps": steps,
        "latents": alphas[0] * x0 + sigmas[0] * noise,
        "image_latents": x0,
        "noise": noise,
        "release_steps": release_by_step(keep, scheduler.timesteps[:: scheduler.order]),
        "level_alphas": alphas,
        "level_sigmas": sigmas,
    }
    state = PipelineState()
    for key, value in values.items():
        state.set(key, value)
    components = SimpleNamespace(scheduler=scheduler)
    DiffDiffSkipFrozenStep()(components, state)
    block_state = BlockState(**{key: state.get(key) for key in values})
    torch.manual_seed(0)
    for i, t in enumerate(block_state.timesteps):
        block_state.latents = toy_loop(scheduler, block_state.latents, [t])
        DiffDiffRestoreStep()(components, block_state, i=i, t=t)
    assert block_state.num_inference_steps == len(rest)
    assert relative(block_state.latents, expected) < 1e-4


@pytest.mark.parametrize("name", [name for name in FLOW if name.startswith("FlowMatch")])
def test_levels_of_flow_matching_are_one_minus_sigma_and_sigma(name):
    scheduler = make_flow(name)
    scheduler.set_timesteps(7)
    alphas, sigmas = noise_levels(scheduler, scheduler.timesteps, torch.float32)
    torch.testing.assert_close(sigmas[:-1], scheduler.sigmas[: len(scheduler.timesteps)], rtol=0, atol=1e-6)
    torch.testing.assert_close(alphas, 1 - sigmas, rtol=0, atol=1e-6)


def test_flow_levels_do_not_depend_on_where_the_scheduler_stands():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    fresh = noise_levels(scheduler, scheduler.timesteps, torch.float32)
    scheduler.set_begin_index(3)
    assert torch.equal(torch.stack(noise_levels(scheduler, scheduler.timesteps, torch.float32)), torch.stack(fresh))
