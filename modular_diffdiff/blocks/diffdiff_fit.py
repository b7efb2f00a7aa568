"""Front: the batch and the image in one form for all families, right before the family's own blocks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines import AutoPipelineBlocks
from diffusers.utils.torch_utils import unwrap_module

from . import (
    diffdiff_asked,
    diffdiff_block,
    diffdiff_docs,
    diffdiff_pixels,
    diffdiff_refusals,
    diffdiff_trajectory,
)


def as_batch(pictures: list) -> Any:
    """Pictures as upstream's blocks take them: one PIL image, a list of them, or a tensor (B, 3, H, W)."""
    if not isinstance(pictures[0], PIL.Image.Image):
        return torch.stack(pictures)
    return pictures if len(pictures) > 1 else pictures[0]


class DiffDiffFitStep(diffdiff_block.DiffDiffBlock):
    """Gives each output its own prompt and image, and pads the image to whole patches of latents.

    Upstream's families pair several prompts, images and outputs in ways of their own, and cut off or stretch what fills
    no whole patch; after this step none of that is left to do.
    """

    needs = ("placement",)

    @property
    def of_prompts(self) -> tuple[str, ...]:
        """The inputs that hold something for each prompt."""
        return (*self.family.texts, *self.family.embeddings, self.family.original)

    @property
    def takes(self) -> tuple[str, ...]:
        return ("image", *self.of_prompts, "num_images_per_prompt", "height", "width")

    @property
    def gives(self) -> tuple[str, ...]:
        return (*self.takes, "placement", *self.family.fixed, *filter(None, [self.family.area]))

    def run(self, components, block_state, state) -> None:
        family, prompts = self.family, diffdiff_asked.count_prompts(state)
        if block_state.image is not None:
            self.fit_image(components, block_state)
        if getattr(block_state, family.original) is not None:
            self.note_latents(components, block_state)
        if not family.references and prompts is not None:
            self.fit_batch(block_state, prompts, own_noise=isinstance(state.get("generator"), list))
        canvas = block_state.placement.canvas
        block_state.height, block_state.width = canvas if family.sized else (None, None)
        for name, value in family.fixed.items():
            setattr(block_state, name, value)
        if family.area is not None:
            setattr(block_state, family.area, math.prod(canvas))

    def note_latents(self, components, block_state) -> None:
        """Notes the grid of an original that is given as latents, and its size where no image says it."""
        grid = tuple(getattr(block_state, self.family.original).shape[-2:])
        placement = replace(block_state.placement, grid=grid)
        if block_state.image is None:
            canvas = tuple(side * diffdiff_block.cell_of(components) for side in grid)
            placement = replace(placement, canvas=canvas)
        block_state.placement = placement

    def fit_image(self, components, block_state) -> None:
        """Brings the image to the size of the run, and pads it."""
        family, placement = self.family, block_state.placement
        height, width = block_state.height or placement.size[0], block_state.width or placement.size[1]
        multiple = family.patch * diffdiff_block.cell_of(components)
        size, canvas = diffdiff_pixels.size_and_canvas(height, width, multiple, family.least_side, family.largest_area)
        pictures = diffdiff_pixels.split_images(block_state.image)
        if family.pictures_only:
            pictures = [
                PIL.Image.fromarray(diffdiff_pixels.to_dtype(diffdiff_pixels.as_array(picture), np.uint8))
                for picture in pictures
            ]
        block_state.image = as_batch([diffdiff_pixels.bring_to(picture, size, canvas) for picture in pictures])
        block_state.placement = replace(placement, size=size, canvas=canvas)

    def fit_batch(self, block_state, prompts: int, own_noise: bool) -> None:
        """What belongs to a prompt stays with it; encoders draw, for each image from a generator of its own."""
        outputs = prompts * block_state.num_images_per_prompt
        if outputs == 1:
            return
        self.fit_prompts(block_state, outputs)
        if block_state.image is not None and (own_noise or not self.family.encodes_once):
            pictures = diffdiff_pixels.split_images(block_state.image)
            block_state.image = as_batch(diffdiff_trajectory.for_each_output(pictures, outputs))
        block_state.num_images_per_prompt = 1

    def fit_prompts(self, block_state, outputs: int) -> None:
        """Gives each output its own of what belongs to a prompt."""
        for name in self.of_prompts:
            value = getattr(block_state, name)
            if value is None and name == "negative_prompt" and block_state.prompt is not None:
                value = self.family.no_negative
            if value is not None:
                setattr(block_state, name, diffdiff_trajectory.for_each_output(value, outputs))


class DiffDiffFitControlStep(diffdiff_block.DiffDiffBlock):
    """Cuts, resizes and pads control images like the image, and gives each output its own."""

    needs, takes = ("placement", "control_image"), ("crops_coords",)
    gives = ("control_image", "crops_coords")

    def run(self, components, block_state, state) -> None:
        outputs = (diffdiff_asked.count_prompts(state) or 1) * (state.get("num_images_per_prompt") or 1)
        controls = block_state.control_image
        if takes_several(components, state):
            controls = controls if isinstance(controls, list) else [controls]
            block_state.control_image = [self.fit(control, block_state, outputs) for control in controls]
        else:
            block_state.control_image = self.fit(controls, block_state, outputs)
        block_state.crops_coords = None  # upstream would cut once more

    def fit(self, control: Any, block_state, outputs: int) -> Any:
        """The pictures of one ControlNet or control mode."""
        placement, box = block_state.placement, block_state.crops_coords
        pictures = diffdiff_pixels.split_images(control)
        if placement.is_cut:
            box = placement.box
            for picture in pictures:
                check_lies_on_image(picture, placement.whole)
        if box is not None:
            pictures = [diffdiff_pixels.cut(picture, box) for picture in pictures]
        pictures = [diffdiff_pixels.bring_to(picture, placement.size, placement.canvas) for picture in pictures]
        return as_batch(diffdiff_trajectory.for_each_output(pictures, outputs))


def check_lies_on_image(picture: Any, size: tuple[int, int]) -> None:
    """Refuses a control image that cannot be cut where the image is."""
    height, width = diffdiff_pixels.size_of(picture)
    if (height, width) != size:
        takes = f"the image's {size[1]} x {size[0]} with `padding_map_crop`"
        diffdiff_refusals.refuse("control_image", f"a picture of {width} x {height} pixels", takes)


def takes_several(components, state) -> bool:
    """Whether a list of control images holds one for each ControlNet or control mode, and not for each prompt."""
    return hasattr(unwrap_module(components.controlnet), "nets") or state.get("control_mode") is not None


class DiffDiffAutoFitControlStep(diffdiff_docs.Documented, AutoPipelineBlocks):
    """`DiffDiffFitControlStep` where there is a control image."""

    block_classes = [DiffDiffFitControlStep]
    block_names = ["fit_control"]
    block_trigger_inputs = ["control_image"]
