"""In front of any family's blocks: what cannot work is refused, and prompts, images and sizes fit each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from . import diffdiff_checks, diffdiff_docs, diffdiff_map, diffdiff_pixels


# Denoisers take patches of 2 x 2 latent elements.
PATCH = 2
# Further text encoders of a family, and adapters, may be missing.
MODELS = ("transformer", "unet", "vae", "scheduler", "text_encoder", "tokenizer", "processor")


def read_texts(block_state, names: tuple[str, ...]) -> int | None:
    """The number of prompts, or None where none is given (their embeddings are).

    Raises:
        ValueError: If a text is none, or there are more or fewer than prompts.
    """
    prompt = getattr(block_state, "prompt", None)  # there are models without one
    if prompt is None:
        return None
    if not isinstance(prompt, (str, list)) or not prompt or not all(isinstance(text, str) for text in prompt):
        diffdiff_checks.refuse("prompt", prompt, "a text, or a list of texts that is not empty")
    prompts = 1 if isinstance(prompt, str) else len(prompt)
    for name in names:
        text = getattr(block_state, name)
        if text is not None and not isinstance(text, (str, list)):
            diffdiff_checks.refuse(name, text, "a text, or a list of texts")
        if isinstance(text, list) and len(text) != prompts:
            raise ValueError(f"`{name}` holds {len(text)}; it takes a text, or {prompts}: one for each prompt.")
    return prompts


class DiffDiffCheckInputsStep(ModularPipelineBlocks):
    """First block: refuses what cannot work, before any model runs, and reads the change maps.

    Args:
        texts: Names of the inputs that hold a text for each prompt, `prompt` among them.
        references: Whether a list of images is several references of one picture.
    """

    def __init__(self, texts: tuple[str, ...] = ("prompt",), references: bool = False):
        self.texts = texts
        self.references = references
        super().__init__()

    @property
    def description(self) -> str:
        return "Step that refuses bad input before any model runs, naming it, and reads the change maps."

    @property
    def inputs(self) -> list[InputParam]:
        names = (
            *self.texts,
            "invert_diffdiff_map",
            "strength",
            "diffdiff_schedule",
            "num_images_per_prompt",
            "generator",
            "height",
            "width",
            "overlay",
            "overlay_feather",
            "padding_map_crop",
            "mask_image",
        )
        return [
            *(diffdiff_docs.input_param(name, required=True) for name in ("image", "diffdiff_map")),
            *(diffdiff_docs.input_param(name) for name in names),
        ]

    @torch.no_grad()
    def __call__(self, components, state):
        for name, takes in (("image", "PIL images, numpy arrays or tensors"), ("diffdiff_map", diffdiff_map.ACCEPTED)):
            if state.get(name) is None:
                raise ValueError(f"`{name}` is missing; it takes {takes}.")
        block_state = self.get_block_state(state)
        given = {name: value for name, value in state.values.items() if value is not None}
        executed = components.blocks.get_execution_blocks(**given)
        # of some workflows alone
        block_state.output_type, block_state.control_image = state.get("output_type"), state.get("control_image")
        self.check(components, block_state, executed, state.get("num_inference_steps"))

        # as it counts: a URL is fetched once, and what comes later has one map to read
        keeps = diffdiff_map.load_maps(block_state.diffdiff_map)
        diffdiff_checks.check_count("diffdiff_map", len(keeps), self.prompts(block_state) or len(keeps))
        if block_state.invert_diffdiff_map:
            keeps = [1 - keep for keep in keeps]
        block_state.diffdiff_map = [diffdiff_map.turn_down(keep, block_state.strength) for keep in keeps]
        # the whole schedule runs, and the map alone decides where on it
        block_state.invert_diffdiff_map, block_state.strength = False, 1.0
        self.set_block_state(state, block_state)
        return components, state

    def prompts(self, block_state) -> int | None:
        return read_texts(block_state, self.texts)

    def check(self, components, block_state, executed: ModularPipelineBlocks, steps: Any) -> None:
        """Refuses what the blocks that will run cannot work with."""
        if block_state.mask_image is not None:
            raise ValueError(
                "`mask_image` is given together with `diffdiff_map`: both say what changes. A mask is a map of black "
                "and white, with `invert_diffdiff_map=True`."
            )
        missing = [name for name in MODELS if name in executed.component_names and getattr(components, name) is None]
        if missing:
            raise ValueError(
                f"These components are not loaded: {', '.join(missing)}. Load them with `pipe.load_components()`, or "
                f"set them with `pipe.update_components({missing[0]}=...)`."
            )
        scheduler = components.scheduler
        if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
            takes = "one with `add_noise` or `scale_noise`, e.g. `FlowMatchEulerDiscreteScheduler`"
            diffdiff_checks.refuse("scheduler", type(scheduler).__name__, takes)
        if steps is not None:
            diffdiff_checks.check_whole_number("num_inference_steps", steps, 1)
        diffdiff_checks.check_map_settings(block_state)
        diffdiff_checks.check_pixels(block_state, executed)
        prompts = self.prompts(block_state)
        self.check_image(block_state, prompts)
        if block_state.control_image is not None:
            self.check_control(components, block_state, prompts)
        if block_state.output_type is not None:
            diffdiff_checks.check_output_type(block_state.output_type)
        if prompts is None:
            diffdiff_checks.check_whole_number("num_images_per_prompt", block_state.num_images_per_prompt, 1)
        else:
            diffdiff_checks.count_outputs(block_state, prompts)

    def check_control(self, components, block_state, prompts: int | None) -> None:
        if "controlnet" in components.component_names and components.controlnet is None:
            raise ValueError(
                "`control_image` is given, but no ControlNet is loaded; set one with "
                "`pipe.update_components(controlnet=...)`."
            )
        controls = diffdiff_pixels.split_images(block_state.control_image)
        for picture in controls:
            diffdiff_checks.check_control_picture(picture)
        if prompts is not None and not has_several_controlnets(components):
            diffdiff_checks.check_count("control_image", len(controls), prompts)

    def check_image(self, block_state, prompts: int | None) -> None:
        lays_over = block_state.overlay or block_state.padding_map_crop is not None
        count, *_ = diffdiff_checks.image_geometry(block_state.image, transparent=lays_over)
        if self.references and count > 1:
            raise ValueError(
                f"`image` holds {count}, which this model takes as references of one picture; a change map keeps one "
                "image, and which is not clear. Give one."
            )
        if prompts is not None:
            diffdiff_checks.check_count("image", count, prompts)
        for name in ("height", "width"):
            if getattr(block_state, name) is not None:
                diffdiff_checks.check_whole_number(name, getattr(block_state, name), 1)


def has_several_controlnets(components) -> bool:
    """Whether a list of control images holds one for each ControlNet, and not for each prompt."""
    return hasattr(getattr(components, "controlnet", None), "nets")


def as_picture(image: Any) -> PIL.Image.Image:
    """A PIL image in RGB of an image of any accepted kind; floats are rounded to 8 bits."""
    if isinstance(image, torch.Tensor):
        image = image.permute(1, 2, 0).float().cpu().numpy()
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(np.rint(255 * image).astype(np.uint8))
    return image.convert("RGB")


def bring_to(picture: PIL.Image.Image, size: tuple[int, int], canvas: tuple[int, int]) -> PIL.Image.Image:
    """Resizes a picture to a size (height, width), and pads it to a canvas on the right and below, by reflection."""
    if (picture.height, picture.width) != size:
        picture = VaeImageProcessor(vae_scale_factor=1).resize(picture, *size)
    if size == canvas:
        return picture
    below, right = canvas[0] - size[0], canvas[1] - size[1]
    return PIL.Image.fromarray(np.pad(np.asarray(picture), ((0, below), (0, right), (0, 0)), mode="reflect"))


def cut_along(control: PIL.Image.Image, block_state) -> PIL.Image.Image:
    """The part of a control image that belongs to the box of `padding_map_crop`."""
    height, width = diffdiff_pixels.size_of(diffdiff_pixels.split_images(block_state.whole_image)[0])
    if control.size != (width, height):
        described = f"a picture of {control.width} x {control.height} pixels"
        diffdiff_checks.refuse("control_image", described, f"the image's {width} x {height} with `padding_map_crop`")
    return diffdiff_pixels.cut(control, block_state.crops_coords)


class DiffDiffFitStep(ModularPipelineBlocks):
    """Brings the batch and the image into one form for all families: a prompt and an image for each output, and an
    image whose sides are whole patches of latents, so that nothing is cut off or stretched on the way.

    Args:
        texts: Names of the inputs that hold a text for each prompt.
        sized: Whether `height` and `width` tell the size of the run; else it follows the image.
        references: Whether a list of images is several references of one picture; one image then serves the batch.
    """

    # What stands for no negative prompt in a batch, of families whose encoder makes one for all and fails later.
    no_negative: str | None = None
    # Sides in pixels that the model's own preprocessing leaves as they are, and the largest area.
    least_side, largest_area = 1, math.inf
    # Inputs of the model's own preprocessing that would stretch what has been fitted, and what they must be.
    overrides: dict[str, Any] = {}

    def __init__(self, texts: tuple[str, ...] = ("prompt",), sized: bool = True, references: bool = False):
        self.texts = texts
        self.sized = sized
        self.references = references
        super().__init__()

    @property
    def description(self) -> str:
        return (
            "Step that gives each output a prompt and an image of its own, and pads the image on the right and below "
            "to whole patches of latents."
        )

    @property
    def inputs(self) -> list[InputParam]:
        names = (*self.texts, "num_images_per_prompt", "height", "width", "whole_image", "crops_coords")
        return [diffdiff_docs.input_param("image", required=True), *map(diffdiff_docs.input_param, names)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [diffdiff_docs.output_param(name) for name in ("image_as_given", "image_size", "padded_size")]

    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        # of the workflows with a ControlNet alone
        block_state.control_image = state.get("control_image")
        block_state.image_as_given = block_state.image
        self.fit_size(block_state, PATCH * diffdiff_pixels.cell_of(components))
        for name, value in self.overrides.items():
            state.set(name, value)
        if not self.references:
            self.fit_batch(
                block_state, ("image",) if has_several_controlnets(components) else ("image", "control_image")
            )
        if block_state.control_image is not None:
            state.set("control_image", block_state.control_image)
        self.set_block_state(state, block_state)
        return components, state

    def fit_size(self, block_state, multiple: int) -> None:
        pictures = [as_picture(image) for image in diffdiff_pixels.split_images(block_state.image)]
        height, width = pictures[0].height, pictures[0].width
        size, canvas = self.size_and_canvas(block_state.height or height, block_state.width or width, multiple)
        pictures = [bring_to(picture, size, canvas) for picture in pictures]
        block_state.image = pictures if len(pictures) > 1 else pictures[0]
        if block_state.control_image is not None:
            controls = [as_picture(image) for image in diffdiff_pixels.split_images(block_state.control_image)]
            if block_state.whole_image is not None:
                controls = [cut_along(control, block_state) for control in controls]
            controls = [bring_to(control, size, canvas) for control in controls]
            block_state.control_image = controls if len(controls) > 1 else controls[0]
        block_state.image_size, block_state.padded_size = size, canvas
        block_state.height, block_state.width = canvas if self.sized else (None, None)

    def size_and_canvas(self, height: int, width: int, multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The image's size, smaller where its canvas would exceed `largest_area`, and its size when padded."""
        scale = 1.0
        while True:
            size = tuple(max(round(scale * side), 1) for side in (height, width))
            canvas = tuple(-(-max(side, self.least_side) // multiple) * multiple for side in size)
            if math.prod(canvas) <= self.largest_area:
                return size, canvas
            scale *= min(0.99, math.sqrt(self.largest_area / math.prod(canvas)))

    def fit_batch(self, block_state, pictures_of_prompts: tuple[str, ...]) -> None:
        """What belongs to a prompt stays with it: upstream's families pair prompts and images in ways of their own."""
        prompts = read_texts(block_state, self.texts)
        if prompts is None:
            return
        per_prompt = block_state.num_images_per_prompt
        outputs = prompts * per_prompt
        if outputs == 1:
            return
        for name in self.texts:
            text = getattr(block_state, name)
            if text is None and name == "negative_prompt":
                text = self.no_negative
            if text is not None:
                texts = [text] * prompts if isinstance(text, str) else text
                setattr(block_state, name, [one for one in texts for _ in range(per_prompt)])
        for name in pictures_of_prompts:
            pictures = getattr(block_state, name)
            if pictures is not None:
                pictures = diffdiff_pixels.split_images(pictures)
                setattr(block_state, name, [one for one in pictures for _ in range(outputs // len(pictures))])
        block_state.num_images_per_prompt = 1
