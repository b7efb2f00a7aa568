"""Which steps run: skipping what is frozen, a run in two halves, windows, and a model that answers with NaN."""

import copy
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.modular_pipelines import SequentialPipelineBlocks

from modular_diffdiff import BadInputError, SDXLDiffDiffAutoBlocks, SDXLDiffDiffBlocks

from .conftest import tiny_unet
from .helpers import SDXL_BETAS, build, diffdiff, euler, picture, relative, seeded


ONE_STEP = [EulerDiscreteScheduler, DDIMScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler]
# kept, and free from the third, the fifth and the seventh of ten steps
LEVELS = torch.tensor([1.0, 0.2, 0.4, 0.6]).repeat_interleave(8).repeat(32, 1)


def run(pipe, **options):
    defaults = {
        "prompt": "a green pear",
        "image": picture(),
        "diffdiff_map": LEVELS,
        "num_inference_steps": 10,
        "generator": seeded(),
        "output_type": "latent",
    }
    return pipe(**(defaults | options))


class Calls:
    """Counts what a model is asked."""

    def __init__(self, model):
        self.timesteps = []
        self.hook = model.register_forward_hook(lambda module, inputs, output: self.timesteps.append(inputs[1].item()))

    def __enter__(self):
        return self.timesteps

    def __exit__(self, *_):
        self.hook.remove()


# Skipping


def test_the_darkest_map_of_a_batch_decides(tiny):
    maps = [torch.full((32, 32), keep) for keep in (0.8, 0.4)]
    with Calls(tiny["unet"]) as asked:
        state = run(diffdiff(tiny, guidance_scale=1.0), diffdiff_map=maps, prompt=["a pear", "a cup"])
    assert len(asked) == 6
    assert state.release_steps.unique().tolist() == [0, 4]


def test_a_controlnet_is_skipped_along(tiny, controlnet):
    pipe = build(SDXLDiffDiffAutoBlocks(), tiny | {"controlnet": controlnet}, guidance_scale=1.0)
    with Calls(controlnet) as asked:
        run(pipe, diffdiff_map=torch.full((32, 32), 0.7), control_image=picture(seed=5))
    assert len(asked) == 3


def test_a_window_of_control_counts_from_the_first_step_that_runs(tiny, controlnet):
    """Half of the window of the four steps that are left, as in image-to-image."""
    pipe = build(SDXLDiffDiffAutoBlocks(), tiny | {"controlnet": controlnet}, guidance_scale=1.0)
    state = run(pipe, diffdiff_map=torch.full((32, 32), 0.6), control_image=picture(seed=5), control_guidance_end=0.5)
    assert state.controlnet_keep == [1.0, 1.0, 0.0, 0.0]


def test_the_progress_bar_tells_the_true_number(tiny, capfd):
    pipe = diffdiff(tiny)
    pipe.set_progress_bar_config(disable=False)
    run(pipe, diffdiff_map=torch.full((32, 32), 0.7))
    assert "3/3" in capfd.readouterr().err


@pytest.mark.parametrize("scheduler_class", ONE_STEP)
def test_skipping_changes_no_picture(tiny, scheduler_class):
    skipped, whole = (
        run(diffdiff(tiny, without, scheduler=scheduler_class(**SDXL_BETAS))) for without in ((), ("skip_frozen",))
    )
    assert len(skipped.timesteps) < len(whole.timesteps)
    assert relative(skipped.latents, whole.latents) < 1e-5


# Two halves


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("scheduler_class", ONE_STEP)
def test_base_and_refiner_are_one_run(tiny, scheduler_class, share):
    """The same model twice; the second half takes up the original, its noise and the latents."""
    whole = run(diffdiff(tiny, scheduler=scheduler_class(**SDXL_BETAS), guidance_scale=1.0))
    base = run(diffdiff(tiny, scheduler=scheduler_class(**SDXL_BETAS), guidance_scale=1.0), denoising_end=share)
    refiner = diffdiff(tiny, without=("image_encoder",), scheduler=scheduler_class(**SDXL_BETAS), guidance_scale=1.0)
    refined = run(
        refiner,
        image=None,
        denoising_start=share,
        image_latents=base.image_latents,
        latents=base.latents,
        noise=base.noise,
    )
    assert len(base.timesteps) + len(refined.timesteps) == len(whole.timesteps)
    assert len(base.timesteps) % scheduler_class(**SDXL_BETAS).order == 0
    assert relative(refined.latents, whole.latents) < 1e-5


@pytest.mark.parametrize("share", [0.25, 0.8, 1.0])
@pytest.mark.parametrize("scheduler_class", ONE_STEP)
def test_a_share_of_the_schedule_is_as_many_steps_with_every_order(tiny, scheduler_class, share):
    """Spaced alike, Heun and KDPM2 make as many steps of two evaluations as Euler and DDIM of one."""
    pipe = diffdiff(tiny, scheduler=scheduler_class(**SDXL_BETAS, timestep_spacing="trailing"), guidance_scale=1.0)
    black = torch.zeros(32, 32)
    evaluations = len(run(pipe, diffdiff_map=black, denoising_end=share).timesteps)
    assert math.ceil(evaluations / pipe.scheduler.order) == math.ceil(10 * share)


def test_the_pixels_come_back_after_a_refiner_too(tiny):
    base = run(diffdiff(tiny), denoising_end=0.5)
    (result,) = run(
        diffdiff(tiny, without=("image_encoder",)),
        denoising_start=0.5,
        overlay=True,
        image_latents=base.image_latents,
        latents=base.latents,
        noise=base.noise,
        output_type="pil",
    ).images
    kept = (LEVELS == 1).numpy()
    np.testing.assert_array_equal(np.asarray(result)[kept], np.asarray(picture())[kept])


def test_a_refiner_with_one_text_encoder_and_aesthetic_scores_runs(tiny):
    unet = tiny_unet(cross_attention_dim=16, time_ids=5)
    parts = tiny | {"unet": unet, "text_encoder": None, "tokenizer": None}
    base = run(diffdiff(tiny), denoising_end=0.5)
    pipe = diffdiff(parts, without=("image_encoder",))
    pipe.register_to_config(requires_aesthetics_score=True)
    options = {
        "image": None,
        "denoising_start": 0.5,
        "image_latents": base.image_latents,
        "latents": base.latents,
        "noise": base.noise,
    }
    refined, other = (run(pipe, aesthetic_score=score, **options) for score in (6.0, 1.0))
    assert torch.equal(refined.latents[..., :1], base.image_latents[..., :1])
    assert relative(other.latents[..., 1:], refined.latents[..., 1:]) > 1e-4


def test_a_base_without_its_first_text_encoder_is_refused(tiny):
    with pytest.raises(ValueError, match="not loaded: text_encoder"):
        run(diffdiff(tiny | {"text_encoder": None}))


# Strength, schedules


def test_strength_is_the_map_turned_down(tiny):
    keep = torch.rand(32, 32, generator=seeded(4))
    dial = run(diffdiff(tiny), diffdiff_map=keep, strength=0.3)
    turned = run(diffdiff(tiny), diffdiff_map=1 - 0.3 * (1 - keep))
    assert torch.equal(dial.release_steps, turned.release_steps)
    assert torch.equal(dial.latents, turned.latents)


def test_strength_zero_changes_nothing(tiny):
    state = run(diffdiff(tiny), diffdiff_map=torch.zeros(32, 32), strength=0)
    assert torch.equal(state.latents, state.image_latents)


def test_an_inverted_map_is_inverted_before_it_is_turned_down(tiny):
    state = run(diffdiff(tiny), diffdiff_map=torch.ones(32, 32), invert_diffdiff_map=True, strength=0.4)
    assert len(state.timesteps) == 4


def test_by_timestep_the_noise_level_decides(tiny):
    """Karras's sigmas fall fast at first: half the noise is reached long before half the steps."""
    scheduler = EulerDiscreteScheduler(**SDXL_BETAS, use_karras_sigmas=True)
    keep = torch.full((32, 32), 0.5)
    by_step, by_timestep = (
        run(diffdiff(tiny, scheduler=scheduler), diffdiff_map=keep, diffdiff_schedule=schedule)
        for schedule in ("step", "timestep")
    )
    assert len(by_step.timesteps) == 5
    first = by_timestep.timesteps[0]
    scheduler.set_timesteps(10)
    below = [t for t in scheduler.timesteps if t / scheduler.timesteps[0] <= 0.5]
    assert first == below[0]


@pytest.mark.parametrize("scheduler_class", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_softness_leaves_what_is_kept_exact_and_draws_the_rest_to_the_original(tiny, scheduler_class):
    keep = torch.tensor([1.0, 0.6, 0.3, 0.0]).repeat_interleave(8).repeat(32, 1)
    pipe = diffdiff(tiny, scheduler=scheduler_class(**SDXL_BETAS))
    hard, soft = (run(pipe, diffdiff_map=keep, diffdiff_softness=softness) for softness in (0, 1))
    assert torch.equal(soft.latents[..., 0], soft.image_latents[..., 0])
    moved = [(state.latents - state.image_latents).abs().mean((0, 1, 2)) for state in (hard, soft)]
    assert (moved[1][1:3] < 0.9 * moved[0][1:3]).all()
    assert torch.equal(run(pipe, diffdiff_map=keep).latents, hard.latents)  # nothing happens by default


# What goes wrong


@pytest.mark.parametrize("bad_call", [0, 3])
def test_nan_from_the_model_is_reported_with_its_timestep(tiny, bad_call):
    unet = copy.deepcopy(tiny["unet"])
    calls = []

    def spoil(module, inputs, output):
        calls.append(inputs[1].item())
        return (output[0] * float("nan"),) if len(calls) == bad_call + 1 else output

    unet.register_forward_hook(spoil)
    pipe = diffdiff(tiny | {"unet": unet}, guidance_scale=1.0, scheduler=euler())
    with pytest.raises(
        FloatingPointError, match=rf"evaluation {bad_call + 1} of 10, made latents that are not finite"
    ) as caught:
        run(pipe, diffdiff_map=torch.zeros(32, 32))
    assert f"timestep {calls[bad_call]:g}" in str(caught.value)


def test_a_restore_block_in_a_loop_without_its_inputs_is_refused_by_name(tiny):
    blocks = SDXLDiffDiffBlocks()
    for name in ("region_prompts", "prepare_latents", "start_filled", "skip_frozen", "region_rows"):
        blocks.sub_blocks.pop(name)
    with pytest.raises(
        BadInputError, match="needs `noise`, `release_steps`, `level_alphas`, `level_sigmas`, `keep`, and no block"
    ):
        run(build(blocks, tiny))


def test_blocks_of_ours_run_within_a_plain_sequence(tiny):
    inner = run(diffdiff(tiny))
    outer = build(SequentialPipelineBlocks.from_blocks_dict({"diffdiff": SDXLDiffDiffBlocks}), tiny)
    assert torch.equal(run(outer).latents, inner.latents)


def test_samplers_that_rewrite_their_past_are_announced_with_maps_of_several_levels(tiny):
    pipe = diffdiff(tiny, scheduler=UniPCMultistepScheduler(**SDXL_BETAS))
    with pytest.warns(UserWarning, match="several levels, and UniPCMultistepScheduler"):
        state = run(pipe)
    assert torch.equal(state.latents[..., :1], state.image_latents[..., :1])


@pytest.mark.parametrize("keep", [torch.full((32, 32), 0.5), (LEVELS == 1).float()])
def test_and_not_with_others(tiny, keep):
    run(diffdiff(tiny, scheduler=UniPCMultistepScheduler(**SDXL_BETAS)), diffdiff_map=keep)
    run(diffdiff(tiny, scheduler=DPMSolverMultistepScheduler(**SDXL_BETAS)))
