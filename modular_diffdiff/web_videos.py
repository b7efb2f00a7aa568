"""The page of a model that edits videos: open one, paint on its first frame what may change, edit all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from . import controls, editing, few_steps, loading, options, serving, studio, visitors


INTRO = """# Edit a video where you paint
Paint over what may change on the first frame: **the stronger the red, the more it changes, in every frame**. Or open
a map, a picture that is white where the video stays.
"""


class VideoVisit:
    """The page of a studio: its parts, and what happens when they are used.

    Attributes:
        params: The parts that hold one parameter of `edit`, by its name.
        on_device: Wraps what runs on the accelerator, as `spaces.GPU` does.
    """

    def __init__(
        self,
        work: studio.Studio,
        sessions: visitors.Sessions,
        on_device: Callable = lambda run: run,
        steps: int = few_steps.STEPS,
    ):
        self.work, self.sessions, self.on_device, self.steps = work, sessions, on_device, steps
        self.params: dict[str, gr.Component] = {}

    # What is seen

    def draw(self) -> None:
        gr.Markdown(INTRO)
        with gr.Row(elem_classes="sides"):
            with gr.Column(scale=3, min_width=300):
                self._draw_video()
            with gr.Column(scale=2, min_width=300):
                self.prompt = gr.Textbox(label="What to show there", placeholder="a green pear", max_length=2000)
                with gr.Row():
                    self.edit = gr.Button("Edit", variant="primary", scale=2, min_width=80)
                    self.stop = gr.Button("Stop", min_width=80)
                self._draw_result()
                self._draw_settings()

    def _draw_video(self) -> None:
        self.video = serving.video(label="Video", elem_id="video", sources=["upload"], height=240, buttons=[])
        with gr.Column(visible="hidden") as self.easel:
            self.painting = serving.painting(label="Paint here", height=400, elem_id="painting")
        with gr.Accordion("Shape what may change", open=False, elem_classes="later"):
            self.map = serving.photo(label="Map, white keeps", elem_id="map", height=140)
            with gr.Row():
                self.params["grow"] = gr.Slider(-64, 64, 0, step=1, label="Grow (px)", min_width=140)
                self.params["feather"] = gr.Slider(0, 64, 0, step=1, label="Feather (px)", min_width=140)
                self.params["strength"] = controls.share("Strength", 1)

    def _draw_result(self) -> None:
        with gr.Column(visible="hidden") as self.made:
            self.result = gr.Video(
                label="Result", elem_id="result", interactive=False, height=300, buttons=["download"]
            )
            self.command = gr.Textbox(
                label="The same on the command line, where video and map are",
                interactive=False,
                buttons=["copy"],
                lines=1,
                max_lines=4,
                elem_id="command",
            )
            self.saved_map = gr.DownloadButton("Save map", size="sm")

    def _draw_settings(self) -> None:
        add = self.params
        with gr.Accordion("Settings", open=False, elem_classes="later"):
            add["negative"] = gr.Textbox(label="What not to show", max_length=2000)
            with gr.Row():
                add["steps"] = gr.Slider(1, 100, self.steps, step=1, label="Steps")
                add["guidance_scale"] = serving.number(label="Guidance (empty: the model's)")
                add["seed"] = gr.Number(label="Seed", value=0, precision=0, minimum=0, maximum=options.MAX_SEED)
            add["overlay"] = gr.Checkbox(True, label="Original pixels outside")
            add["crop"] = serving.number(whole=True, label="Only around the change (pixels; empty: all)")

    # What happens

    def wire(self, page: serving.Page) -> None:
        private = {"api_visibility": "private"}
        slow = {"concurrency_id": "device", "concurrency_limit": 1, "show_progress_on": [self.result], **private}
        given = {self.painting, self.map, self.prompt, *self.params.values()}
        made = [self.result, self.command, self.saved_map, self.made]
        for event in (self.video.upload, self.video.clear):
            event(self.open, self.video, [self.painting, self.easel, self.made], **private)
        gr.on([self.edit.click, self.prompt.submit], self.make_edit, given, made, **slow)
        self.stop.click(self.end_run, queue=False, **private)
        page.unload(self.leave)

    def open(self, video: editing.Clip | None, request: gr.Request):
        session = self.sessions.of(request)
        session.photo, session.small = video, video and studio.small_copy(video, serving.COPY_SIDE)
        to_paint_on = video and {"background": session.easel(), "layers": [], "composite": None}
        return to_paint_on, gr.update(visible=video is not None), gr.update(visible="hidden")

    def make_edit(self, given: dict, request: gr.Request, progress: gr.Progress = gr.Progress()):  # noqa: B008
        session, params = self.sessions.of(request), self._params_of(given)
        with serving.shown():
            if session.photo is None:
                raise loading.UserError("Open a video first.")
            painted, opened = given[self.painting], given[self.map]
            if painted is not None and opened is not None:
                raise loading.UserError("There is a map, and something is painted: take one of them away.")
            change_map = self.work.make_map(
                session.photo, session.small, painted or opened, params, {}, session.new_folder()
            )
            watch = visitors.Watch(session.stop, progress)
            ((path, command),) = self.on_device(self.work.edit)(
                session.photo, change_map, given[self.prompt], params, watch
            )
        return str(path), command, str(change_map), gr.update(visible=True)

    def _params_of(self, given: dict) -> dict[str, Any]:
        """What is asked for, by the parameters of `edit`."""
        return {name: given[part] for name, part in self.params.items() if given[part] not in ("", None)}

    def end_run(self, request: gr.Request) -> None:
        self.sessions.of(request).stop.touch()

    def leave(self, request: gr.Request) -> None:
        self.sessions.end(request.session_hash)
