"""The one error for what a user can put right."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import PIL.Image
import torch


class BadInputError(ValueError):
    """An input that the pipeline cannot work with; the message names it, what it got and what it takes."""


def describe(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, PIL.Image.Image):
        return f"a picture of {value.width} x {value.height} pixels and mode {value.mode!r}"
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, list) and value and not isinstance(value[0], (str, int, float)):
        return f"a list of {len(value)}, the first {describe(value[0])}"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def refuse(name: str, value: Any, takes: str) -> NoReturn:
    """Raises a BadInputError for the input `name`."""
    raise BadInputError(f"`{name}` is {describe(value)}; it takes {takes}.")
