"""The page and its three public functions, as friends and strangers use them over HTTP and MCP."""

import asyncio
import base64
import contextlib
import http.server
import importlib.util
import io
import json
import os
import re
import shlex
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from transformers import CLIPSegForImageSegmentation
from typer.testing import CliRunner

from modular_diffdiff import editing, loading, maps, studio
from modular_diffdiff.cli import app
from modular_diffdiff.still_life.controls import depth
from modular_diffdiff.still_life.scene import Scene, render

from .helpers import picture


gradio = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
from gradio_client import Client, handle_file  # noqa: E402

from modular_diffdiff import serving, visitors, web  # noqa: E402


APPLE = Scene("apple", "red", "striped", light=0.3)
SIZE = 128
PROMPT = "a green pear on a striped background"
FILE = {"_type": "gradio.FileData"}
# What no visitor gets to see.
INTERNALS = re.compile(r"Traceback|site-packages|gradio\.|pydantic|object at 0x|/tmp|/home|/root|\.py\b")


class Site:
    """A page that is served, and requests to it as nobody's client makes them."""

    def __init__(self, page: serving.Page, address: str):
        self.page, self.address = page, address
        self.http = httpx.Client(base_url=address, timeout=60)
        self.config = self.http.get("config").json()
        self.parts = {part["id"]: part for part in self.config["components"]}

    def event(self, name: str) -> dict:
        return next(event for event in self.config["dependencies"] if event["api_name"] == name)

    def values(self, name: str, **given) -> list:
        """What the browser sends with an event: what the parts show, but for those with these labels."""
        named = {label.replace("_", " "): value for label, value in given.items()}
        parts = [self.parts[number]["props"] for number in self.event(name)["inputs"]]
        return [named.get(part.get("label"), part.get("value")) for part in parts]

    def join(self, name: str, data, session: str, event_data=None) -> httpx.Response:
        body = {"data": data, "fn_index": self.event(name)["id"], "session_hash": session, "event_data": event_data}
        return self.http.post(
            "gradio_api/queue/join", content=json.dumps(body), headers={"content-type": "application/json"}
        )

    def answers(self, session: str, events: list[str]) -> dict[str, tuple[bool, dict]]:
        """Whether each event has succeeded, and what it gives."""
        found = {}
        while len(found) < len(events):
            with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as stream:
                for line in stream.iter_lines():
                    message = json.loads(line.removeprefix("data: ")) if line else {}
                    if message.get("msg") == "process_completed":
                        found[message["event_id"]] = message["success"], message["output"]
        return found

    def ask(self, name: str, data, session: str = "somebody", event_data=None) -> tuple[bool, dict]:
        joined = self.join(name, data, session, event_data)
        assert joined.status_code == 200, joined.text
        event = joined.json()["event_id"]
        return self.answers(session, [event])[event]

    def refusal(self, name: str, data, session: str = "somebody", event_data=None) -> str:
        success, output = self.ask(name, data, session, event_data)
        assert not success, data
        assert output["error"], data
        assert not INTERNALS.search(output["error"]), output["error"]
        return output["error"]

    def upload(self, name: str, data: bytes) -> dict:
        (path,) = self.http.post("gradio_api/upload", files={"files": (name, data)}).raise_for_status().json()
        return {"path": path, "orig_name": name, "meta": FILE}

    def leave(self, session: str) -> None:
        """As when a tab is closed."""
        with self.http.stream("GET", f"gradio_api/heartbeat/{session}") as beats:
            next(beats.iter_lines())
        for _ in range(100):
            with self.page.sessions.lock:
                if session not in self.page.sessions.open:
                    return
            time.sleep(0.05)
        raise AssertionError("the session goes on")


@pytest.fixture(scope="module")
def site():
    before = os.environ.get("GRADIO_TEMP_DIR")
    page = web.make_page({})
    yield Site(page, web.launch(page, mcp_server=True))
    page.close()
    assert not page.sessions.folder.exists()
    os.environ.pop("GRADIO_TEMP_DIR")
    if before:
        os.environ["GRADIO_TEMP_DIR"] = before


@pytest.fixture(scope="module")
def client(site):
    client = Client(site.address, verbose=False)
    yield client
    client.close()


@pytest.fixture(scope="module")
def work():
    return studio.Studio({})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a photo and a map."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(render(APPLE, SIZE)).save("photo.png")
    half_map().save("map.png")
    ImageOps.invert(half_map()).save("mask.png")
    return tmp_path


def half_map() -> Image.Image:
    return Image.fromarray(np.repeat([[255, 100, 0]], SIZE, 0).repeat(43, 1)[:, :SIZE].astype(np.uint8))


def png(image: Image.Image, kind: str = "png", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


PHOTO = png(Image.fromarray(render(APPLE, SIZE)))


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# The public functions


def test_three_functions_are_public_and_documented(client):
    described = client.view_api(return_format="dict", print_info=False)
    assert set(described["named_endpoints"]) == {"/edit", "/make_map", "/fan"}
    assert not described["unnamed_endpoints"]
    edit = {given["parameter_name"]: given for given in described["named_endpoints"]["/edit"]["parameters"]}
    assert [name for name, given in edit.items() if not given["parameter_has_default"]] == ["image", "prompt"]
    kinds = {name: given["python_type"]["type"] for name, given in edit.items()}
    assert (
        kinds
        == {
            **{"image": "filepath", "prompt": "str", "change_map": "filepath | None", "text": "str", "grow": "float"},
            **{"feather": "float", "strength": "float", "steps": "int", "seed": "int"},
        }
        or kinds["change_map"] == "filepath"
    )
    assert "URL" not in edit["image"]["python_type"]["description"]


def test_the_rest_is_private(site):
    for event in site.config["dependencies"]:
        public = event["api_name"] in ("edit", "make_map", "fan")
        assert event["api_visibility"] == ("public" if public else "private"), event["api_name"]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"text": "the apple", "grow": 5, "feather": 2.5}, ["--text", "the apple", "--grow", "5", "--feather", "2.5"]),
        ({"change_map": "map.png", "grow": -3}, ["--mask", "mask.png", "--grow", "-3"]),
    ],
    ids=["words", "a map"],
)
def test_make_map_gives_what_the_command_gives(client, folder, given, options):
    given = {name: handle_file(value) if name == "change_map" else value for name, value in given.items()}
    made = client.predict(image=handle_file("photo.png"), **given, api_name="/make_map")
    run("map", "photo.png", *options, "--out", "made.png")
    expected = pixels("made.png")
    np.testing.assert_allclose(pixels(made).astype(int), expected, atol=1)  # of 65,535: it is rounded twice


def test_edit_gives_what_the_command_gives_bit_for_bit(client, folder):
    edited = client.predict(handle_file("photo.png"), PROMPT, handle_file("map.png"), steps=3, seed=7, api_name="/edit")
    run("edit", "photo.png", "map.png", PROMPT, "--steps", "3", "--seed", "7", "--overlay")
    np.testing.assert_array_equal(pixels(edited), pixels("photo-edit.png"))
    words = {"text": "the apple", "feather": 2, "strength": 0.9}
    edited = client.predict(handle_file("photo.png"), PROMPT, **words, steps=3, api_name="/edit")
    run("map", "photo.png", "--text", "the apple", "--feather", "2", "--out", "words.png")
    asked = ["--strength", "0.9", "--steps", "3", "--seed", "0", "--overlay"]
    run("edit", "photo.png", "words.png", PROMPT, *asked, "--out", "words-edit.png")
    np.testing.assert_array_equal(pixels(edited), pixels("words-edit.png"))
    told = editing.settings_of(editing.read_picture(edited, "IMAGE"))
    assert told["diffdiff_map"]["made"]["map_text"] == "the apple"


def test_fan_gives_what_the_command_gives(client, folder):
    sheet = client.predict(handle_file("photo.png"), PROMPT, handle_file("map.png"), steps=2, api_name="/fan")
    run("fan", "photo.png", PROMPT, "map.png", "--steps", "2", "--seed", "0", "--overlay")
    np.testing.assert_array_equal(pixels(sheet), pixels("photo-fan.png"))


def test_mcp(site):
    pytest.importorskip("mcp")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    picture = f"data:image/png;base64,{base64.b64encode(PHOTO).decode()}"
    asked = {"prompt": PROMPT, "text": "the apple", "steps": 2}

    before = sorted(Path("/tmp/gradio").rglob("file.*"))

    async def talk():
        async with (
            streamablehttp_client(f"{site.address}gradio_api/mcp/") as (reads, writes, _),
            ClientSession(reads, writes) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            images = [picture, "http://127.0.0.1:9/photo.png", "/etc/passwd", "file:///etc/passwd"]
            return tools, [await session.call_tool("edit", {"image": image, **asked}) for image in images]

    tools, (edited, *refused) = asyncio.run(talk())
    assert set(tools) == {"edit", "make_map", "fan"}
    assert tools["edit"].description.startswith("Edits an image towards a prompt")
    schema = tools["edit"].inputSchema
    assert schema["required"] == ["image", "prompt"]
    assert all(given["description"] for given in schema["properties"].values())
    assert not edited.isError
    (shown,) = (part for part in edited.content if part.type == "image")
    assert Image.open(io.BytesIO(base64.b64decode(shown.data))).size == (SIZE, SIZE)
    assert all(answer.isError for answer in refused)
    assert "addresses and paths are not opened" in refused[0].content[0].text
    assert sorted(Path("/tmp/gradio").rglob("file.*")) == before, "it lies with the page's own files"
    assert list(site.page.sessions.cache.rglob("file.png"))


# Addresses and paths


@pytest.fixture
def visited():
    """A web server, and what was asked of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PHOTO)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/photo.png", asked
        server.shutdown()


@pytest.fixture
def fetched(monkeypatch):
    """What gradio would have fetched: it refuses addresses of this machine by itself, and no others."""
    from gradio import processing_utils

    asked = []

    async def download(url, *_, **__):
        asked.append(url)
        raise OSError

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", download)
    return asked


def test_no_argument_is_opened(site, folder, visited, fetched):
    address, asked = visited
    (folder / "secret.png").write_bytes(PHOTO)
    elsewhere = [
        *(address, address.upper().replace("PHOTO.PNG", "photo.png"), "https://example.com/a.png"),
        *(f"file://{folder}/secret.png", "ftp://127.0.0.1/a.png", "data:image/png;base64,AAAA"),
        *("secret.png", "../../etc/passwd", "/etc/passwd", f"{folder}/secret.png", "", ".", "/", "\0", "//" + address),
        f"{site.page.sessions.cache}/../../etc/passwd",
        f"{site.page.sessions.cache}",
    ]
    files = [{"path": place, "meta": FILE} for place in elsewhere]
    files += [{"path": place} for place in elsewhere]
    files += [{"path": None, "url": place, "meta": FILE} for place in elsewhere]
    files += [{"url": place, "meta": FILE} for place in elsewhere]
    files += [{"path": {"path": address, "meta": FILE}, "meta": FILE}, {"path": [address], "meta": FILE}]
    files += [{"image": {"path": address, "meta": FILE}, "path": "a", "meta": FILE}]
    for file in files:
        assert "not opened" in site.refusal("edit", [file, PROMPT, None, "the apple", 0, 0, 1, 2, 0]), file
    for file in files[::5]:
        for name in ("open", "take_over"):
            assert "not opened" in site.refusal(name, [file]), file
        painting = {"background": file, "layers": [file], "composite": file, "id": None}
        for value in (painting, painting | {"background": None}, {"layers": [[file]]}):
            assert "not opened" in site.refusal("keep", [value]), value
    for value in (json.dumps(files[0]), [files[0]], [[files[0]]], address):
        for place in (0, 2):
            data = [site.upload("a.png", PHOTO), PROMPT, None, "the apple", 0, 0, 1, 2, 0]
            data[place] = value
            assert "it takes an uploaded picture" in site.refusal("edit", data)
    assert not asked
    assert not fetched


def test_no_other_way_leads_to_files_and_addresses(site, folder, visited, fetched):
    address, asked = visited
    (folder / "secret.png").write_bytes(PHOTO)
    file = {"path": address, "url": address, "meta": FILE}
    data = [file, PROMPT, None, "the apple", 0, 0, 1, 2, 0]
    for way in ("run", "api"):  # these would pass by the queue
        assert site.http.post(f"gradio_api/{way}/edit", json={"data": data}).status_code == 404
    event = site.http.post("gradio_api/call/edit", json={"data": data}).json()["event_id"]
    assert "not opened" in site.http.get(f"gradio_api/call/edit/{event}").text
    named = {"image": file, "prompt": PROMPT, "text": "the apple"}
    event = site.http.post("gradio_api/call/v2/edit", json=named).json()["event_id"]
    assert "not opened" in site.http.get(f"gradio_api/call/v2/edit/{event}").text
    places = [address, address.replace(":", "%3A"), "https://example.com/a.png", f"file://{folder}/secret.png"]
    places += ["/etc/passwd", "../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", f"{folder}/secret.png", "/"]
    places += [f"{site.page.sessions.cache}/../../../etc/passwd", str(site.page.sessions.folder)]
    for place in places:
        for route in ("gradio_api/file=", "gradio_api/file/", "gradio_api/proxy=", "static/", "assets/", "file="):
            answer = site.http.get(route + place)
            assert answer.status_code >= 400 or "<!doctype html>" in answer.text.lower(), (route, place)
            assert b"root:" not in answer.content
            assert answer.content != PHOTO
    assert site.http.post("gradio_api/process_recording", files={"video": ("a.mp4", b"")}).status_code == 403
    assert site.http.get("monitoring/summary").status_code == 403
    assert not asked
    assert not fetched


# Uploads


def bomb() -> bytes:
    """A PNG that says that it has 60,000 x 60,000 pixels."""
    data = bytearray(png(Image.new("L", (1, 1))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


GREY = Image.fromarray(np.linspace(0, 65_535, 64 * 64).reshape(64, 64).astype(np.uint16))
REFUSED_UPLOADS = {
    "bomb.png": (bomb(), "has more than"),
    "large.png": (png(Image.new("1", (14_000, 14_000))), "has more than"),
    "large.gif": (png(Image.new("P", (9000, 9000)), "gif"), "has more than"),
    "text.png": (b"hello", "is in no image format"),
    "empty.png": (b"", "is in no image format"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is in no image format"),
    "drawing.eps": (png(Image.new("L", (8, 8)), "eps"), "it is a program (EPS)"),
    "deep.png": (png(GREY), "has more than 8 bits"),
    "half.png": (PHOTO[:5000], "is damaged"),
    "<img src=x onerror=alert(1)>.png": (b"hello", "&lt;img"),
}


@pytest.mark.parametrize("name", REFUSED_UPLOADS)
def test_what_is_no_usable_picture_is_refused_in_a_sentence(site, name):
    data, why = REFUSED_UPLOADS[name]
    uploaded = site.upload("picture.png", data) | {"orig_name": name}
    said = site.refusal("open", [uploaded])
    assert why in said
    assert "<" not in said
    assert "\n" not in said
    assert why in site.refusal("edit", [uploaded, PROMPT, None, "the apple", 0, 0, 1, 2, 0])


def turned() -> bytes:
    image = Image.fromarray(render(APPLE)).crop((0, 0, 256, 128))
    exif = image.getexif()
    exif[0x0112] = 6
    return png(image, "jpeg", exif=exif)


FRAMES = [Image.new("P", (64, 48), n) for n in range(3)]
ACCEPTED_UPLOADS = {
    "turned.jpg": (turned(), (128, 256)),
    "cmyk.jpg": (png(Image.new("CMYK", (64, 48), (10, 20, 30, 40)), "jpeg"), (64, 48)),
    "animated.gif": (png(FRAMES[0], "gif", save_all=True, append_images=FRAMES[1:]), (64, 48)),
    "transparent.png": (png(Image.new("RGBA", (64, 48), (9, 9, 9, 99))), (64, 48)),
    "n" * 300 + ".png": (png(Image.new("RGB", (64, 48))), (64, 48)),
    "a\0\n\ud800../../b.png": (png(Image.new("RGB", (64, 48))), (64, 48)),
}


@pytest.mark.parametrize("name", ACCEPTED_UPLOADS)
def test_pictures_of_all_kinds_are_taken(site, name):
    data, size = ACCEPTED_UPLOADS[name]
    uploaded = site.upload("picture", data) | {"orig_name": name}
    success, output = site.ask("open", [uploaded])
    assert success, output
    shown = output["data"][0]["background"]
    with Image.open(shown["path"]) as image:
        assert image.size == size
    everything = png(Image.new("L", size))
    success, output = site.ask("make_map", [uploaded, site.upload("map.png", everything), "", 0, 0])
    assert success, output


def test_uploads_are_bounded(site, monkeypatch):
    monkeypatch.setattr(serving, "MAX_UPLOAD", 1000)
    answer = site.http.post("gradio_api/upload", files={"files": ("a.png", bytes(2000))})
    assert (answer.status_code, answer.text) == (413, "A request takes at most 1,000 bytes, and says how many.")
    answer = site.http.post("gradio_api/queue/join", content=iter([b"{}"]))
    assert answer.status_code == 413
    monkeypatch.undo()
    monkeypatch.setattr(visitors, "MAX_FILES", 0)
    answer = site.http.post("gradio_api/upload", files={"files": ("a.png", PHOTO)})
    assert (answer.status_code, answer.text) == (503, "Too many pictures are open here. Try again later.")
    monkeypatch.undo()
    monkeypatch.setattr(visitors, "MAX_BYTES", 0)
    assert site.http.post("gradio_api/upload", files={"files": ("a.png", PHOTO)}).status_code == 503
    monkeypatch.undo()
    site.upload("a.png", PHOTO)


# Paintings


def blob(site: Site, data: bytes, **given) -> httpx.Response:
    number = next(n for n, part in site.parts.items() if part["type"] == "imageeditor")
    form = {"type": "layer", "index": "0", "id": "a", "component_id": number, "session_hash": "painter"}
    return site.http.post(
        "gradio_api/component_server",
        data=form | {"fn_name": "accept_blobs"} | given,
        files={"file": ("blob", data)} if data else {"file": ""},
    )


def painted(share: float = 1.0) -> bytes:
    layer = np.zeros((SIZE, SIZE, 4), np.uint8)
    layer[30:100, 30:100] = 255, 0, 0, round(255 * share)
    return png(Image.fromarray(layer))


def test_a_painting_is_taken_and_its_opacity_is_the_strength(site):
    assert site.ask("open", [site.upload("photo.png", PHOTO)], "painter")[0]
    assert blob(site, painted(0.5)).status_code == 200
    painting = {"background": None, "layers": [], "composite": None, "id": "a"}
    given = {"Paint_here": painting, "What_to_show_there": PROMPT, "Steps": 2}
    success, output = site.ask("make_edits", site.values("make_edits", **given), "painter")
    assert success, output
    values = pixels(output["data"][5]["path"])
    assert set(np.unique(values)) == {127 * 257, 65_535}


@pytest.mark.parametrize(
    "given",
    [
        {"index": str(10**12)},
        {"index": "x"},
        {"index": "-1", "type": "layer"},
        {"type": "composite"},
        {"id": "b" * 10**6},
        {"component_id": "99999"},
        {"component_id": "1"},
        {"component_id": "x"},
        {"fn_name": "preprocess"},
        {"fn_name": "__init__"},
        {"fn_name": "postprocess"},
    ],
    ids=str,
)
def test_other_blobs_change_nothing(site, given):
    answer = blob(site, painted(), **given)
    assert answer.status_code < 500
    assert not INTERNALS.search(answer.text), answer.text


def test_broken_blobs(site):
    assert blob(site, b"").status_code in (200, 400)
    assert blob(site, bytes(11 * 2**20)).status_code == 413
    for body in ({}, {"data": 3, "component_id": 7, "session_hash": "a", "fn_name": "accept_blobs"}, [], 3):
        answer = site.http.post("gradio_api/component_server", json=body)
        assert answer.status_code in (400, 404)
        assert not INTERNALS.search(answer.text)
    site.ask("open", [site.upload("photo.png", PHOTO)], "painter")
    painting = {"background": None, "layers": [], "composite": None, "id": "a"}
    for data in (b"hello", bomb(), png(Image.new("RGBA", (2000, 2000)))):
        assert blob(site, data).status_code == 200
        said = site.refusal("keep", [painting], "painter")
        assert said.startswith("The painting cannot be read")


# Wrong calls


PICTURES = ["x", 3, [], {}, True, {"path": 1}, {"path": None, "meta": 3}, {"a": {"b": 1}}, "\ud800", [None]]
TEXTS = [3, [], {}, True, "x" * 3000, "a\0b", "\ud800", ["a"]]
NUMBERS = ["1", [], {}, True, float("nan"), float("inf"), -float("inf"), 1e300, 10**400, "\ud800"]
WRONG = {
    "image": [*PICTURES, None],
    "prompt": [*TEXTS, None, ""],
    "change_map": PICTURES,
    "text": TEXTS,
    "grow": [*NUMBERS, 201, -201],
    "feather": [*NUMBERS, -1],
    "strength": [*NUMBERS, -0.1, 1.1, None],
    "steps": [*NUMBERS, 0, -3, 101, 2.5, None],
    "seed": [*NUMBERS, -1, 2.5, 2**64],
}


def deep(value) -> list:
    for _ in range(300):
        value = [value]
    return value


def test_wrong_calls_get_a_sentence_and_the_next_call_its_answer(site):
    asked = 0
    files = {"image": site.upload("photo.png", PHOTO), "change_map": site.upload("map.png", png(half_map()))}
    right = {**files, "prompt": PROMPT, "text": "", "grow": 0, "feather": 0, "strength": 1, "steps": 2, "seed": 0}
    takes = {
        "edit": ("image", "prompt", "change_map", "text", "grow", "feather", "strength", "steps", "seed"),
        "make_map": ("image", "change_map", "text", "grow", "feather"),
    }
    for name, names in takes.items():
        rights = [right[given] for given in names]
        for place, given in enumerate(names):
            for wrong in WRONG[given]:
                site.refusal(name, [*rights[:place], wrong, *rights[place + 1 :]])
                asked += 1
        for data in ([], rights[:-1], [*rights, None], [*rights, *rights], deep(rights), [deep(1)] * len(rights)):
            assert "values, not" in (said := site.refusal(name, data)) or "it takes" in said
            asked += 1
    assert asked > 100
    assert site.ask("edit", [right[given] for given in takes["edit"]])[0]


@pytest.mark.parametrize("event_data", [None, 3, {"index": "x"}, {"index": 10**9}, {"index": None}, {"x": []}], ids=str)
def test_wrong_events_of_the_page_get_a_sentence(site, event_data):
    for name, count in (("open_example", 0), ("choose", 0), ("point_at", 1)):
        site.refusal(name, [""] * count, "stranger", event_data)


def test_requests_that_are_none_get_a_sentence(site):
    bodies = [b"", b"{", b"[]", b"3", b'{"data": 3}', b'{"data": [], "fn_index": "x"}', b"\xff\xfe", b"[" * 100_000]
    bodies += [b'{"data": [], "fn_index": 999, "session_hash": "a"}', b'{"data": [], "session_hash": [1]}']
    bodies += [b'{"data": [], "fn_index": 0}', b'{"data": [], "fn_index": -1, "session_hash": "a"}']
    routes = ("queue/join", "call/edit", "call/v2/edit", "call/nothing", "call/v2/nothing", "run/edit", "run/nothing")
    for route in routes:
        for body in bodies:
            headers = {"content-type": "application/json"}
            answer = site.http.post(f"gradio_api/{route}", content=body, headers=headers)
            if answer.status_code == 200:  # in the queue, where it is refused
                answer = site.http.get(f"gradio_api/call/edit/{answer.json()['event_id']}")
                assert "event: error" in answer.text
            else:
                assert 400 <= answer.status_code < 500, (route, body)
            assert not INTERNALS.search(answer.text), answer.text


def test_a_text_that_is_too_long_for_the_segmenter_is_refused(site):
    said = site.refusal("make_map", [site.upload("photo.png", PHOTO), None, "the apple " * 50, 0, 0])
    assert said == "“Or say it in words” is 102 tokens long; the segmenter reads 32."


def test_a_failure_that_nobody_foresaw_is_a_sentence_too(site, monkeypatch, capfd):
    def fails(*_, **__):
        raise RuntimeError("/secret/path of a library")

    monkeypatch.setattr(studio.Studio, "make_map", fails)
    data = [site.upload("photo.png", PHOTO), None, "the apple", 0, 0]
    assert site.refusal("make_map", data) == serving.FAILED
    monkeypatch.setattr(studio.Studio, "make_map", lambda *_: (_ for _ in ()).throw(OSError("/secret/path is full")))
    assert site.refusal("make_map", data) == serving.FAILED
    assert capfd.readouterr().err.count("/secret/path") >= 2, "the console says why"


# Several visitors


def test_sessions_do_not_see_each_other_and_end_with_their_files(site):
    red = png(Image.fromarray(render(Scene("apple", "red", "checked"), SIZE)))  # nobody else has it
    blue = png(Image.fromarray(render(Scene("cup", "blue", "plain"), SIZE)))
    files = {"anna": site.upload("anna.png", red), "ben": site.upload("ben.png", blue)}
    examples = {path for path in site.page.sessions.own if os.path.exists(path)}
    shown = {}
    for name, file in files.items():
        assert site.ask("open", [file], name)[0]
    asked = {"Or_say_it_in_words": "the apple", "What_to_show_there": PROMPT, "Steps": 2}
    success, edited = site.ask("make_edits", site.values("make_edits", **asked), "anna")
    assert success, edited
    for name in files:
        success, output = site.ask("look", site.values("look"), name)
        assert success
        shown[name] = output["data"][0]["path"]
    assert "no result yet" in site.refusal("go_on", [None], "ben")
    site.refusal("choose", [], "ben", {"index": 0})
    np.testing.assert_array_equal(pixels(shown["ben"]), pixels(io.BytesIO(blue)))
    np.testing.assert_array_equal(pixels(shown["anna"]), pixels(io.BytesIO(red)))
    made = [file["path"] for file in edited["data"][4:6]]
    own = site.page.sessions.open["anna"].folder
    assert all(map(os.path.exists, [*made, own]))
    site.leave("anna")
    gone = [files["anna"]["path"], shown["anna"], own, *made]
    assert not any(map(os.path.exists, gone))
    assert all(map(os.path.exists, [files["ben"]["path"], shown["ben"], *examples]))
    assert site.ask("look", site.values("look"), "ben")[0]
    site.leave("ben")
    assert not os.path.exists(files["ben"]["path"])


def test_a_file_that_two_sessions_have_stays_to_the_second_ones_end(site):
    file = site.upload("both.png", PHOTO)
    for name in ("carl", "dora"):
        site.ask("open", [file], name)
    site.leave("carl")
    assert os.path.exists(file["path"])
    site.leave("dora")
    assert not os.path.exists(file["path"])


@pytest.fixture
def sessions():
    sessions = visitors.Sessions()
    yield sessions
    sessions.close()
    assert not sessions.folder.exists()


def visitor(name: str = "a") -> SimpleNamespace:
    return SimpleNamespace(session_hash=name)


def test_sessions_are_bounded_in_number_pixels_and_time(sessions, monkeypatch):
    monkeypatch.setattr(visitors, "MAX_SESSIONS", 3)
    folders = [sessions.of(visitor(name)).folder for name in "abcd"]
    assert list(sessions.open) == ["b", "c", "d"]
    assert [folder.exists() for folder in folders] == [False, True, True, True]
    sessions.of(visitor("b"))
    sessions.of(visitor("e"))
    assert list(sessions.open) == ["d", "b", "e"], "the one that was not used for longest ends"
    monkeypatch.setattr(visitors, "MAX_OPEN_PIXELS", 100)
    for name in "db":
        sessions.of(visitor(name)).photo = studio.as_picture(Image.new("L", (9, 9)), "a", "a.png")
    sessions.of(visitor("b"))
    assert list(sessions.open) == ["e", "b"] or list(sessions.open) == ["b"]
    sessions.of(visitor("b")).used = 0
    sessions.of(visitor("f"))
    assert "b" not in sessions.open


def test_only_the_last_values_of_a_part_are_kept(sessions):
    written = []
    for n in range(visitors.MAX_SHOWN + 3):
        path = sessions.cache / str(n) / "preview.png"
        path.parent.mkdir()
        path.write_bytes(b"")
        written.append(path)
        sessions.hold("a", [], {7: {"path": str(path)}})
    assert [path.exists() for path in written] == [False] * 3 + [True] * visitors.MAX_SHOWN
    assert not written[0].parent.exists()


def test_uploads_that_nobody_used_go_after_a_while(sessions):
    for name, age in (("new", 0), ("old", 2 * visitors.MAX_UNCLAIMED)):
        (sessions.cache / name).write_bytes(b"")
        os.utime(sessions.cache / name, (time.time() - age,) * 2)
    sessions.tidy()
    assert [path.name for path in sessions.cache.iterdir()] == ["new"]


def test_the_folders_of_results_that_nobody_sees_go(sessions, monkeypatch):
    monkeypatch.setattr(visitors, "MAX_RESULTS", 2)
    session = sessions.of(visitor())
    for _ in range(4):
        folder = session.new_folder()
        session.results.append(visitors.Result(folder / "a.png", folder / "map.png", ""))
    assert len([path for path in session.folder.iterdir() if path.is_dir()]) == 3


def test_twenty_clients_at_once_get_their_own_answers(site, folder):
    photo, keep = (site.upload(name, Path(name).read_bytes()) for name in ("photo.png", "map.png"))

    def edit(seed: int) -> np.ndarray:
        success, output = site.ask("edit", [photo, PROMPT, keep, "", 0, 0, 1, 1, seed], f"client {seed}")
        assert success, output
        return pixels(io.BytesIO(site.http.get(output["data"][0]["url"]).content))

    with ThreadPoolExecutor(20) as pool:
        edited = list(pool.map(edit, range(20)))
    run("edit", "photo.png", "map.png", PROMPT, "--overlay", "--steps", "1", "--seed", "0", "--count", "20")
    for seed, answer in enumerate(edited):
        np.testing.assert_array_equal(answer, pixels(f"photo-edit-{seed}.png"))
    assert len({answer.tobytes() for answer in edited}) == 20


def test_the_queue_is_bounded_and_edits_run_one_at_a_time(site, monkeypatch):
    running, most = [], []

    def edit(self, photo, change_map, *_):
        running.append(photo)
        most.append(len(running))
        time.sleep(0.3)
        running.pop()
        yield change_map, ""

    monkeypatch.setattr(studio.Studio, "edit", edit)
    monkeypatch.setattr(site.page._queue, "max_size", 3)
    file = site.upload("photo.png", PHOTO)
    data = [file, PROMPT, file, "", 0, 0, 1, 2, 0]
    joined = [site.join("edit", data, "crowd") for _ in range(8)]
    refused = [answer for answer in joined if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert answer.status_code == 503
        assert answer.json()["detail"].startswith("Queue is full. Max size is 3")
    events = [answer.json()["event_id"] for answer in joined if answer.status_code == 200]
    assert all(success for success, _ in site.answers("crowd", events).values())
    assert max(most) == 1
    device = [fn for fn in site.page.fns.values() if fn.concurrency_id == "device"]
    assert {fn.api_name.rstrip("_1") for fn in device} >= {"make_edits", "make_fan", "edit", "make_map", "fan"}
    assert all(fn.concurrency_limit == 1 for fn in device)


# The handlers


class Visitor:
    """What one visitor does, without a server."""

    def __init__(self, work: studio.Studio, sessions: visitors.Sessions):
        with serving.Page() as page:
            self.visit = web.Visit(work, sessions)
            self.visit.draw()
        page.sessions = sessions
        parts = [self.visit.painting, *self.visit.controls.all()]
        self.given = {part: getattr(part, "value", None) for part in parts}
        self.request = visitor()

    def asks(self, **params) -> dict:
        controls = self.visit.controls
        named = {controls.prompt if name == "prompt" else controls.params[name]: v for name, v in params.items()}
        return self.given | named

    def opens(self, data: bytes = PHOTO) -> visitors.Session:
        photo = editing.Picture("Photo", "photo.png", "0", Image.open(io.BytesIO(data)))
        self.visit.open(photo, self.request)
        return self.visit.sessions.of(self.request)


@pytest.fixture
def guest(work, sessions):
    return Visitor(work, sessions)


def test_stop_ends_a_run_within_a_step_and_leaves_photo_and_painting(guest):
    session, steps = guest.opens(), []
    session.painted = painted_map = half_map()
    photo = session.photo

    def progress(step, **_):
        steps.append(step)
        if len(steps) == 2:
            guest.visit.end_run(guest.request)

    asked = guest.asks(prompt=PROMPT, steps=20)
    with pytest.raises(gradio.Error, match="Stopped"):
        list(guest.visit.make_edits(asked, guest.request, progress))
    assert steps == [(1, 20), (2, 20)]
    assert session is guest.visit.sessions.of(guest.request)
    assert (session.photo, session.painted, session.results) == (photo, painted_map, [])
    asked = guest.asks(prompt=PROMPT, steps=2)
    assert len(list(guest.visit.make_edits(asked, guest.request, lambda *_, **__: None))) == 1


def test_a_run_ends_when_its_visitor_has_left(guest):
    guest.opens().painted = half_map()
    asked = guest.asks(prompt=PROMPT, steps=20)
    with pytest.raises(gradio.Error, match="Stopped"):
        list(guest.visit.make_edits(asked, guest.request, lambda *_, **__: guest.visit.leave(guest.request)))
    assert not guest.visit.sessions.open


@pytest.mark.parametrize(
    "wrong", [{"prompt": ""}, {"prompt": "\ud800"}, {"point": ["x"]}, {"guidance_scale": 5000}], ids=str
)
def test_a_bad_input_leaves_photo_and_painting(guest, wrong):
    session = guest.opens()
    session.painted = painted_map = half_map()
    photo = session.photo
    wrong = {name: "x" if name == "point" else value for name, value in wrong.items()}
    with pytest.raises(gradio.Error) as raised:
        list(guest.visit.make_edits(guest.asks(prompt=PROMPT, steps=2) | guest.asks(**wrong), guest.request, None))
    assert not INTERNALS.search(raised.value.message)
    assert "--" not in raised.value.message
    with pytest.raises(gradio.Error, match="more than 8 bits"):
        guest.opens(png(GREY))
    assert (session.photo, session.painted) == (photo, painted_map)


def test_a_part_that_is_updated_keeps_its_way_of_reading(site):
    """Gradio makes parts anew that an event updates."""
    made = site.page
    file = site.upload("photo.png", PHOTO)
    site.ask("open", [file], "erin")
    asked = {"Or_say_it_in_words": "the apple", "What_to_show_there": PROMPT, "Steps": 2}
    success, output = site.ask("make_edits", site.values("make_edits", **asked), "erin")
    assert success
    result = {"path": output["data"][4]["path"], "meta": FILE}
    success, told = site.ask("take_over", [result], "erin")
    assert success, told
    mask = site.upload("mask.png", png(Image.new("L", (SIZE, SIZE), 255)))
    success, output = site.ask("look", site.values("look", **{"Mask, white changes": mask}), "erin")
    assert success, output
    assert "erin" in made.sessions.open


def written(told) -> bytes:
    """A PNG with these settings."""
    text = PngInfo()
    text.add_text(editing.METADATA_KEY, json.dumps(told))
    return png(Image.new("RGB", (8, 8)), pnginfo=text)


def shown_of(guest: Visitor, told: dict) -> dict:
    """What the parts show then, by the parameter; those that stay as they are are left out."""
    names = [*guest.visit.controls.params, "by_depth", "near", "far", "free", "kept", "least", "most"]
    names += [*(f"{part} {place}" for place in range(4) for part in ("where", "what")), "prompt"]
    shown = guest.visit.take_over(editing.Picture("Picture", "a.png", "0", Image.open(io.BytesIO(written(told)))))
    return {name: value for name, value in zip(names, shown, strict=True) if value != gradio.skip()}


def test_settings_are_shown_as_the_page_asks_for_them(guest):
    told = {"map_points": [[1, 2], [3, 4, 0]], "map_gradient": 90.0, "guidance_scale": None, "steps": 7}
    told |= {"regions": [{"where": {"name": "a.png"}, "prompt": "lost"}, {"where": "the cup", "prompt": "a bottle"}]}
    told |= {"map_depth": [0.1, 0.9], "map_limits": [0.2, 0.8], "prompt": "a pear", "seed": 3, "map_grow": 5}
    shown = shown_of(guest, {"diffdiff_map": {"made": told}} | told)
    assert shown == {
        **{"point": "1,2; 3,4,0", "gradient": "90", "guidance_scale": None, "steps": 7, "by_depth": True, "near": 0.1},
        **{"far": 0.9, "least": 0.2, "most": 0.8, "prompt": "a pear", "seed": 3, "grow": 5},
        **{f"{part} {place}": "" for place in range(1, 4) for part in ("where", "what")},
        **{"where 0": "the cup", "what 0": "a bottle"},
    }


def test_a_strangers_settings_lead_to_no_file(guest, site, folder):
    (folder / "secret.txt").write_text("secret")
    file = {"path": str(folder / "secret.txt"), "meta": FILE}
    update = {"__type__": "update", "value": file, "choices": [file]}
    names = [*studio.DEFAULTS, *maps.INPUTS.values(), "prompt", "negative_prompt", "regions"]
    for value in (file, update, [file], [[file]], [1, 2, 3], "x" * 9999, "\0", True, 1e300, float("nan"), {}):
        for told in (dict.fromkeys(names, value), {"diffdiff_map": value}, {"diffdiff_map": {"made": value}}):
            assert not any(isinstance(shown, dict | list) for shown in shown_of(guest, told).values())
    uploaded = site.upload("stranger.png", written(dict.fromkeys(names, file)))
    assert site.ask("take_over", [uploaded], "stranger")[0]
    assert not list(site.page.sessions.cache.rglob("secret.txt"))


def test_other_pictures_have_no_settings(guest):
    for told in ([], 3, None, "x"):
        with pytest.raises(gradio.Error, match="holds no settings"):
            shown_of(guest, told)


# What is done, without a page


PROMPTS = ['a "green" pear', "-a pear", "--steps 3", "a pear,\nan été of $HOME, `x` and it's \\ *"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_command_line_repeats_the_picture(work, folder, prompt):
    photo = serving.read_upload("photo.png", "photo.png", "Photo")
    asked = {"steps": 2, "seed": 5, "overlay": True, "guidance_scale": 2.5, "negative": "-", "softness": 0.1}
    ((path, line),) = work.edit(photo, folder / "map.png", prompt, asked)
    words = shlex.split(line)
    assert words[:2] == ["modular-diffdiff", "edit"]
    run(*words[1:], "--overwrite") if "--" not in words else run(*words[1:2], "--overwrite", *words[2:])
    np.testing.assert_array_equal(pixels("photo-edit.png"), pixels(path))


@pytest.mark.parametrize("steered_by", ["control_image", "ip_adapter_image"])
def test_the_command_line_repeats_a_steered_picture(work, folder, steered_by):
    guide = depth(APPLE) if steered_by == "control_image" else Image.fromarray(render(APPLE))
    guide.convert("RGB").save("guide.png")
    photo, steering = (serving.read_upload(name, name, "Picture") for name in ("photo.png", "guide.png"))
    ((path, line),) = work.edit(photo, folder / "map.png", PROMPT, {"steps": 2, "seed": 5, steered_by: steering})
    assert "guide.png" in line
    run(*shlex.split(line)[1:], "--overwrite")
    np.testing.assert_array_equal(pixels("photo-edit.png"), pixels(path))


def test_settings_come_back_from_edits_and_maps(folder):
    run("map", "photo.png", "--text", "the apple", "--grow", "4", "--limits", "0.1", "0.9", "--out", "made.png")
    told = studio.read_settings(editing.read_picture("made.png", "IMAGE"))
    assert {name: told[name] for name in ("text", "grow")} == {"text": "the apple", "grow": 4}
    assert tuple(told["limits"]) == (0.1, 0.9)
    run(
        "edit", "photo.png", "made.png", PROMPT, "--negative", "x", "--steps", "2", "--seed", "9", "--out", "edited.png"
    )
    told = studio.read_settings(editing.read_picture("edited.png", "IMAGE"))
    expected = {"text": "the apple", "grow": 4, "prompt": PROMPT, "negative": "x", "steps": 2, "seed": 9}
    assert {name: told[name] for name in expected} == expected
    with pytest.raises(loading.UserError, match="holds no settings"):
        studio.read_settings(editing.read_picture("photo.png", "IMAGE"))


def test_a_model_does_not_run_again_when_only_the_shape_changes(work, monkeypatch):
    loads, runs = [], []
    load, forward = loading.load_map_model, CLIPSegForImageSegmentation.forward
    monkeypatch.setattr(loading, "load_map_model", lambda *given: loads.append(given) or load(*given))
    monkeypatch.setattr(
        CLIPSegForImageSegmentation, "forward", lambda self, **given: runs.append(1) or forward(self, **given)
    )
    work = studio.Studio(work.settings)  # which has loaded nothing
    photo = studio.as_picture(Image.open(io.BytesIO(PHOTO)).convert("RGB"), "Photo", "photo.png")
    memory = {}
    for shape in ({}, {"grow": 4}, {"feather": 3, "strength": 0.5}, {"limits": (0.2, 0.8)}):
        work.preview(photo, photo, None, {"text": "the apple"} | shape, memory)
    assert (len(loads), len(runs)) == (1, 1)
    work.preview(photo, photo, None, {"text": "the background"}, memory)
    assert (len(loads), len(runs)) == (1, 2)


def test_what_sources_made_is_remembered_within_bounds():
    photo, memory = studio.as_picture(picture(), "Photo", "photo.png"), {}
    for angle in range(2 * studio.REMEMBERED):
        studio.Studio({}).find(photo, None, {"gradient": str(angle)}, memory)
    assert len(memory) == studio.REMEMBERED


def test_seeds_end_where_the_command_lines_do(folder):
    photo = serving.read_upload("photo.png", "photo.png", "Photo")
    with pytest.raises(loading.UserError, match="The largest seed is"):
        list(studio.Studio({}).edit(photo, Path("map.png").resolve(), PROMPT, {"seed": 2**32 - 2, "count": 3}))


# The command


@pytest.fixture
def served(monkeypatch):
    asked = []
    monkeypatch.setattr(web, "serve", lambda settings, **given: asked.append((settings, given)))
    return asked


def test_by_default_only_this_machine_is_served(served):
    assert run("web") == ""
    ((_, given),) = served
    assert given == {"server_name": "127.0.0.1", "server_port": None, "auth": None, "mcp_server": False}


def test_another_host_says_who_can_reach_it(served):
    assert "can open the page; --auth asks for a password" in run("web", "--host", "0.0.0.0")
    assert "and knows the password can open" in run("web", "--host", "0.0.0.0", "--auth", "ada:a:b")
    assert served[-1][1]["auth"] == ("ada", "a:b")


@pytest.mark.parametrize("auth", ["ada", "ada:", ":b", ""])
def test_a_password_needs_a_name_and_a_colon(served, auth):
    said = run("web", "--auth", auth, code=2)
    assert "it takes USER:PASSWORD" in said
    assert not served


def test_mcp_takes_no_password_and_needs_its_package(served, monkeypatch):
    assert "its clients cannot log in" in run("web", "--mcp", "--auth", "ada:a", code=2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'gradio[mcp]'" in run("web", "--mcp", code=2)
    assert not served


def test_mistakes_end_before_a_server_starts():
    said = run("web", "--model", "nonsense", code=2)
    assert "nonsense" in said
    assert said.count("\n") == 1


def test_without_gradio_it_says_how_to_get_it(monkeypatch):
    import modular_diffdiff

    monkeypatch.delattr(modular_diffdiff, "web")
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("web", "controls", "serving", "tools"):
        monkeypatch.delitem(sys.modules, f"modular_diffdiff.{name}")
    assert "pip install 'gradio>=6.31'" in run("web", code=2)


def test_a_password_is_asked_for(site, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ["GRADIO_TEMP_DIR"])
    page = web.make_page({})
    address = web.launch(page, auth=("ada", "secret"))
    with httpx.Client(base_url=address) as stranger:
        assert stranger.get("config").status_code == 401
        assert stranger.post("gradio_api/upload", files={"files": ("a.png", PHOTO)}).status_code == 401
        assert stranger.post("login", data={"username": "ada", "password": "x"}).status_code == 400
        assert stranger.post("login", data={"username": "ada", "password": "secret"}).status_code == 200
        assert stranger.get("config").status_code == 200
        assert stranger.get("").status_code == 200
    page.close()


# Regions


def test_regions_are_seen_edited_repeated_and_come_back(tmp_path):
    """The command line that the page shows makes the same picture."""
    example = studio.EXAMPLES[2]  # an apple and a cup
    path = example.write(str(tmp_path))
    photo = editing.read_picture(str(path), "Photo")
    work = studio.Studio({})
    regions = [("the cup", "a red apple and a purple bottle on a tabletop"), ("", "")]
    params = {"regions": regions, "steps": 2, "seed": 3, "text": "the cup"}
    plain, tinted = (work.preview(photo, photo, None, params | {"regions": shown}, {}) for shown in ([], regions))
    cup = np.asarray(plain).astype(int) - np.asarray(tinted)
    assert abs(cup[100:180, 160:210]).mean() > 30
    assert abs(cup[100:180, 20:60]).mean() < 10

    change_map = work.make_map(photo, photo, None, params, {}, tmp_path)
    ((made, command),) = work.edit(photo, change_map, "a red apple and a blue cup on a tabletop", params)
    told = studio.read_settings(editing.read_picture(str(made), "it"))
    assert told["regions"] == [{"prompt": regions[0][1], "where": "the cup"}]
    with contextlib.chdir(tmp_path):
        again = CliRunner().invoke(app, [*shlex.split(command)[1:], "--out", "again.png"])
    assert again.exit_code == 0, again.output
    assert (np.asarray(Image.open(tmp_path / "again.png")) == np.asarray(Image.open(made))).all()


@pytest.mark.parametrize(
    ("regions", "says"),
    [
        ([("the cup", "")], "A place needs both its name and what to show there"),
        ([("", "a pear")], "A place needs both its name and what to show there"),
        ([("/etc/passwd.png", "a pear")], "A place is named in words here"),
        ([("https://example.com/a", "a pear")], "A place is named in words here"),
    ],
)
def test_a_strangers_regions_open_no_file(tmp_path, regions, says):
    path = studio.EXAMPLES[0].write(str(tmp_path))
    photo = editing.read_picture(str(path), "Photo")
    work = studio.Studio({})
    change_map = work.make_map(photo, photo, None, {"gradient": "90"}, {}, tmp_path)
    with pytest.raises(loading.UserError, match=says):
        next(work.edit(photo, change_map, "a pear", {"regions": regions, "steps": 1, "seed": 0}))
