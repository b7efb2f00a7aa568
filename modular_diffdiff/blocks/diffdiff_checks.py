"""What every model family's differential diffusion refuses, in words that name the input and what it takes."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines import ModularPipelineBlocks

from . import diffdiff_map


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def refuse(name: str, value: Any, accepted: str) -> None:
    raise ValueError(f"`{name}` is {value!r}; it takes {accepted}.")


def check_whole_number(name: str, value: Any, least: int, why: str = "") -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        refuse(name, value, f"a whole number of at least {least}{why}")


def check_count(name: str, count: int, prompts: int) -> None:
    if count not in (1, prompts):
        one_each = f" or {prompts}, one for each prompt" if prompts > 1 else ", as there is one prompt"
        raise ValueError(f"`{name}` holds {count}; it takes 1{one_each}.")


def check_map_settings(block_state) -> None:
    strength = block_state.strength
    if not isinstance(strength, Real) or isinstance(strength, bool) or not 0 <= strength <= 1:
        refuse("strength", strength, "a number in [0, 1]")
    if block_state.diffdiff_schedule not in diffdiff_map.SCHEDULES:
        refuse("diffdiff_schedule", block_state.diffdiff_schedule, f"one of {', '.join(diffdiff_map.SCHEDULES)}")


def makes(executed: ModularPipelineBlocks, name: str) -> bool:
    """Whether one of these blocks makes this value from others; passing it on does not count."""
    blocks = executed.sub_blocks.values()
    return any(name in block.intermediate_output_names and name not in block.input_names for block in blocks)


def image_geometry(image: Any, transparent: bool = False) -> tuple[int, int, int]:
    """Count, height and width of an image or a batch of images of equal size.

    Args:
        transparent: Whether images may be; their alpha is given back, and no model sees it.

    Raises:
        ValueError: If `image` is no image, an empty list, has no three colours, is transparent, holds values outside
            its range, or its images differ in size.
    """
    images = image if isinstance(image, list) else [image]
    if not images:
        refuse("image", image, "an image or a list of them that is not empty")
    geometries = [_geometry_of_one(item, transparent) for item in images]
    sizes = {geometry[1:] for geometry in geometries}
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ValueError(f"`image` holds images of different sizes ({listed}); a batch takes one size.")
    return sum(geometry[0] for geometry in geometries), *geometries[0][1:]


def _geometry_of_one(image: Any, transparent: bool) -> tuple[int, int, int]:
    if isinstance(image, PIL.Image.Image):
        if not transparent and image.has_transparency_data and image.convert("RGBA").getextrema()[-1][0] < 255:
            refuse(
                "image",
                image,
                "opaque images: flatten it, drop its alpha with `image.convert('RGB')`, or keep it with `overlay=True`",
            )
        if image.mode.startswith(("I", "F")):  # a conversion to RGB would clip them
            refuse("image", image, f"8-bit images, not mode {image.mode!r}; scale it to one first")
        return 1, image.height, image.width
    if isinstance(image, np.ndarray):
        height, width, channels = (0, 0, 0) if image.ndim not in (3, 4) else image.shape[-3:]
        floating = np.issubdtype(image.dtype, np.floating)
    elif isinstance(image, torch.Tensor):
        channels, height, width = (0, 0, 0) if image.ndim not in (3, 4) else image.shape[-3:]
        floating = image.is_floating_point()
    else:
        refuse("image", image, "PIL images, arrays or tensors; `diffusers.utils.load_image` reads paths and URLs")
    described = f"{type(image).__name__} of shape {tuple(image.shape)} and {image.dtype}"
    if channels != 3 or not floating:
        raise ValueError(
            f"`image` is a {described}; it takes floats with 3 colours: arrays (H, W, 3) or (B, H, W, 3), tensors "
            "(3, H, W) or (B, 3, H, W). Latents go into `image_latents`, with `image_encoder` popped from the blocks."
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"`image` is a {described} with values from {low:g} to {high:g}; they must lie in [0, 1], where x in "
            "[-1, 1] is x / 2 + 0.5."
        )
    return (len(image) if image.ndim == 4 else 1), height, width


def check_control_picture(image: Any) -> None:
    """Refuses control images that would be clipped, or read in another range than theirs."""
    if isinstance(image, PIL.Image.Image):
        if image.mode.startswith(("I", "F")):  # a conversion to RGB would clip them
            refuse("control_image", image, f"8-bit images, not mode {image.mode!r}; scale it to one first")
        return
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        refuse("control_image", image, "PIL images, arrays or tensors; `diffusers.utils.load_image` reads paths")
    values = torch.as_tensor(image)
    if not values.is_floating_point() or not (values.min() >= 0 and values.max() <= 1):
        described = f"{type(image).__name__} of {image.dtype} with values from {values.min():g} to {values.max():g}"
        refuse("control_image", described, "floats in [0, 1], or PIL images")


def count_outputs(block_state, prompts: int) -> int:
    """Number of outputs, and a check that the generators are as many."""
    per_prompt = block_state.num_images_per_prompt
    check_whole_number("num_images_per_prompt", per_prompt, 1)
    outputs = prompts * per_prompt
    generator = block_state.generator
    generators = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
        refuse("generator", generator, "a `torch.Generator`, or a list of them")
    if isinstance(generator, list) and len(generator) != outputs:
        raise ValueError(
            f"`generator` is a list of {len(generator)}; it takes one generator, or {outputs}: one for each output "
            f"({prompts} prompts x {per_prompt} images)."
        )
    return outputs


def check_output_type(output_type: Any) -> None:
    if output_type not in OUTPUT_TYPES:
        refuse("output_type", output_type, f"one of {', '.join(OUTPUT_TYPES)}")


def check_pixels(block_state, executed: ModularPipelineBlocks) -> None:
    """Refuses overlays and boxes that are none, that there is nothing for, or whose blocks are gone."""
    padding = block_state.padding_map_crop
    if not isinstance(block_state.overlay, bool):
        refuse("overlay", block_state.overlay, "True or False")
    check_whole_number("overlay_feather", block_state.overlay_feather, 0)
    if padding is not None:
        check_whole_number("padding_map_crop", padding, 0)
    lays_over = "overlay" if block_state.overlay else "padding_map_crop" if padding is not None else None
    if lays_over is None:
        if block_state.overlay_feather:
            raise ValueError("`overlay_feather` is given, but there is no `overlay` for it.")
        return
    if block_state.image is None:
        raise ValueError(f"`{lays_over}` needs the `image` whose pixels come back.")
    taken = {name for block in list(executed.sub_blocks.values())[1:] for name in block.input_names}
    for name, needed in (("overlay", "overlay"), ("padding_map_crop", "crop_to_change")):
        if lays_over == name and not {name, "whole_image"} <= taken:
            raise ValueError(f"`{name}` is given, but `overlay` or `{needed}` was popped from the blocks.")
    if block_state.output_type == "latent":
        raise ValueError(f"`{lays_over}` needs pictures; `output_type` is 'latent'.")
    for name in ("latents", "noise", "image_latents", "crops_coords") if padding is not None else ():
        if getattr(block_state, name, None) is not None:
            raise ValueError(f"`{name}` is given together with `padding_map_crop`, which changes the size of the run.")
