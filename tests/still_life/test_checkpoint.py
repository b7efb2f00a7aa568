"""The embedded checkpoint: what it is, how well it draws, and that an edit means what prompt and map say."""

import itertools
from pathlib import Path

import pytest
import torch
from diffusers import ClassifierFreeGuidance, StableDiffusionXLPipeline
from PIL import Image

from benchmarks.still_life import HELD_OUT, decibels
from modular_diffdiff import SDXLDiffDiffBlocks, still_life
from modular_diffdiff.still_life.judge import load_judge, to_tensor
from modular_diffdiff.still_life.scene import SIZE, Scene, render


BEFORE = Scene("apple", "red", "striped", light=0.3, seed=HELD_OUT)
KEEP_LEFT = torch.cat([torch.ones(SIZE, SIZE // 2), torch.zeros(SIZE, SIZE // 2)], 1)


def misread(scenes, readings, name: str) -> list:
    pairs = zip(scenes, readings, strict=True)
    return [(scene.caption, reading) for scene, reading in pairs if getattr(scene, name) != getattr(reading, name)]


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def held_out():
    """50 scenes, and their pixels."""
    scenes = [Scene.random(HELD_OUT + seed) for seed in range(50)]
    return scenes, to_tensor([render(scene) for scene in scenes])


@pytest.fixture(scope="module")
def latents(text_to_image, held_out):
    """Of 16 scenes, as the autoencoder means them."""
    _, pixels = held_out
    with torch.no_grad():
        return text_to_image.vae.encode(pixels[:16]).latent_dist.mode()


@pytest.fixture(scope="module")
def text_to_image():
    pipe = StableDiffusionXLPipeline.from_pretrained(still_life.CHECKPOINT, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    pipe = SDXLDiffDiffBlocks().init_pipeline(still_life.CHECKPOINT)
    pipe.load_components(dtype=torch.float32)
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=still_life.GUIDANCE_SCALE))
    return pipe


def test_what_is_embedded_is_small():
    """What draws, and the judge: 60 MB, the autoencoder that two of them hold counting once. What makes maps: 6.

    The inpainting UNet: 10, and the LoRA: 2.
    """
    of_maps = [
        Path(part) for part in (still_life.TEXT_SEGMENTER, still_life.MASK_GENERATOR, still_life.DEPTH_ESTIMATOR)
    ]
    weights = {path: path.read_bytes() for path in Path(still_life.__file__).parent.rglob("*.safetensors")}
    limits = {still_life.INPAINTING: 10e6, still_life.LCM_LORA: 2e6}
    for path, limit in limits.items():
        assert 0 < len(weights.pop(path)) <= limit
    drawing = {data for path, data in weights.items() if path.parent not in of_maps}
    assert sum(map(len, drawing)) <= 60e6
    assert 0 < sum(len(data) for path, data in weights.items() if path.parent in of_maps) <= 6e6


def test_it_has_sdxls_parts(text_to_image):
    assert text_to_image.vae_scale_factor == 8
    assert text_to_image.vae.config.latent_channels == 4
    assert text_to_image.unet.config.addition_embed_type == "text_time"
    assert text_to_image.unet.config.sample_size == SIZE // 8
    assert type(text_to_image.scheduler).__name__ == "EulerDiscreteScheduler"
    assert type(text_to_image.text_encoder_2).__name__ == "CLIPTextModelWithProjection"


@torch.no_grad()
def test_the_autoencoder_returns_held_out_scenes(text_to_image, held_out, latents):
    _, pixels = held_out
    assert decibels(text_to_image.vae.decode(latents).sample.clamp(-1, 1), pixels[:16]).mean() >= 34


def test_latents_have_unit_variance(text_to_image, latents):
    scaled = latents * text_to_image.vae.config.scaling_factor
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), rtol=0, atol=0.15)


def test_the_judge_reads_held_out_scenes(judge, held_out):
    scenes, pixels = held_out
    readings = judge.read(pixels)
    for name in ("kind", "colour", "background"):
        assert len(misread(scenes, readings, name)) <= 0.01 * len(scenes)


def test_it_draws_what_the_prompt_says(text_to_image, judge):
    """A sample; `make benchmark` takes all 240 combinations."""
    scenes = [Scene.random(HELD_OUT + seed) for seed in range(12)]
    pictures = text_to_image(
        [scene.caption for scene in scenes],
        height=SIZE,
        width=SIZE,
        num_inference_steps=6,
        guidance_scale=still_life.GUIDANCE_SCALE,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(scenes))],
    ).images
    readings = judge.read(to_tensor(pictures))
    for name in ("kind", "colour", "background"):
        assert len(misread(scenes, readings, name)) <= 1, misread(scenes, readings, name)


@pytest.fixture(scope="module", params=itertools.product((4, 8), ("left", "right")), ids=str)
def edited(request, pipe):
    """Four edits of one half of the apple, with the map that keeps the other."""
    steps, side = request.param
    keep, count = KEEP_LEFT if side == "left" else 1 - KEEP_LEFT, 4
    state = pipe(
        prompt="a green pear on a striped background",
        image=Image.fromarray(render(BEFORE)),
        diffdiff_map=keep,
        num_inference_steps=steps,
        num_images_per_prompt=count,
        generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
    )
    return state, keep.expand(count, 1, -1, -1)


def test_an_edit_is_a_pear_where_it_may_change_and_the_apple_where_it_is_kept(edited, judge):
    state, keep = edited
    changed = judge.read(to_tensor(state.images), 1 - keep)
    assert [reading[:2] for reading in changed].count(("pear", "green")) >= len(keep) - 1, changed
    kept = judge.read(to_tensor(state.images), keep)
    assert {reading[:2] for reading in kept} == {("apple", "red")}, kept


def test_kept_latents_are_the_originals(edited):
    state, keep = edited
    frozen = keep[..., ::8, ::8].bool().expand_as(state.latents)
    assert torch.equal(state.latents[frozen], state.image_latents[frozen])


@torch.no_grad()
def test_kept_pixels_are_the_autoencoders_round_trip(pipe, edited):
    """Within 2 of 255 on average, away from the border: the decoder's norms see the whole picture."""
    state, keep = edited
    round_trip = pipe.vae.decode(state.image_latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    difference = (to_tensor(state.images) - round_trip).abs()
    away = SIZE // 4
    outer = difference[..., :away] if keep[..., 0].all() else difference[..., -away:]
    assert 127.5 * outer.mean() < 2
