"""Pixels around the model: any size in, the same size out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from . import diffdiff_docs


def pad_to_multiple(pixels: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pads (B, C, H, W) on the right and below, by reflection, to the next multiple in height and width."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % multiple, 0, -height % multiple), mode="reflect")


class DiffDiffCropStep(ModularPipelineBlocks):
    """Cuts off what was padded before encoding, so that pictures come back at the image's size."""

    @property
    def description(self) -> str:
        return "Step that crops the decoded images to the size that the image had before it was padded."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            diffdiff_docs.input_param("images", required=True),
            diffdiff_docs.input_param("image_size"),
            diffdiff_docs.input_param("output_type"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param("images")]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        # latents given by the user have no size in pixels but their own
        if block_state.image_size is not None and block_state.output_type != "latent":
            height, width = block_state.image_size
            if block_state.output_type == "pil":
                block_state.images = [image.crop((0, 0, width, height)) for image in block_state.images]
            elif block_state.output_type == "np":
                block_state.images = block_state.images[:, :height, :width]
            else:
                block_state.images = block_state.images[..., :height, :width]
        self.set_block_state(state, block_state)
        return components, state
