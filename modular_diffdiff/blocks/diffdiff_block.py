"""What our blocks have in common: a short form for what they take and give, and the traits of a model family."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from . import diffdiff_docs, diffdiff_layout


Layout = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FamilyTraits:
    """How a model family takes its inputs, as far as a change map is concerned.

    Attributes:
        triggers: The inputs that select the workflow which starts from an image.
        original: The state entry that holds the encoded image, a tensor (B, C, h, w) or (B, C, 1, h, w), or a list with
            one.
        references: Whether a list of images means several references of one picture, and not a batch.
        layout: How a grid lies in the denoising loop's latents, a function like `diffdiff_layout.in_loop_form`, which
            knows grids, grids with a frame axis, and tokens of square patches, row by row.
        patch: Latent elements that the sides of the padded image are multiples of.
        least_side: Side in pixels below which the model's own preprocessing would enlarge the image.
        largest_area: Area in pixels above which it would shrink the image.
        latent_output: Whether its decoder gives latents where `output_type` is "latent".
        pictures_only: Whether it takes PIL images alone; floats are then rounded to 8 bits.
        one_prompt: Whether its text encoders take one prompt at a time, and no batch of them.
        no_negative: The text that stands for no negative prompt in a batch.
        lists: Whether its denoiser takes lists with an entry for each output, where others take tensors with a row.
        shared: Arguments of its denoiser that serve all outputs, and have no row for each.
        encodes_once: Whether one encoded image serves several outputs; else each output gets an image of its own.
        area: The input that takes the area of the run in pixels, of models that would choose it.
        fixed: Inputs that a run with a map sets itself, and their values.
        texts: Inputs that hold a text for each prompt; `add_diffdiff` finds them.
        embeddings: What the texts are encoded as, a row for each prompt; `add_diffdiff` finds it.
        sized: Whether `height` and `width` are the size of the run, which follows the image otherwise; likewise found.
        video: Whether it makes videos. Its encoded original is then `video_latents`, (B, C, frames, h, w).
        sound: Whether it makes sound with them. Its sound begins with noise, so no step is left out.
    """

    triggers: tuple[str, ...] = ("prompt", "image")
    original: str = "image_latents"
    references: bool = False
    layout: Layout = diffdiff_layout.in_loop_form
    patch: int = 2
    least_side: int = 1
    largest_area: float = math.inf
    latent_output: bool = True
    pictures_only: bool = False
    one_prompt: bool = False
    no_negative: str | None = None
    lists: bool = False
    shared: tuple[str, ...] = ()
    encodes_once: bool = False
    area: str | None = None
    fixed: dict[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] = ("prompt",)
    embeddings: tuple[str, ...] = ()
    sized: bool = False
    video: bool = False
    sound: bool = False

    @property
    def followed(self) -> tuple[str, ...]:
        """Inputs that follow the original, whatever their defaults are."""
        return ("num_frames",) if self.video else ()


# Of models in two stages, each has one.
GUIDERS = ("guider", "guider_2")
# What upstream's pipelines call it.
CELL = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")
FRAMES_OF_CELL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")


def cell_of(components) -> int:
    """Pixels that a latent element is high and wide; 1 where latents are pixels."""
    return next((getattr(components, name) for name in CELL if hasattr(components, name)), 1)


def frames_of_cell(components) -> int:
    """Frames of a video that a latent frame stands for; the first latent frame stands for the first frame alone."""
    return next((getattr(components, name) for name in FRAMES_OF_CELL if hasattr(components, name)), 1)


class DiffDiffBlock(ModularPipelineBlocks):
    """A block that names what it takes and gives; `diffdiff_docs` has the types and the sentences.

    The first paragraph of its docstring is its description.

    Subclasses define `run(components, block_state, state)`, which changes `block_state`, and looks at `state` alone for
    what need not be there.

    Attributes:
        family: What is the model family's own, the argument's or the class's.
        needs: Names of required inputs.
        takes: Names of the others.
        gives: Names of outputs; a block writes nothing else into the state.
    """

    family = FamilyTraits()
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()

    def __init__(self, family: FamilyTraits | None = None):
        self.family = family or self.family
        super().__init__()

    @property
    def description(self) -> str:
        return diffdiff_docs.summary(self)

    @property
    def inputs(self) -> list[InputParam]:
        required = [diffdiff_docs.input_param(name, required=True) for name in self.needs]
        return required + [diffdiff_docs.input_param(name) for name in self.takes]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param(name) for name in self.gives]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        self.run(components, block_state, state)
        self.set_block_state(state, block_state)
        return components, state


class DiffDiffLoopBlock(DiffDiffBlock):
    """The same within a denoising loop, where subclasses define `run_step(components, block_state, i)`."""

    def __call__(self, components, block_state, i: int, t: torch.Tensor):
        self.run_step(components, block_state, i)
        return components, block_state
