"""One sitting at the page, in a real browser."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from modular_diffdiff.cli import app
from modular_diffdiff.still_life.scene import Scene, masks, render


pytest.importorskip("gradio", reason="the page needs gradio: pip install 'gradio>=6.31'")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser needs playwright: pip install playwright")

from .browser import CHROMIUM, PATIENCE, Visitor, served, wait_for  # noqa: E402


pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium")
SCENE = Scene("apple", "red", "striped", light=0.3)
SIDE = 128
STRONG, WEAK, ERASED = ((15, 30), (45, 30)), ((15, 100), (45, 100)), ((45, 10), (45, 50))  # ends of strokes, x and y
HALF = 127  # what the brush leaves of an opacity of one half, of 255
TEXT = "Or say it in words"
PROMPT = "a green pear on a striped background"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with served(tmp_path_factory.mktemp("page") / "log") as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visitor(browser, page):
    visitor = Visitor(browser, page)
    yield visitor
    print(visitor.seconds)
    assert not visitor.abroad
    assert not visitor.errors
    visitor.tab.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    Image.fromarray(render(SCENE, SIDE)).save(tmp_path / "still.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_sitting(visitor, folder):
    photo = pixels("still.png")
    with visitor.waits("preview", "open a photo"):
        visitor.upload(folder / "still.png", "photo")

    # Two strengths are painted, a part is erased, and the map says exactly that.
    for tool, strength, stroke in (("Brush", 0, STRONG), ("Brush", 2, WEAK), ("Erase", None, ERASED)):
        visitor.tool(tool, strength)
        with visitor.waits("preview", f"{tool.lower()}, a stroke"):
            visitor.drag(photo.shape[1::-1], *stroke)
    visitor.press("Edit")
    visitor.reads("“What to show there” is empty")  # and all stays where it was
    visitor.tell("What to show there", PROMPT)
    visitor.open("Settings")
    visitor.tell("Steps", 6)
    visitor.tell("Seed", 7)
    with visitor.waits("results", "the first edit"):
        visitor.press("Edit")
    painted = pixels(visitor.download("Save map", folder))
    assert painted.dtype == np.uint16
    at = {name: painted[y, x] for name, (x, y) in {"strong": STRONG[0], "weak": WEAK[0], "erased": STRONG[1]}.items()}
    assert at == {"strong": 0, "weak": 65535 - 65535 * HALF // 255, "erased": 65535}
    assert set(np.unique(painted)) == set(at.values())
    assert (painted[60:70] == 65535).all()

    # Words and feathering join in; what the map keeps is the photo's, byte for byte.
    with visitor.waits("preview", "words"):
        visitor.tell("Or say it in words", "the apple")
    with visitor.waits("preview", "a slider"):
        visitor.tell("Feather (px)", 3)
    with visitor.waits("results", "an edit"):
        visitor.press("Edit")
    made, change_map = (visitor.download(f"Save {what}", folder) for what in ("picture", "map"))
    keep, result = pixels(change_map), pixels(made)
    apple = masks(SCENE, SIDE)["apple"] > 127
    assert (keep < 65535).sum() > (painted < 65535).sum()
    assert keep[apple].mean() < painted[apple].mean() / 2
    assert len(np.unique(keep)) > 10
    assert (result[keep == 65535] == photo[keep == 65535]).all()
    assert (result != photo).any()
    assert len(visitor.pictures("compared")) == 2

    # The command line makes it again, bit for bit.
    command = shlex.split(visitor.tab.locator("#command textarea").input_value())
    assert command[0] == "modular-diffdiff"
    assert CliRunner().invoke(app, [*command[1:], "--out", "again.png"]).exit_code == 0
    assert (pixels("again.png") == result).all()

    # A stopped run leaves photo, painting and results; a fan shows the same edit at several strengths.
    before = {part: visitor.pictures(part) for part in ("photo", "preview", "results")}
    visitor.tell("Steps", 100)
    visitor.press("Edit")
    visitor.reads(re.compile(r"\b[1-9]\d*/100 steps"))
    with visitor.timed("stop"):
        visitor.press("Stop")
        visitor.reads("Stopped.")
    assert {part: visitor.pictures(part) for part in before} == before
    visitor.tell("Steps", 2)
    with visitor.waits("strengths", "a fan"):
        visitor.press("Compare strengths")

    # The picture brings its settings back.
    for label, value in (("What to show there", "a cup"), ("Seed", 1), ("Feather (px)", 0)):
        visitor.tell(label, value)
    visitor.upload(made, "dropped")
    told = {"What to show there": PROMPT, "Seed": "7", "Feather (px)": "3", "Steps": "6", TEXT: "the apple"}
    for label, value in told.items():
        playwright.expect(visitor.field(label)).to_have_value(value, timeout=1000 * PATIENCE)

    # The result becomes the photo, and what was painted stays.
    with visitor.waits("preview", "edit further"):
        visitor.press("Edit this result further")
    visitor.tell(TEXT, "")
    visitor.tell("Feather (px)", 0)
    with visitor.waits("results", "an edit of the edit"):
        visitor.press("Edit")
    assert (pixels(visitor.download("Save map", folder)) == painted).all()
    again = pixels(visitor.download("Save picture", folder))
    assert (again[painted == 65535] == result[painted == 65535]).all()

    # On a phone one column holds it all, in the order of use.
    visitor.tab.set_viewport_size({"width": 390, "height": 844})
    wait_for(lambda: visitor.tab.evaluate("document.documentElement.scrollWidth") <= 390, visitor.tab)
    parts = [visitor.tab.locator(f"#{part}") for part in ("photo", "painting")]
    parts += [visitor.field(TEXT), visitor.field("What to show there"), visitor.button("Edit")]
    parts += [visitor.tab.locator("#results"), visitor.field("Feather (px)"), visitor.field("Seed")]
    tops = [part.bounding_box()["y"] for part in parts]
    assert tops == sorted(tops)
