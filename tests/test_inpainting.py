"""Inpainting checkpoints of SDXL: UNets that see a mask, and the picture without what it covers."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline

from benchmarks import inpainting as holes
from benchmarks.still_life import HELD_OUT
from modular_diffdiff import BadInputError, loading
from modular_diffdiff.still_life import CHECKPOINT
from modular_diffdiff.still_life.models import load_inpainting_unet
from modular_diffdiff.still_life.scene import Scene

from .conftest import tiny_unet
from .helpers import diffdiff, euler, picture, relative, seeded
from .test_auto import automatic
from .test_auto import run as run_automatic
from .test_sdxl import run


# kept, free from the start, and from the third of four steps; on the latents' grid, 4 x 4
LEVELS = torch.tensor([1.0, 0.0, 0.5, 1.0]).repeat(4, 1)


@pytest.fixture(scope="module")
def inpainting(tiny) -> dict:
    torch.manual_seed(4)
    return tiny | {"unet": tiny_unet(in_channels=9), "scheduler": euler()}


@torch.no_grad()
def test_the_loop_is_the_recipe_written_plainly(inpainting):
    """The mask of each step is what it releases, and the picture is shown without all that is ever released."""
    keep = LEVELS.repeat_interleave(8, 0).repeat_interleave(8, 1)
    state = run(diffdiff(inpainting, guidance_scale=1.0), diffdiff_map=keep)

    vae, unet, scheduler = inpainting["vae"], inpainting["unet"], euler()
    pixels = torch.from_numpy(np.asarray(picture())).movedim(-1, 0)[None] / 127.5 - 1
    shown = vae.encode(pixels * (keep == 1)).latent_dist.sample(seeded(0)) * vae.config.scaling_factor
    torch.testing.assert_close(state.masked_image_latents, shown, rtol=0, atol=1e-5)

    scheduler.set_timesteps(4)
    original, noise = state.image_latents, state.noise
    conditions = {"text_embeds": state.pooled_prompt_embeds, "time_ids": state.add_time_ids}
    latents = original + scheduler.sigmas[0] * noise
    for i, t in enumerate(scheduler.timesteps):
        released = (i / 4 >= LEVELS).float()[None, None]
        latents = torch.where(released == 1, latents, original + scheduler.sigmas[i] * noise)
        seen = torch.cat([scheduler.scale_model_input(latents, t), released, shown], 1)
        predicted = unet(seen, t, state.prompt_embeds, added_cond_kwargs=conditions).sample
        latents = scheduler.step(predicted, t, latents).prev_sample
        latents = torch.where(released == 1, latents, original + scheduler.sigmas[i + 1] * noise)
    assert relative(state.latents, latents) < 1e-5
    assert torch.equal(state.latents[..., [0, 3]], original[..., [0, 3]])


def test_each_picture_of_a_batch_is_shown_its_own(inpainting):
    pipe, prompts = diffdiff(inpainting), ["a pear", "a cup"]
    pictures, maps = [picture(seed=seed) for seed in range(2)], [LEVELS, 1 - LEVELS]
    generators = [seeded(k) for k in range(4)]
    both = run(
        pipe, prompt=prompts, image=pictures, diffdiff_map=maps, num_images_per_prompt=2, generator=generators
    ).latents
    for k in range(4):
        own = {"prompt": prompts[k // 2], "image": pictures[k // 2], "diffdiff_map": maps[k // 2]}
        assert relative(both[k : k + 1], run(pipe, generator=seeded(k), **own).latents) < 1e-4


def test_regions_and_boxes_are_shown_theirs(inpainting):
    pipe = automatic(inpainting)
    options = {"image": picture(96, 96), "diffdiff_map": 1 - np.pad(np.ones((40, 32)), ((28, 28), (32, 32)))}
    options |= {"padding_map_crop": 4, "output_type": "pt"}
    plain = run_automatic(pipe, prompt="a pear", **options)
    maps = [LEVELS == 0, LEVELS != 0]
    split = run_automatic(pipe, region_prompts=["a pear"] * 2, region_maps=maps, **options)
    assert relative(split.latents, plain.latents) < 1e-4
    assert plain.masked_image_latents.shape[-2:] == plain.latents.shape[-2:]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"control_image": picture()}, "`control_image` cannot be combined with an inpainting UNet"),
        ({"image": None, "image_latents": torch.zeros(1, 4, 4, 4)}, "`image` is missing: an inpainting UNet"),
    ],
)
def test_what_it_cannot_do_is_refused(inpainting, controlnet, given, says):
    without = ("image_encoder",) if "image_latents" in given else ()
    pipe = diffdiff(inpainting, without) if without else automatic(inpainting | {"controlnet": controlnet})
    with pytest.raises(BadInputError, match=says):
        run(pipe, **given)


def test_an_inpainting_checkpoint_is_known_and_edits(tmp_path):
    base = StableDiffusionXLPipeline.from_pretrained(CHECKPOINT)
    parts = base.components | {"unet": load_inpainting_unet()}
    StableDiffusionXLInpaintPipeline(**parts).save_pretrained(tmp_path)
    model = loading.find_family(loading.Model(str(tmp_path), "cpu", "float32"))
    assert model.family == "sdxl"
    pipe = loading.load_pipeline(model, 1.0)
    assert pipe.unet.config.in_channels == 9
    assert run(pipe, image=picture(64, 64), num_inference_steps=1).latents.isfinite().all()


def test_a_hole_is_filled_without_a_seam():
    """A small sample of what `benchmarks.inpainting` measures."""
    scenes = [Scene.random(HELD_OUT + k) for k in range(4)]
    plain, inpainting = (holes.steps_of(scenes, which).mean() for which in (False, True))
    assert inpainting < 0.9 * plain
