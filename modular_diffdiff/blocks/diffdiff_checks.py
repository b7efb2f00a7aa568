"""What is refused before any model runs, for every model family."""

from __future__ import annotations

import copy
import inspect
import math

import torch
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from diffusers.utils.torch_utils import unwrap_module

from . import (
    diffdiff_asked,
    diffdiff_block,
    diffdiff_docs,
    diffdiff_guidance,
    diffdiff_layout,
    diffdiff_map,
    diffdiff_model_sources,
    diffdiff_picture_checks,
    diffdiff_pixels,
    diffdiff_refusals,
    diffdiff_regions,
    diffdiff_sources,
)


# Further text encoders of a family, and adapters, may be missing.
MODELS = ("transformer", "unet", "vae", "scheduler", "text_encoder", "tokenizer", "processor")
# What would be encoded in the image's place or move it under the map, and inpainting's own.
NOT_WITH_A_MAP = ("resized_image", "preprocess_kwargs", "padding_mask_crop")
NOT_WITH_A_MAP += ("processed_mask_image", "masked_image_latents", "mask_overlay_kwargs")
# What says where regions are.
REGION_PLACES = ("region_maps", "region_texts")
# Features of embeddings, as denoisers call them in their configurations.
FEATURES = {
    "prompt_embeds": ("cross_attention_dim", "joint_attention_dim", "cap_feat_dim"),
    "pooled_prompt_embeds": ("pooled_projection_dim",),
}
Asked = diffdiff_asked.Asked
BadInputError, refuse = diffdiff_refusals.BadInputError, diffdiff_refusals.refuse


def check_components(components, asked: Asked, needed: tuple[str, ...]) -> None:
    """Refuses missing components by name, and schedulers that noise nothing."""
    if "control_image" in asked.given and getattr(components, "controlnet", None) is None:
        instead = "set one with `pipe.update_components(controlnet=...)`"
        raise BadInputError(f"`control_image` is given, but no ControlNet is loaded; {instead}.")
    for block in asked.blocks:
        if isinstance(block, diffdiff_model_sources.DiffDiffModelMapSource):
            block.check_models(components)
    missing = [name for name in asked.executed.component_names if name in needed and getattr(components, name) is None]
    if missing:
        instead = f"`pipe.load_components()`, or set them with `pipe.update_components({missing[0]}=...)`"
        raise BadInputError(f"These components are not loaded: {', '.join(missing)}. Load them with {instead}.")
    scheduler = components.scheduler
    if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
        takes = "one with `add_noise` or `scale_noise`, e.g. `FlowMatchEulerDiscreteScheduler`"
        refuse("scheduler", type(scheduler).__name__, takes)


def check_map(asked: Asked, family: diffdiff_block.FamilyTraits) -> None:
    """Refuses a missing map, and what does not go with one."""
    sources = [block for block in asked.blocks if isinstance(block, diffdiff_sources.DiffDiffMapSource)]
    if not sources and not asked.makes("diffdiff_map") and "diffdiff_map" not in asked.given:
        diffdiff_map.load_maps(None)
    for name in NOT_WITH_A_MAP:
        value = asked.get(name)
        if value is not None and not (name.endswith("kwargs") and isinstance(value, dict) and not value):
            raise BadInputError(f"`{name}` cannot be combined with a `diffdiff_map`, which would be elsewhere.")
    if asked.get("output_type") == "latent" and not family.latent_output:
        refuse("output_type", "latent", "one of pil, np, pt with this model, whose decoder gives pictures alone")
    if "mask_image" in asked.given and not any("mask_image" in source.needs for source in sources):
        instead = "a mask is a map of black and white, with `invert_diffdiff_map=True`"
        raise BadInputError(f"`mask_image` is given together with `diffdiff_map`: both say what changes; {instead}.")


def check_sources(asked: Asked, prompts: int | None) -> None:
    """Refuses what a source of maps cannot work with, as far as it is known before one is made."""
    texts = asked.get("map_text")
    if isinstance(texts, list):
        diffdiff_asked.check_count("map_text", len(texts), prompts or len(texts))
    if texts is None and "map_text_threshold" in asked.given:
        raise BadInputError("`map_text_threshold` is given, but there is no `map_text` for it.")
    there = "diffdiff_map" in asked.given or asked.makes("diffdiff_map")
    if asked.get("invert_diffdiff_map") and not there:
        raise BadInputError("`invert_diffdiff_map` is True, but no `diffdiff_map` is given that it would invert.")


def check_regions(asked: Asked, prompts: int | None) -> None:
    """Refuses regions that lack a prompt or a place, or are more or fewer than these."""
    prompt = asked.get("region_prompts")
    if prompt is None:
        for name in (*REGION_PLACES, "region_strengths"):
            if name in asked.given:
                raise BadInputError(f"`{name}` is given, but there are no `region_prompts` for it.")
        return
    if not asked.reads("prompt"):
        raise BadInputError("`region_prompts` is given, but no block encodes a prompt.")
    if not asked.given.keys() & set(REGION_PLACES):
        raise BadInputError("`region_prompts` is given, but neither `region_maps` nor `region_texts` says where.")
    counts = {len(one) for one in diffdiff_regions.by_picture(prompt)}
    if len(counts) != 1:
        raise BadInputError("`region_prompts` holds lists of different lengths; each image takes as many regions.")
    if "region_texts" in asked.given:
        counts |= {len(one) for one in diffdiff_regions.by_picture(asked.get("region_texts"))}
        diffdiff_regions.check_pairs(counts, "region_texts")
    if (strengths := asked.get("region_strengths")) is not None:
        diffdiff_regions.check_pairs({*counts, len(strengths)}, "region_strengths")
    if isinstance(prompt[0], list) and prompts is not None:
        outputs = prompts * asked.get("num_images_per_prompt", 1)
        if len(prompt) != outputs:
            diffdiff_asked.check_count("region_prompts", len(prompt), prompts)


def check_pictures(asked: Asked) -> None:
    """Refuses what needs pictures in a run without pictures."""
    asked_for = [asked.lays_over, *(name for name in ("match_colors", "preview_map") if asked.get(name))]
    if asked.get("map_fill", "original") != "original":
        asked_for.append("map_fill")
    for name in filter(None, asked_for):
        if "image" not in asked.given:
            raise BadInputError(f"`{name}` is given, but there is no `image` for it.")
        if asked.get("output_type") == "latent" and name not in ("preview_map", "map_fill"):
            raise BadInputError(f"`{name}` needs pictures; `output_type` is 'latent'.")


def check_overlay(asked: Asked) -> None:
    """Refuses overlays and boxes that there is nothing for, or whose blocks are gone."""
    if asked.lays_over is None:
        for name in ("overlay_grow", "overlay_feather"):
            if asked.get(name):
                raise BadInputError(f"`{name}` is given, but there is no `overlay` for it.")
    if "padding_map_crop" not in asked.given:
        return
    cuts = any({"padding_map_crop", "image"} <= asked.takes(block) for block in asked.blocks)
    if not cuts or not asked.reads("overlay"):
        gone = "overlay" if cuts else "crop_to_change"
        why = "one cuts the box out, the other puts it back"
        raise BadInputError(f"`padding_map_crop` is given, but `{gone}` was popped from the blocks: {why}.")
    for name in ("latents", "noise", "image_latents", "crops_coords"):
        if name in asked.given:
            why = "which changes the size of the run"
            raise BadInputError(f"`{name}` is given together with `padding_map_crop`, {why}.")


def check_texts(asked: Asked, texts: tuple[str, ...]) -> None:
    """Refuses what is not a text, more or fewer texts than prompts, and texts that nothing encodes."""
    if not asked.reads("prompt"):
        for name in texts:
            if name in asked.given:
                refuse(name, asked.get(name), "nothing, as no block encodes it: its embeddings are given")
        return
    prompt = asked.get("prompt")
    if prompt is None:
        refuse("prompt", prompt, diffdiff_docs.KINDS["prompt"].takes)
    prompts = 1 if isinstance(prompt, str) else len(prompt)
    for name in texts:
        text = asked.get(name, "")
        if isinstance(text, list) and len(text) != prompts:
            raise BadInputError(f"`{name}` holds {len(text)}; it takes a text, or {prompts}: one for each prompt.")


def check_embeddings(components, asked: Asked, names: tuple[str, ...], prompts: int | None) -> None:
    """Refuses embeddings that are missing, more or fewer than prompts, or another model's."""
    needed = {name for block in asked.blocks for name in asked.needs(block)}
    for name in names:
        value, kind = asked.get(name), diffdiff_docs.KINDS.get(name)
        if value is None and name in needed and not asked.makes(name):
            refuse(name, value, f"{kind.takes}, as nothing encodes a prompt" if kind else "a row for each prompt")
        if value is None:
            check_no_mask(asked, name)
        else:
            diffdiff_asked.check_count(name, len(value), prompts)
            check_features(components, name, value)
            check_mask(asked, name, value)


def check_features(components, name: str, value: torch.Tensor | list[torch.Tensor]) -> None:
    """Refuses embeddings of another width than the denoiser reads."""
    config = getattr(denoiser_of(components), "config", {})
    known = FEATURES.get(name.removeprefix("negative_"), ())
    wanted = next((config[key] for key in known if config.get(key) is not None), None)
    widths = {row.shape[-1] for row in value}
    if wanted is not None and widths != {wanted}:
        refuse(name, value, f"embeddings of the {wanted} features that this model reads")


def check_mask(asked: Asked, name: str, value: torch.Tensor | list[torch.Tensor]) -> None:
    """Refuses a mask that does not belong to its embeddings, and a missing one of the negative side."""
    mask = asked.get(f"{name}_mask")
    if mask is None and name.startswith("negative_") and asked.reads(f"{name}_mask"):
        refuse(f"{name}_mask", mask, f"which tokens of `{name}` count, a tensor (B, tokens)")
    if mask is not None and isinstance(value, torch.Tensor) and mask.shape != value.shape[:2]:
        refuse(f"{name}_mask", mask, f"the shape {tuple(value.shape[:2])}, prompts and tokens of `{name}`")


def check_no_mask(asked: Asked, name: str) -> None:
    """Refuses a mask whose embeddings are missing."""
    if f"{name}_mask" in asked.given:
        refuse(f"{name}_mask", asked.get(f"{name}_mask"), f"nothing without `{name}`, whose tokens it counts")


def denoiser_of(components):
    """The model that the loop asks, None where a user's own has another name."""
    return getattr(components, "transformer", None) or getattr(components, "unet", None)


def check_guidance(components, asked: Asked) -> None:
    """Refuses to make one batch of what a guider asks differently, and of embeddings of different lengths."""
    if not asked.get("batch_guidance"):
        return
    for name in diffdiff_block.GUIDERS:
        guider = getattr(components, name, None)
        if guider is not None and not diffdiff_guidance.only_combines(guider):
            kind = f"a {type(guider).__name__}, which does not ask the same model for all its predictions"
            instead = "Leave it out, or take one that only combines them, e.g. `ClassifierFreeGuidance`"
            raise BadInputError(f"`batch_guidance` is True, but the {name} is {kind}. {instead}.")
    both = [asked.get(name) for name in ("prompt_embeds", "negative_prompt_embeds")]
    if all(isinstance(value, torch.Tensor) for value in both) and not asked.reads("prompt_embeds_mask"):
        diffdiff_guidance.check_fit("prompt_embeds", both, len(both[0]))


def check_image(asked: Asked, family: diffdiff_block.FamilyTraits, prompts: int | None) -> None:
    """Refuses images that cannot be edited."""
    image, transparent = asked.get("image"), asked.lays_over is not None
    count, *_ = diffdiff_picture_checks.image_geometry(image, transparent)
    if family.references and count > 1:
        which = "a change map keeps one image, and which is not clear. Give one"
        raise BadInputError(f"`image` holds {count}, which this model takes as references of one picture; {which}.")
    diffdiff_asked.check_count("image", count, prompts or count)


def check_latents(components, asked: Asked, family: diffdiff_block.FamilyTraits, prompts: int | None) -> None:
    """Refuses latents given as the original that are not latents, or have another size than the picture."""
    name, original = family.original, asked.get(family.original)
    if original is None:
        refuse(name, original, f"{diffdiff_docs.KINDS[name].takes}, as nothing encodes an image")
    diffdiff_asked.check_count(name, len(original), prompts or len(original))
    config = getattr(getattr(components, "vae", None), "config", {})
    if original.ndim == 5 and "latent_channels" in config:
        refuse(name, original, "a tensor (B, C, h, w), as this model's autoencoder knows no frames")
    channels = config.get("latent_channels", config.get("z_dim", original.shape[1]))
    if not family.references and original.shape[1] != channels:
        refuse(name, original, f"latents of the {channels} channels that this model's autoencoder makes")
    cell = diffdiff_block.cell_of(components)
    canvas = size = tuple(cell * cells for cells in original.shape[-2:])
    if "image" in asked.given:
        size = diffdiff_picture_checks.image_geometry(asked.get("image"), transparent=True)[1:]
        if not asked.lays_over and not asked.reads("image"):  # text encoders of edit models do
            refuse("image", asked.get("image"), f"nothing, as no block encodes it: `{name}` is given")
    size = asked.get("height", size[0]), asked.get("width", size[1])
    least = [most - cell * family.patch for most in canvas]
    if family.sized and not all(low < side <= most for low, side, most in zip(least, size, canvas, strict=True)):
        raise BadInputError(
            f"The picture is {size[0]} x {size[1]} pixels (`height` x `width`, or those of `image`); the latents that "
            f"are given are those of one of {canvas[0]} x {canvas[1]}, padding included."
        )


def check_original(components, asked: Asked, family: diffdiff_block.FamilyTraits, prompts: int | None) -> None:
    """Refuses an original that is missing, or that something would overwrite."""
    encodes = asked.makes(family.original)
    if encodes and "image" not in asked.given:
        raise BadInputError(f"`image` is missing; it takes {diffdiff_docs.KINDS['image'].takes}.")
    if not encodes and asked.get("map_fill", "original") != "original":
        raise BadInputError(f"`map_fill` is {asked.get('map_fill')!r}, but no block encodes an image.")
    if not encodes:
        check_latents(components, asked, family, prompts)
    if "image" in asked.given:
        check_image(asked, family, prompts)


def check_schedule(scheduler, asked: Asked):
    """Refuses timesteps, sigmas and numbers of steps that the scheduler does not take.

    Returns:
        A scheduler of the same kind, with the schedule that the run will have, or one like it.
    """
    taken = inspect.signature(scheduler.set_timesteps).parameters
    given = {name: asked.get(name) for name in ("timesteps", "sigmas") if name in asked.given}
    for name in given:
        if name not in taken:
            raise BadInputError(f"`{name}` is given, and {type(scheduler).__name__} does not support custom `{name}`.")
    if len(given) > 1:
        raise BadInputError("`timesteps` and `sigmas` are both given; the schedule takes one of them.")
    trained = scheduler.config.get("num_train_timesteps", math.inf)
    if "timesteps" in given and max(given["timesteps"]) > trained:
        refuse("timesteps", given["timesteps"], f"numbers of at most {trained}, those that the model was trained with")
    given = given or {"num_inference_steps": asked.get("num_inference_steps", 1)}
    ((name, value),) = given.items()
    tried = copy.deepcopy(scheduler)
    # of a shift that follows the image, any will do
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") and "mu" in taken else {}
    try:
        tried.set_timesteps(**given, **shift)
    except Exception as error:
        refuse(name, value, f"what {type(scheduler).__name__} takes, which says: {error}")
    levels = getattr(tried, "sigmas", tried.timesteps)
    if len(tried.timesteps) == 0 or not torch.as_tensor(levels).isfinite().all():
        refuse(name, value, "a schedule of at least one step, all of finite noise")
    return tried


def grid_of(components, asked: Asked, family: diffdiff_block.FamilyTraits) -> tuple[int, int]:
    """Rows and columns of the latents that the original is, or will be, encoded in."""
    original, cell = asked.get(family.original), diffdiff_block.cell_of(components)
    if original is not None:
        return tuple(original.shape[-2:])
    _, height, width = diffdiff_picture_checks.image_geometry(asked.get("image"), transparent=True)
    size = asked.get("height", height), asked.get("width", width)
    _, canvas = diffdiff_pixels.size_and_canvas(*size, cell * family.patch, family.least_side, family.largest_area)
    return tuple(side // cell for side in canvas)


def check_start(components, asked: Asked, family: diffdiff_block.FamilyTraits, outputs: int | None) -> None:
    """Refuses latents that cannot hold the picture's grid, or are more or fewer than the outputs."""
    latents, control, denoiser = asked.get("latents"), asked.get("control_image_latents"), denoiser_of(components)
    if denoiser is None or (latents is None and control is None):
        return
    grid = grid_of(components, asked, family)
    described = f"a grid of {grid[0]} x {grid[1]}"
    if control is not None and (len(control) not in (1, outputs) or control.shape[-2:] != grid):
        refuse("control_image_latents", control, f"{described}, one or {outputs} of it")
    if control is not None and control.dtype != denoiser.dtype:  # upstream does not cast them
        refuse("control_image_latents", control, f"the model's {denoiser.dtype}")
    if latents is not None and not holds(latents, outputs, denoiser.config.in_channels, grid):
        takes = f"{outputs} of {denoiser.config.in_channels} channels, with {described} as the denoising loop sees it"
        refuse("latents", latents, takes)


def holds(latents: torch.Tensor, outputs: int | None, channels: int, grid: tuple[int, int]) -> bool:
    """Whether latents, as the loop sees them, are so many with so many channels, and hold a grid."""
    if len(latents) != outputs or latents.shape[2 if latents.ndim == 3 else 1] != channels:
        return False
    try:
        diffdiff_layout.in_loop_form(torch.zeros(1, 1, *grid), latents)
    except BadInputError:
        return False
    return True


class DiffDiffCheckInputsStep(diffdiff_block.DiffDiffBlock):
    """First block: refuses bad input before any model runs. It checks the inputs of other blocks, and takes none."""

    @torch.no_grad()
    def __call__(self, components, state):
        asked = Asked(components, state, DiffDiffCheckInputsStep)
        diffdiff_asked.check_kinds(asked)
        diffdiff_asked.check_makers(asked, self.family)
        self.check(components, state, asked)
        return components, state

    def check(self, components, state, asked: Asked) -> None:
        """Refuses what the blocks that will run cannot work with."""
        diffdiff_asked.check_wiring(asked)
        check_components(components, asked, self.needed_components(components, asked))
        check_map(asked, self.family)
        check_texts(asked, self.family.texts)
        prompts = diffdiff_asked.count_prompts(state)
        check_guidance(components, asked)
        check_sources(asked, prompts)
        check_regions(asked, prompts)
        check_embeddings(components, asked, self.family.embeddings, prompts)
        check_pictures(asked)
        check_overlay(asked)
        check_original(components, asked, self.family, prompts)
        self.check_share(check_schedule(components.scheduler, asked), asked)
        if "control_image" in asked.given:
            self.check_control(components, asked, prompts)
        self.check_start(components, asked, diffdiff_asked.count_outputs(asked, prompts))

    def check_share(self, scheduler, asked: Asked) -> None:
        """Refuses a share of the schedule, which `scheduler` has, that cannot be run."""

    def check_start(self, components, asked: Asked, outputs: int | None) -> None:
        check_start(components, asked, self.family, outputs)

    def needed_components(self, components, asked: Asked) -> tuple[str, ...]:
        return MODELS

    def check_control(self, components, asked: Asked, prompts: int | None) -> None:
        """Refuses control images that the ControlNet, or each of several, does not take."""
        control = asked.get("control_image")
        for batch in control if hasattr(unwrap_module(components.controlnet), "nets") else [control]:
            diffdiff_picture_checks.check_control(batch, prompts)


class DiffDiffCheckNoMapStep(diffdiff_block.DiffDiffBlock):
    """In front of blocks that run without a change map: refuses inputs that need one.

    Args:
        map_inputs: The inputs that only apply with a map.
    """

    def __init__(self, map_inputs: tuple[InputParam, ...] = ()):
        self.map_inputs = map_inputs
        super().__init__()

    @torch.no_grad()
    def __call__(self, components, state):
        for param in self.map_inputs:
            value = state.get(param.name)
            if value is not None and (param.default is None or value != param.default):
                why = "it only applies with a `diffdiff_map`, and no map is given"
                raise BadInputError(f"`{param.name}` is {diffdiff_refusals.describe(value)}; {why}.")
        return components, state
