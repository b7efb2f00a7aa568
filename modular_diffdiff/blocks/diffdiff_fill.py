"""What lies under the change: what the free parts of a picture start from, in place of the original.

The functions are pure. Pictures are (B, 3, H, W) in [0, 1], and `share`, (B, 1, H, W) in [0, 1], says how much of each
pixel is filled: nothing of what the map keeps, and all of what it frees most.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import StableDiffusionXLVaeEncoderStep
from PIL import Image

from . import (
    diffdiff_block,
    diffdiff_docs,
    diffdiff_fit,
    diffdiff_loop,
    diffdiff_map,
    diffdiff_pixels,
    diffdiff_prepare,
    diffdiff_trajectory,
)


def share_of(keep: torch.Tensor) -> torch.Tensor:
    """How much of each pixel is filled, of `keep` (B, 1, H, W): where it is least in its picture, all."""
    change = 1 - keep
    return change / change.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)


def smooth(pictures: torch.Tensor, share: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """What surrounds the filled part, drawn smoothly into it (push-pull; Gortler et al., The Lumigraph, 1996)."""
    return _pull(pictures * (1 - share), 1 - share)


def _pull(colours: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Colours times their weights, and the weights: as colours, with those of half the size where weights lack."""
    size = colours.shape[-2:]
    if max(size) == 1:
        return torch.where(weights > 0, colours / weights.clamp(min=1e-6), 0.5)
    half = [-(-side // 2) for side in size]
    coarse = _pull(F.adaptive_avg_pool2d(colours, half), F.adaptive_avg_pool2d(weights, half))
    coarse = F.interpolate(coarse, size, mode="bilinear")
    return colours + (1 - weights) * coarse


def noisy(pictures: torch.Tensor, share: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Colours at random, from `draw`."""
    return torch.rand(pictures.shape, generator=draw)


def mean_colour(pictures: torch.Tensor, share: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """The mean colour of what is not filled; grey where everything is."""
    weights = 1 - share
    total = weights.sum((2, 3), keepdim=True)
    mean = (pictures * weights).sum((2, 3), keepdim=True) / total.clamp(min=1e-6)
    return torch.where(total > 0, mean, 0.5).expand_as(pictures)


FILLS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]] = {
    "blur": smooth,
    "noise": noisy,
    "color": mean_colour,
}


def fill(picture: Any, share: torch.Tensor, how: str, draw: torch.Generator) -> Any:
    """A picture of any kind, filled by `share` (1, 1, H, W); what is kept stays as it is, bit for bit.

    Args:
        picture: (H, W): A PIL image or a tensor, as `diffdiff_pixels` takes it.
        how: A name in `FILLS`.
        draw: Where "noise" comes from.
    """
    array = diffdiff_pixels.as_array(picture)
    pixels = torch.from_numpy(diffdiff_pixels.to_dtype(array, np.dtype(np.float32)).copy()).movedim(-1, 0)[None]
    filled = torch.lerp(pixels, FILLS[how](pixels, share, draw), share)
    filled = torch.where(share > 0, filled, pixels)[0]
    if isinstance(picture, Image.Image):
        return Image.fromarray(diffdiff_pixels.to_dtype(filled.movedim(0, -1).numpy(), np.dtype(np.uint8)))
    return filled.to(picture.dtype)


class DiffDiffFillStep(diffdiff_block.DiffDiffBlock):
    """With `map_fill`, makes the picture that free parts start from: smooth, noise, or one colour."""

    needs, takes, gives = ("placement",), ("map_fill", "generator"), ("filled_image",)

    def run(self, components, block_state, state) -> None:
        block_state.filled_image = None
        if block_state.map_fill == "original":
            return
        placement, images = block_state.placement, diffdiff_pixels.split_images(state.get("image"))
        (height, width), canvas = placement.size, placement.canvas
        keeps = [diffdiff_map.resize_map(keep, height, width) for keep in placement.keeps_in_box()]
        count = max(len(images), len(keeps))
        pairs = zip(*(diffdiff_trajectory.for_each_output(each, count) for each in (images, keeps)), strict=True)
        padding = (0, canvas[1] - width, 0, canvas[0] - height)
        draws = self.draws(block_state.generator, count)
        filled = [
            fill(image, F.pad(share_of(keep), padding, mode="replicate"), block_state.map_fill, draw)
            for (image, keep), draw in zip(pairs, draws, strict=True)
        ]
        block_state.filled_image = diffdiff_fit.as_batch(filled)

    def draws(self, generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[torch.Generator]:
        """Generators of noise, seeded as the run's are, which stay as they are."""
        given = generator if isinstance(generator, list) else [generator]
        seeds = [0 if one is None else one.initial_seed() for one in given]
        every = math.ceil(count / len(seeds))
        return [torch.Generator().manual_seed(seeds[place // every]) for place in range(count)]


class DiffDiffEncodeFilledStep(diffdiff_block.DiffDiffBlock):
    """With `map_fill`, encodes what free parts start from, by the encoder of the original.

    Args:
        encoder: The block that encodes the image.
    """

    gives = ("filled_latents",)

    def __init__(self, encoder: ModularPipelineBlocks, family: diffdiff_block.FamilyTraits | None = None):
        self.encoder = copy.deepcopy(encoder)
        super().__init__(family)

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return self.encoder.expected_components

    @property
    def inputs(self) -> list[InputParam]:
        taken = [param for param in self.encoder.inputs if param.name != "image"]  # it is not the one to encode
        documented = [diffdiff_docs.document(param, diffdiff_docs.INPUTS) for param in taken]
        return [*documented, diffdiff_docs.input_param("filled_image")]

    def run(self, components, block_state, state) -> None:
        block_state.filled_latents = None
        if (filled := block_state.filled_image) is None:
            return
        before = {name: state.get(name) for name in ("image", "generator", *self.encoder.intermediate_output_names)}
        state.set("image", filled)
        count = len(diffdiff_pixels.split_images(filled))
        state.set("generator", diffdiff_trajectory.own_draws(count, components._execution_device))
        self.encoder(components, state)
        block_state.filled_latents = state.get(self.family.original)
        for name, value in before.items():
            state.set(name, value)


class SDXLDiffDiffEncodeFilledStep(DiffDiffEncodeFilledStep):
    """`DiffDiffEncodeFilledStep` with SDXL's encoder."""

    model_name = "stable-diffusion-xl"

    def __init__(self):
        super().__init__(StableDiffusionXLVaeEncoderStep())


class DiffDiffStartFilledStep(diffdiff_block.DiffDiffBlock):
    """Right before a loop, with `map_fill`: what is ever released starts from the filled picture."""

    needs = ("latents", *diffdiff_loop.TRAJECTORY_INPUTS, "timesteps")
    takes, gives = ("filled_latents",), ("latents", "image_latents")

    def run(self, components, block_state, state) -> None:
        if block_state.filled_latents is None:
            return
        original = block_state.image_latents
        filled = diffdiff_prepare.only_one(block_state.filled_latents, self.family.original).to(original)
        if filled.ndim == 5 and original.ndim != 5:
            filled = filled.squeeze(2)
        if filled.shape[1:] != original.shape[1:]:
            filled = self.family.layout(filled, original)
        filled = diffdiff_trajectory.for_each_output(filled, len(original))
        steps = -(-len(block_state.timesteps) // components.scheduler.order)
        block_state.image_latents = torch.where(block_state.release_steps < steps, filled, original)
        diffdiff_loop.put_frozen_on_level(block_state, step=-1, level=0)
