"""Front: makes change maps of what models see in the image: what words name, what one points at, and depth."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForMaskGeneration,
    AutoProcessor,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
)

from . import diffdiff_pixels, diffdiff_refusals, diffdiff_sources


# What is less probable everywhere in the picture is not in it.
FOUND = 0.5
BadInputError, refuse = diffdiff_refusals.BadInputError, diffdiff_refusals.refuse


def as_pil(picture: Any) -> PIL.Image.Image:
    """A picture in RGB, as image processors take it."""
    array = diffdiff_pixels.as_array(picture)
    return PIL.Image.fromarray(diffdiff_pixels.to_dtype(array, np.dtype(np.uint8)))


def resize_smoothly(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, 1, h, w) at a size (height, width), float32 on the CPU."""
    return F.interpolate(values.float(), size, mode="bilinear", antialias=True).cpu()


def far_shares(depth: torch.Tensor, is_distance: bool) -> torch.Tensor:
    """(B, 1, H, W) in [0, 1]: how far everything is, from the nearest of each picture (0) to the farthest (1).

    Args:
        depth: Distances, or what falls with the distance, as estimators of relative depth give it.

    Raises:
        BadInputError: If it is not finite.
    """
    if not depth.isfinite().all():
        raise BadInputError("`map_depth` cannot be used: the depth that `depth_estimator` sees is not finite.")
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    shares = (depth - low) / (high - low).clamp(min=1e-6)
    return shares if is_distance else 1 - shares


class DiffDiffModelMapSource(diffdiff_sources.DiffDiffMapSource):
    """A source that asks models, which have no repository of their own: whoever needs them sets them.

    Attributes:
        models: The components, by name, and a model of each that is known to work.
    """

    models: dict[str, tuple[type, str]]

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec(name, kind) for name, (kind, _) in self.models.items()]

    def check_models(self, components) -> None:
        """Refuses to go on without them."""
        for name, (kind, example) in self.models.items():
            if getattr(components, name, None) is None:
                made = f"{kind.__name__}.from_pretrained({example!r})"
                set_it = f"set it with `pipe.update_components({name}={made})`, say"
                raise BadInputError(f"`{self.needs[0]}` is given, but no `{name}` is loaded; {set_it}.")

    def run(self, components, block_state, state) -> None:
        self.check_models(components)
        super().run(components, block_state, state)

    def keep_but(self, found: torch.Tensor, sought: list[str]) -> torch.Tensor:
        """1 - `found`, probabilities (B, 1, H, W); all of a picture where nothing was found, with a warning."""
        seen = found.amax((1, 2, 3)) >= FOUND
        for what in (what for what, was_seen in zip(sought, seen.tolist(), strict=True) if not was_seen):
            warnings.warn(f"`{self.needs[0]}` finds nothing of {what}: the image comes back as it was.", stacklevel=2)
        return torch.where(seen.view(-1, 1, 1, 1), 1 - found, 1)


class DiffDiffMapTextStep(DiffDiffModelMapSource):
    """Makes a change map from words: what they name may change, more where the segmenter is surer; the rest is kept.

    The segmenter is CLIPSeg (Lüddecke and Ecker, arXiv 2112.10003).
    """

    needs, takes = ("map_text",), (*diffdiff_sources.JOINING, "map_text_threshold")
    models = {
        "text_segmenter": (CLIPSegForImageSegmentation, "CIDAS/clipseg-rd64-refined"),
        "text_segmenter_processor": (CLIPSegProcessor, "CIDAS/clipseg-rd64-refined"),
    }

    def make(self, components, block_state, size: tuple[int, int]) -> torch.Tensor:
        pictures = [as_pil(picture) for picture in self.pictures(block_state)]
        texts = block_state.map_text if isinstance(block_state.map_text, list) else [block_state.map_text]
        count = max(len(pictures), len(texts))
        if not {len(pictures), len(texts)} <= {1, count}:
            raise BadInputError(f"`map_text` holds {len(texts)}, and `image` {len(pictures)}: one for each, or one.")
        pictures, texts = pictures * (count // len(pictures)), texts * (count // len(texts))
        found = find_words(components, pictures, texts, size, block_state.map_text_threshold)
        return self.keep_but(found, [repr(text) for text in texts])


def find_words(
    components,
    pictures: list[PIL.Image.Image],
    texts: list[str],
    size: tuple[int, int],
    threshold: float | None,
    name: str = "map_text",
) -> torch.Tensor:
    """(B, 1, height, width): the probability that a pixel shows what the words name, 0 or 1 with a threshold.

    Args:
        pictures: B pictures in RGB.
        texts: What to look for in each of them.
        name: What errors call the texts.

    Raises:
        BadInputError: If a text is longer than the segmenter reads.
    """
    model = components.text_segmenter
    inputs = components.text_segmenter_processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    tokens, most = inputs["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    if tokens > most:
        raise BadInputError(f"`{name}` is {tokens} tokens long; the segmenter reads {most}.")
    inputs = inputs.to(components._execution_device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    logits = model(**inputs).logits
    found = resize_smoothly(logits.float().sigmoid().view(len(texts), 1, *logits.shape[-2:]), size)
    return found if threshold is None else (found >= threshold).float()


class DiffDiffSegmentAnythingSource(DiffDiffModelMapSource):
    """A source that asks a model of SAM's kind (Kirillov et al., arXiv 2304.02643).

    Each picture of a batch is asked for the same objects. Subclasses define `prompts(block_state, size)`, which gives
    what the model's processor takes, for each object.
    """

    models = {
        "mask_generator": (AutoModelForMaskGeneration, "facebook/sam-vit-base"),
        "mask_generator_processor": (AutoProcessor, "facebook/sam-vit-base"),
    }

    def make(self, components, block_state, size: tuple[int, int]) -> torch.Tensor:
        prompts = self.prompts(block_state, size)
        pictures = [as_pil(picture) for picture in self.pictures(block_state)]
        objects = [[segment(components, picture, prompt) for prompt in prompts] for picture in pictures]
        found = torch.stack([torch.stack(masks).amax(0) for masks in objects])
        return self.keep_but(found, ["an object"] * len(pictures))


def segment(components, picture: PIL.Image.Image, prompt: dict[str, list]) -> torch.Tensor:
    """(1, H, W): the probability that a pixel belongs to the object."""
    model, processor = components.mask_generator, components.mask_generator_processor
    inputs = processor(images=picture, return_tensors="pt", **prompt)
    sizes = [inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    inputs = {
        name: value.to(components._execution_device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
    masks = model(**inputs, multimask_output=False).pred_masks.float().cpu()
    (logits,) = processor.post_process_masks(masks, *sizes, binarize=False)
    return logits[0].sigmoid()


class DiffDiffMapPointsStep(DiffDiffSegmentAnythingSource):
    """Makes a change map from points: the objects under them may change, and the rest is kept."""

    needs = ("map_points",)

    def prompts(self, block_state, size: tuple[int, int]) -> list[dict[str, list]]:
        objects = block_state.map_points
        objects = objects if isinstance(objects[0][0], (list, tuple)) else [objects]
        for x, y, *_ in (point for points in objects for point in points):
            if not (x < size[1] and y < size[0]):
                refuse("map_points", (x, y), f"points in the image's {size[1]} x {size[0]} pixels")
        return [
            {
                "input_points": [[[list(point[:2]) for point in points]]],
                "input_labels": [[[point[2] if len(point) == 3 else 1 for point in points]]],
            }
            for points in objects
        ]


class DiffDiffMapBoxesStep(DiffDiffSegmentAnythingSource):
    """Makes a change map from boxes: the object in each may change, and the rest is kept."""

    needs = ("map_boxes",)

    def prompts(self, block_state, size: tuple[int, int]) -> list[dict[str, list]]:
        boxes = block_state.map_boxes
        boxes = boxes if isinstance(boxes[0], (list, tuple)) else [boxes]
        for box in boxes:
            if box[2] > size[1] or box[3] > size[0]:
                refuse("map_boxes", box, f"boxes within the image's {size[1]} x {size[0]} pixels")
        return [{"input_boxes": [[list(box)]]} for box in boxes]


class DiffDiffMapDepthStep(DiffDiffModelMapSource):
    """Makes a change map from depth: the strength rises between the two depths `map_depth=(kept, free)`.

    0 is the nearest depth in the picture and 1 the farthest.
    """

    needs = ("map_depth",)
    models = {
        "depth_estimator": (AutoModelForDepthEstimation, "depth-anything/Depth-Anything-V2-Small-hf"),
        "depth_estimator_processor": (AutoImageProcessor, "depth-anything/Depth-Anything-V2-Small-hf"),
    }

    def make(self, components, block_state, size: tuple[int, int]) -> torch.Tensor:
        pictures = [as_pil(picture) for picture in self.pictures(block_state)]
        model, (kept, free) = components.depth_estimator, block_state.map_depth
        inputs = components.depth_estimator_processor(images=pictures, return_tensors="pt")
        seen = model(inputs["pixel_values"].to(components._execution_device, model.dtype)).predicted_depth
        is_distance = getattr(model.config, "depth_estimation_type", "relative") == "metric"
        shares = far_shares(resize_smoothly(seen[:, None], size), is_distance)
        return 1 - ((shares - kept) / (free - kept)).clamp(0, 1)
