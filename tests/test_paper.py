"""The paper's algorithm (Levin and Fried, arXiv 2306.00950, algorithm 1), written plainly, against the pipeline."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)

from modular_diffdiff.blocks.diffdiff_map import keep_on_grid, release_by_step

from .helpers import SDXL_BETAS, diffdiff, picture, relative, seeded


STEPS = 6
MAPS = {
    "two levels": torch.cat([torch.zeros(32, 16), torch.ones(32, 16)], 1),
    "many levels": torch.linspace(0, 1, 32).repeat(32, 1),
    "noise": torch.rand(32, 32, generator=seeded(3)),
}


@torch.no_grad()
def paper(components, scheduler, state, guidance_scale, generator, softness=0.0):
    """For each step: overwrite what is frozen with the noised original, denoise everything, take the step.

    With softness, the step's mask, white where it changes, is that of ComfyUI's node.
    """
    unet = components["unet"]
    x0, noise, release = state.image_latents, state.noise, state.release_steps
    scheduler.set_timesteps(STEPS)
    step_options = {"generator": generator} if isinstance(scheduler, EulerAncestralDiscreteScheduler) else {}
    mask = 1 - keep_on_grid([state.diffdiff_map[None, None]], (32, 32), (4, 4), (32, 32))
    latents = None
    for i, t in enumerate(scheduler.timesteps):
        noised = scheduler.add_noise(x0, noise, t[None])
        node = (1 - softness) * (i >= release) + softness * mask
        latents = noised if latents is None else node * latents + (1 - node) * noised
        scaled = scheduler.scale_model_input(latents, t)

        def denoise(prompt_embeds, pooled, time_ids, scaled=scaled, t=t):
            added = {"text_embeds": pooled, "time_ids": time_ids}
            return unet(scaled, t, encoder_hidden_states=prompt_embeds, added_cond_kwargs=added).sample

        predicted = denoise(state.prompt_embeds, state.pooled_prompt_embeds, state.add_time_ids)
        if guidance_scale > 1:
            negative = denoise(
                state.negative_prompt_embeds, state.negative_pooled_prompt_embeds, state.negative_add_time_ids
            )
            predicted = negative + guidance_scale * (predicted - negative)
        latents = scheduler.step(predicted, t, latents, **step_options).prev_sample
    return latents


@pytest.mark.parametrize("map_name", MAPS)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(
    "scheduler_class",
    [EulerDiscreteScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler],
)
def test_without_restore_the_pipeline_is_the_papers_algorithm(tiny, scheduler_class, spacing, guidance_scale, map_name):
    scheduler = scheduler_class(**SDXL_BETAS, timestep_spacing=spacing)
    pipe = diffdiff(tiny, without=("skip_frozen",), restore=False, scheduler=scheduler, guidance_scale=guidance_scale)
    generator = seeded()
    state = pipe(
        prompt="a pear",
        image=picture(),
        diffdiff_map=MAPS[map_name],
        num_inference_steps=STEPS,
        generator=generator,
        output_type="latent",
    )
    # the same draws again: one for the autoencoder, one for the noise, and then the sampler's
    replay = seeded()
    torch.randn(state.image_latents.shape, generator=replay)
    assert torch.equal(torch.randn(state.noise.shape, generator=replay), state.noise)
    expected = paper(tiny, scheduler_class.from_config(scheduler.config), state, guidance_scale, replay)
    assert relative(state.latents, expected) < 1e-5


@pytest.mark.parametrize("softness", [0.3, 1.0])
@pytest.mark.parametrize("map_name", MAPS)
def test_softness_mixes_the_original_in_as_comfyuis_node_does(tiny, map_name, softness):
    pipe = diffdiff(tiny, without=("skip_frozen",), restore=False, scheduler=EulerDiscreteScheduler(**SDXL_BETAS))
    state = pipe(
        prompt="a pear",
        image=picture(),
        diffdiff_map=MAPS[map_name],
        diffdiff_softness=softness,
        num_inference_steps=STEPS,
        generator=seeded(),
        output_type="latent",
    )
    scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    expected = paper(tiny, scheduler, state, pipe.guider.guidance_scale, None, softness)
    assert relative(state.latents, expected) < 1e-5


def test_the_oracles_release_steps_come_from_the_map(tiny):
    state = diffdiff(tiny, without=("skip_frozen",))(
        prompt="a pear",
        image=picture(),
        diffdiff_map=MAPS["many levels"],
        num_inference_steps=STEPS,
        generator=seeded(),
    )
    keep = keep_on_grid([MAPS["many levels"][None, None]], (32, 32), (4, 4), (32, 32))
    expected = release_by_step(keep, torch.arange(STEPS))
    assert torch.equal(state.release_steps, expected)
    assert len(expected.unique()) == 4
