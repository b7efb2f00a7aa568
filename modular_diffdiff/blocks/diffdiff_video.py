"""A change map over time: the blocks around a loop that makes videos, each a row of frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.modular_pipelines import ModularPipelineBlocks, PipelineState, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from diffusers.modular_pipelines.wan.encoders import WanTextEncoderStep
from diffusers.utils import is_ftfy_available

from . import (
    diffdiff_asked,
    diffdiff_block,
    diffdiff_checks,
    diffdiff_docs,
    diffdiff_fit,
    diffdiff_frames,
    diffdiff_make_map,
    diffdiff_map,
    diffdiff_model_sources,
    diffdiff_overlay,
    diffdiff_pixels,
    diffdiff_placement,
    diffdiff_prepare,
    diffdiff_preview,
    diffdiff_refusals,
    diffdiff_shape,
)


# What frames are called where they are pictures like any other.
AS_PICTURES = "image"
# What says how many steps there are, before the schedule is made.
SCHEDULE = ("num_inference_steps", "timesteps", "sigmas")
# What upstream makes videos of beside a prompt.
OTHER_STARTS = ("image", "image_latents", "conditions", "condition_latents", "reference_conditions")
BadInputError, refuse = diffdiff_refusals.BadInputError, diffdiff_refusals.refuse


class DiffDiffCheckVideoInputsStep(diffdiff_checks.DiffDiffCheckInputsStep):
    """First block of a video's pipeline: refuses bad input before any model runs."""

    def check(self, components, state, asked: diffdiff_asked.Asked) -> None:
        diffdiff_asked.check_wiring(asked)
        diffdiff_checks.check_components(components, asked, self.needed_components(components, asked))
        self.check_starts(asked)
        self.check_frames(asked)
        self.check_map(components, asked)
        diffdiff_checks.check_texts(asked, self.family.texts)
        self.check_cleaner(asked)
        self.check_guider(components, asked)
        prompts = diffdiff_asked.count_prompts(state)
        diffdiff_checks.check_guidance(components, asked)
        diffdiff_checks.check_sources(asked, None)
        diffdiff_checks.check_embeddings(components, asked, self.family.embeddings, prompts)
        self.check_overlay(asked)
        diffdiff_checks.check_schedule(components.scheduler, asked)
        diffdiff_asked.count_outputs(asked, prompts)

    def check_starts(self, asked: diffdiff_asked.Asked) -> None:
        """Refuses a missing video, and what would be made of something else."""
        if "video" not in asked.given:
            refuse("video", None, diffdiff_frames.TAKES)
        for name in OTHER_STARTS:
            if name in asked.given:
                raise BadInputError(f"`{name}` is given together with `diffdiff_map`, under which a `video` is edited.")

    def check_map(self, components, asked: diffdiff_asked.Asked) -> None:
        """Refuses a missing map, and sources of maps without their models."""
        for block in asked.blocks:
            if isinstance(block, DiffDiffReadVideoStep):
                if not asked.given.keys() & {*block.triggers}:
                    diffdiff_map.load_maps(None)
                block.check_models(components, asked.given)
        if asked.get("output_type") == "latent" and not self.family.latent_output:
            refuse("output_type", "latent", "one of pil, np, pt with this model, whose decoder gives pictures alone")

    def check_frames(self, asked: diffdiff_asked.Asked) -> None:
        """Refuses another number of frames than the video's."""
        count = asked.get("num_frames")
        defaults = [param.default for block in asked.blocks for param in block.inputs if param.name == "num_frames"]
        if count is not None and count not in defaults:
            refuse("num_frames", count, "nothing with a `video`, whose number of frames stays as it is")

    def check_cleaner(self, asked: diffdiff_asked.Asked) -> None:
        """Refuses to go on without the package that Wan's text encoder needs, and upstream does not look for."""
        if not is_ftfy_available() and any(isinstance(block, WanTextEncoderStep) for block in asked.blocks):
            needs = "is read by Wan's text encoder with `ftfy`, which is not installed"
            raise BadInputError(f"`prompt` {needs}; `pip install ftfy` brings it.")

    def check_guider(self, components, asked: diffdiff_asked.Asked) -> None:
        """Refuses guidance that is off: upstream's loops need the negative prompt that its encoders then leave out."""
        if asked.reads("prompt") and not getattr(components, "requires_unconditional_embeds", True):
            instead = "take one above 1, as in `ClassifierFreeGuidance(guidance_scale=1.5)`"
            raise BadInputError(f"The guider's guidance is off, and this model's blocks need it: {instead}.")

    def check_overlay(self, asked: diffdiff_asked.Asked) -> None:
        """Refuses overlays that there is nothing for, and boxes with latents of the whole video."""
        for name in ("overlay_grow", "overlay_feather"):
            if asked.lays_over is None and asked.get(name):
                raise BadInputError(f"`{name}` is given, but there is no `overlay` for it.")
        if asked.lays_over is not None and asked.get("output_type") == "latent":
            raise BadInputError(f"`{asked.lays_over}` needs frames; `output_type` is 'latent'.")
        for name in ("latents", "video_latents") if "padding_map_crop" in asked.given else ():
            if name in asked.given:
                why = "which changes the size of the run"
                raise BadInputError(f"`{name}` is given together with `padding_map_crop`, {why}.")


class DiffDiffReadVideoStep(ModularPipelineBlocks):
    """Reads the frames and their change maps: whatever makes, shapes and shows maps does so frame by frame.

    One map holds for all frames, or each frame has its own. `padding_map_crop` cuts one box out of all frames, around
    whatever changes in any of them.

    Attributes:
        on_frames: The blocks of an image's pipeline that work on each frame.
    """

    def __init__(self, family: diffdiff_block.FamilyTraits | None = None):
        family = replace(family or diffdiff_block.FamilyTraits(), references=False)
        blocks = {
            "make_map": diffdiff_make_map.DiffDiffMakeMapStep(family),
            "shape_map": diffdiff_shape.DiffDiffShapeMapStep(family),
            "read_map": diffdiff_placement.DiffDiffReadMapStep(family),
            "show_map": diffdiff_preview.DiffDiffPreviewMapStep(),
            "crop_to_change": diffdiff_placement.DiffDiffCropToChangeStep(),
        }
        self.on_frames = SequentialPipelineBlocks.from_blocks_dict(blocks)
        super().__init__()

    @property
    def description(self) -> str:
        return diffdiff_docs.summary(self)

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return self.on_frames.expected_components

    @property
    def sources(self) -> dict[str, diffdiff_make_map.DiffDiffOptionalSource]:
        """What makes change maps, by the inputs that ask for it."""
        return self.on_frames.sub_blocks["make_map"].sub_blocks

    @property
    def triggers(self) -> list[str]:
        """The inputs that a change map is made from, and the map itself."""
        return ["diffdiff_map", *self.sources]

    def check_models(self, components, given: dict[str, Any]) -> None:
        """Refuses to go on where a model is missing that makes the map which is asked for."""
        for name in self.sources.keys() & given.keys():
            for source in self.sources[name].sub_blocks.values():
                if isinstance(source, diffdiff_model_sources.DiffDiffModelMapSource):
                    source.check_models(components)

    @property
    def inputs(self) -> list[InputParam]:
        left_out = (AS_PICTURES, "match_colors", "image_latents")
        taken = [param for param in self.on_frames.inputs if param.name not in left_out]
        taken = [replace(param, required=False) for param in taken]
        return [diffdiff_docs.input_param("video", required=True), *taken]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param(name) for name in ("video", "placement", "map_preview")]

    @torch.no_grad()
    def __call__(self, components, state):
        frames = diffdiff_pixels.in_unit_range(diffdiff_frames.split_frames(state.get("video")), "video")
        inner = PipelineState()
        for name in (*self.input_names, *SCHEDULE):
            inner.set(name, state.get(name))
        inner.set("match_colors", False)
        inner.set(AS_PICTURES, frames)
        if (maps := state.get("diffdiff_map")) is not None:
            maps = diffdiff_frames.split_maps(maps)
            check_count("diffdiff_map", len(maps), len(frames))
            inner.set("diffdiff_map", maps)
        self.on_frames(components, inner)
        placement = inner.get("placement")
        check_count("what the map is made from", len(placement.keeps), len(frames))
        state.set("video", inner.get(AS_PICTURES))
        state.set("placement", placement)
        state.set("map_preview", inner.get("map_preview"))
        return components, state


def check_count(name: str, maps: int, frames: int) -> None:
    """Refuses change maps that are neither one for all frames nor one for each."""
    if maps not in (1, frames):
        raise BadInputError(
            f"`{name}` is for {maps} frames, and `video` holds {frames}; it takes one map, or one for each frame."
        )


class DiffDiffFitVideoStep(diffdiff_fit.DiffDiffFitStep):
    """Brings the frames to the size of the run, pads them to whole patches of latents, and their number likewise.

    Autoencoders of videos take 4k + 1 frames, or 8k + 1; the last frame is repeated, and `crop` cuts it off again.
    """

    needs = ("video", "placement")

    @property
    def of_prompts(self) -> tuple[str, ...]:
        return (*self.family.texts, *self.family.embeddings)

    @property
    def takes(self) -> tuple[str, ...]:
        return (*self.of_prompts, "num_videos_per_prompt", "height", "width")

    @property
    def gives(self) -> tuple[str, ...]:
        return (*self.takes, *self.needs, "num_frames")

    def run(self, components, block_state, state) -> None:
        placement, family = block_state.placement, self.family
        height, width = block_state.height or placement.size[0], block_state.width or placement.size[1]
        multiple = family.patch * diffdiff_block.cell_of(components)
        size, canvas = diffdiff_pixels.size_and_canvas(height, width, multiple, family.least_side, family.largest_area)
        frames = [diffdiff_pixels.bring_to(frame, size, canvas) for frame in block_state.video]
        count = diffdiff_frames.padded_count(len(frames), diffdiff_block.frames_of_cell(components))
        block_state.video = frames + frames[-1:] * (count - len(frames))
        block_state.placement = replace(placement, size=size, canvas=canvas)
        block_state.height, block_state.width, block_state.num_frames = *canvas, count
        prompts = diffdiff_asked.count_prompts(state)
        if prompts is not None and prompts * block_state.num_videos_per_prompt > 1:
            self.fit_prompts(block_state, prompts * block_state.num_videos_per_prompt)
            block_state.num_videos_per_prompt = 1


class DiffDiffEncodeVideoStep(diffdiff_block.DiffDiffBlock):
    """Encodes the frames as the original, normalized as the model's latents are.

    As in upstream's `WanVideoToVideoPipeline`, it is the mode of the autoencoder's distribution.
    """

    needs, gives = ("video",), ("video_latents",)

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("vae")]

    def run(self, components, block_state, state) -> None:
        vae, device = components.vae, components._execution_device
        # frame by frame: the whole video in float32 would be several times what the autoencoder takes
        frames = torch.stack([(2 * as_tensor(frame) - 1).to(device, vae.dtype) for frame in block_state.video], 1)
        encoded = vae.encode(frames[None]).latent_dist.mode()
        block_state.video_latents = normalize(encoded.float(), vae)


def as_tensor(frame: Any) -> torch.Tensor:
    """A frame as a tensor (3, H, W) in [0, 1]."""
    array = diffdiff_pixels.to_dtype(diffdiff_pixels.as_array(frame), np.dtype(np.float32))
    return torch.from_numpy(array).permute(2, 0, 1)


def normalize(latents: torch.Tensor, vae) -> torch.Tensor:
    """Latents (B, C, F, h, w) as the model sees them: scale * (latents - mean) / std, as the autoencoder has these."""

    buffers = dict(vae.named_buffers(recurse=False))  # of some; others have them in their configuration

    def of_channel(name: str, default: float) -> torch.Tensor:
        values = buffers.get(name, vae.config.get(name))
        return torch.as_tensor(default if values is None else values).to(latents).view(1, -1, 1, 1, 1)

    scale = vae.config.get("scaling_factor") or 1.0
    return (latents - of_channel("latents_mean", 0.0)) * scale / of_channel("latents_std", 1.0)


class DiffDiffPrepareVideoStep(diffdiff_prepare.DiffDiffPrepareStep):
    """Turns the change maps of the frames into release steps of the latent frames, and gives the loop the original.

    A latent frame keeps what the frames that it stands for keep on average.
    """

    takes = (*diffdiff_prepare.MAP_SETTINGS, "height", "width")
    needs = ("video_latents", "placement", "latents", "timesteps")

    def keep(self, components, block_state, placement, original: torch.Tensor) -> torch.Tensor:
        """`keep` on the original's grid, (1, 1, latent frames, rows, columns)."""
        latent_frames, *grid = block_state.video_latents.shape[-3:]
        grids = diffdiff_map.keep_on_grid(placement.keeps_in_box(), placement.size, tuple(grid), placement.canvas)
        return diffdiff_frames.average_over_frames(grids, latent_frames, diffdiff_block.frames_of_cell(components))


class DiffDiffCropVideoStep(diffdiff_block.DiffDiffBlock):
    """Cuts off the padding, so that videos come back with the given number of frames, at their size."""

    needs, gives = ("videos", "placement"), ("videos", "placement")

    def run(self, components, block_state, state) -> None:
        placement = block_state.placement
        count, form = len(placement.originals), form_of(block_state.videos)
        cut = []
        for video in block_state.videos:
            whole = video[0].size[::-1] if form == "pil" else video.shape[2:] if form == "pt" else video.shape[1:3]
            height, width = placement.shown(*whole)
            if form == "pil":
                cut.append([frame.crop((0, 0, width, height)) for frame in video[:count]])
            else:
                cut.append(video[:count, ..., :height, :width] if form == "pt" else video[:count, :height, :width])
        block_state.videos = together(cut, form)
        block_state.placement = replace(placement, canvas=placement.size)


def together(videos: list[Any], form: str) -> Any:
    """Videos in the form that upstream decodes them to."""
    return videos if form == "pil" else torch.stack(videos) if form == "pt" else np.stack(videos)


def form_of(videos: Any) -> str:
    """`output_type` of decoded videos."""
    return "np" if isinstance(videos, np.ndarray) else "pt" if isinstance(videos, torch.Tensor) else "pil"


class DiffDiffOverlayVideoStep(diffdiff_block.DiffDiffBlock):
    """With `overlay` or `padding_map_crop`, lays the original over each frame, where the frame's map fully keeps it.

    There the results have the original's pixels, byte for byte, which do not pass through the autoencoder.
    """

    needs, gives = ("videos", "placement"), ("videos",)
    takes = ("overlay", "overlay_grow", "overlay_feather", "padding_map_crop", "diffdiff_schedule")

    def run(self, components, block_state, state) -> None:
        if not block_state.overlay and block_state.padding_map_crop is None:
            return
        form = form_of(block_state.videos)
        laid = [diffdiff_overlay.lay_over(components, block_state, video, form) for video in block_state.videos]
        block_state.videos = together(laid, form)
