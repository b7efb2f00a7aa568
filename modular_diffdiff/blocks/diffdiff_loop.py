"""The loop blocks that every model family shares."""

from __future__ import annotations

import torch
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.schedulers import EulerDiscreteScheduler

from . import diffdiff_docs, diffdiff_trajectory


TRAJECTORY_INPUTS = ("image_latents", "noise", "release_steps", "level_alphas", "level_sigmas")


def put_frozen_on_level(block_state, step: int, level: int) -> None:
    """Puts the latents that are frozen during `step` on the original's trajectory at `level`."""
    block_state.latents = diffdiff_trajectory.put_on_trajectory(
        block_state.latents,
        block_state.image_latents,
        block_state.noise,
        block_state.level_alphas[level],
        block_state.level_sigmas[level],
        frozen=block_state.release_steps > step,
    )


def inject(components, block_state, i: int) -> None:
    """What is frozen enters the step as the noised original of its level (paper, algorithm 1)."""
    # after `restore`, what is frozen in this step lies there already
    if getattr(block_state, "restored_level", None) != i:
        put_frozen_on_level(block_state, step=i // components.scheduler.order, level=i)


class _OnTrajectoryStep(ModularPipelineBlocks):
    """A block of a denoising loop that puts what is frozen on the original's trajectory."""

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("scheduler", EulerDiscreteScheduler)]

    @property
    def inputs(self) -> list[InputParam]:
        return [diffdiff_docs.input_param(name, required=True) for name in ("latents", *TRAJECTORY_INPUTS)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param("latents")]


class DiffDiffInjectStep(_OnTrajectoryStep):
    """First block of a denoising loop: injection, for families whose own first block leaves the latents as they are.

    Without `restore` (and without skipping) this is the paper's algorithm; with it, nothing is left to overwrite here.
    """

    @property
    def description(self) -> str:
        return (
            "Step within the denoising loop that overwrites the elements which the change map keeps frozen with the "
            "noised original of this step."
        )

    @torch.no_grad()
    def __call__(self, components, block_state, i: int, t: torch.Tensor):
        inject(components, block_state, i)
        return components, block_state


class DiffDiffRestoreStep(_OnTrajectoryStep):
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

    @torch.no_grad()
    def __call__(self, components, block_state, i: int, t: torch.Tensor):
        # second-order schedulers evaluate the model `order` times a step
        put_frozen_on_level(block_state, step=i // components.scheduler.order, level=i + 1)
        block_state.restored_level = i + 1
        return components, block_state


class DiffDiffSkipFrozenStep(ModularPipelineBlocks):
    """Right before a loop: leaves out the steps in which everything is frozen, whose result would be overwritten.

    The run starts as image-to-image starts for its strength: at the step that releases the first element of the batch,
    from the original on that step's noise level. Where everything is kept, nothing is left to run.
    """

    @property
    def description(self) -> str:
        return (
            "Step that starts the run at the first step in which the change map releases anything: until then nothing "
            "would be computed that is not overwritten."
        )

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("scheduler", EulerDiscreteScheduler)]

    @property
    def inputs(self) -> list[InputParam]:
        names = ("timesteps", "num_inference_steps", "latents", *TRAJECTORY_INPUTS)
        return [diffdiff_docs.input_param(name, required=True) for name in names]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        names = ("timesteps", "num_inference_steps", "latents", "release_steps", "level_alphas", "level_sigmas")
        return [diffdiff_docs.output_param(name) for name in names]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        scheduler = components.scheduler
        steps = -(-len(block_state.timesteps) // scheduler.order)
        skipped = min(block_state.release_steps.min().item(), steps)
        if skipped:
            evaluations = min(skipped * scheduler.order, len(block_state.timesteps))
            begin = evaluations + len(scheduler.timesteps) - len(block_state.level_alphas) + 1
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(begin)
            block_state.timesteps = block_state.timesteps[evaluations:]
            block_state.num_inference_steps = max(block_state.num_inference_steps - skipped, 0)
            block_state.release_steps = block_state.release_steps - skipped
            block_state.level_alphas = block_state.level_alphas[evaluations:]
            block_state.level_sigmas = block_state.level_sigmas[evaluations:]
            put_frozen_on_level(block_state, step=-1, level=0)
        self.set_block_state(state, block_state)
        return components, state


class DiffDiffLoop:
    """Mixin of a denoising loop: guiders count in evaluations of the model, NaN ends the run, and no step may be left.

    Upstream's denoisers give a guider the index of the evaluation and the number of steps; a second-order scheduler
    makes twice as many evaluations, and guidance goes off half-way.
    """

    @torch.no_grad()
    def __call__(self, components, state):
        # where everything is kept, upstream's loops can miss what their steps would have made
        return super().__call__(components, state) if len(state.get("timesteps")) else (components, state)

    def loop_step(self, components, block_state, i: int, t: torch.Tensor):
        # a loop of somebody's own need not know of it
        num_inference_steps = getattr(block_state, "num_inference_steps", None)
        evaluations = len(block_state.timesteps)
        block_state.num_inference_steps = evaluations
        components, block_state = super().loop_step(components, block_state, i=i, t=t)
        block_state.num_inference_steps = num_inference_steps
        # one number a step stays on the device, and is looked at in the end: a look at every step would wait for it
        sums = block_state.sums = [] if i == 0 else block_state.sums
        sums.append(block_state.latents.sum(dtype=torch.float32))
        if i + 1 == evaluations and (lost := (~torch.stack(sums).isfinite()).nonzero()).numel():
            first = lost[0].item()
            raise ValueError(
                f"The model's answer at timestep {block_state.timesteps[first].item():g}, evaluation {first + 1} of "
                f"{evaluations}, made latents that are no finite numbers; float16 can overflow where bfloat16 or "
                "float32 does not."
            )
        return components, block_state
