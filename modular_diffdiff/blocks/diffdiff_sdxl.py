"""What is SDXL's own in differential diffusion."""

from __future__ import annotations

import inspect
from numbers import Integral
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import UNet2DConditionModel
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.modular_pipelines.stable_diffusion_xl.before_denoise import (
    StableDiffusionXLImg2ImgPrepareLatentsStep,
    StableDiffusionXLInputStep,
)
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import (
    StableDiffusionXLDenoiseLoopWrapper,
    StableDiffusionXLLoopAfterDenoiser,
    StableDiffusionXLLoopBeforeDenoiser,
    StableDiffusionXLLoopDenoiser,
)
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import (
    StableDiffusionXLTextEncoderStep,
    StableDiffusionXLVaeEncoderStep,
)
from diffusers.schedulers import EulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor

from . import diffdiff_docs, diffdiff_loop, diffdiff_map, diffdiff_pixels, diffdiff_trajectory


# What people bring from other pipelines, and what to do instead.
NOT_TAKEN = {
    "guidance_scale": "guidance belongs to the guider: "
    "`pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale={value}))`, from `diffusers`",
    "strength": "the change map says how strong the edit is: a constant map of 1 - {value} has this strength",
    "denoising_start": "the change map counts from the schedule's first step, so a run starts there",
}
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def _refuse(name: str, value: Any, accepted: str) -> None:
    raise ValueError(f"`{name}` is {value!r}; it takes {accepted}.")


def image_geometry(image: Any) -> tuple[int, int, int]:
    """Count, height and width of an image or a batch of images of equal size.

    Raises:
        ValueError: If `image` is no image, an empty list, has no three colours, is transparent, holds values outside
            its range, or its images differ in size.
    """
    images = image if isinstance(image, (list, tuple)) else [image]
    if not images:
        _refuse("image", image, "an image or a list of them that is not empty")
    geometries = [_geometry_of_one(item) for item in images]
    sizes = {geometry[1:] for geometry in geometries}
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ValueError(f"`image` holds images of different sizes ({listed}); a batch takes one size.")
    return sum(geometry[0] for geometry in geometries), *geometries[0][1:]


def _geometry_of_one(image: Any) -> tuple[int, int, int]:
    if isinstance(image, PIL.Image.Image):
        if image.has_transparency_data and image.convert("RGBA").getextrema()[-1][0] < 255:
            _refuse("image", image, "opaque images: flatten it, or drop its alpha with `image.convert('RGB')`")
        return 1, image.height, image.width
    if isinstance(image, np.ndarray):
        height, width, channels = (0, 0, 0) if image.ndim not in (3, 4) else image.shape[-3:]
        floating = np.issubdtype(image.dtype, np.floating)
    elif isinstance(image, torch.Tensor):
        channels, height, width = (0, 0, 0) if image.ndim not in (3, 4) else image.shape[-3:]
        floating = image.is_floating_point()
    else:
        _refuse("image", image, "PIL images, arrays or tensors; `diffusers.utils.load_image` reads paths and URLs")
    described = f"{type(image).__name__} of shape {tuple(image.shape)} and {image.dtype}"
    if channels != 3 or not floating:
        raise ValueError(
            f"`image` is a {described}; it takes floats with 3 colours: arrays (H, W, 3) or (B, H, W, 3), tensors "
            "(3, H, W) or (B, 3, H, W). Latents go into `image_latents`, with `image_encoder` popped from the blocks."
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= -1 and high <= 1):
        raise ValueError(f"`image` is a {described} with values from {low:g} to {high:g}; they must lie in [0, 1].")
    return (len(image) if image.ndim == 4 else 1), height, width


class SDXLDiffDiffCheckInputsStep(ModularPipelineBlocks):
    """First block: refuses what cannot work, before any model runs, and reads the change maps."""

    model_name = "stable-diffusion-xl"

    @property
    def description(self) -> str:
        return "Step that refuses bad input before any model runs, naming it, and reads the change maps."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("scheduler", EulerDiscreteScheduler), ComponentSpec("unet", UNet2DConditionModel)]

    @property
    def inputs(self) -> list[InputParam]:
        names = (
            "prompt",
            "negative_prompt",
            "image",
            "diffdiff_map",
            "invert_diffdiff_map",
            "num_inference_steps",
            "num_images_per_prompt",
            "generator",
            "height",
            "width",
            "latents",
            "image_latents",
            "prompt_embeds",
            "timesteps",
            "sigmas",
            "denoising_end",
            "output_type",
            *NOT_TAKEN,
        )
        return [diffdiff_docs.input_param(name) for name in names]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        self.check_not_taken(block_state)
        self.check_components(components)
        self.check_schedule(components, block_state)
        # kept in the state as read: a URL is fetched once
        block_state.diffdiff_map = diffdiff_map.load_maps(block_state.diffdiff_map)
        self.check_batch(components, block_state)
        self.set_block_state(state, block_state)
        return components, state

    @staticmethod
    def check_not_taken(block_state) -> None:
        for name, instead in NOT_TAKEN.items():
            value = getattr(block_state, name)
            if value is not None:
                raise ValueError(
                    f"`{name}` is {value!r}, but the call does not take it; {instead.format(value=value)}."
                )

    @staticmethod
    def check_components(components) -> None:
        missing = [name for name in components.component_names if getattr(components, name, None) is None]
        if missing:
            raise ValueError(
                f"These components are not loaded: {', '.join(missing)}. Load them with `pipe.load_components()`, or "
                f"set them with `pipe.update_components({missing[0]}=...)`."
            )
        scheduler, unet = components.scheduler, components.unet
        if not hasattr(scheduler, "add_noise"):
            _refuse("scheduler", type(scheduler).__name__, "one with `add_noise`, e.g. `EulerDiscreteScheduler`")
        if unet.config.in_channels != components.num_channels_latents:
            _refuse(
                "unet",
                f"a {type(unet).__name__} with {unet.config.in_channels} input channels",
                f"one with the latents' {components.num_channels_latents}: a text-to-image UNet, no inpainting one",
            )

    @staticmethod
    def check_schedule(components, block_state) -> None:
        steps = block_state.num_inference_steps
        if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1:
            _refuse("num_inference_steps", steps, "a whole number of at least 1")
        taken = inspect.signature(components.scheduler.set_timesteps).parameters
        for name in ("timesteps", "sigmas"):
            value = getattr(block_state, name)
            if value is not None and name not in taken:
                _refuse(name, value, f"nothing with {type(components.scheduler).__name__}, which has its own spacing")
            if value is not None and len(value) == 0:
                _refuse(name, value, "at least one value")
        if block_state.timesteps is not None and block_state.sigmas is not None:
            raise ValueError("`timesteps` and `sigmas` are both given; the schedule takes one of them.")
        end = block_state.denoising_end
        if end is not None and not (isinstance(end, float) and 0 < end <= 1):
            _refuse("denoising_end", end, "a float in (0, 1]")

    @staticmethod
    def check_batch(components, block_state) -> None:
        leaves = list(components.blocks.get_execution_blocks().sub_blocks.values())
        encodes_text = any(isinstance(block, StableDiffusionXLTextEncoderStep) for block in leaves)
        encodes_image = any(isinstance(block, StableDiffusionXLVaeEncoderStep) for block in leaves)
        channels, cell = components.num_channels_latents, components.vae_scale_factor

        per_prompt = block_state.num_images_per_prompt
        if not isinstance(per_prompt, Integral) or isinstance(per_prompt, bool) or per_prompt < 1:
            _refuse("num_images_per_prompt", per_prompt, "a whole number of at least 1")
        prompts = count_prompts(block_state, encodes_text)
        outputs = prompts * per_prompt

        if encodes_image:
            if block_state.image_latents is not None:
                raise ValueError(
                    "`image_latents` is given, but `image_encoder` would overwrite it: pop `image_encoder` from the "
                    "blocks."
                )
            if block_state.image is None:
                raise ValueError("`image` is missing; it takes a PIL image, numpy array, tensor, or a list of these.")
            images, height, width = image_geometry(block_state.image)
            for name, side in (("height", height), ("width", width)):
                asked = getattr(block_state, name)
                if asked is not None and (not isinstance(asked, Integral) or asked < cell):
                    _refuse(name, asked, f"a whole number of at least {cell}, the pixels of a latent cell")
                if side < cell:
                    raise ValueError(
                        f"`image` is {width} x {height} pixels; it takes at least {cell} x {cell}, one latent cell."
                    )
            height, width = block_state.height or height, block_state.width or width
            grid = (-(-height // cell), -(-width // cell))
            source = "image"
        else:
            original = block_state.image_latents
            if not isinstance(original, torch.Tensor) or original.ndim != 4 or original.shape[1] != channels:
                described = tuple(original.shape) if isinstance(original, torch.Tensor) else original
                _refuse("image_latents", described, f"a tensor of shape (B, {channels}, h, w)")
            images, grid = len(original), tuple(original.shape[-2:])
            source = "image_latents"

        for name, count in ((source, images), ("diffdiff_map", len(block_state.diffdiff_map))):
            if count not in (1, prompts):
                one_each = f" or {prompts}, one for each prompt" if prompts > 1 else ", as there is one prompt"
                raise ValueError(f"`{name}` holds {count}; it takes 1{one_each}.")
        generator = block_state.generator
        if isinstance(generator, (list, tuple)) and len(generator) != outputs:
            raise ValueError(
                f"`generator` is a list of {len(generator)}; it takes one generator, or {outputs}: one for each output "
                f"({prompts} prompts x {per_prompt} images)."
            )
        latents = block_state.latents
        if latents is not None and tuple(latents.shape) != (outputs, channels, *grid):
            raise ValueError(
                f"`latents` has the shape {tuple(latents.shape)}; it takes {(outputs, channels, *grid)}, the outputs' "
                "number and the image's latent grid."
            )
        if block_state.output_type not in OUTPUT_TYPES:
            _refuse("output_type", block_state.output_type, f"one of {', '.join(OUTPUT_TYPES)}")


def count_prompts(block_state, encodes_text: bool) -> int:
    """Number of prompts of the batch.

    Raises:
        ValueError: If neither a prompt nor its embeddings are given, or the wrong one of them.
    """
    prompt, embeds = block_state.prompt, block_state.prompt_embeds
    if not encodes_text:
        if not isinstance(embeds, torch.Tensor) or embeds.ndim != 3:
            described = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else embeds
            _refuse("prompt_embeds", described, "a tensor of shape (B, tokens, features), as nothing encodes a prompt")
        return len(embeds)
    if embeds is not None:
        raise ValueError(
            "`prompt_embeds` is given, but `text_encoder` would overwrite it: pop `text_encoder` from the blocks."
        )
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
        _refuse("prompt", prompt, "a text, or a list of texts that is not empty")
    negative = block_state.negative_prompt
    if isinstance(negative, list) and len(negative) != len(prompts):
        raise ValueError(
            f"`negative_prompt` holds {len(negative)}; it takes a text, or {len(prompts)}: one for each prompt."
        )
    return len(prompts)


class SDXLDiffDiffVaeEncoderStep(StableDiffusionXLVaeEncoderStep):
    """Upstream's encoder step for images of any size, and for one generator an output."""

    @property
    def description(self) -> str:
        return (
            "Step that encodes the image into latents. Its size need not fill whole latent cells: it is padded on the "
            "right and below, by reflection."
        )

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param("image_latents"), diffdiff_docs.output_param("image_size")]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        dtype = block_state.dtype if block_state.dtype is not None else components.vae.dtype
        # upstream's rounds sizes down to whole cells, and does not convert greyscale images
        processor = VaeImageProcessor.from_config(
            components.image_processor.config, vae_scale_factor=1, do_convert_rgb=True
        )
        pixels = processor.preprocess(
            block_state.image, block_state.height, block_state.width, **(block_state.preprocess_kwargs or {})
        )
        block_state.image_size = tuple(pixels.shape[-2:])
        pixels = diffdiff_pixels.pad_to_multiple(pixels, components.vae_scale_factor)
        if isinstance(block_state.generator, (list, tuple)):
            pixels = diffdiff_trajectory.for_each_output(pixels, len(block_state.generator))
        block_state.image_latents = self._encode_vae_image(
            components, pixels.to(components._execution_device, dtype), block_state.generator
        )
        self.set_block_state(state, block_state)
        return components, state


class SDXLDiffDiffInputStep(StableDiffusionXLInputStep):
    """Upstream's input step, with pooled and image embeddings paired as the text embeddings are: a, a, b, b."""

    @torch.no_grad()
    def __call__(self, components, state):
        # upstream repeats these as a, b, a, b, and image embeddings in the caller's own list
        pooled = {name: state.get(name) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")}
        images = {name: state.get(name) for name in ("ip_adapter_embeds", "negative_ip_adapter_embeds")}
        for name, embeds in images.items():
            state.set(name, None if embeds is None else list(embeds))
        components, state = super().__call__(components, state)

        outputs = len(state.get("prompt_embeds"))
        for name, embeds in pooled.items():
            if embeds is not None:
                state.set(name, diffdiff_trajectory.for_each_output(embeds, outputs))
        for name, embeds in images.items():
            if embeds is not None:
                state.set(name, [diffdiff_trajectory.for_each_output(embed, outputs) for embed in embeds])
        return components, state


class SDXLDiffDiffPrepareLatentsStep(ModularPipelineBlocks):
    """Noises the original to the first level and turns the change maps into release steps."""

    model_name = "stable-diffusion-xl"

    @property
    def description(self) -> str:
        return (
            "Step that noises the original's latents to the first level, and prepares what the change map needs in the "
            "loop: the step at which each element is released, and the noise levels of the original's trajectory."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return StableDiffusionXLImg2ImgPrepareLatentsStep().expected_components

    @property
    def inputs(self) -> list[InputParam]:
        optional = ("invert_diffdiff_map", "image_size", "latents", "generator", "num_images_per_prompt")
        required = ("diffdiff_map", "image_latents", "timesteps", "batch_size", "dtype")
        return [
            *(diffdiff_docs.input_param(name, required=True) for name in required),
            *(diffdiff_docs.input_param(name) for name in optional),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param(name) for name in ("latents", *diffdiff_loop.TRAJECTORY_INPUTS)]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        scheduler, device, dtype = components.scheduler, components._execution_device, block_state.dtype
        if len(block_state.timesteps) == 0:
            raise ValueError("`denoising_end` leaves no step to run; it takes a larger share of the schedule.")
        outputs = block_state.batch_size * block_state.num_images_per_prompt

        original = diffdiff_trajectory.for_each_output(block_state.image_latents.to(device, dtype), outputs)
        schedule = scheduler.timesteps.to(device)
        alphas, sigmas = diffdiff_trajectory.noise_levels(scheduler, schedule, dtype)
        if block_state.latents is None:
            noise = randn_tensor(original.shape, generator=block_state.generator, device=device, dtype=dtype)
            block_state.latents = scheduler.add_noise(original, noise, schedule[:1].repeat(outputs))
        else:
            block_state.latents = block_state.latents.to(device, dtype)
            noise = diffdiff_trajectory.recover_noise(block_state.latents, original, alphas[0], sigmas[0])

        cell = components.vae_scale_factor
        height, width = block_state.image_size or (side * cell for side in original.shape[-2:])
        keep = diffdiff_map.keep_from_maps(
            diffdiff_map.load_maps(block_state.diffdiff_map), height, width, cell, block_state.invert_diffdiff_map
        )
        num_steps = -(-len(schedule) // scheduler.order)
        release_steps = diffdiff_map.release_steps(keep, num_steps).to(device)
        block_state.release_steps = diffdiff_trajectory.for_each_output(release_steps, outputs)
        block_state.image_latents, block_state.noise = original, noise
        block_state.level_alphas, block_state.level_sigmas = alphas, sigmas
        self.set_block_state(state, block_state)
        return components, state


class SDXLDiffDiffLoopBeforeDenoiser(StableDiffusionXLLoopBeforeDenoiser):
    """Injection: what is frozen enters the step as the noised original of its level (paper, algorithm 1)."""

    @property
    def description(self) -> str:
        return (
            "Step within the denoising loop that overwrites the elements which the change map keeps frozen with the "
            "noised original of this step, and scales the latents for the denoiser."
        )

    @property
    def inputs(self) -> list[InputParam]:
        names = ("latents", *diffdiff_loop.TRAJECTORY_INPUTS)
        return [diffdiff_docs.input_param(name, required=True) for name in names]

    @torch.no_grad()
    def __call__(self, components, block_state, i: int, t: torch.Tensor):
        block_state.latents = diffdiff_loop.put_frozen_on_level(
            block_state, step=i // components.scheduler.order, level=i
        )
        return super().__call__(components, block_state, i=i, t=t)


class SDXLDiffDiffDenoiseLoop(diffdiff_loop.GuidedByEvaluation, StableDiffusionXLDenoiseLoopWrapper):
    """SDXL's denoising loop under a change map."""

    block_classes = [
        SDXLDiffDiffLoopBeforeDenoiser,
        StableDiffusionXLLoopDenoiser,
        StableDiffusionXLLoopAfterDenoiser,
        diffdiff_loop.DiffDiffRestoreStep,
    ]
    block_names = ["before_denoiser", "denoiser", "after_denoiser", "restore"]

    @property
    def description(self) -> str:
        return (
            "Denoising loop in which every latent element starts to change at the step that the change map gives it. "
            "Each step runs `before_denoiser`, `denoiser`, `after_denoiser` and `restore`; without `restore` it is the "
            "paper's algorithm."
        )
