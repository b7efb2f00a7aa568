"""Back: results come back at the image's size, and what is kept as it was."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch

from . import diffdiff_block, diffdiff_map, diffdiff_pixels, diffdiff_shape, diffdiff_trajectory


class DiffDiffCropStep(diffdiff_block.DiffDiffBlock):
    """Cuts off the padding, so that pictures come back at the image's size."""

    needs, takes, gives = ("images", "placement"), ("output_type",), ("images", "placement")

    def run(self, components, block_state, state) -> None:
        if block_state.output_type != "latent":
            images, pil, pt = block_state.images, block_state.output_type == "pil", block_state.output_type == "pt"
            whole = images[0].size[::-1] if pil else images.shape[2:] if pt else images.shape[1:3]
            height, width = block_state.placement.shown(*whole)
            if pil:
                block_state.images = [image.crop((0, 0, width, height)) for image in images]
            else:
                block_state.images = images[..., :height, :width] if pt else images[:, :height, :width]
            block_state.placement = replace(block_state.placement, canvas=block_state.placement.size)


class DiffDiffOverlayStep(diffdiff_block.DiffDiffBlock):
    """With `overlay` or `padding_map_crop`, lays the original over the edit where the map fully keeps it.

    There the results have the original's pixels, byte for byte, which do not pass through the autoencoder.
    """

    needs, gives = ("images", "placement"), ("images",)
    takes = ("overlay", "overlay_grow", "overlay_feather", "padding_map_crop", "diffdiff_schedule", "output_type")

    def run(self, components, block_state, state) -> None:
        if block_state.overlay or block_state.padding_map_crop is not None:
            block_state.images = lay_over(components, block_state, block_state.images, block_state.output_type)


def lay_over(components, block_state, images: Any, output_type: str) -> Any:
    """Pictures with their originals over them, in the form that they have; `block_state` says how."""
    placement = block_state.placement
    outputs = diffdiff_pixels.output_arrays(images, output_type)
    # what is padded is no part of the picture
    shown = [placement.shown(*edited.shape[:2]) for edited in outputs]
    outputs = [edited[:height, :width] for edited, (height, width) in zip(outputs, shown, strict=True)]
    keeps = [diffdiff_map.resize_map(keep, *placement.whole)[0, 0] for keep in placement.keeps]
    kept = [never_released(components, block_state, keep) for keep in keeps]
    warn_of_nothing_kept(keeps, kept)
    kept = [diffdiff_shape.dilate(mask[None].float(), block_state.overlay_grow)[0] > 0 for mask in kept]
    items = (placement.originals, keeps, kept)
    originals, keeps, kept = (diffdiff_trajectory.for_each_output(each, len(outputs)) for each in items)
    results = [
        _paste(*each, placement.box, block_state.overlay_feather)
        for each in zip(originals, outputs, keeps, kept, strict=True)
    ]
    laid = diffdiff_pixels.as_outputs(results, images, output_type)
    if output_type == "pil":
        restore_alpha(laid, originals)
    return laid


def never_released(components, block_state, keep: torch.Tensor) -> torch.Tensor:
    """Bool, of the shape of `keep`: what the run has fully kept."""
    schedule = components.scheduler.timesteps[:: components.scheduler.order].cpu()
    return diffdiff_map.kept_whole(keep, block_state.diffdiff_schedule, schedule)


def warn_of_nothing_kept(keeps: list[torch.Tensor], kept: list[torch.Tensor]) -> None:
    """Names the maximum of maps, (H, W) each, that leave nothing to lay over."""
    if not any(mask.any() for mask in kept):
        maximum = f"its maximum is {max(keep.max().item() for keep in keeps):.3g}"
        warnings.warn(f"`diffdiff_map` keeps nothing fully, {maximum}: there is nothing to lay over.", stacklevel=2)


def _paste(
    original: Any, edited: np.ndarray, keep: torch.Tensor, kept: torch.Tensor, box: diffdiff_pixels.Box, feather: int
) -> np.ndarray:
    """The whole original, with the edited box in it wherever its weight is less than 1."""
    left, top, right, bottom = box
    whole = diffdiff_pixels.to_dtype(diffdiff_pixels.as_array(original), edited.dtype).copy()
    if edited.shape[:2] != (bottom - top, right - left):
        edited = diffdiff_pixels.resize_array(edited, bottom - top, right - left)
    # what is kept beside the box counts for the seam too
    outer = max(left - feather, 0), max(top - feather, 0), right + feather, bottom + feather
    keep, kept = (diffdiff_pixels.cut(values[None], outer)[0] for values in (keep, kept))
    weights = diffdiff_pixels.original_weights(keep, kept, feather)[top - outer[1] :, left - outer[0] :]
    weights = weights[: bottom - top, : right - left].numpy()
    whole[top:bottom, left:right] = diffdiff_pixels.lay_over(whole[top:bottom, left:right], edited, weights)
    return whole


def restore_alpha(pictures: list[PIL.Image.Image], originals: list[Any]) -> None:
    """Gives pictures the alpha channel that their original has."""
    for picture, original in zip(pictures, originals, strict=True):
        if isinstance(original, PIL.Image.Image) and original.has_transparency_data:
            picture.putalpha(original.convert("RGBA").getchannel("A"))
