"""What is refused before any model runs, for every model family."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from diffusers.utils.torch_utils import unwrap_module

from . import (
    diffdiff_block,
    diffdiff_docs,
    diffdiff_layout,
    diffdiff_loop,
    diffdiff_map,
    diffdiff_pixels,
    diffdiff_refusals,
)


# Further text encoders of a family, and adapters, may be missing.
MODELS = ("transformer", "unet", "vae", "scheduler", "text_encoder", "tokenizer", "processor")
# What would be encoded in the image's place or move it under the map, and inpainting's own.
NOT_WITH_A_MAP = ("resized_image", "preprocess_kwargs", "padding_mask_crop")
NOT_WITH_A_MAP += ("processed_mask_image", "masked_image_latents", "mask_overlay_kwargs")
# Features of embeddings, as denoisers call them in their configurations.
FEATURES = {
    "prompt_embeds": ("cross_attention_dim", "joint_attention_dim", "cap_feat_dim"),
    "pooled_prompt_embeds": ("pooled_projection_dim",),
}
# Made by our blocks for one another: the block of ours that makes it.
MAKERS = {"placement": "DiffDiffReadMapStep"} | dict.fromkeys(diffdiff_loop.TRAJECTORY_INPUTS, "DiffDiffPrepareStep")

BadInputError, refuse = diffdiff_refusals.BadInputError, diffdiff_refusals.refuse


class Asked:
    """What a run is asked for.

    Attributes:
        given: The inputs that are not None, defaults included.
        executed: The blocks that run for them.
        ahead: Those of them behind our check.
        following: All blocks that can run behind it, of every branch.
    """

    def __init__(self, components, state):
        self.given = {name: value for name, value in state.values.items() if value is not None}
        self.executed = components.blocks.get_execution_blocks(**self.given)
        self.blocks = list(self.executed.sub_blocks.values())
        checks = [place for place, block in enumerate(self.blocks) if isinstance(block, DiffDiffCheckInputsStep)]
        self.ahead = self.blocks[checks[0] + 1 :]
        self.following = _following(components.blocks)
        self.get = self.given.get

    def makes(self, name: str) -> bool:
        """Whether a block makes this value from others; passing it on does not count."""
        return any(name in block.intermediate_output_names and name not in block.input_names for block in self.blocks)

    def reads(self, name: str) -> bool:
        """Whether a block works with this value; passing it on does not count."""
        return any(name in block.input_names and name not in block.intermediate_output_names for block in self.blocks)

    @property
    def lays_over(self) -> str | None:
        """The input that asks for the original's pixels."""
        return "overlay" if self.get("overlay") else "padding_map_crop" if "padding_map_crop" in self.given else None


def _following(block) -> list:
    """The blocks behind our check in the sequence that holds it, without those that hold others."""
    children = list(block.sub_blocks.values())
    places = [place for place, child in enumerate(children) if isinstance(child, DiffDiffCheckInputsStep)]
    if places:
        return [leaf for child in children[places[0] + 1 :] for leaf in _leaves(child)]
    return next(filter(None, map(_following, children)), [])


def _leaves(block) -> list:
    """A block's blocks; a loop is one."""
    if isinstance(block, LoopSequentialPipelineBlocks) or not block.sub_blocks:
        return [block]
    return [leaf for child in block.sub_blocks.values() for leaf in _leaves(child)]


def count_prompts(state) -> int | None:
    """The number of prompts, or of their embeddings; None where the model takes none."""
    texts = state.get("prompt")
    if texts is not None:
        return 1 if isinstance(texts, str) else len(texts)
    names = sorted((name for name in state.values if name.endswith("prompt_embeds")), key=len)  # negative ones last
    return next((len(state.get(name)) for name in names if state.get(name) is not None), None)


def check_count(name: str, count: int, prompts: int) -> None:
    if count not in (1, prompts):
        one_each = f" or {prompts}, one for each prompt" if prompts > 1 else ", as there is one prompt"
        raise BadInputError(f"`{name}` holds {count}; it takes 1{one_each}.")


def check_kinds(asked: Asked) -> None:
    """Refuses single values of another kind or range than `diffdiff_docs.KINDS` says."""
    for name, value in asked.given.items():
        kind = diffdiff_docs.KINDS.get(name)
        if kind is not None and not kind.accepts(value):
            refuse(name, value, kind.takes)


def check_makers(asked: Asked, family: diffdiff_block.FamilyTraits) -> None:
    """Refuses values that a block would overwrite before any other reads them.

    What users are not meant to give is refused where a block can make it, whether or not that one runs this time.
    """
    given = asked.given.keys() - {family.area, *family.fixed}  # their defaults are not the user's
    internal = {name for name in given if not is_for_users(name)}
    for block in asked.following:
        check_unmade(block, internal)
    unread = given - internal
    for block in asked.ahead:
        made, read = set(block.intermediate_output_names), set(block.input_names)
        check_unmade(block, unread)
        # ours pass on what they take and give
        unread -= read - made if isinstance(block, diffdiff_block.DiffDiffBlock) else read


def check_unmade(block, names: set[str]) -> None:
    """Refuses what a block makes from others."""
    for name in names & set(block.intermediate_output_names) - set(block.input_names):
        instead = f"leave it out, or take `{type(block).__name__}` out of the blocks (`without_encoders`)"
        raise BadInputError(f"`{name}` is given, but a block makes it, and would overwrite it: {instead}.")


def is_for_users(name: str) -> bool:
    """Whether this is an input, and not what blocks make for one another."""
    return name in diffdiff_docs.KINDS and diffdiff_docs.KINDS[name].takes != ""


def check_wiring(asked: Asked) -> None:
    """Refuses blocks of ours whose input is made by a block that was taken out."""
    made = set(asked.given)
    for block in asked.blocks:
        lost = [name for name in MAKERS if name in block.required_inputs and name not in made]
        if lost:
            needs = f"`{type(block).__name__}` needs {', '.join(f'`{name}`' for name in lost)}"
            raise BadInputError(f"{needs}, and no block before it makes that: `{MAKERS[lost[0]]}` does.")
        made.update(block.intermediate_output_names)


def check_components(components, asked: Asked, needed: tuple[str, ...]) -> None:
    """Refuses missing components by name, and schedulers that noise nothing."""
    if "control_image" in asked.given and getattr(components, "controlnet", None) is None:
        instead = "set one with `pipe.update_components(controlnet=...)`"
        raise BadInputError(f"`control_image` is given, but no ControlNet is loaded; {instead}.")
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
    if not asked.makes("diffdiff_map") and "diffdiff_map" not in asked.given:
        diffdiff_map.load_maps(None)
    for name in NOT_WITH_A_MAP:
        if name in asked.given and not (name.endswith("kwargs") and asked.get(name) == {}):
            refuse(name, asked.get(name), "nothing with a `diffdiff_map`, which would be elsewhere")
    if asked.get("output_type") == "latent" and not family.latent_output:
        refuse("output_type", "latent", "one of pil, np, pt with this model, whose decoder gives pictures alone")
    if "mask_image" in asked.given:
        instead = "a mask is a map of black and white, with `invert_diffdiff_map=True`"
        raise BadInputError(f"`mask_image` is given together with `diffdiff_map`: both say what changes; {instead}.")


def check_overlay(asked: Asked) -> None:
    """Refuses overlays and boxes that there is nothing for, or whose blocks are gone."""
    lays_over = asked.lays_over
    if lays_over is None:
        if asked.get("overlay_feather"):
            raise BadInputError("`overlay_feather` is given, but there is no `overlay` for it.")
        return
    if "image" not in asked.given:
        raise BadInputError(f"`{lays_over}` needs the `image` whose pixels come back.")
    if asked.get("output_type") == "latent":
        raise BadInputError(f"`{lays_over}` needs pictures; `output_type` is 'latent'.")
    if "padding_map_crop" not in asked.given:
        return
    cuts = any({"padding_map_crop", "image"} <= set(block.input_names) for block in asked.blocks)
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
    needed = {name for block in asked.blocks for name in block.required_inputs}
    for name in names:
        value, kind = asked.get(name), diffdiff_docs.KINDS.get(name)
        if value is None and name in needed and not asked.makes(name):
            refuse(name, value, f"{kind.takes}, as nothing encodes a prompt" if kind else "a row for each prompt")
        if value is not None:
            check_count(name, len(value), prompts)
            check_features(components, name, value)
            check_mask(asked, name, value)


def check_features(components, name: str, value: torch.Tensor | list[torch.Tensor]) -> None:
    """Refuses embeddings of another width than the denoiser reads."""
    config = denoiser_of(components).config
    known = FEATURES.get(name.removeprefix("negative_"), ())
    wanted = next((config[key] for key in known if config.get(key) is not None), None)
    widths = {row.shape[-1] for row in value}
    if wanted is not None and widths != {wanted}:
        refuse(name, value, f"embeddings of the {wanted} features that this model reads")


def check_mask(asked: Asked, name: str, value: torch.Tensor | list[torch.Tensor]) -> None:
    """Refuses a mask that does not belong to its embeddings."""
    mask = asked.get(f"{name}_mask")
    if mask is not None and isinstance(value, torch.Tensor) and mask.shape != value.shape[:2]:
        refuse(f"{name}_mask", mask, f"the shape {tuple(value.shape[:2])}, prompts and tokens of `{name}`")


def channels_of(vae) -> int:
    """Channels of the latents that an autoencoder makes."""
    return vae.config["latent_channels"] if "latent_channels" in vae.config else vae.config["z_dim"]


def denoiser_of(components):
    """The model that the loop asks."""
    return getattr(components, "transformer", None) or components.unet


def check_image(asked: Asked, family: diffdiff_block.FamilyTraits, prompts: int | None) -> None:
    """Refuses images that cannot be edited."""
    count, *_ = image_geometry(asked.get("image"), transparent=asked.lays_over is not None)
    if family.references and count > 1:
        which = "a change map keeps one image, and which is not clear. Give one"
        raise BadInputError(f"`image` holds {count}, which this model takes as references of one picture; {which}.")
    check_count("image", count, prompts or count)


def check_latents(components, asked: Asked, family: diffdiff_block.FamilyTraits, prompts: int | None) -> None:
    """Refuses latents given as the original that are not latents, or have another size than the picture."""
    name, original = family.original, asked.get(family.original)
    if original is None:
        refuse(name, original, f"{diffdiff_docs.KINDS[name].takes}, as nothing encodes an image")
    check_count(name, len(original), prompts or len(original))
    channels = channels_of(components.vae)
    if not family.references and original.shape[1] != channels:
        refuse(name, original, f"latents of the {channels} channels that this model's autoencoder makes")
    cell = diffdiff_block.cell_of(components)
    canvas = size = tuple(cell * cells for cells in original.shape[-2:])
    if "image" in asked.given:
        size = image_geometry(asked.get("image"), transparent=True)[1:]
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
    for name, value in given.items():
        if name not in taken:
            refuse(name, value, f"nothing with {type(scheduler).__name__}, which has its own spacing")
    if len(given) > 1:
        raise BadInputError("`timesteps` and `sigmas` are both given; the schedule takes one of them.")
    trained = scheduler.config.num_train_timesteps
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
    _, height, width = image_geometry(asked.get("image"), transparent=True)
    size = asked.get("height", height), asked.get("width", width)
    _, canvas = diffdiff_pixels.size_and_canvas(*size, cell * family.patch, family.least_side, family.largest_area)
    return tuple(side // cell for side in canvas)


def check_start(components, asked: Asked, family: diffdiff_block.FamilyTraits, outputs: int | None) -> None:
    """Refuses latents that cannot hold the picture's grid, or are more or fewer than the outputs."""
    grid, latents, control = (
        grid_of(components, asked, family),
        asked.get("latents"),
        asked.get("control_image_latents"),
    )
    described = f"a grid of {grid[0]} x {grid[1]}"
    if control is not None and (len(control) not in (1, outputs) or control.shape[-2:] != grid):
        refuse("control_image_latents", control, f"{described}, one or {outputs} of it")
    if latents is None:
        return
    channels = denoiser_of(components).config.in_channels
    fits = len(latents) == outputs and latents.shape[2 if latents.ndim == 3 else 1] == channels
    try:
        diffdiff_layout.in_loop_form(torch.zeros(1, 1, *grid), latents)
    except BadInputError:
        fits = False
    if not fits:
        refuse("latents", latents, f"{outputs} of {channels} channels, with {described} as the denoising loop sees it")


def image_geometry(image: Any, transparent: bool = False) -> tuple[int, int, int]:
    """Count, height and width of an image or of a batch of equal size; refuses anything else.

    Images may be `transparent` where their alpha is given back; no model sees it.
    """
    kind = diffdiff_docs.KINDS["image"]
    if not kind.accepts(image):
        refuse("image", image, kind.takes)
    images = image if isinstance(image, list) else [image]
    counts, sizes = zip(*(_count_and_size(item, transparent) for item in images), strict=True)
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sorted(set(sizes)))
        raise BadInputError(f"`image` holds images of different sizes ({listed}); a batch takes one size.")
    return sum(counts), *sizes[0]


def _count_and_size(image: Any, transparent: bool) -> tuple[int, tuple[int, int]]:
    if isinstance(image, PIL.Image.Image):
        if not transparent and image.has_transparency_data and image.convert("RGBA").getextrema()[-1][0] < 255:
            instead = "flatten it, drop its alpha with `image.convert('RGB')`, or keep it with `overlay=True`"
            refuse("image", image, f"opaque images: {instead}")
        check_bits("image", image)
        return 1, (image.height, image.width)
    pictures = diffdiff_pixels.split_images(image)
    floating = image.dtype.is_floating_point if isinstance(image, torch.Tensor) else image.dtype.kind == "f"
    described = f"`image` is a {type(image).__name__} of shape {tuple(image.shape)} and {image.dtype}"
    axis = -1 if isinstance(image, np.ndarray) else -3
    if image.ndim not in (3, 4) or image.shape[axis] != 3 or not floating:
        raise BadInputError(
            f"{described}; it takes floats with 3 colours: arrays (H, W, 3) or (B, H, W, 3), tensors (3, H, W) or "
            "(B, 3, H, W). Latents go into `image_latents`, with the image's encoder popped from the blocks."
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= -1 and high <= 1):
        raise BadInputError(f"{described} with values from {low:g} to {high:g}; they must lie in [0, 1].")
    return len(pictures), diffdiff_pixels.size_of(pictures[0])


def check_bits(name: str, image: PIL.Image.Image) -> None:
    if image.mode.startswith(("I", "F")):  # a conversion to RGB would clip them
        refuse(name, image, f"8-bit images, not mode {image.mode!r}; scale it to one first")


def check_control(control: Any, prompts: int | None) -> None:
    """Refuses what is no control image or would be clipped, and more or fewer than there are prompts."""
    pictures = diffdiff_pixels.split_images(control)
    for picture in pictures:
        if isinstance(picture, PIL.Image.Image):
            check_bits("control_image", picture)
            continue
        axis, values = (-1 if isinstance(picture, np.ndarray) else -3), diffdiff_pixels.as_tensor(picture)
        if picture.ndim != 3 or picture.shape[axis] != 3:
            refuse("control_image", picture, "3 colours: arrays (H, W, 3) or (B, H, W, 3), tensors (3, H, W) or such")
        if not values.is_floating_point() or not values.isfinite().all():  # inpainting ControlNets take -1 too
            described = f"{type(picture).__name__} of {picture.dtype} from {values.min():g} to {values.max():g}"
            refuse("control_image", described, "finite floats, or PIL images")
    check_count("control_image", len(pictures), prompts or len(pictures))


def count_outputs(asked: Asked, prompts: int | None) -> int | None:
    """Number of outputs, and a check that the generators are as many; None where it cannot be told."""
    per_prompt, generator = asked.get("num_images_per_prompt", 1), asked.get("generator")
    outputs = None if prompts is None else prompts * per_prompt
    if isinstance(generator, list) and outputs not in (None, len(generator)):
        one_each = f"one for each output ({prompts} prompts x {per_prompt} images)"
        given = f"`generator` is a list of {len(generator)}"
        raise BadInputError(f"{given}; it takes one generator, or {outputs}: {one_each}.")
    return outputs


class DiffDiffCheckInputsStep(diffdiff_block.DiffDiffBlock):
    """First block: refuses bad input before any model runs. It looks at the inputs of other blocks, and has none."""

    @torch.no_grad()
    def __call__(self, components, state):
        asked = Asked(components, state)
        check_kinds(asked)
        check_makers(asked, self.family)
        self.check(components, state, asked)
        return components, state

    def check(self, components, state, asked: Asked) -> None:
        """Refuses what the blocks that will run cannot work with."""
        check_wiring(asked)
        check_components(components, asked, self.needed_components(components, asked))
        check_map(asked, self.family)
        check_texts(asked, self.family.texts)
        prompts = count_prompts(state)
        check_embeddings(components, asked, self.family.embeddings, prompts)
        check_overlay(asked)
        check_original(components, asked, self.family, prompts)
        check_schedule(components.scheduler, asked)
        if "control_image" in asked.given:
            self.check_control(components, asked, prompts)
        self.check_start(components, asked, count_outputs(asked, prompts))

    def check_start(self, components, asked: Asked, outputs: int | None) -> None:
        check_start(components, asked, self.family, outputs)

    def needed_components(self, components, asked: Asked) -> tuple[str, ...]:
        return MODELS

    def check_control(self, components, asked: Asked, prompts: int | None) -> None:
        """Refuses control images that the ControlNet, or each of several, does not take."""
        control = asked.get("control_image")
        for batch in control if hasattr(unwrap_module(components.controlnet), "nets") else [control]:
            check_control(batch, prompts)


class DiffDiffCheckNoMapStep(diffdiff_block.DiffDiffBlock):
    """In front of blocks that run without a change map: refuses what means something only with one.

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
                raise BadInputError(f"`{param.name}` is {value!r}; {why}.")
        return components, state
