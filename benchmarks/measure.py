"""What the benchmarks of cost share: measuring in turns, waits for an accelerator, other people's pipelines, pages."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


def in_turns(
    measures: dict[str, Callable[[], float | tuple[float, ...]]],
    turns: int,
    enough: Callable[[], bool] = lambda: False,
) -> dict[str, np.ndarray]:
    """What each of them measures, a row for each turn, so that rows are pairs.

    Turns alternate in direction. One more, in front, warms up and is left out; where it is `enough`, one turn counts.
    """
    rows = {name: [] for name in measures}
    for turn in range(turns + 1):
        for name in reversed(measures) if turn % 2 else measures:
            rows[name].append(measures[name]())
        if turn and enough():
            break
    return {name: np.array(values[1:]) for name, values in rows.items()}


def compared(ones: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Medians of both, and of their ratios within turns."""
    return np.median(ones, 0), np.median(others, 0), np.median(ones / others, 0)


@contextmanager
def at_each_call(model: nn.Module, note: Callable[[], object]) -> Iterator[None]:
    """Notes something right before each call of a model."""

    def before_it(*_) -> None:  # what a hook returns would replace the call's arguments
        note()

    hook = model.register_forward_pre_hook(before_it)
    try:
        yield
    finally:
        hook.remove()


class Waits(TorchDispatchMode):
    """Counts the operations for whose answer the host waits for an accelerator."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
        return function(*args, **(kwargs or {}))


def load_community(path: Path) -> ModuleType:
    """A community pipeline's module; where torchvision is missing, its one resize is lent."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        transforms = ModuleType("torchvision.transforms")
        transforms.Resize = lambda size, antialias=None: (
            lambda x: F.interpolate(x if x.ndim == 4 else x[None], size, mode="bilinear", antialias=True).reshape(
                *x.shape[:-2], *size
            )
        )
        torchvision = ModuleType("torchvision")
        torchvision.transforms = transforms
        sys.modules |= {"torchvision": torchvision, "torchvision.transforms": transforms}
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def machine(name: str | None = None) -> str:
    """What is measured on, by default a CPU, and with which packages."""
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers", "transformers"))
    return f"{name or f'a CPU ({platform.machine()}, {torch.get_num_threads()} threads)'}; {packages}"


def put_section(page: Path, title: str, lines: list[str]) -> None:
    """Writes a section into a page: in the place of the one with this title, or at the end."""
    intro, *sections = re.split(r"^(?=## )", page.read_text(), flags=re.MULTILINE)
    named = {section.partition("\n")[0]: section for section in sections}
    named[f"## {title}"] = "\n".join([f"## {title}", "", *lines])
    page.write_text("\n".join(part.strip("\n") + "\n" for part in (intro, *named.values())))
