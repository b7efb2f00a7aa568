"""What an input can be: its type, what it takes in words, and the same as a test.

Pure; nothing here knows of pipelines. The words complete "it takes ...", in the documentation and in refusals alike.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch


# Pixels, steps and the like: what is more is a slip of the hand, and would fill any memory.
MOST = 65_536
# Weights and scales: with more, models answer with infinity.
LARGE = 1_000_000


@dataclass(frozen=True)
class Kind:
    """What an input takes.

    Attributes:
        type_hint: Its type, as the documentation shows it.
        takes: The same in words, with the range.
        accepts: Whether a value, which is not None, is one.
    """

    type_hint: Any
    takes: str
    accepts: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether this is an int or float, Python's or NumPy's, and finite."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and abs(value) < math.inf


def is_whole(value: Any) -> bool:
    return is_number(value) and isinstance(value, (int, np.integer))


def is_text(value: Any) -> bool:
    """Whether this is a str that can be written as UTF-8: halves of surrogate pairs cannot."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_dense(value: Any) -> bool:
    """Whether this is a tensor whose values lie in memory, and are one or more."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta and value.numel() > 0


def whole(least: int, most: int = MOST) -> Kind:
    return Kind(int, f"a whole number from {least} to {most}", lambda value: is_whole(value) and least <= value <= most)


def number(low: float = -LARGE, high: float = LARGE) -> Kind:
    return Kind(float, f"a number in [{low}, {high}]", lambda value: is_number(value) and low <= value <= high)


def share(includes_all: bool) -> Kind:
    """A part of the whole, which upstream takes of no other type than float."""

    def accepts(value: Any) -> bool:
        return isinstance(value, float) and (0 < value < 1 or (includes_all and value == 1))

    return Kind(float, f"a float in (0, 1{']' if includes_all else ')'}", accepts)


def function(arguments: str) -> Kind:
    return Kind(Callable[..., Any], f"a function of ({arguments})", callable)


def flag() -> Kind:
    return Kind(bool, "True or False", lambda value: isinstance(value, (bool, np.bool_)))


def choice(*words: str) -> Kind:
    return Kind(str, f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def texts() -> Kind:
    def accepts(value: Any) -> bool:
        return is_text(value) or (isinstance(value, list) and len(value) > 0 and all(map(is_text, value)))

    return Kind(str | list[str], "a text, or a list of texts that is not empty", accepts)


def names() -> Kind:
    """Texts that say something."""

    def accepts(value: Any) -> bool:
        return texts().accepts(value) and all(map(is_name, value if isinstance(value, list) else [value]))

    return Kind(str | list[str], "a text that is not blank, or a list of these", accepts)


def is_name(value: Any) -> bool:
    """Whether this is a text that says something."""
    return is_text(value) and bool(value.strip())


def for_regions(plural: str, kind: type, accepts_one: Callable[[Any], bool]) -> Kind:
    """One value for each region, or a list of these for each image."""

    def is_list(value: Any, accepts_each: Callable[[Any], bool]) -> bool:
        return isinstance(value, list) and len(value) > 0 and all(map(accepts_each, value))

    def accepts(value: Any) -> bool:
        return is_list(value, accepts_one) or is_list(value, lambda one: is_list(one, accepts_one))

    takes = f"a list of {plural}, one for each region, or a list of such lists, one for each image"
    return Kind(list[kind] | list[list[kind]], takes, accepts)


def pair() -> Kind:
    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))

    return Kind(tuple[int, int], "a pair of numbers, a tuple", accepts)


def span(takes: str, least: float) -> Kind:
    """Two numbers from 0 to 1, the second one larger by at least so much."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(map(is_number, value)):
            return False
        low, high = value
        return 0 <= low <= high <= 1 and high - low >= least

    return Kind(tuple[float, float], takes, accepts)


def rising(least: int, most: int) -> Kind:
    """Numbers from 0 to 1, each larger than the one before."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or not least <= len(value) <= most or not all(map(is_number, value)):
            return False
        return value[0] >= 0 and value[-1] <= 1 and all(low < high for low, high in itertools.pairwise(value))

    return Kind(tuple[float, ...], f"{least} to {most} rising numbers in [0, 1]", accepts)


def depths() -> Kind:
    def accepts(value: Any) -> bool:
        numbers = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(is_number, value))
        return numbers and all(0 <= one <= 1 for one in value) and abs(value[0] - value[1]) >= 0.001

    return Kind(tuple[float, float], "two numbers in [0, 1] that differ by 0.001 or more", accepts)


def direction() -> Kind:
    def accepts(value: Any) -> bool:
        return value == "radial" if isinstance(value, str) else is_number(value)

    return Kind(float | str, "an angle in degrees, 0 to the right and 90 upwards, or 'radial'", accepts)


def points() -> Kind:
    def is_point(value: Any) -> bool:
        listed = isinstance(value, (tuple, list)) and len(value) in (2, 3) and all(map(is_number, value))
        return listed and min(value[:2]) >= 0 and all(label in (0, 1) for label in value[2:])

    def lists(kind: Callable[[Any], bool], value: Any) -> bool:
        return isinstance(value, (tuple, list)) and len(value) > 0 and all(map(kind, value))

    def accepts(value: Any) -> bool:
        return lists(is_point, value) or lists(functools.partial(lists, is_point), value)

    takes = "a list of points (x, y) in pixels, or (x, y, 0) for one that is not on it, or a list of such lists"
    return Kind(list[tuple[int, ...]] | list[list[tuple[int, ...]]], takes, accepts)


def box() -> Kind:
    def accepts(value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or len(value) != 4 or not all(map(is_whole, value)):
            return False
        left, top, right, bottom = value
        return 0 <= left < right and 0 <= top < bottom

    return Kind(tuple[int, int, int, int], "four whole numbers with 0 <= left < right and 0 <= top < bottom", accepts)


def keywords() -> Kind:
    def accepts(value: Any) -> bool:
        named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        return named and is_number(value.get("scale", 1))

    return Kind(dict, "a dict of keyword arguments, in which `scale` is a number", accepts)


def several(kind: Kind) -> Kind:
    """One, or a list of them."""

    def accepts(value: Any) -> bool:
        return kind.accepts(value) or (
            isinstance(value, (list, tuple)) and len(value) > 0 and all(map(kind.accepts, value))
        )

    return Kind(kind.type_hint | list[kind.type_hint], f"{kind.takes}, or a list of these", accepts)


def listed(kind: Kind) -> Kind:
    """A list of them."""

    def accepts(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(kind.accepts, value))

    return Kind(list[kind.type_hint], f"a list: for each, {kind.takes}", accepts)


def generators() -> Kind:
    def accepts(value: Any) -> bool:
        listed = value if isinstance(value, list) else [value]
        return len(listed) > 0 and all(isinstance(one, torch.Generator) for one in listed)

    return Kind(torch.Generator | list[torch.Generator], "a `torch.Generator`, or a list of them", accepts)


def schedule(number_type: type) -> Kind:
    """Timesteps or sigmas."""

    def accepts(value: Any) -> bool:
        if isinstance(value, torch.Tensor):
            value = value.tolist() if is_dense(value) and value.ndim == 1 else []
        values = list(value) if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1 else []
        falling = len(values) > 0 and all(is_number(one) and one >= 0 for one in values)
        return falling and all(later <= earlier for earlier, later in itertools.pairwise(values))

    takes = "numbers of at least 0 that do not rise, at least one, in a list, array or tensor"
    return Kind(list[number_type] | torch.Tensor, takes, accepts)


def tensor(shape: str, *axes: int) -> Kind:
    """A tensor with one of these numbers of axes."""

    def accepts(value: Any) -> bool:
        fits = is_dense(value) and value.ndim in axes and value.is_floating_point()
        return fits and bool(value.isfinite().all())

    return Kind(torch.Tensor, f"finite floats, a tensor {shape}", accepts)


def tokens(shape: str) -> Kind:
    """What belongs to tokens and is counted: numbers of them, or which of them count."""

    def accepts(value: Any) -> bool:
        held = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
        if not held or value.ndim != 2 or len(value) == 0 or value.is_complex():
            return False
        return not value.is_floating_point() or torch.equal(value, value.round())

    return Kind(torch.Tensor, f"whole numbers or bools, a tensor {shape}", accepts)


def embeddings(shape: str, axes: int) -> Kind:
    """A tensor of them, or a list of a tensor for each prompt."""
    whole_batch, one = tensor(shape, axes), tensor("", axes - 1)

    def accepts(value: Any) -> bool:
        return whole_batch.accepts(value) or (isinstance(value, list) and value != [] and all(map(one.accepts, value)))

    return Kind(torch.Tensor | list[torch.Tensor], f"{whole_batch.takes}, or a list of a tensor for each", accepts)


def tensors() -> Kind:
    """A list of float tensors."""
    one = tensor("", 1, 2, 3, 4, 5)

    def accepts(value: Any) -> bool:
        return isinstance(value, list) and len(value) > 0 and all(map(one.accepts, value))

    return Kind(list[torch.Tensor], "a list of tensors of finite floats", accepts)


# What PIL makes RGB of.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
# What it would clip on the way, and which has an answer of its own.
DEEP_MODES = ("I", "F")


def is_picture(value: Any) -> bool:
    """Whether this is a PIL image of a mode and a size that can be shown, an array or a tensor."""
    if isinstance(value, PIL.Image.Image):
        return min(value.size) > 0 and (value.mode in MODES or value.mode.startswith(DEEP_MODES))
    if isinstance(value, np.ndarray):
        return value.size > 0 and value.dtype.kind in "biuf"
    return is_dense(value) and not value.is_complex()


def pictures(takes: str) -> Kind:
    def accepts(value: Any) -> bool:
        return is_picture(value) or (isinstance(value, list) and len(value) > 0 and all(map(accepts, value)))

    return Kind(PIL.Image.Image | np.ndarray | torch.Tensor | list, takes, accepts)


def videos() -> Kind:
    """Videos, which their reader looks through."""
    takes = (
        "a list of frames of one size, each a PIL image or floats in [0, 1] as (H, W, 3) or (3, H, W), an array "
        "(F, H, W, 3) of uint8 or floats in [0, 1], or a tensor (F, 3, H, W); `read_video` and "
        "`diffusers.utils.load_video` read files"
    )
    return Kind(list[PIL.Image.Image] | np.ndarray | torch.Tensor, takes, lambda value: True)


def change_maps(takes: str) -> Kind:
    """Change maps, which their reader looks through."""
    hint = PIL.Image.Image | np.ndarray | torch.Tensor | str | os.PathLike | list
    return Kind(hint, takes, lambda value: True)


def unchecked(type_hint: Any) -> Kind:
    """What no user gives."""
    return Kind(type_hint, "", lambda value: True)
