"""The loop blocks that every model family shares."""

from __future__ import annotations

import torch
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.schedulers import EulerDiscreteScheduler

from . import diffdiff_docs, diffdiff_trajectory


TRAJECTORY_INPUTS = ("image_latents", "noise", "release_steps", "level_alphas", "level_sigmas")


def put_frozen_on_level(block_state, step: int, level: int) -> torch.Tensor:
    """The latents, those that are frozen during `step` put on the original's trajectory at `level`."""
    return diffdiff_trajectory.put_on_trajectory(
        block_state.latents,
        block_state.image_latents,
        block_state.noise,
        block_state.level_alphas[level],
        block_state.level_sigmas[level],
        frozen=block_state.release_steps > step,
    )


class DiffDiffRestoreStep(ModularPipelineBlocks):
    """Last block of a denoising loop: what was frozen during a step ends it on the original's trajectory.

    With it, an element that is kept to the end comes out as the original's latent, bit for bit; without it, this is
    the paper's algorithm, in which whatever is overwritten before a step still takes that step of the model.
    """

    @property
    def description(self) -> str:
        return (
            "Step within the denoising loop that puts the elements which the change map kept frozen during this step "
            "back on the original's trajectory, at the next noise level; after the last step that is the original."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("scheduler", EulerDiscreteScheduler)]

    @property
    def inputs(self) -> list[InputParam]:
        return [diffdiff_docs.input_param(name, required=True) for name in ("latents", *TRAJECTORY_INPUTS)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param("latents")]

    @torch.no_grad()
    def __call__(self, components, block_state, i: int, t: torch.Tensor):
        # second-order schedulers evaluate the model `order` times a step
        block_state.latents = put_frozen_on_level(block_state, step=i // components.scheduler.order, level=i + 1)
        return components, block_state


class GuidedByEvaluation:
    """Mixin of a denoising loop: guiders count in evaluations of the model.

    Upstream's denoisers give a guider the index of the evaluation and the number of steps; a second-order scheduler
    makes twice as many evaluations, and guidance goes off half-way.
    """

    def loop_step(self, components, block_state, i: int, t: torch.Tensor):
        num_inference_steps = block_state.num_inference_steps
        block_state.num_inference_steps = len(block_state.timesteps)
        components, block_state = super().loop_step(components, block_state, i=i, t=t)
        block_state.num_inference_steps = num_inference_steps
        return components, block_state
