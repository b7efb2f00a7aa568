"""The page: open a photo, paint or say what may change, see it, edit.

It holds what visitors see; `studio` does what they ask for, and `serving` keeps the page safe.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import gradio as gr
import PIL.Image
from starlette.middleware import Middleware

from . import catalog, controls, editing, few_steps, loading, looks, maps, serving, studio, tools, visitors, web_videos


INTRO = """# Edit what you paint
Paint over what may change: **the stronger the red, the more it changes**; the rest stays. The palette beside the photo
has four strengths of red.
"""


class Visit:
    """The page of a studio: its parts, and what happens when they are used.

    Attributes:
        on_device: Wraps what runs on the accelerator, as `spaces.GPU` does.
    """

    def __init__(
        self,
        work: studio.Studio,
        sessions: visitors.Sessions,
        on_device: Callable = lambda run: run,
        steps: int = few_steps.STEPS,
    ):
        self.work, self.sessions, self.on_device = work, sessions, on_device
        self.controls = controls.Controls(work.steered_by(), steps)
        self.files = [example.write(sessions.cache) for example in studio.EXAMPLES]

    # What is seen

    def draw(self) -> None:
        gr.Markdown(INTRO)
        with gr.Row(elem_classes="sides"):
            with gr.Column(scale=3, min_width=300):
                self._draw_photo()
                self.controls.draw_sources()
            with gr.Column(scale=2, min_width=300):
                self.controls.draw_prompt()
                with gr.Row():
                    self.edit = gr.Button("Edit", variant="primary", scale=2, min_width=80)
                    self.stop = gr.Button("Stop", min_width=80)
                with gr.Row():
                    self.next = gr.Button("Another one (next seed)", size="sm", min_width=120)
                    self.fan = gr.Button("Compare strengths", size="sm", min_width=120)
                self._draw_results()
                self.controls.draw_settings()

    def _draw_photo(self) -> None:
        with gr.Row():
            self.photo = serving.photo(
                label="Photo",
                elem_id="photo",
                sources=["upload", "clipboard"],
                placeholder="Drop a photo, or click",
                height=140,
                min_width=200,
                buttons=[],
            )
            self.examples = looks.thumbnails(
                value=[str(path) for path in self.files],
                label="Or try one of these",
                columns=3,
                height=140,
                min_width=200,
                elem_classes="examples",
            )
        # Not hidden itself: gradio would build it again, without `serving`. Nor left out: it swallows the first change.
        with gr.Column(visible="hidden") as self.easel:
            self.painting = serving.painting(label="Paint here", height=480, elem_id="painting")
        self.anew = gr.Button("Forget what was painted before", size="sm", visible=False)

    def _draw_results(self) -> None:
        with gr.Tabs() as self.views:
            with gr.Tab("What may change", id="map"):
                self.preview = looks.picture(elem_id="preview", buttons=["fullscreen"])
            with gr.Tab("Before and after", id="result"):
                self.compare = gr.ImageSlider(elem_id="compared", show_label=False, format="png", max_height=380)
            with gr.Tab("Strengths", id="fan"):
                self.sheet = looks.picture(elem_id="strengths", buttons=["fullscreen", "download"])
        with gr.Column(visible=False) as self.made:
            with gr.Row():
                self.png = gr.DownloadButton("Save picture", size="sm", min_width=90)
                self.map = gr.DownloadButton("Save map", size="sm", min_width=90)
                self.further = gr.Button("Edit this result further", size="sm", min_width=90)
            self.results = looks.thumbnails(
                **{"show_label": False, "columns": 5, "height": 120, "fit_columns": False, "object_fit": "contain"},
                elem_id="results",
            )
            self.command = gr.Textbox(
                label="The same on the command line, where photo and map are",
                interactive=False,
                buttons=["copy"],
                lines=1,
                max_lines=4,
                elem_id="command",
            )

    # What happens

    def wire(self, page: serving.Page) -> None:
        asked, prompt = self.controls.all(), self.controls.prompt
        given = {self.painting, *asked}
        private = {"api_visibility": "private"}
        slow = {"concurrency_id": "device", "concurrency_limit": 1, **private}
        slow["show_progress_on"] = [self.preview, self.compare, self.sheet]
        look = {
            **{"fn": self.look, "inputs": set(asked), "outputs": [self.preview, self.views], "show_progress": "hidden"},
            **{"trigger_mode": "always_last", "concurrency_limit": 2, **private},
        }
        opened = [self.painting, self.easel, self.anew, self.made, self.results, self.compare, self.sheet]
        made = [self.results, self.made, self.views, self.compare, self.png, self.map, self.command]
        seed, points = self.controls.params["seed"], self.controls.params["point"]
        for event in (self.photo.upload, self.photo.clear):
            event(self.open, self.photo, opened, **private).then(**look)
        self.examples.select(self.open_example, None, [*opened, self.photo, prompt], **private).then(**look)
        gr.on([part.change for part in self.controls.seen()], **look)
        # Apart, as a browser draws and sends a painting anew for every event that asks for it.
        self.painting.change(self.keep, self.painting, trigger_mode="always_last", **private).then(**look)
        self.anew.click(self.forget, None, opened, **private).then(**look)
        self.preview.select(self.point_at, points, points, **private)
        gr.on([self.edit.click, prompt.submit], self.make_edits, given, made, **slow)
        self.next.click(lambda n: (n or 0) + 1, seed, seed, **private).then(self.make_edits, given, made, **slow)
        self.fan.click(self.make_fan, given, [self.sheet, self.views], **slow)
        self.stop.click(self.end_run, queue=False, **private)
        self.results.select(self.choose, None, made[1:], **private)
        self.further.click(self.go_on, self.painting, opened, **private).then(**look)
        self.controls.dropped.upload(self.take_over, self.controls.dropped, asked, **private)
        page.unload(self.leave)

    def open(self, photo: editing.Picture | None, request: gr.Request):
        with serving.shown():
            return self._open(self.sessions.of(request), photo)

    def open_example(self, chosen: gr.SelectData, request: gr.Request):
        example, path = studio.EXAMPLES[chosen.index], self.files[chosen.index]
        photo = serving.read_upload(path, path.name, "Photo")
        return *self._open(self.sessions.of(request), photo, example.painting), str(path), example.prompt

    def forget(self, request: gr.Request):
        session = self.sessions.of(request)
        return self._open(session, session.photo)

    def go_on(self, painting: editing.Picture | None, request: gr.Request):
        """The result that is looked at becomes the photo; what is painted stays."""
        session = self.sessions.of(request)
        with serving.shown():
            if not session.results:
                raise loading.UserError("There is no result yet.")
            path = session.results[session.chosen].path
            photo = serving.read_upload(path, path.name, "Photo")
            painting = session.painting(painting)
            return self._open(session, photo, painting and painting.pixels)

    def _open(self, session: visitors.Session, photo: editing.Picture | None, painting: PIL.Image.Image | None = None):
        """What the page shows of a photo that nothing was made of yet."""
        if photo is not None:
            editing.check_picture(photo, transparent=True)
        session.photo, session.painted, session.memory, session.results = photo, painting, {}, []
        session.strokes = None
        session.small = photo and studio.small_copy(photo, serving.COPY_SIDE)
        to_paint_on = photo and {"background": session.easel(), "layers": [], "composite": None}
        seen = (gr.update(visible=what) for what in (photo is not None, painting is not None, False))
        return to_paint_on, *seen, [], None, None

    def keep(self, painting: editing.Picture | None, request: gr.Request) -> None:
        self.sessions.of(request).strokes = painting

    def look(self, given: dict, request: gr.Request):
        """The map over the photo, to be seen; the photo alone while nothing says what may change."""
        session, params = self.sessions.of(request), self.controls.params_of(given)
        painting = session.painting(session.strokes)
        if session.photo is None or (painting is None and not maps.are_asked(studio.DEFAULTS | params)):
            return session.small and session.small.pixels, gr.update(selected="map")
        with serving.shown():
            preview = self.work.preview(session.photo, session.small, painting, params, session.memory)
        return preview, gr.update(selected="map")

    def point_at(self, points: str, place: gr.SelectData, request: gr.Request) -> str:
        small, (x, y) = self.sessions.of(request).small, place.index
        return points if small is None or y >= small.pixels.height else f"{points}; {x},{y}".removeprefix("; ")

    def _begin(self, given: dict, request: gr.Request, progress: gr.Progress):
        """A session whose photo is to be edited, and what `Studio.edit` and `fan` take."""
        session, params = self.sessions.of(request), self.controls.params_of(given)
        if session.photo is None:
            raise loading.UserError("Open a photo first.")
        change_map = self.work.make_map(
            *(session.photo, session.small, session.painting(given[self.painting])),
            *(params, session.memory, session.new_folder()),
        )
        watch = visitors.Watch(session.stop, progress)
        return session, (session.photo, change_map, given[self.controls.prompt], params, watch)

    def make_edits(self, given: dict, request: gr.Request, progress: gr.Progress = gr.Progress()):  # noqa: B008
        with serving.shown():
            session, asked = self._begin(given, request, progress)
            for path, command in self.on_device(self.work.edit)(*asked):
                session.results.append(visitors.Result(path, asked[1], command))
                session.chosen = len(session.results) - 1
                made = [studio.small_file(result.path) for result in session.results]
                yield gr.update(value=made, selected_index=session.chosen), *self._show(session)

    def make_fan(self, given: dict, request: gr.Request, progress: gr.Progress = gr.Progress()):  # noqa: B008
        with serving.shown():
            _, asked = self._begin(given, request, progress)
            return str(self.on_device(self.work.fan)(*asked)), gr.update(selected="fan")

    def choose(self, chosen: gr.SelectData, request: gr.Request):
        session = self.sessions.of(request)
        session.chosen = chosen.index
        return self._show(session)

    def _show(self, session: visitors.Session):
        """The result that is looked at: before and after, its files, and the command line."""
        result = session.results[session.chosen]
        files = (str(path) for path in (result.path, result.change_map))
        pair = session.small.pixels, studio.small_file(result.path)
        return gr.update(visible=True), gr.update(selected="result"), pair, *files, result.command

    def end_run(self, request: gr.Request) -> None:
        self.sessions.of(request).stop.touch()

    def take_over(self, picture: editing.Picture) -> list:
        """The settings of a picture that was made here."""
        with serving.shown():
            return self.controls.showing(studio.read_settings(picture))

    def leave(self, request: gr.Request) -> None:
        self.sessions.end(request.session_hash)


def make_page(settings: dict[str, Any], on_device: Callable = lambda run: run) -> serving.Page:
    """The page for a model.

    Args:
        settings: The parameters of `edit` that say which models run, and how, where they are not the defaults.
        on_device: As in `Visit`.

    Raises:
        UserError: If there is no such model, or no such device.
    """
    work = studio.Studio(settings)
    model = work.find_model()
    steps, _ = loading.suggest(model)
    sessions = visitors.Sessions()
    os.environ["GRADIO_TEMP_DIR"] = str(sessions.cache)
    edits_videos = catalog.FAMILIES[model.family].makes_videos
    visit = (web_videos.VideoVisit if edits_videos else Visit)(work, sessions, on_device, steps)
    with serving.Page(title="modular-diffdiff", analytics_enabled=False) as page:
        page.sessions, page.has_tools = sessions, not edits_videos
        visit.draw()
        visit.wire(page)
        if page.has_tools:
            tools.offer(work, sessions, on_device, steps)
    sessions.begin()
    return page.queue(max_size=serving.MAX_QUEUE, api_open=False)


def launch(page: serving.Page, **given: Any) -> str:
    """Starts a page, and gives its address; what is given goes to `gr.Blocks.launch`.

    Raises:
        UserError: If it is asked for tools that it does not have.
    """
    if given.get("mcp_server"):
        if not page.has_tools:
            raise loading.UserError("--mcp offers edits of pictures, and this model edits videos.")
        from gradio import mcp

        mcp.DEFAULT_TEMP_DIR = str(page.sessions.cache)  # for what comes as data: URLs; else it stays for ever
    _, address, _ = page.launch(
        head=looks.HEAD,
        theme=looks.THEME,
        max_file_size=serving.MAX_UPLOAD,
        state_session_capacity=visitors.MAX_SESSIONS,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(serving.Guard, sessions=page.sessions)]},
        **{"quiet": True, "share": False, "ssr_mode": False, "footer_links": [], "prevent_thread_lock": True},
        **given,
    )
    return address


def serve(settings: dict[str, Any], on_device: Callable = lambda run: run, **given: Any) -> None:
    """Serves a page until it is interrupted; arguments as those of `make_page` and `launch`."""
    with editing.quiet_libraries(lambda message: gr.Warning(serving.say(message))):
        page = make_page(settings, on_device)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        try:
            print(launch(page, **given), flush=True)
            page.block_thread()
        finally:
            page.close(verbose=False)
