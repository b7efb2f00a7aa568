"""What is Flux Kontext's own in differential diffusion.

A file of its own because Kontext is the one family whose output has a size of its own: upstream's step takes it from
`height`, `width` and `max_area`, whatever the image's is, and what is kept must lie where it was.
"""

from __future__ import annotations

import torch
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from . import diffdiff_docs


class FluxKontextDiffDiffSetResolutionStep(ModularPipelineBlocks):
    """In the place of upstream's `set_resolution`: the output has the size of the encoded image."""

    model_name = "flux-kontext"

    @property
    def description(self) -> str:
        return "Step that gives the output the size at which the image is encoded."

    @property
    def inputs(self) -> list[InputParam]:
        return [diffdiff_docs.input_param("latent_grid", required=True)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param(name) for name in ("height", "width")]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.height, block_state.width = (side * components.vae_scale_factor for side in block_state.latent_grid)
        self.set_block_state(state, block_state)
        return components, state
