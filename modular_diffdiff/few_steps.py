"""Models that are distilled to a few steps: how one is known, and what suits it.

They need fewer steps than others, and guidance is built into them. Heavy libraries are imported where they are used: a
mistake in a name is answered before they are loaded.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any


STEPS = 25  # of other models
NO_GUIDANCE = 1.0
# What a checkpoint has as its own scheduler only if it is distilled.
SCHEDULERS = ("LCMScheduler", "TCDScheduler")
IN_NAME = re.compile(r"(\d+)[-_ ]?steps?(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Recipe:
    """What suits a distilled model.

    Attributes:
        steps: How many; the file's name says it where it has a number of steps.
        scheduler: The class that a LoRA needs in the place of the checkpoint's own; None for that one.
        config: What that changes of its configuration.
        known_by: What says that the model is distilled.
    """

    steps: int
    scheduler: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    known_by: str = ""


_TRAILING = {"timestep_spacing": "trailing"}
_SHIFTED = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
# By what names of repositories, folders or files have in them; what follows from their cards.
CHECKPOINTS = {
    r"sdxl-turbo|sdxl[-_]lightning": Recipe(4),
    r"stable-diffusion-3\.5-large-turbo": Recipe(4),
    r"FLUX\.1-schnell": Recipe(4),
    r"FLUX\.2-klein-\d+B": Recipe(4),
    r"Z-Image-Turbo": Recipe(9),
}
LORAS = {
    r"lcm-lora-sdxl|DMD2|lcm-lora_still-life|^still-life$": Recipe(4, "LCMScheduler"),
    r"sdxl[-_]lightning": Recipe(4, "EulerDiscreteScheduler", _TRAILING),
    r"Hyper-SDXL-\d+steps?-lora": Recipe(8, "DDIMScheduler", _TRAILING),
    r"Qwen-Image(-Edit)?(-\d+)?-Lightning": Recipe(8, "FlowMatchEulerDiscreteScheduler", _SHIFTED),
}


def of_lora(lora: str | None) -> Recipe | None:
    """What suits a LoRA that makes any checkpoint a distilled one."""
    return lora and _named(lora, LORAS)


def find(model) -> Recipe | None:
    """What suits a `loading.Model` whose family is known; None if it is not distilled, as far as can be seen.

    Its LoRA says so, its name, its scheduler, or for Flux that it takes no guidance scale.
    """
    from .loading import find_model

    return of_lora(model.lora) or _named(model.model, CHECKPOINTS) or _configured(find_model(model.model), model.family)


def _named(location: str, recipes: dict[str, Recipe]) -> Recipe | None:
    for pattern, recipe in recipes.items():
        if re.search(rf"(?:{pattern})(?![a-z])", location, re.IGNORECASE):
            said = IN_NAME.search(location)
            steps = int(said[1]) if said else recipe.steps
            return Recipe(steps, recipe.scheduler, recipe.config, f"{location!r} is distilled")
    return None


def _configured(location: str, family: str) -> Recipe | None:
    """What the files of a checkpoint say."""
    kind = _config(location, "scheduler", "LCMScheduler").get("_class_name")
    if kind in SCHEDULERS:
        return Recipe(4, known_by=f"its scheduler is {kind}")
    if family == "flux" and _config(location, "transformer", "FluxTransformer2DModel").get("guidance_embeds") is False:
        return Recipe(4, known_by="its transformer takes no guidance scale")
    return None


def _config(location: str, part: str, kind: str) -> dict[str, Any]:
    """The configuration of a part of a checkpoint, as this class reads it; empty where it has no such part."""
    import diffusers

    try:
        return getattr(diffusers, kind).load_config(location, subfolder=part)
    except OSError:
        return {}
