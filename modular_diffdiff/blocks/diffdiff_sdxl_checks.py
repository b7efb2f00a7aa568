"""What SDXL's differential diffusion refuses beyond what every family's does."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import ControlNetUnionModel
from diffusers.utils.torch_utils import unwrap_module

from . import (
    diffdiff_asked,
    diffdiff_checks,
    diffdiff_inpainting,
    diffdiff_picture_checks,
    diffdiff_refusals,
    diffdiff_sdxl,
    diffdiff_trajectory,
)


CROPS = ("crops_coords_top_left", "negative_crops_coords_top_left")
CONTROL_NUMBERS = ("control_guidance_start", "control_guidance_end", "controlnet_conditioning_scale")

Asked = diffdiff_asked.Asked
BadInputError, refuse = diffdiff_refusals.BadInputError, diffdiff_refusals.refuse


def is_refiner(components) -> bool:
    """Whether the UNet reads the second text encoder alone, as SDXL's refiner does."""
    encoder, unet = components.text_encoder_2, components.unet
    return None not in (encoder, unet) and unet.config.cross_attention_dim == encoder.config.hidden_size


def check_parts(components, asked: Asked) -> None:
    """Refuses a scheduler or UNet that cannot do it."""
    scheduler, unet, channels = components.scheduler, components.unet, components.num_channels_latents
    if not hasattr(scheduler, "add_noise"):
        refuse("scheduler", type(scheduler).__name__, "one with `add_noise`, e.g. `EulerDiscreteScheduler`")
    inpainting = diffdiff_inpainting.is_inpainting(components)
    if unet.config.in_channels != channels and not inpainting:
        takes = f"one with the latents' {channels}, or {2 * channels + 1} for inpainting"
        refuse("unet", f"a {type(unet).__name__} with {unet.config.in_channels} input channels", takes)
    if inpainting and "image" not in asked.given:
        raise BadInputError("`image` is missing: an inpainting UNet is shown it, without what the map releases.")
    if inpainting and "control_image" in asked.given:
        why = "upstream's loop shows a ControlNet all that it shows the UNet, whose 9 channels it cannot take"
        raise BadInputError(f"`control_image` cannot be combined with an inpainting UNet: {why}.")


def check_hand_over(asked: Asked) -> None:
    """Refuses a start behind the end, and one without what the run before has left."""
    start, end = asked.get("denoising_start"), asked.get("denoising_end")
    if start is None:
        return
    if end is not None and start >= end:
        both = f"`denoising_start` is {start} and `denoising_end` {end}"
        raise BadInputError(f"{both}; the start must lie before the end.")
    for name in ("latents", "noise"):
        if name not in asked.given:
            instead = f"give the `{name}` of the run that stopped there"
            raise BadInputError(f"`denoising_start` is {start}, but `{name}` is missing: {instead}.")


def check_share(schedule, asked: Asked) -> None:
    """Refuses shares of a schedule that leave no step."""
    start, end = asked.get("denoising_start"), asked.get("denoising_end")
    begin = 0 if start is None else diffdiff_trajectory.index_at(schedule, start)
    stop = len(schedule.timesteps) if end is None else diffdiff_trajectory.index_at(schedule, end)
    if stop == 0:
        refuse("denoising_end", end, "a larger share of the schedule: this one ends before its first step")
    if begin >= stop:
        refuse("denoising_start", start, "a smaller share of the schedule: no step is left to run")


def check_encoded(components, asked: Asked) -> None:
    """Refuses embeddings that are missing or no tensor."""
    names = ("prompt_embeds", "pooled_prompt_embeds")
    if components.guider.num_conditions > 1:
        names += tuple(f"negative_{name}" for name in names)
    for name in names:
        if asked.makes("prompt_embeds") or not asked.reads("pooled_prompt_embeds"):
            continue
        if not isinstance(asked.get(name), torch.Tensor):
            refuse(name, asked.get(name), "one tensor for all prompts, as nothing encodes them")


def check_pooled(components, asked: Asked) -> None:
    """Refuses pooled embeddings of another width than the UNet reads beside the time ids."""
    config = components.unet.config
    ids = 5 if components.config.requires_aesthetics_score else 6
    wanted = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
    for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
        if name in asked.given and asked.get(name).shape[1] != wanted:
            refuse(name, asked.get(name), f"embeddings of the {wanted} features that this model reads")


def check_start(components, asked: Asked, outputs: int) -> None:
    """Refuses latents and noise whose shape is not that of the encoded image."""
    cell, original = components.vae_scale_factor, asked.get("image_latents")
    if original is None:
        _, height, width = diffdiff_picture_checks.image_geometry(asked.get("image"), transparent=True)
        grid = [-(-side // cell) for side in (asked.get("height", height), asked.get("width", width))]
    else:
        grid = original.shape[-2:]
    shape = (outputs, components.num_channels_latents, *grid)
    for name in ("latents", "noise"):
        if name in asked.given and tuple(asked.get(name).shape) != shape:
            takes = f"it takes {shape}, the outputs' number and the image's latent grid"
            raise BadInputError(f"`{name}` has the shape {tuple(asked.get(name).shape)}; {takes}.")


def check_conditioning(components, asked: Asked) -> None:
    """Refuses sizes and crops that are no pairs, and what upstream's steps would pass over."""
    crop, negative = (asked.get(name, (0, 0)) for name in CROPS)
    if negative not in ((0, 0), crop) and not components.config.requires_aesthetics_score:
        refuse(CROPS[1], negative, f"what `crops_coords_top_left` is, {crop}, or nothing")
    if "negative_prompt" not in asked.given and "negative_prompt_2" in asked.given:
        why = "without a `negative_prompt`, and would not count; give both, `negative_prompt=''` for none"
        raise BadInputError(f"`negative_prompt_2` is {asked.get('negative_prompt_2')!r} {why}.")


def check_ip_adapter(components, asked: Asked) -> None:
    """Refuses image prompts without IP-Adapters, and IP-Adapters without image prompts."""
    unet, adapters, image = components.unet, 0, asked.get("ip_adapter_image")
    given = [name for name in ("ip_adapter_image", "ip_adapter_embeds") if name in asked.given]
    if unet is not None and unet.config.encoder_hid_dim_type == "ip_image_proj":
        adapters = len(unet.encoder_hid_proj.image_projection_layers)
    if adapters and not given:
        lack = "but neither `ip_adapter_image` nor `ip_adapter_embeds` is given"
        instead = "give one of them, or unload the adapters with `pipe.unload_ip_adapter()`"
        raise BadInputError(f"{adapters} IP-Adapters are loaded, {lack}; {instead}.")
    if given and not adapters:
        instead = "load one with `pipe.load_ip_adapter(...)`"
        raise BadInputError(f"`{given[0]}` is given, but no IP-Adapter is loaded; {instead}.")
    if image is not None:
        count = len(image) if isinstance(image, list) else 1
        if count != adapters:
            raise BadInputError(f"`ip_adapter_image` holds {count}; it takes {adapters}, one for each IP-Adapter.")
    elif adapters:
        for name in ["ip_adapter_embeds"] + ["negative_ip_adapter_embeds"] * (components.guider.num_conditions > 1):
            value = asked.get(name)
            if not isinstance(value, list) or len(value) != adapters:
                refuse(name, value, f"a list of {adapters}: embeddings for each loaded IP-Adapter")


def check_fits_unet(controlnet, components) -> None:
    for net in getattr(controlnet, "nets", [controlnet]):
        given, needed = (model.config.cross_attention_dim for model in (net, components.unet))
        if given != needed:
            takes = f"one for the UNet's {needed}: a ControlNet that was trained for another model does not fit"
            refuse("controlnet", f"a {type(net).__name__} for text embeddings of {given} features", takes)


def check_modes(controlnet, mode: Any, images: list) -> None:
    """Refuses modes that the union does not know, and modes for anything but a union."""
    if not isinstance(controlnet, ControlNetUnionModel):
        if mode is not None:
            lack = f"a {type(controlnet).__name__} has no modes; a ControlNetUnionModel has"
            raise BadInputError(f"`control_mode` is {mode!r}, but {lack}.")
        return
    types, modes = controlnet.config.num_control_type, mode if isinstance(mode, (list, tuple)) else [mode]
    if mode is None or not all(one < types for one in modes):
        refuse("control_mode", mode, f"one of the union's types, 0 to {types - 1}, for each control image")
    if len(images) != len(modes):
        raise BadInputError(f"`control_image` holds {len(images)}, `control_mode` {mode!r}; they go in pairs.")


def check_control_numbers(asked: Asked, nets: int | None) -> None:
    """Refuses weights and windows that are no number or, for several ControlNets, no float and no number for each."""
    for name in CONTROL_NUMBERS:
        value = asked.get(name, 1.0)
        if nets is None and not isinstance(value, (int, float)):  # of NumPy's, ControlNet-Union takes float64 alone
            refuse(name, value, "an int or a float")
        listed = isinstance(value, list) or (name == "controlnet_conditioning_scale" and isinstance(value, tuple))
        one_each = listed and len(value) == nets
        if nets is not None and not one_each and not isinstance(value, float):
            refuse(name, value, f"a float, or {nets} numbers: one for each ControlNet")


class SDXLDiffDiffCheckInputsStep(diffdiff_checks.DiffDiffCheckInputsStep):
    """First block of SDXL's pipelines: refuses bad input before any model runs."""

    model_name = "stable-diffusion-xl"
    family = diffdiff_sdxl.TRAITS
    takes = ("guidance_scale",)

    def check(self, components, state, asked: Asked) -> None:
        if (scale := asked.get("guidance_scale")) is not None:
            guider = f"`pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale={scale}))`"
            why = f"guidance belongs to the guider: {guider}, from `diffusers`"
            raise BadInputError(f"`guidance_scale` is {scale!r}, but the call does not take it; {why}.")
        if "control_mode" in asked.given and "control_image" not in asked.given:
            mode = asked.get("control_mode")
            raise BadInputError(f"`control_mode` is {mode!r}, but there is no `control_image` for it.")
        check_encoded(components, asked)
        check_ip_adapter(components, asked)
        super().check(components, state, asked)
        check_parts(components, asked)
        check_pooled(components, asked)
        check_conditioning(components, asked)

    def check_share(self, scheduler, asked: Asked) -> None:
        check_hand_over(asked)
        check_share(scheduler, asked)

    def check_start(self, components, asked: Asked, outputs: int | None) -> None:
        check_start(components, asked, outputs)

    def needed_components(self, components, asked: Asked) -> tuple[str, ...]:
        needed = tuple(asked.executed.component_names)
        if "text_encoder_2" in needed and is_refiner(components):
            return tuple(name for name in needed if name not in ("text_encoder", "tokenizer"))
        return needed

    def check_control(self, components, asked: Asked, prompts: int | None) -> None:
        control, mode = asked.get("control_image"), asked.get("control_mode")
        controlnet = unwrap_module(components.controlnet)
        nets = len(controlnet.nets) if hasattr(controlnet, "nets") else None
        images = control if isinstance(control, list) else [control]
        check_fits_unet(controlnet, components)
        check_modes(controlnet, mode, images)
        if nets not in (None, len(images)):
            raise BadInputError(f"`control_image` holds {len(images)}; it takes {nets}, one for each ControlNet.")
        for batch in [images] if mode is None and nets is None else images:
            diffdiff_picture_checks.check_control(batch, prompts)
        check_control_numbers(asked, nets)
