"""The page of a model that edits videos: over HTTP, and in a real browser."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from modular_diffdiff import loading
from modular_diffdiff.cli import app


gradio = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser needs playwright: pip install playwright")

from modular_diffdiff import web  # noqa: E402

from .browser import CHROMIUM, PATIENCE, Visitor  # noqa: E402
from .clips import frame_of, frames_of, make_clip, sound_of  # noqa: E402
from .test_page import Site, png  # noqa: E402


CLIP = make_clip()
LOSS = 3  # of a codec, in 8-bit steps on average


@pytest.fixture(scope="module")
def site(wan_checkpoint):
    before = os.environ.get("GRADIO_TEMP_DIR")
    page = web.make_page({"model": str(wan_checkpoint)})
    yield Site(page, web.launch(page))
    page.close()
    assert not page.sessions.folder.exists()
    os.environ.pop("GRADIO_TEMP_DIR")
    if before:
        os.environ["GRADIO_TEMP_DIR"] = before


def half() -> Image.Image:
    """A map that keeps the left half."""
    keep = np.full((48, 64), 255, np.uint8)
    keep[:, 32:] = 0
    return Image.fromarray(keep)


def ask_edit(site, session: str, **given):
    video = site.upload("clip.mp4", CLIP)
    assert site.ask("open", [video], session)[0]
    return site.values("make_edit", **{"Steps": 2, "What to show there": "a pear", **given})


def fetch(site, file: dict) -> bytes:
    return site.http.get(f"gradio_api/file={file['path']}").raise_for_status().content


def test_an_edit_is_what_the_command_line_makes(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    map_file = site.upload("keep.png", png(half()))
    values = ask_edit(site, "somebody", **{"Map, white keeps": map_file, "Feather (px)": 2})
    success, output = site.ask("make_edit", values)
    assert success, output
    result, command, change_map, _ = output["data"]
    made = fetch(site, result)
    Path("clip.mp4").write_bytes(CLIP)
    Path("clip-map.png").write_bytes(fetch(site, change_map))
    done = CliRunner().invoke(app, [*shlex.split(command)[1:], "--out", "again.mp4"])
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(frames_of(made), frames_of(Path("again.mp4").read_bytes()))
    edited, original = frames_of(made), frames_of(CLIP)
    assert np.abs(edited[:, :, :24].astype(int) - original[:, :, :24]).mean() < LOSS
    assert np.abs(edited[:, :, 40:].astype(int) - original[:, :, 40:]).mean() > 10 * LOSS
    assert sound_of(made) == [packet for packet in sound_of(CLIP) if packet[0] < 9 / 24]


def test_what_cannot_be_edited_is_said(site):
    picture = site.upload("photo.png", png(Image.fromarray(frame_of(0))))
    said = site.refusal("open", [picture], "a")
    assert "Video 'photo.png' cannot be read: it is damaged, or not a video." in said
    assert "Open a video first" in site.refusal("make_edit", site.values("make_edit"), "b")
    assert "Nothing says what may change" in site.refusal("make_edit", ask_edit(site, "c"), "c")
    guided = ask_edit(site, "d", **{"Guidance (empty: the model's)": "much"})
    assert "is 'much'; it takes a number, or nothing" in site.refusal("make_edit", guided, "d")


def test_it_has_no_tools(site):
    with pytest.raises(loading.UserError, match="--mcp offers edits of pictures, and this model edits videos"):
        web.launch(site.page, mcp_server=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")
def test_a_sitting(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(CLIP)
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        visitor = Visitor(browser, site.address, "Edit a video")
        visitor.upload(tmp_path / "clip.mp4", "video")
        visitor.tab.locator("#painting canvas").first.wait_for()
        visitor.tool("Brush", 0)
        visitor.drag((64, 48), (50, 10), (50, 38))
        visitor.tell("What to show there", "a green pear")
        visitor.open("Settings")
        visitor.tell("Steps", 2)
        visitor.press("Edit")
        player = visitor.tab.locator("#result video")
        player.wait_for(timeout=1000 * PATIENCE)
        visitor.tab.wait_for_function("document.querySelector('#result video').readyState > 1")
        assert player.evaluate("player => [player.videoWidth, player.videoHeight]") == [64, 48]
        command = visitor.tab.locator("#command textarea").input_value()
        assert re.match(r"modular-diffdiff edit clip\.mp4 clip-map\.png 'a green pear' --seed 0 ", command)
        assert "--guidance-scale" not in command
        assert "--crop" not in command
        keep = np.asarray(Image.open(visitor.download("Save map", tmp_path)))
        assert (keep[24, 50], keep[24, 2]) == (0, 65535)
        assert not visitor.errors
        assert not visitor.abroad
        browser.close()
