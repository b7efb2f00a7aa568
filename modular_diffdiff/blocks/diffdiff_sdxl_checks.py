"""What SDXL's differential diffusion refuses, before any model runs."""

from __future__ import annotations

import copy
import inspect
from numbers import Integral, Real
from typing import Any

import PIL.Image
import torch
from diffusers.image_processor import is_valid_image_imagelist
from diffusers.models import ControlNetUnionModel, UNet2DConditionModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam
from diffusers.schedulers import EulerDiscreteScheduler
from diffusers.utils.torch_utils import unwrap_module

from . import diffdiff_checks, diffdiff_docs, diffdiff_loop, diffdiff_map, diffdiff_pixels, diffdiff_trajectory


# What people bring from other pipelines, and what to do instead.
NOT_TAKEN = {
    "guidance_scale": "guidance belongs to the guider: "
    "`pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale={value}))`, from `diffusers`",
}
SIZES = ("original_size", "target_size", "negative_original_size", "negative_target_size")
CROPS = ("crops_coords_top_left", "negative_crops_coords_top_left")
CONTROL_NUMBERS = ("control_guidance_start", "control_guidance_end", "controlnet_conditioning_scale")


def check_not_taken(block_state) -> None:
    for name, instead in NOT_TAKEN.items():
        value = getattr(block_state, name)
        if value is not None:
            raise ValueError(f"`{name}` is {value!r}, but the call does not take it; {instead.format(value=value)}.")


def check_components(components, needed: list[str]) -> None:
    """Refuses missing components by name, and a scheduler or UNet that cannot do it."""
    missing = [name for name in needed if getattr(components, name, None) is None]
    if _is_refiner(components):
        missing = [name for name in missing if name not in ("text_encoder", "tokenizer")]
    if missing:
        raise ValueError(
            f"These components are not loaded: {', '.join(missing)}. Load them with `pipe.load_components()`, or set "
            f"them with `pipe.update_components({missing[0]}=...)`."
        )
    scheduler, unet = components.scheduler, components.unet
    if not hasattr(scheduler, "add_noise"):
        diffdiff_checks.refuse(
            "scheduler", type(scheduler).__name__, "one with `add_noise`, e.g. `EulerDiscreteScheduler`"
        )
    if unet.config.in_channels != components.num_channels_latents:
        diffdiff_checks.refuse(
            "unet",
            f"a {type(unet).__name__} with {unet.config.in_channels} input channels",
            f"one with the latents' {components.num_channels_latents}: a text-to-image UNet, no inpainting one",
        )


def _is_refiner(components) -> bool:
    """Whether the UNet reads the second text encoder alone, as SDXL's refiner does."""
    encoder, unet = getattr(components, "text_encoder_2", None), getattr(components, "unet", None)
    return None not in (encoder, unet) and unet.config.cross_attention_dim == encoder.config.hidden_size


def check_hand_over(block_state) -> None:
    """Refuses a start that is none, or that misses what the run before has left."""
    start, end = block_state.denoising_start, block_state.denoising_end
    if end is not None and not (isinstance(end, float) and 0 < end <= 1):
        diffdiff_checks.refuse("denoising_end", end, "a float in (0, 1]")
    if start is None:
        return
    if not (isinstance(start, float) and 0 < start < 1):
        diffdiff_checks.refuse("denoising_start", start, "a float in (0, 1)")
    if end is not None and start >= end:
        raise ValueError(f"`denoising_start` is {start} and `denoising_end` {end}; the start must lie before the end.")
    for name in ("latents", "noise"):
        if getattr(block_state, name) is None:
            raise ValueError(
                f"`denoising_start` is {start}, but `{name}` is missing: give the `{name}` of the run that stopped "
                "there."
            )


def check_schedule(scheduler, block_state) -> None:
    diffdiff_checks.check_whole_number("num_inference_steps", block_state.num_inference_steps, 1)
    taken = inspect.signature(scheduler.set_timesteps).parameters
    for name in ("timesteps", "sigmas"):
        value = getattr(block_state, name)
        if value is not None and name not in taken:
            diffdiff_checks.refuse(name, value, f"nothing with {type(scheduler).__name__}, which has its own spacing")
        if value is not None and len(value) == 0:
            diffdiff_checks.refuse(name, value, "at least one value")
    if block_state.timesteps is not None and block_state.sigmas is not None:
        raise ValueError("`timesteps` and `sigmas` are both given; the schedule takes one of them.")
    start, end = block_state.denoising_start, block_state.denoising_end
    if start is None and end is None:
        return
    schedule = copy.deepcopy(scheduler)
    given = {
        name: getattr(block_state, name) for name in ("timesteps", "sigmas") if getattr(block_state, name) is not None
    }
    schedule.set_timesteps(**(given or {"num_inference_steps": block_state.num_inference_steps}))
    begin, stop = (
        nothing if share is None else diffdiff_trajectory.index_at(schedule, share)
        for share, nothing in ((start, 0), (end, len(schedule.timesteps)))
    )
    if stop == 0:
        diffdiff_checks.refuse(
            "denoising_end", end, "a larger share of the schedule: this one ends before its first step"
        )
    if begin >= stop:
        diffdiff_checks.refuse("denoising_start", start, "a smaller share of the schedule: no step is left to run")


def check_loop(given: set[str], executed: ModularPipelineBlocks) -> None:
    """Refuses a loop under a change map whose trajectory no block makes."""
    made, lost = {*given, "image_latents"}, []  # the original is the user's or its encoder's
    for block in executed.sub_blocks.values():
        if isinstance(block, LoopSequentialPipelineBlocks):
            needed = block.required_inputs
            lost += [name for name in diffdiff_loop.TRAJECTORY_INPUTS if name in needed and name not in made]
        made.update(block.intermediate_output_names)
    if lost:
        raise ValueError(
            f"The denoising loop needs {', '.join(f'`{name}`' for name in lost)}, and no block before it makes them: "
            "`SDXLDiffDiffPrepareLatentsStep` does."
        )


def count_prompts(components, block_state, encodes_text: bool) -> int:
    """Number of prompts of the batch.

    Raises:
        ValueError: If neither a prompt nor its embeddings are given, the wrong one of them, or texts or embeddings
            that do not go together.
    """
    if not encodes_text:
        return _count_embeddings(components, block_state)
    if block_state.prompt_embeds is not None:
        raise ValueError(
            "`prompt_embeds` is given, but `text_encoder` would overwrite it: pop `text_encoder` from the blocks."
        )
    prompt = block_state.prompt
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
        diffdiff_checks.refuse("prompt", prompt, "a text, or a list of texts that is not empty")
    for name in ("prompt_2", "negative_prompt", "negative_prompt_2"):
        text = getattr(block_state, name)
        if isinstance(text, list) and len(text) != len(prompts):
            raise ValueError(f"`{name}` holds {len(text)}; it takes a text, or {len(prompts)}: one for each prompt.")
        if text is not None and not isinstance(text, (str, list)):
            diffdiff_checks.refuse(name, text, "a text, or a list of texts")
    if block_state.negative_prompt is None and block_state.negative_prompt_2 is not None:
        raise ValueError(
            f"`negative_prompt_2` is {block_state.negative_prompt_2!r} without a `negative_prompt`, and would not "
            "count; give both, `negative_prompt=''` for none."
        )
    return len(prompts)


def _count_embeddings(components, block_state) -> int:
    names = ["prompt_embeds", "pooled_prompt_embeds"]
    if components.guider.num_conditions > 1:
        names += ["negative_prompt_embeds", "negative_pooled_prompt_embeds"]
    for name in names:
        embeds, axes = getattr(block_state, name), 2 if "pooled" in name else 3
        if not isinstance(embeds, torch.Tensor) or embeds.ndim != axes:
            described = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else embeds
            shape = "(B, features)" if axes == 2 else "(B, tokens, features)"
            diffdiff_checks.refuse(name, described, f"a tensor of shape {shape}, as nothing encodes a prompt")
    for name in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
        if getattr(block_state, name) is not None:
            diffdiff_checks.refuse(
                name, getattr(block_state, name), "nothing, as no block encodes it: its embeddings are given"
            )
    return len(block_state.prompt_embeds)


def check_original(components, block_state, encodes_image: bool, prompts: int) -> tuple[int, int]:
    """Checks the image or, where nothing encodes one, its latents.

    Returns:
        Height and width of the latents.
    """
    if not encodes_image:
        original, channels = block_state.image_latents, components.num_channels_latents
        if not isinstance(original, torch.Tensor) or original.ndim != 4 or original.shape[1] != channels:
            described = tuple(original.shape) if isinstance(original, torch.Tensor) else original
            diffdiff_checks.refuse("image_latents", described, f"a tensor of shape (B, {channels}, h, w)")
        diffdiff_checks.check_count("image_latents", len(original), prompts)
        # an image may be given for its pixels
        for name in ("height", "width") if block_state.overlay else ("image", "height", "width"):
            if getattr(block_state, name) is not None:
                diffdiff_checks.refuse(
                    name, getattr(block_state, name), "nothing, as no block encodes it: `image_latents` is given"
                )
        grid, size = tuple(original.shape[-2:]), block_state.image_size
        if size is not None and _grid(size, components.vae_scale_factor) != grid:
            diffdiff_checks.refuse("image_size", size, f"the (height, width) in pixels of an image with {grid} latents")
        return grid
    for name in ("image_latents", "image_size"):
        if getattr(block_state, name) is not None:
            raise ValueError(
                f"`{name}` is given, but `image_encoder` would overwrite it: pop `image_encoder` from the blocks."
            )
    if block_state.image is None:
        raise ValueError("`image` is missing; it takes a PIL image, numpy array, tensor, or a list of these.")
    lays_over = block_state.overlay or block_state.padding_map_crop is not None
    count, height, width = diffdiff_checks.image_geometry(block_state.image, transparent=lays_over)
    diffdiff_checks.check_count("image", count, prompts)
    cell = components.vae_scale_factor
    if min(height, width) < cell:
        raise ValueError(f"`image` is {width} x {height} pixels; it takes at least {cell} x {cell}, one latent cell.")
    for name in ("height", "width"):
        if getattr(block_state, name) is not None:
            diffdiff_checks.check_whole_number(name, getattr(block_state, name), cell, ", the pixels of a latent cell")
    return _grid((block_state.height or height, block_state.width or width), cell)


def _grid(size: tuple[int, int], cell: int) -> tuple[int, int]:
    return tuple(-(-side // cell) for side in size)


def check_outputs(components, block_state, prompts: int, grid: tuple[int, int]) -> None:
    outputs = diffdiff_checks.count_outputs(block_state, prompts)
    shape = (outputs, components.num_channels_latents, *grid)
    for name in ("latents", "noise"):
        given = getattr(block_state, name)
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(
                f"`{name}` has the shape {tuple(given.shape)}; it takes {shape}, the outputs' number and the image's "
                "latent grid."
            )
    diffdiff_checks.check_output_type(block_state.output_type)


def check_conditioning(components, block_state) -> None:
    """Refuses sizes and crops that are no pairs, and a negative crop where upstream's step would pass over it."""
    for name in (*SIZES, *CROPS):
        pair = getattr(block_state, name)
        if pair is None and name in SIZES:
            continue
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(one, Real) for one in pair):
            diffdiff_checks.refuse(name, pair, "a pair of numbers")
        setattr(block_state, name, tuple(pair))
    crop, negative = (getattr(block_state, name) for name in CROPS)
    if negative not in ((0, 0), crop) and not components.config.requires_aesthetics_score:
        diffdiff_checks.refuse(
            "negative_crops_coords_top_left", negative, f"what `crops_coords_top_left` is, {crop}, or nothing"
        )


def _count_images(image: Any) -> int:
    if isinstance(image, list):
        return sum(_count_images(one) for one in image)
    return len(image) if getattr(image, "ndim", 3) == 4 else 1


def _check_cut_along(block_state, images: list) -> None:
    """Refuses control images that upstream would not cut to the box of `padding_map_crop` where it lies."""
    size = diffdiff_pixels.size_of(diffdiff_pixels.split_images(block_state.image)[0])
    for image in images:
        if not isinstance(image, PIL.Image.Image) or (image.height, image.width) != size:
            height, width = diffdiff_pixels.size_of(image)
            described = f"a {type(image).__name__} of {width} x {height} pixels"
            diffdiff_checks.refuse(
                "control_image", described, f"PIL images of the image's size {size[::-1]} with `padding_map_crop`"
            )


def check_control(components, block_state, prompts: int) -> None:
    """Refuses control inputs that the loaded ControlNet does not take, and brings the others into its form."""
    image, mode = block_state.control_image, block_state.control_mode
    controlnet = unwrap_module(components.controlnet)
    several = isinstance(controlnet, MultiControlNetModel)
    for net in controlnet.nets if several else [controlnet]:
        given, needed = (model.config.cross_attention_dim for model in (net, components.unet))
        if given != needed:
            diffdiff_checks.refuse(
                "controlnet",
                f"a {type(net).__name__} for text embeddings of {given} features",
                f"one for the UNet's {needed}: a ControlNet that was trained for another model does not fit",
            )
    union = isinstance(controlnet, ControlNetUnionModel)
    if union:
        _check_modes(controlnet, mode)
    elif mode is not None:
        raise ValueError(
            f"`control_mode` is {mode!r}, but a {type(controlnet).__name__} has no modes; a ControlNetUnionModel has."
        )
    images = image if isinstance(image, list) else [image]
    if not images or not all(is_valid_image_imagelist(one) for one in images):
        diffdiff_checks.refuse(
            "control_image", image, "a PIL image, array or tensor, or a list of these that is not empty"
        )
    if union and len(images) != len(mode if isinstance(mode, list) else [mode]):
        raise ValueError(f"`control_image` holds {len(images)}, `control_mode` {mode!r}; they go in pairs.")
    if several and len(images) != len(controlnet.nets):
        raise ValueError(
            f"`control_image` holds {len(images)}; it takes {len(controlnet.nets)}, one for each ControlNet."
        )
    for batch in images if union or several else [images]:
        diffdiff_checks.check_count("control_image", _count_images(batch), prompts)
    pictures = diffdiff_pixels.split_images(images)
    for picture in pictures:
        diffdiff_checks.check_control_picture(picture)
    if block_state.padding_map_crop is not None:
        _check_cut_along(block_state, pictures)
    _read_control_numbers(block_state, len(controlnet.nets) if several else None)
    if isinstance(image, list):
        block_state.control_image = list(image)  # upstream's union step writes into it


def _check_modes(controlnet: ControlNetUnionModel, mode: Any) -> None:
    types = controlnet.config.num_control_type
    modes = mode if isinstance(mode, list) else [mode]
    if not all(isinstance(one, Integral) and 0 <= one < types for one in modes):
        diffdiff_checks.refuse(
            "control_mode", mode, f"one of the union's types, 0 to {types - 1}, for each control image"
        )


def _read_control_numbers(block_state, nets: int | None) -> None:
    """Leaves a float a name or, for several ControlNets, a list with one for each: the forms that upstream reads."""
    for name in CONTROL_NUMBERS:
        value = getattr(block_state, name)
        numbers = list(value) if isinstance(value, (list, tuple)) else [value] * (nets or 1)
        if len(numbers) != (nets or 1) or not all(isinstance(number, Real) for number in numbers):
            diffdiff_checks.refuse(name, value, f"a number, or {nets}: one for each ControlNet" if nets else "a number")
        numbers = [float(number) for number in numbers]
        setattr(block_state, name, numbers if nets else numbers[0])


def check_ip_adapter(components, block_state, image: Any) -> None:
    """Refuses image prompts without IP-Adapters, and IP-Adapters without image prompts.

    Args:
        image: `ip_adapter_image`, None in pipelines that do not take one.
    """
    unet, embeds = components.unet, block_state.ip_adapter_embeds
    given = image if image is not None else embeds
    adapters = 0
    if unet.config.encoder_hid_dim_type == "ip_image_proj":
        adapters = len(unet.encoder_hid_proj.image_projection_layers)
    if given is None and adapters:
        raise ValueError(
            f"{adapters} IP-Adapters are loaded, but neither `ip_adapter_image` nor `ip_adapter_embeds` is given; give "
            "one of them, or unload the adapters with `pipe.unload_ip_adapter()`."
        )
    if given is not None and not adapters:
        raise ValueError(
            "`ip_adapter_image` or `ip_adapter_embeds` is given, but no IP-Adapter is loaded; load one with "
            "`pipe.load_ip_adapter(...)`."
        )
    if image is not None:
        count = len(image) if isinstance(image, list) else 1
        if count != adapters:
            raise ValueError(f"`ip_adapter_image` holds {count}; it takes {adapters}, one for each loaded IP-Adapter.")
    elif adapters:
        names = ["ip_adapter_embeds"] + ["negative_ip_adapter_embeds"] * (components.guider.num_conditions > 1)
        for name in names:
            value = getattr(block_state, name)
            if not isinstance(value, list) or len(value) != adapters:
                diffdiff_checks.refuse(name, value, f"a list of {adapters}: embeddings for each loaded IP-Adapter")


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
            "prompt_2",
            "negative_prompt",
            "negative_prompt_2",
            "image",
            "diffdiff_map",
            "invert_diffdiff_map",
            "num_inference_steps",
            "num_images_per_prompt",
            "generator",
            "height",
            "width",
            "latents",
            "noise",
            "image_latents",
            "image_size",
            "prompt_embeds",
            "pooled_prompt_embeds",
            "negative_prompt_embeds",
            "negative_pooled_prompt_embeds",
            "ip_adapter_embeds",
            "negative_ip_adapter_embeds",
            "timesteps",
            "sigmas",
            "denoising_start",
            "denoising_end",
            "strength",
            "diffdiff_schedule",
            "overlay",
            "overlay_feather",
            "padding_map_crop",
            *SIZES,
            *CROPS,
            "output_type",
            *NOT_TAKEN,
        )
        return [diffdiff_docs.input_param(name) for name in names]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        given = {name: value for name, value in state.values.items() if value is not None}
        executed = components.blocks.get_execution_blocks(**given)
        check_loop(set(given), executed)
        self.check(components, block_state, executed)
        # kept in the state as read: a URL is fetched once
        self.set_block_state(state, block_state)
        return components, state

    def check(self, components, block_state, executed: ModularPipelineBlocks) -> int:
        """Refuses what the blocks that will run cannot work with; replaces `diffdiff_map` by the maps as read.

        Returns:
            The number of prompts.
        """
        check_not_taken(block_state)
        check_components(components, executed.component_names)
        diffdiff_checks.check_map_settings(block_state)
        check_hand_over(block_state)
        check_schedule(components.scheduler, block_state)
        check_conditioning(components, block_state)
        check_ip_adapter(components, block_state, getattr(block_state, "ip_adapter_image", None))
        prompts = count_prompts(components, block_state, diffdiff_checks.makes(executed, "prompt_embeds"))
        diffdiff_checks.check_pixels(block_state, executed)
        grid = check_original(components, block_state, diffdiff_checks.makes(executed, "image_latents"), prompts)
        block_state.diffdiff_map = diffdiff_map.load_maps(block_state.diffdiff_map)
        diffdiff_checks.check_count("diffdiff_map", len(block_state.diffdiff_map), prompts)
        check_outputs(components, block_state, prompts, grid)
        return prompts


class SDXLDiffDiffAutoCheckInputsStep(SDXLDiffDiffCheckInputsStep):
    """The same for pipelines with ControlNet and IP-Adapter."""

    @property
    def inputs(self) -> list[InputParam]:
        names = ("control_image", "control_mode", *CONTROL_NUMBERS, "crops_coords", "ip_adapter_image")
        return [*super().inputs, *(diffdiff_docs.input_param(name) for name in names)]

    def check(self, components, block_state, executed: ModularPipelineBlocks) -> int:
        if block_state.control_image is not None and getattr(components, "controlnet", None) is None:
            raise ValueError(
                "`control_image` is given, but no ControlNet is loaded; set one with "
                "`pipe.update_components(controlnet=...)`."
            )
        if block_state.control_image is None and block_state.control_mode is not None:
            raise ValueError(f"`control_mode` is {block_state.control_mode!r}, but there is no `control_image` for it.")
        prompts = super().check(components, block_state, executed)
        if block_state.control_image is not None:
            check_control(components, block_state, prompts)
        return prompts
