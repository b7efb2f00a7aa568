"""Inputs as careless and as hostile users give them: everything runs to its end, or is refused by name before.

python -m tests.fuzz 10000
"""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache, cached_property
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import torch
from diffusers import ControlNetModel, ControlNetUnionModel
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from diffusers.utils import logging
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modular_diffdiff import BadInputError, catalog, without_encoders

from .families import parts_of
from .helpers import let_it_speak, picture


SIDE = 16  # of every image, in pixels
Make = Callable[[], Any]


def tensor(*shape: int, value: float = 0.5, dtype: torch.dtype = torch.float32) -> Make:
    return lambda: torch.full(shape, value).to(dtype)


def array(*shape: int, value: float = 0.5, dtype: str = "float32") -> Make:
    return lambda: np.full(shape, value).astype(dtype)


def drawn(mode: str, width: int = SIDE, height: int = SIDE) -> Make:
    return lambda: PIL.Image.new(mode, (width, height))


def always(*values: Any) -> list[Make]:
    return [lambda value=value: value for value in values]


NAN, INF = float("nan"), float("inf")
# What no input is meant for, or some are.
NUMBERS = always(0, 1, 2, -1, 3, 7, 0.0, 0.5, 1.0, -0.5, 1.5, 0.9999, NAN, INF, -INF, 1e38, True, False)
NUMBERS += always(np.int64(2), np.float32(0.5), np.float64(NAN), Fraction(1, 2), Decimal("0.5"), 1 + 1j, 10**30)
WORDS = always("", "yes", "pil", "step", "0.5", "a pear", "\ud800", "photo.png", b"bytes", "ü" * 300)
LISTS = [
    list,
    lambda: [1],
    lambda: [0.5],
    lambda: [None],
    lambda: ["a", "b"],
    lambda: [[1]],
    lambda: [NAN],
    lambda: [9, 3],
]
LISTS += always((), (1,), (8, 8), (8.5, NAN), (0, 0, 8, 8), (8, 8, 0, 0), (-4, -4, 40, 40), (1, 2, 3), range(3))
OBJECTS = [dict, lambda: {"a": 1}, lambda: {1: 2}, lambda: {"scale": "x"}, set, object, lambda: len, lambda: Make]
TENSORS = [
    tensor(),
    tensor(0),
    tensor(1),
    tensor(3),
    tensor(SIDE, SIDE),
    tensor(1, SIDE, SIDE),
    tensor(3, SIDE, SIDE),
    tensor(3, SIDE, SIDE, value=-0.5),
    tensor(3, SIDE, SIDE, value=200),
    tensor(1, 3, SIDE, SIDE),
    tensor(2, 3, SIDE, SIDE),
    tensor(2, 1, SIDE, SIDE),
    tensor(0, 3, SIDE, SIDE),
    tensor(3, 0, SIDE),
    tensor(1, 4, 2, 2),
    tensor(1, 4, 2, 2, value=NAN),
    tensor(1, 4, 2, 2, value=INF),
    tensor(2, 4, 2, 2),
    tensor(1, 4, 1, 2, 2),
    tensor(1, 4, 3, 2),
    tensor(1, 3, 2, 2),
    tensor(1, 1, 16),
    tensor(1, 4, 32),
    tensor(1, 16),
    tensor(1, 9),
    tensor(1, 4, 9),
    tensor(1, 4, 16),
    tensor(1, 4, 32),
    tensor(2, 16),
    tensor(SIDE, SIDE, value=NAN),
    tensor(SIDE, SIDE, dtype=torch.int64),
    tensor(SIDE, SIDE, dtype=torch.bool),
    tensor(SIDE, SIDE, dtype=torch.complex64),
    tensor(1, 4, 2, 2, dtype=torch.float64),
    tensor(1, 4, 2, 2, dtype=torch.int32),
    lambda: torch.zeros(SIDE, SIDE).to_sparse(),
    lambda: torch.zeros(1, 4, 2, 2).to_sparse(),
    lambda: torch.zeros(SIDE, SIDE, device="meta"),
    lambda: torch.zeros(1, 4, 2, 2, device="meta"),
    lambda: torch.zeros(3, SIDE, SIDE, device="meta"),
    lambda: torch.zeros(1, 4, 2, 2, requires_grad=True),
]
ARRAYS = [
    array(),
    array(0),
    array(SIDE, SIDE),
    array(SIDE, SIDE, 3),
    array(2, SIDE, SIDE, 3),
    array(SIDE, SIDE, 4),
    array(SIDE, SIDE, 3, dtype="uint8"),
    array(SIDE, SIDE, 3, dtype="uint32"),
    array(SIDE, SIDE, 3, dtype=">f4"),
    array(SIDE, SIDE, dtype=">u2"),
    array(SIDE, SIDE, 3, dtype="float16"),
    array(SIDE, SIDE, 3, dtype="O"),
    array(SIDE, SIDE, dtype="complex64"),
    array(SIDE, SIDE, 3, value=NAN),
    array(1, 4, 2, 2),
    array(3, value=900),
    array(0, SIDE, 3),
]
MODES = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
)
PICTURES = [drawn(mode) for mode in (*MODES, "I;16B")]
PICTURES += [drawn("RGB", 1, 1), drawn("RGB", 0, 5), drawn("L", 0, 0), drawn("L", 7, 40), drawn("RGB", 300, 2)]
PICTURES += [lambda: [picture(SIDE, SIDE)] * 2, lambda: [picture(SIDE, SIDE), picture(8, SIDE)], lambda: (picture(),)]
ANYTHING = [*NUMBERS, *WORDS, *LISTS, *OBJECTS, *TENSORS, *ARRAYS, *PICTURES, torch.Generator]


def photo() -> PIL.Image.Image:
    return picture(SIDE, SIDE)


def latents(*lead: int) -> Make:
    return lambda: torch.randn(*(lead or (1, 4)), 2, 2, generator=torch.Generator().manual_seed(0))


TEXTS = [*always("a pear", "", "ü", "a " * 200, ["a cup"])]
SHARES = always(0, 0.5, 1, 0.25, 1.0, np.float32(0.5))
SIZES = always(None, (16, 16), (8, 16), (512.0, 3))
DICTS = [lambda: None, dict]
SCHEDULES = [
    lambda: None,
    lambda: [900, 500],
    lambda: torch.tensor([900, 100]),
    lambda: np.array([950, 20]),
    lambda: [999],
]
SIGMAS = [
    lambda: None,
    lambda: [0.9, 0.4],
    lambda: np.array([0.9, 0.1]),
    lambda: torch.tensor([0.7, 0.2]),
    lambda: [1.0],
]
# What inputs are meant for; beside these, each is given anything.
MEANT: dict[str, list[Make]] = {
    **dict.fromkeys(("prompt", "prompt_2", "prompt_3"), TEXTS),
    **dict.fromkeys(("negative_prompt", "negative_prompt_2", "negative_prompt_3"), TEXTS),
    "image": [photo, drawn("L"), drawn("P"), tensor(3, SIDE, SIDE), array(SIDE, SIDE, 3), drawn("RGB", 9, 21)],
    "diffdiff_map": [tensor(SIDE, SIDE), drawn("L"), drawn("1"), drawn("I;16"), array(SIDE, SIDE), drawn("L", 5, 3)],
    "map_gradient": always(None, 0, -45.5, np.float32(400), "radial"),
    "map_difference": [lambda: None, photo],
    "map_combine": always("keep", "change"),
    "map_levels": always((0.0, 1.0), (0.2, 0.8), [0, 0.5]),
    "map_gamma": always(1, 0.5, 3.0),
    "map_grow": always(0, 2, -3.5, 100),
    "map_feather": always(0, 1.5, 40),
    "map_seam": always("across", "inside", "outside"),
    "map_limits": always((0.0, 1.0), (0.3, 0.3), [0, 1]),
    "control_image": [
        photo,
        drawn("L"),
        drawn("RGBA"),
        tensor(3, SIDE, SIDE),
        array(SIDE, SIDE, 3),
        drawn("RGB", 8, 8),
    ],
    **dict.fromkeys(
        ("invert_diffdiff_map", "overlay", "match_colors", "preview_map", "guess_mode", "batch_guidance"),
        always(True, False, np.bool_(True)),
    ),
    **dict.fromkeys(("strength", "diffdiff_softness", "eta", "control_guidance_start"), SHARES),
    **dict.fromkeys(("control_guidance_end", "controlnet_conditioning_scale"), SHARES),
    **dict.fromkeys(("height", "width"), always(None, 8, 16, 21, np.int64(16))),
    "padding_map_crop": always(None, 0, 4, 100),
    **dict.fromkeys(("overlay_grow", "overlay_feather"), always(0, 2, 30)),
    "diffdiff_schedule": always("step", "timestep"),
    "output_type": always("pil", "np", "pt", "latent"),
    "num_inference_steps": always(1, 2, 3, np.int64(2)),
    "num_images_per_prompt": always(1, 2),
    "generator": [lambda: None, lambda: torch.Generator().manual_seed(0), lambda: [torch.Generator()]],
    "timesteps": SCHEDULES,
    "sigmas": SIGMAS,
    "latents": [lambda: None, latents()],
    "noise": [lambda: None, latents()],
    "image_latents": [latents()],
    **dict.fromkeys(("original_size", "target_size", "crops_coords_top_left"), SIZES),
    "crops_coords": always(None, (0, 0, 8, 8)),
    "clip_skip": always(None, 0, 1),
    "max_sequence_length": always(8, 16),
    "guidance_scale": always(None, 1.0, 3.5),
    **dict.fromkeys(("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"), DICTS),
    "preprocess_kwargs": DICTS,
    **dict.fromkeys(("aesthetic_score", "negative_aesthetic_score"), always(6.0, 2)),
    "control_mode": always(0, [1], [0]),
    "denoising_start": always(None),
    "denoising_end": always(None, 0.9, 1.0),
}
# What blocks make for one another is meant to be left out.
LEFT_OUT = always(None)
NOT_ASKED = {"denoiser_input_fields"}  # upstream reads its items before any block runs


@dataclass(frozen=True)
class Setting:
    """A pipeline, and the inputs that it always gets."""

    pipe: Any
    good: dict[str, Make]

    @cached_property
    def inputs(self) -> list[InputParam]:
        return self.pipe.blocks.inputs

    @property
    def names(self) -> list[str]:
        return [param.name for param in self.inputs if param.name and param.name not in NOT_ASKED]


def embeddings(name: str) -> dict[str, Make]:
    if name == "sdxl":
        shapes = {"prompt_embeds": (1, 4, 32), "pooled_prompt_embeds": (1, 16)}
        return {f"{side}{key}": tensor(*shape) for key, shape in shapes.items() for side in ("", "negative_")}
    if name == "flux":
        return {"prompt_embeds": tensor(1, 4, 16), "pooled_prompt_embeds": tensor(1, 16)}
    return {f"{side}prompt_embeds": tensor(1, 4, 16) for side in ("", "negative_")} | {
        f"{side}prompt_embeds_mask": tensor(1, 4, value=1, dtype=torch.int64) for side in ("", "negative_")
    }


OURS = {"sdxl": "sdxl", "flux": "flux", "qwen": "qwen-image"}


@cache
def setting(family: str, kind: str) -> Setting:
    """A family's pipeline with a map, as it is, without an encoder, or with a ControlNet."""
    parts = dict(parts_of(family))
    blocks = catalog.FAMILIES[OURS[family]].blocks_class()
    good = {"prompt": lambda: "a pear", "image": photo, "num_inference_steps": lambda: 2, "diffdiff_map": tensor(4, 4)}
    if kind == "embeddings":
        blocks = without_encoders(blocks, "prompt_embeds")
        del good["prompt"]
        good |= embeddings(family)
    if kind == "latents":
        blocks = without_encoders(blocks, "image_latents")
        del good["image"]
        good["image_latents"] = latents(1, 4, 1) if family == "qwen" else latents()
    if kind == "control":
        good["control_image"] = photo
    if kind == "control" and family == "sdxl":
        parts["controlnet"] = small_controlnet(parts["unet"])
    if kind == "union":
        good |= {"control_image": photo, "control_mode": lambda: 0}
        parts["controlnet"] = small_union(parts["unet"])
    pipe = blocks.init_pipeline()
    pipe.update_components(**{name: part for name, part in parts.items() if name in pipe.component_names})
    logging.disable_progress_bar()
    logging.set_verbosity(50)  # the traceback of every error
    return Setting(pipe, good)


def small_controlnet(unet) -> ControlNetModel:
    return let_it_speak(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8)))


def small_union(unet) -> ControlNetUnionModel:
    taken = ("down_block_types", "block_out_channels", "layers_per_block", "attention_head_dim", "norm_num_groups")
    taken += ("cross_attention_dim", "use_linear_projection", "addition_embed_type", "addition_time_embed_dim")
    taken += ("projection_class_embeddings_input_dim",)
    widths = {"num_trans_channel": 16, "num_proj_channel": 16, "num_trans_head": 2, "num_control_type": 4}
    config = {name: unet.config[name] for name in taken}
    return let_it_speak(ControlNetUnionModel(**config, **widths, conditioning_embedding_out_channels=(4, 4, 8, 8)))


SETTINGS = [(family, kind) for family in OURS for kind in ("plain", "plain", "embeddings", "latents")]
SETTINGS += [("sdxl", "control"), ("sdxl", "union"), ("qwen", "control")]


@st.composite
def cases(draw) -> tuple[tuple[str, str], dict[str, Make]]:
    """A setting, and up to three inputs that replace or join the good ones."""
    where = draw(st.sampled_from(SETTINGS))
    names = draw(st.lists(st.sampled_from(setting(*where).names), max_size=3, unique=True))
    changed = {}
    for name in names:
        meant = draw(st.integers(0, 9)) < 8
        changed[name] = draw(st.sampled_from(MEANT.get(name, LEFT_OUT) if meant else ANYTHING))
    return where, changed


class ModelRan:
    """Whether any model has run since."""

    def __enter__(self) -> ModelRan:
        self.ran = False
        self.hook = torch.nn.modules.module.register_module_forward_pre_hook(self.note)
        return self

    def note(self, *_) -> None:
        self.ran = True

    def __exit__(self, *_) -> None:
        self.hook.remove()


def judge(where: tuple[str, str], changed: dict[str, Make]) -> tuple[str, str]:
    """What became of a case: "finished", "refused", or what should not have happened, with its story."""
    here = setting(*where)
    inputs = {name: make() for name, make in (here.good | changed).items()}
    # upstream asks the whole tree for its inputs on every call
    known = mock.patch.object(type(here.pipe.blocks), "inputs", here.inputs)
    with known, ModelRan() as model, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            here.pipe(**inputs)
        except BadInputError as error:
            named = set(re.findall(r"`(\w+)(?:\[\d+\])?`", str(error)))
            if model.ran:
                return "refused after a model ran", str(error)
            return ("refused", "") if named & set(here.names) else ("refused without a name", str(error))
        except Exception as error:
            if not model.ran and set(re.findall(r"`(\w+)`", str(error))) & set(changed):
                return "refused", ""  # by upstream, by name
            when = "after" if model.ran else "before"
            return f"failed otherwise, {when} a model ran", traceback.format_exc(limit=-3)
    return "finished", ""


def describe(where: tuple[str, str], changed: dict[str, Make]) -> str:
    return f"{where}: " + ", ".join(f"{name}={_short(make())}" for name, make in changed.items())


def _short(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{type(value).__name__}{tuple(value.shape)} {value.dtype}"
    return repr(value)[:80]


def run(count: int, seen: Callable[[str, str, str], None]) -> None:
    """Tries so many cases; `seen` is told each one's fate, its story and what it was."""

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def attempt(case) -> None:
        fate, story = judge(*case)
        seen(fate, story, describe(*case) if story else "")

    attempt()


def main() -> None:
    counts: Counter[str] = Counter()

    def seen(fate: str, story: str, what: str) -> None:
        counts[fate] += 1
        if story:
            print(f"{fate}: {what}\n{story}\n")

    run(int(sys.argv[1]), seen)
    surprises = sum(count for fate, count in counts.items() if fate not in ("finished", "refused"))
    print(", ".join(f"{count} {fate}" for fate, count in counts.most_common()))
    print(f"{surprises} of {counts.total()} neither finished nor refused by name")
    sys.exit(surprises > 0)


if __name__ == "__main__":
    main()
