"""The SDXL pipeline on tiny random parts: laws of the method, sizes, batches, and what may be given."""

import gc
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from diffusers.modular_pipelines import BlockState

from modular_diffdiff import DiffDiffRestoreStep, SDXLDiffDiffLoopBeforeDenoiser

from .helpers import SDXL_BETAS, diffdiff, euler, image_to_image, picture, relative, seeded


PROMPT = "a green pear"
HALF = torch.cat([torch.ones(32, 16), torch.zeros(32, 16)], 1)


def run(pipe, **options):
    """A short run that ends with latents; every option can be replaced."""
    defaults = {
        "prompt": PROMPT,
        "image": picture(),
        "diffdiff_map": HALF,
        "num_inference_steps": 4,
        "generator": seeded(),
        "output_type": "latent",
    }
    return pipe(**(defaults | options))


def test_inverting_the_map_is_running_the_inverse(tiny):
    inverted = run(diffdiff(tiny), invert_diffdiff_map=True)
    inverse = run(diffdiff(tiny), diffdiff_map=1 - HALF)
    assert torch.equal(inverted.latents, inverse.latents)


@pytest.mark.parametrize("scheduler_class", [EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler])
def test_guidance_holds_to_the_end_of_second_order_schedules(tiny, scheduler_class):
    pipe = diffdiff(tiny, scheduler=scheduler_class(**SDXL_BETAS))
    calls = []
    hook = tiny["unet"].register_forward_hook(lambda module, inputs, output: calls.append(inputs[1].item()))
    try:
        state = run(pipe, num_inference_steps=5)
    finally:
        hook.remove()
    assert calls == [timestep for timestep in state.timesteps.tolist() for _ in ("negative", "positive")]


def test_a_guidance_window_covers_its_share_of_the_evaluations(tiny):
    pipe = diffdiff(tiny, scheduler=HeunDiscreteScheduler(**SDXL_BETAS))
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=4.0, start=0.0, stop=0.5))
    calls = []
    hook = tiny["unet"].register_forward_hook(lambda module, inputs, output: calls.append(inputs[1].item()))
    try:
        run(pipe, num_inference_steps=5)
    finally:
        hook.remove()
    assert len(calls) == 9 + 4  # nine evaluations, the first half of them twice


# Sizes


@pytest.mark.parametrize("size", [(37, 29), (8, 8), (7, 32)])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_pictures_come_back_at_their_size(tiny, size, output_type):
    height, width = size
    images = run(
        diffdiff(tiny), image=picture(height, width), diffdiff_map=torch.rand(height, width), output_type=output_type
    ).images
    if output_type == "pil":
        assert images[0].size == (width, height)
    else:
        assert images.shape == ((1, height, width, 3) if output_type == "np" else (1, 3, height, width))


@pytest.mark.parametrize("form", ["L", "P", "RGBA"])
def test_images_of_other_modes_are_read_as_rgb(tiny, form):
    image = picture().convert(form)
    pipe = diffdiff(tiny)
    converted = run(pipe, image=image.convert("RGB"))
    assert torch.equal(run(pipe, image=image).latents, converted.latents)


# Batches


def test_a_sampler_that_draws_keeps_the_outputs_apart(tiny):
    def make_pipe():
        return diffdiff(tiny, scheduler=EulerAncestralDiscreteScheduler(**SDXL_BETAS))

    state = run(make_pipe(), num_images_per_prompt=3, generator=[seeded(k) for k in range(3)])
    for k in range(3):
        assert relative(state.latents[k : k + 1], run(make_pipe(), generator=seeded(k)).latents) < 1e-5


def test_one_generator_serves_a_whole_batch(tiny):
    state = run(diffdiff(tiny), num_images_per_prompt=2)
    assert not torch.equal(state.latents[0, :, :, 2:], state.latents[1, :, :, 2:])
    assert torch.equal(state.latents[0, :, :, :2], state.latents[1, :, :, :2])


# What may be given instead


def test_latents_are_the_original_noised_to_the_first_level(tiny):
    pipe = diffdiff(tiny)
    drawn = run(pipe)
    noised = drawn.level_alphas[0] * drawn.image_latents + drawn.level_sigmas[0] * drawn.noise
    given = run(pipe, latents=noised, generator=seeded())
    assert relative(given.latents, drawn.latents) < 1e-4
    assert torch.equal(given.latents[..., :2], given.image_latents[..., :2])


def test_latents_mean_what_they_mean_to_image_to_image(tiny):
    noised = 10 * torch.randn(1, 4, 4, 4, generator=seeded(7))
    ours = run(diffdiff(tiny), diffdiff_map=torch.zeros(32, 32), latents=noised)
    theirs = image_to_image(tiny)(
        prompt=PROMPT,
        image=picture(),
        latents=noised,
        strength=1.0,
        num_inference_steps=4,
        generator=seeded(),
        output_type="latent",
    )
    assert torch.equal(ours.latents, theirs.latents)


def test_image_latents_take_the_place_of_the_encoder(tiny):
    encoded = run(diffdiff(tiny))
    generator = seeded()
    torch.randn(encoded.image_latents.shape, generator=generator)  # the encoder's own draw
    given = run(
        diffdiff(tiny, without=("image_encoder",)),
        image=None,
        image_latents=encoded.image_latents,
        generator=generator,
    )
    assert torch.equal(given.latents, encoded.latents)


def test_prompt_embeddings_take_the_place_of_the_text_encoders(tiny):
    encoded = run(diffdiff(tiny))
    names = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
    given = run(
        diffdiff(tiny, without=("text_encoder",)), prompt=None, **{name: getattr(encoded, name) for name in names}
    )
    assert torch.equal(given.latents, encoded.latents)


@pytest.mark.parametrize("schedule", [{"timesteps": [900, 600, 300, 50]}, {"sigmas": [12.0, 5.0, 1.5, 0.3]}])
def test_given_schedules_are_those_of_image_to_image(tiny, schedule):
    ours = run(diffdiff(tiny), diffdiff_map=torch.zeros(32, 32), **schedule)
    theirs = image_to_image(tiny)(
        prompt=PROMPT, image=picture(), strength=1.0, generator=seeded(), output_type="latent", **schedule
    )
    assert torch.equal(ours.latents, theirs.latents)
    assert torch.equal(run(diffdiff(tiny), **schedule).latents[..., :2], ours.image_latents[..., :2])


def test_denoising_end_stops_there_with_the_kept_part_on_its_level(tiny):
    scheduler = euler()
    ours = run(diffdiff(tiny, scheduler=scheduler), num_inference_steps=8, denoising_end=0.5)
    assert len(ours.timesteps) == 4
    next_timestep = scheduler.timesteps[4:5]
    scheduler.set_timesteps(8)
    expected = scheduler.add_noise(ours.image_latents, ours.noise, next_timestep)
    assert torch.equal(ours.latents[..., :2], expected[..., :2])


def test_a_run_leaves_the_callers_inputs_alone(tiny):
    image, map_tensor, generators = picture(), HALF.clone(), [seeded(0), seeded(1)]
    options = {"image": [image], "diffdiff_map": [map_tensor], "generator": generators, "num_images_per_prompt": 2}
    run(diffdiff(tiny), **options)
    assert options["image"] == [image]
    assert options["diffdiff_map"][0] is map_tensor
    assert torch.equal(map_tensor, HALF)


# Memory


def live_tensor_bytes() -> int:
    gc.collect()
    storages = (item.untyped_storage() for item in gc.get_objects() if type(item) is torch.Tensor)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_memory_does_not_grow_with_the_steps(tiny):
    """Live tensors in the loop at 20 and 1,000 steps, apart from the schedule itself (a few numbers a step)."""

    def live(steps: int) -> int:
        sizes = []

        def measure(module, inputs, output):
            sizes.append(live_tensor_bytes())
            if len(sizes) == 3:  # a stack of the schedule's length would be there from the start
                raise InterruptedError

        pipe = diffdiff(tiny, guidance_scale=1.0, scheduler=euler())
        hook = tiny["unet"].register_forward_hook(measure)
        try:
            with pytest.raises(InterruptedError):
                run(pipe, image=picture(64, 64), diffdiff_map=torch.rand(64, 64), num_inference_steps=steps)
        finally:
            hook.remove()
        return max(sizes)

    a_latent = 4 * 4 * 8 * 8  # bytes of float32
    assert live(1000) - live(20) < 980 * a_latent / 10


@pytest.mark.parametrize("softness", [0.0, 0.5])
def test_our_loop_blocks_never_look_at_values(softness):
    """On the meta device there are none: whatever would wait for an accelerator's answer fails."""
    meta = {"device": "meta"}
    state = BlockState(
        latents=torch.zeros(2, 4, 8, 8, **meta),
        image_latents=torch.zeros(2, 4, 8, 8, **meta),
        noise=torch.zeros(2, 4, 8, 8, **meta),
        release_steps=torch.zeros(2, 1, 8, 8, dtype=torch.int32, **meta),
        level_alphas=torch.zeros(4, **meta),
        level_sigmas=torch.zeros(4, **meta),
        keep=torch.zeros(2, 1, 8, 8, **meta),
        diffdiff_softness=softness,
    )
    components = SimpleNamespace(scheduler=SimpleNamespace(order=1, scale_model_input=lambda latents, t: latents))
    for block in (SDXLDiffDiffLoopBeforeDenoiser(), DiffDiffRestoreStep()):
        _, state = block(components, state, i=1, t=torch.zeros((), **meta))
    assert state.latents.device.type == "meta"
