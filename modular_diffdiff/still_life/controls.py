"""Control images of scenes, as the ControlNets of `still_life` were trained on them; needs `pip install kornia`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import PIL.Image
import torch
from kornia.filters import canny

from . import scene as scenes


# What `control_mode` counts, in the order of the ControlNet-Union's task embeddings.
CONTROL_TYPES = ("edges", "depth")
LOW, HIGH = 0.1, 0.2  # of the gradient's magnitude, for values in [0, 1]


def edge_masks(pictures: np.ndarray) -> np.ndarray:
    """Canny's edges (Canny 1986): (B, H, W) bool of pictures (B, H, W, 3) uint8."""
    pixels = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2) / 255
    return canny(pixels, LOW, HIGH)[1][:, 0].numpy() > 0


def edges(picture: np.ndarray | PIL.Image.Image) -> PIL.Image.Image:
    """White lines on black where Canny sees edges of a picture, (H, W, 3) uint8 or PIL: a control image."""
    mask = edge_masks(np.asarray(picture)[None])[0]
    return PIL.Image.fromarray((255 * mask).astype(np.uint8)).convert("RGB")


def outline(scene: scenes.Scene) -> PIL.Image.Image:
    """The edges of a scene's object alone, on an empty ground."""
    return edges(scenes.render(replace(scene, background="plain")))


def depth(scene: scenes.Scene) -> PIL.Image.Image:
    """The depth of a scene's object: white is near, black is the background."""
    return PIL.Image.fromarray(scenes.depth(scene)).convert("RGB")
