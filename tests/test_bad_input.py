"""Every mistake gets an error that names the input, its value and what is accepted, before any model runs."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from PIL import Image

from modular_diffdiff import SDXLDiffDiffBlocks

from .conftest import tiny_unet
from .helpers import SDXL_BETAS, diffdiff, picture


GOOD = {"prompt": "a pear", "image": picture(), "diffdiff_map": torch.zeros(32, 32), "num_inference_steps": 2}


def transparent() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(128)
    return image


@pytest.fixture
def no_model_runs(tiny, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model ran before the input was refused")

    for name in ("text_encoder", "text_encoder_2", "unet"):
        monkeypatch.setattr(tiny[name], "forward", refuse)
    monkeypatch.setattr(tiny["vae"], "encode", refuse)
    monkeypatch.setattr(tiny["vae"], "decode", refuse)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"diffdiff_map": None}, "`diffdiff_map` is missing"),
        ({"diffdiff_map": []}, "`diffdiff_map` is an empty list"),
        ({"diffdiff_map": torch.zeros(3, 32, 32)}, r"`diffdiff_map` is a tensor of shape \(3, 32, 32\)"),
        ({"diffdiff_map": "missing.png"}, "`diffdiff_map` is 'missing.png', which cannot be read"),
        ({"diffdiff_map": torch.zeros(2, 1, 32, 32)}, "`diffdiff_map` holds 2; it takes 1, as there is one prompt"),
        ({"diffdiff_map": torch.zeros(3, 1, 32, 32), "prompt": ["a", "b"]}, "holds 3; it takes 1 or 2, one for each"),
        ({"image": [picture()] * 3, "prompt": ["a", "b"]}, "`image` holds 3; it takes 1 or 2"),
        ({"image": None}, "`image` is missing"),
        ({"image": []}, r"`image` is \[\]; it takes PIL images, or floats"),
        ({"image": "photo.png"}, "`image` is 'photo.png'.*load_image"),
        ({"image": transparent()}, "`image` is .*opaque"),
        ({"image": Image.new("I;16", (32, 32), 40000)}, "`image` is .*8-bit images, not mode 'I;16'"),
        ({"image": [picture(), picture(40, 32)]}, r"different sizes \(32 x 32, 32 x 40\)"),
        ({"image": np.zeros((32, 32, 3), np.uint8)}, "`image` is a ndarray of shape .* and uint8; it takes floats"),
        ({"image": torch.zeros(1, 4, 4, 4)}, "`image` is a Tensor .*`image_latents`"),
        ({"image": torch.full((3, 32, 32), 255.0)}, "values from 255 to 255; they must lie in"),
        ({"image": torch.full((3, 32, 32), -2.0)}, r"from -2 to -2; they must lie in \[0, 1\]"),
        ({"image": torch.full((3, 32, 32), float("nan"))}, "values from nan"),
        ({"height": 0}, "`height` is 0; it takes a whole number from 1 to 65536"),
        ({"width": 32.0}, "`width` is 32.0"),
        ({"prompt": None}, "`prompt` is None; it takes a text"),
        ({"prompt": []}, r"`prompt` is \[\]"),
        ({"prompt": ["a", 3]}, r"`prompt` is \['a', 3\]"),
        ({"negative_prompt": ["a", "b"]}, "`negative_prompt` holds 2"),
        ({"negative_prompt_2": "a cup"}, "`negative_prompt_2` is 'a cup' without a `negative_prompt`"),
        ({"negative_prompt": ("a", "b")}, r"`negative_prompt` is \('a', 'b'\); it takes a text, or a list"),
        ({"prompt_2": ["a", "b"]}, "`prompt_2` holds 2; it takes a text, or 1"),
        ({"original_size": 512}, "`original_size` is 512; it takes a pair"),
        ({"crops_coords_top_left": (1, 2, 3)}, r"`crops_coords_top_left` is \(1, 2, 3\); it takes a pair"),
        ({"original_size": [512, 512]}, r"`original_size` is \[512, 512\]; it takes a pair of numbers, a tuple"),
        (
            {"preprocess_kwargs": {"resize_mode": "crop"}},
            "`preprocess_kwargs` cannot be combined with a `diffdiff_map`",
        ),
        ({"ip_adapter_embeds": [torch.zeros(1, 1, 16)]}, "no IP-Adapter is loaded"),
        ({"prompt_embeds": torch.zeros(1, 4, 32)}, "`prompt_embeds` is given, but a block makes it"),
        (
            {"image_latents": torch.zeros(1, 4, 4, 4)},
            "`image_latents` is given, but a block makes it.*`StableDiffusionXLVaeEncoderStep` out",
        ),
        ({"latents": torch.zeros(1, 4, 5, 4)}, r"`latents` has the shape \(1, 4, 5, 4\); it takes \(1, 4, 4, 4\)"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0; it takes a whole number from 1"),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` is 2.5"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` is 0"),
        ({"generator": [torch.Generator()] * 3}, "`generator` is a list of 3; it takes one generator, or 1"),
        ({"generator": 42}, "`generator` is 42; it takes a `torch.Generator`"),
        ({"generator": (torch.Generator(),)}, "`generator` is .*; it takes a `torch.Generator`, or a list"),
        ({"image": (picture(),)}, "`image` is .*; it takes PIL images, or floats"),
        ({"timesteps": []}, r"`timesteps` is \[\]; it takes numbers of at least 0 that do not rise, at least one"),
        ({"timesteps": [900], "sigmas": [10.0]}, "`timesteps` and `sigmas` are both given"),
        ({"denoising_end": 1.5}, r"`denoising_end` is 1.5; it takes a float in \(0, 1\]"),
        ({"denoising_end": 0.0001}, "`denoising_end` is 0.0001; it takes a larger share"),
        ({"denoising_end": 1}, "`denoising_end` is 1; it takes a float"),
        ({"negative_crops_coords_top_left": (8, 8)}, r"`negative_crops_coords_top_left` is \(8, 8\)"),
        ({"output_type": "jpeg"}, "`output_type` is 'jpeg'; it takes one of pil"),
        ({"guidance_scale": 5.0}, r"`guidance_scale` is 5.0.*ClassifierFreeGuidance\(guidance_scale=5.0\)"),
        ({"strength": 1.5}, r"`strength` is 1.5; it takes a number in \[0, 1\]"),
        ({"strength": float("nan")}, "`strength` is nan; it takes a number"),
        ({"diffdiff_schedule": "sigma"}, "`diffdiff_schedule` is 'sigma'; it takes one of step, timestep"),
        ({"denoising_start": 1.0}, r"`denoising_start` is 1.0; it takes a float in \(0, 1\)"),
        ({"denoising_start": 0.8, "denoising_end": 0.6}, "`denoising_start` is 0.8 and `denoising_end` 0.6; the start"),
        ({"denoising_start": 0.8, "denoising_end": "0.9"}, "`denoising_end` is '0.9'; it takes a float"),
        ({"denoising_start": 0.8}, "`denoising_start` is 0.8, but `latents` is missing"),
        ({"denoising_start": 0.8, "latents": torch.zeros(1, 4, 4, 4)}, "`denoising_start` is 0.8, but `noise` is miss"),
        ({"noise": torch.zeros(1, 4, 4, 5)}, r"`noise` has the shape \(1, 4, 4, 5\); it takes \(1, 4, 4, 4\)"),
        ({"overlay": "yes"}, "`overlay` is 'yes'; it takes True or False"),
        ({"overlay": True, "overlay_feather": -1}, "`overlay_feather` is -1; it takes a whole number from 0"),
        ({"overlay_feather": 3}, "`overlay_feather` is given, but there is no `overlay`"),
        ({"overlay_grow": 3}, "`overlay_grow` is given, but there is no `overlay`"),
        ({"overlay": True, "overlay_grow": 0.5}, "`overlay_grow` is 0.5; it takes a whole number from 0"),
        ({"match_colors": True, "output_type": "latent"}, "`match_colors` needs pictures"),
        ({"match_colors": True, "diffdiff_map": np.full((32, 32), 0.5)}, "keeps nothing fully, its maximum is 0.5"),
        (
            {"match_colors": True, "padding_map_crop": 0, "diffdiff_map": np.tile([1.0] * 16 + [0] * 16, (32, 1))},
            "keeps nothing fully in the box of `padding_map_crop`",
        ),
        ({"diffdiff_softness": 1.5}, r"`diffdiff_softness` is 1.5; it takes a number in \[0, 1\]"),
        ({"overlay": True, "output_type": "latent"}, "`overlay` needs pictures; `output_type` is 'latent'"),
        ({"padding_map_crop": -8}, "`padding_map_crop` is -8; it takes a whole number from 0"),
        (
            {"padding_map_crop": 8, "latents": torch.zeros(1, 4, 4, 4)},
            "`latents` is given together with `padding_map_c",
        ),
    ],
)
@pytest.mark.usefixtures("no_model_runs")
def test_bad_input_is_refused_by_name(tiny, bad, says):
    with pytest.raises(ValueError, match=says):
        diffdiff(tiny)(**(GOOD | bad))


@pytest.mark.parametrize(
    ("replaced", "says"),
    [
        (lambda: {"scheduler": FlowMatchEulerDiscreteScheduler()}, "`scheduler` is 'FlowMatchEuler.*add_noise"),
        (lambda: {"unet": tiny_unet(in_channels=8)}, "`unet` is .*8 input channels.*latents' 4, or 9 for inpainting"),
    ],
)
@pytest.mark.usefixtures("no_model_runs")
def test_components_that_cannot_work_are_refused_by_name(tiny, replaced, says):
    with pytest.raises(ValueError, match=says):
        diffdiff(tiny, **replaced())(**GOOD)


@pytest.mark.usefixtures("no_model_runs")
@pytest.mark.parametrize("scheduler_class", [PNDMScheduler, HeunDiscreteScheduler])
def test_a_schedule_that_the_scheduler_does_not_take_is_refused(tiny, scheduler_class):
    with pytest.raises(ValueError, match=f"`sigmas` is .*{scheduler_class.__name__}"):
        diffdiff(tiny, scheduler=scheduler_class(**SDXL_BETAS))(**GOOD, sigmas=[10.0, 1.0])


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder_2", "tokenizer", "scheduler"])
def test_a_component_that_was_not_loaded_is_named(tiny, name):
    pipe = SDXLDiffDiffBlocks().init_pipeline()
    pipe.update_components(**{other: part for other, part in tiny.items() if other != name})
    with pytest.raises(ValueError, match=f"not loaded: {name}"):
        pipe(**GOOD)


EMBEDS = {
    "prompt_embeds": torch.zeros(1, 4, 32),
    "pooled_prompt_embeds": torch.zeros(1, 16),
    "negative_prompt_embeds": torch.zeros(1, 4, 32),
    "negative_pooled_prompt_embeds": torch.zeros(1, 16),
}
LATENTS = torch.zeros(1, 4, 4, 4)


@pytest.mark.parametrize(
    ("without", "given", "says"),
    [
        ("text_encoder", {}, "`prompt_embeds` is None"),
        ("text_encoder", {"prompt_embeds": torch.zeros(4, 32)}, r"`prompt_embeds` is a Tensor of shape \(4, 32\)"),
        ("text_encoder", EMBEDS | {"pooled_prompt_embeds": None}, "`pooled_prompt_embeds` is None"),
        ("text_encoder", EMBEDS | {"negative_prompt_embeds": None}, "`negative_prompt_embeds` is None"),
        ("text_encoder", EMBEDS, "`prompt` is 'a pear'; it takes nothing, as no block encodes it"),
        ("image_encoder", {}, "`image_latents` is None"),
        (
            "image_encoder",
            {"image_latents": torch.zeros(1, 3, 4, 4)},
            r"`image_latents` is a Tensor of shape \(1, 3, 4, 4\) .* 4 channels",
        ),
        ("image_encoder", {"image_latents": LATENTS}, "`image` is .*; it takes nothing, as no block encodes it"),
        (
            "image_encoder",
            {"image_latents": LATENTS, "image": None, "height": 8},
            r"The picture is 8 x 32 pixels .* one of 32 x 32",
        ),
    ],
)
@pytest.mark.usefixtures("no_model_runs")
def test_what_takes_the_place_of_an_encoder_is_asked_for(tiny, without, given, says):
    with pytest.raises(ValueError, match=says):
        diffdiff(tiny, without=(without,))(**(GOOD | given))
