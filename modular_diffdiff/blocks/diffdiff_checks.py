"""What is refused before any model runs, for every model family."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from diffusers.utils.torch_utils import unwrap_module

from . import diffdiff_block, diffdiff_loop, diffdiff_map, diffdiff_pixels, diffdiff_refusals


# Further text encoders of a family, and adapters, may be missing.
MODELS = ("transformer", "unet", "vae", "scheduler", "text_encoder", "tokenizer", "processor")
# What whole numbers must at least be, and what words are taken.
LEAST = {"num_inference_steps": 1, "num_images_per_prompt": 1, "height": 1, "width": 1}
LEAST |= {"overlay_feather": 0, "padding_map_crop": 0}
CHOICES = {"diffdiff_schedule": tuple(diffdiff_map.SCHEDULES), "output_type": ("pil", "np", "pt", "latent")}
# Made by our blocks for one another: the block of ours that makes it.
MAKERS = {"placement": "DiffDiffReadMapStep"} | dict.fromkeys(diffdiff_loop.TRAJECTORY_INPUTS, "DiffDiffPrepareStep")

BadInputError, refuse = diffdiff_refusals.BadInputError, diffdiff_refusals.refuse


class Asked:
    """What a run is asked for.

    Attributes:
        given: The inputs that are not None, defaults included.
        executed: The blocks that run for them.
    """

    def __init__(self, components, state):
        self.given = {name: value for name, value in state.values.items() if value is not None}
        self.executed = components.blocks.get_execution_blocks(**self.given)
        self.blocks = list(self.executed.sub_blocks.values())
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


def check_values(asked: Asked) -> None:
    """Refuses single values of another kind or range than they can have."""
    for name, least in LEAST.items():
        value = asked.get(name, least)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            refuse(name, value, f"a whole number of at least {least}")
    for name, choices in CHOICES.items():
        if asked.get(name, choices[0]) not in choices:
            refuse(name, asked.get(name), f"one of {', '.join(choices)}")
    strength, overlay = asked.get("strength", 1), asked.get("overlay", False)
    if not isinstance(strength, Real) or isinstance(strength, bool) or not 0 <= strength <= 1:
        refuse("strength", strength, "a number in [0, 1]")
    if not isinstance(overlay, bool):
        refuse("overlay", overlay, "True or False")


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


def check_map(asked: Asked) -> None:
    if not asked.makes("diffdiff_map") and "diffdiff_map" not in asked.given:
        diffdiff_map.load_maps(None)
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
    if not isinstance(prompt, (str, list)) or not prompt or not all(isinstance(text, str) for text in prompt):
        refuse("prompt", prompt, "a text, or a list of texts that is not empty")
    prompts = 1 if isinstance(prompt, str) else len(prompt)
    for name in texts:
        text = asked.get(name, "")
        if not isinstance(text, (str, list)):
            refuse(name, text, "a text, or a list of texts")
        if isinstance(text, list) and len(text) != prompts:
            raise BadInputError(f"`{name}` holds {len(text)}; it takes a text, or {prompts}: one for each prompt.")


def check_embeddings(asked: Asked, names: tuple[str, ...], prompts: int | None) -> None:
    """Refuses embeddings that are missing, that would be overwritten, or that are more or fewer than prompts."""
    needed = {name for block in asked.blocks for name in block.required_inputs}
    for name in names:
        value = asked.get(name)
        if asked.makes(name):
            if value is not None:
                instead = "pop `text_encoder` from the blocks"
                raise BadInputError(f"`{name}` is given, but `text_encoder` would overwrite it: {instead}.")
        elif value is not None or name in needed:
            if not isinstance(value, (torch.Tensor, list)) or len(value) == 0:
                refuse(name, value, "embeddings, a row for each prompt, as nothing encodes a prompt")
            check_count(name, len(value), prompts)


def check_image(asked: Asked, family: diffdiff_block.FamilyTraits, prompts: int | None) -> None:
    """Refuses images that cannot be edited."""
    count, *_ = image_geometry(asked.get("image"), transparent=asked.lays_over is not None)
    if family.references and count > 1:
        which = "a change map keeps one image, and which is not clear. Give one"
        raise BadInputError(f"`image` holds {count}, which this model takes as references of one picture; {which}.")
    check_count("image", count, prompts or count)


def check_latents(asked: Asked, family: diffdiff_block.FamilyTraits, cell: int, prompts: int | None) -> None:
    """Refuses latents given as the original that are not latents, or have another size than the picture."""
    name, original = family.original, asked.get(family.original)
    if not isinstance(original, torch.Tensor) or original.ndim not in (4, 5):
        described = tuple(original.shape) if isinstance(original, torch.Tensor) else original
        refuse(name, described, "a tensor of shape (B, C, h, w) or (B, C, 1, h, w), as nothing encodes an image")
    check_count(name, len(original), prompts or len(original))
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


def check_original(asked: Asked, family: diffdiff_block.FamilyTraits, cell: int, prompts: int | None) -> None:
    """Refuses an original that is missing, or that something would overwrite."""
    name, encodes = family.original, asked.makes(family.original)
    if encodes and name in asked.given:
        raise BadInputError(f"`{name}` is given, but the image's encoder would overwrite it: pop it from the blocks.")
    if encodes and "image" not in asked.given:
        raise BadInputError("`image` is missing; it takes PIL images, numpy arrays or tensors.")
    if not encodes:
        check_latents(asked, family, cell, prompts)
    if "image" in asked.given:
        check_image(asked, family, prompts)


def image_geometry(image: Any, transparent: bool = False) -> tuple[int, int, int]:
    """Count, height and width of an image or of a batch of equal size; refuses anything else.

    Images may be `transparent` where their alpha is given back; no model sees it.
    """
    images = image if isinstance(image, list) else [image]
    if not images:
        refuse("image", image, "an image or a list of them that is not empty")
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
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        refuse("image", image, "PIL images, arrays or tensors; `diffusers.utils.load_image` reads paths and URLs")
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
    for picture in pictures or [control]:
        if isinstance(picture, PIL.Image.Image):
            check_bits("control_image", picture)
        elif isinstance(picture, (np.ndarray, torch.Tensor)):
            values = torch.as_tensor(picture)
            if not values.is_floating_point() or not values.isfinite().all():  # inpainting ControlNets take -1 too
                described = f"{type(picture).__name__} of {picture.dtype} from {values.min():g} to {values.max():g}"
                refuse("control_image", described, "finite floats, or PIL images")
        else:
            refuse("control_image", picture, "a PIL image, array or tensor, or a list of these that is not empty")
    check_count("control_image", len(pictures), prompts or len(pictures))


def count_outputs(asked: Asked, prompts: int | None) -> int | None:
    """Number of outputs, and a check that the generators are as many; None where it cannot be told."""
    per_prompt, generator = asked.get("num_images_per_prompt", 1), asked.get("generator")
    generators = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in generators):
        refuse("generator", generator, "a `torch.Generator`, or a list of them")
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
        self.check(components, state, Asked(components, state))
        return components, state

    def check(self, components, state, asked: Asked) -> None:
        """Refuses what the blocks that will run cannot work with."""
        check_wiring(asked)
        check_components(components, asked, self.needed_components(components, asked))
        check_values(asked)
        check_map(asked)
        check_texts(asked, self.family.texts)
        prompts = count_prompts(state)
        check_embeddings(asked, self.family.embeddings, prompts)
        check_overlay(asked)
        check_original(asked, self.family, getattr(components, "vae_scale_factor", 1), prompts)
        if "control_image" in asked.given:
            self.check_control(components, asked, prompts)
        count_outputs(asked, prompts)

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
