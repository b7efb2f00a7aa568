"""What the page offers to other programs, over `gradio_client` and as MCP tools; pictures are uploads."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from . import editing, loading, options, serving, studio, visitors


MAX_LENGTH = 200  # pixels: with 1000, a map of 12 megapixels takes a minute


@dataclass(frozen=True)
class Tools:
    """The functions, whose docstrings are their documentation.

    Attributes:
        on_device: Wraps what runs on the accelerator.
    """

    work: studio.Studio
    sessions: visitors.Sessions
    on_device: Callable

    def edit(self, image, prompt, change_map=None, text="", grow=0, feather=0, strength=1, steps=25, seed=0) -> str:
        """Edits an image towards a prompt, each pixel as strongly as a change map allows.

        Args:
            image: The image to edit, an uploaded file; over MCP, a data: URL.
            prompt: What to draw in the changed regions.
            change_map: The change map: white keeps the image, black lets it change. Or nothing, if text says it.
            text: What may change, in words; or nothing.
            grow: By how many pixels what changes grows; below 0 it shrinks.
            feather: By how many pixels the edge of what changes is softened.
            strength: Turns the whole map down, from 1 (as it is) to 0 (nothing changes).
            steps: The number of denoising steps.
            seed: The seed of the noise.
        """
        params = {"strength": strength, "steps": steps, "seed": seed, "overlay": True}
        with serving.shown():
            ready = self._map(image, change_map, {"text": text, "grow": grow, "feather": feather})
            ((path, _),) = self.on_device(self.work.edit)(image, ready, prompt, params)
            return str(path)

    def make_map(self, image, change_map=None, text="", grow=0, feather=0) -> str:
        """Makes the change map of an image, white where it is kept, from a rough map, a text, or both.

        Args:
            image: The image that the map is for, an uploaded file; over MCP, a data: URL.
            change_map: A map to start from, white where the image is kept; or nothing, if text says it.
            text: What may change, in words; or nothing.
            grow: By how many pixels what changes grows; below 0 it shrinks.
            feather: By how many pixels the edge of what changes is softened.
        """
        with serving.shown():
            return str(self._map(image, change_map, {"text": text, "grow": grow, "feather": feather}))

    def fan(self, image, prompt, change_map=None, text="", grow=0, feather=0, steps=25, seed=0) -> str:
        """Shows one edit of an image at several strengths, side by side.

        Args:
            image: The image to edit, an uploaded file; over MCP, a data: URL.
            prompt: What to draw in the changed regions.
            change_map: The change map: white keeps the image, black lets it change. Or nothing, if text says it.
            text: What may change, in words; or nothing.
            grow: By how many pixels what changes grows; below 0 it shrinks.
            feather: By how many pixels the edge of what changes is softened.
            steps: The number of denoising steps.
            seed: The seed of the noise.
        """
        with serving.shown():
            ready = self._map(image, change_map, {"text": text, "grow": grow, "feather": feather})
            params = {"steps": steps, "seed": seed, "overlay": True}
            return str(self.on_device(self.work.fan)(image, ready, prompt, params))

    def _map(self, image: editing.Picture | None, change_map, params: dict[str, Any]) -> Path:
        if image is None:
            raise loading.UserError("image is missing.")
        params = {name: value for name, value in params.items() if value not in ("", None)}
        folder = Path(tempfile.mkdtemp(dir=self.sessions.cache))  # what is answered is held there for its session
        return self.work.make_map(image, image, change_map, params, {}, folder)


def offer(work: studio.Studio, sessions: visitors.Sessions, on_device: Callable, steps: int) -> None:
    """Adds the functions to the page that is being drawn, where nobody sees them.

    Args:
        steps: How many suit the model.
    """
    tools = Tools(work, sessions, on_device)
    with gr.Row(visible=False):
        takes = {
            "image": serving.photo(label="image"),
            "prompt": gr.Textbox(label="prompt", max_length=2000),
            "change_map": serving.photo(label="change_map"),
            "text": gr.Textbox("", label="text", max_length=500),
            "grow": gr.Number(0, label="grow", minimum=-MAX_LENGTH, maximum=MAX_LENGTH),
            "feather": gr.Number(0, label="feather", minimum=0, maximum=MAX_LENGTH),
            "strength": gr.Slider(0, 1, 1, label="strength"),
            "steps": gr.Slider(1, 100, steps, step=1, precision=0, label="steps"),
            "seed": gr.Number(0, label="seed", precision=0, minimum=0, maximum=options.MAX_SEED),
        }
        made = gr.Image(label="made", format="png", type="filepath")
        for run in (tools.edit, tools.make_map, tools.fan):
            names = [name for name in inspect.signature(run).parameters if name in takes]
            gr.Button().click(
                run,
                [takes[name] for name in names],
                made,
                api_name=run.__name__,
                concurrency_id="device",
                concurrency_limit=1,
            )
