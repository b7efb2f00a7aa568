"""Makes the pictures of the README and of these pages: `PYTHONPATH=. python docs/make_pictures.py`."""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from conftest import PARSERS
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright
from sybil import Document

from benchmarks import exactness, moving_ball
from modular_diffdiff import demo, editing, loading
from modular_diffdiff.blocks.diffdiff_preview import draw_preview
from modular_diffdiff.catalog import PACKAGE
from modular_diffdiff.still_life import GUIDANCE_SCALE
from modular_diffdiff.still_life.scene import Scene, render
from tests.browser import CHROMIUM, Visitor, served


FOLDER = Path(__file__).parent
CARD = PACKAGE / "pictures"  # what the model card shows too


def polarity() -> Image.Image:
    """An original, its half map, and one result."""
    scene, change_map = Scene("apple", "red", "striped", light=0.3), demo.keep_left(1 / 2)
    edit = demo.Edit("“green pear”", "a green pear on a striped background", change_map)
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32"), GUIDANCE_SCALE)
    [[result]] = demo.run_rows(pipe, [demo.Row("", scene, [edit], seed=4)])
    original, shown = Image.fromarray(render(scene)), demo.shown_map([edit])
    return demo.draw_sheet([("", [(original, "original"), (shown, "change map"), (result, edit.caption)])])


def proof() -> Image.Image:
    """One edit of 4 steps by the paper's algorithm and by ours: the left half is to be kept."""
    original, tiles = Image.fromarray(render(exactness.SCENE)), []
    for restore, caption in ((False, "the paper's algorithm"), (True, "modular-diffdiff")):
        state = exactness.run(exactness.make_pipeline(restore), demo.keep_left(1 / 2), steps=4, count=1)
        tiles.append((state.images[0], caption))
    shown = demo.shown_map([demo.Edit("", "", demo.keep_left(1 / 2))])
    first = [(original, "original"), (shown, "change map")]
    return demo.draw_sheet([("“a green pear”, in 4 steps", [*first, *tiles])])


def few_steps() -> Image.Image:
    """The same edit in 2, 4 and 8 steps, by the paper's algorithm and by ours."""
    pipes = {
        "the paper's algorithm": exactness.make_pipeline(False, exactness.FLOW_MODEL),
        "modular-diffdiff": exactness.make_pipeline(True, exactness.FLOW_MODEL),
    }
    rows = []
    for steps in (2, 4, 8):
        tiles = [(Image.fromarray(render(exactness.SCENE)), "original")]
        for caption, pipe in pipes.items():
            state = exactness.run(pipe, demo.keep_left(1 / 2), steps=steps, count=1)
            tiles.append((state.images[0], caption))
        rows.append((f"{steps} steps", tiles))
    return demo.draw_sheet(rows)


def words() -> Image.Image:
    """An original, what words name in it, and two edits."""
    row = demo.row_of_two()
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32"), GUIDANCE_SCALE)
    [results] = demo.run_rows(pipe, [row])
    original = Image.fromarray(render(row.scene))
    preview = draw_preview(original, 1 - row.edits[0].change_map).crop((0, 0, *original.size))
    tiles = [(original, "original"), (preview, "--text “the cup”")]
    tiles += [(result, edit.caption) for edit, result in zip(row.edits[1:], results[1:], strict=True)]
    return demo.draw_sheet([("", tiles)])


def repeated() -> Image.Image:
    """A scene after ten edits in a row, each of another spot, with and without the overlay."""
    scene = Scene("cup", "blue", "checked", light=0.3)
    original = Image.fromarray(render(scene))
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32"), GUIDANCE_SCALE)
    tiles = [(original, "original")]
    for overlay in (False, True):
        image = original
        for k in range(10):
            spot = Image.new("L", image.size, "white")
            left, top = 16 + 48 * (k % 5), 8 + 208 * (k // 5)
            spot.paste("black", (left, top, left + 32, top + 32))
            (image,) = pipe(
                prompt=scene.caption,
                image=image,
                diffdiff_map=spot,
                overlay=overlay,
                num_inference_steps=8,
                generator=torch.Generator().manual_seed(k),
                output="images",
            )
        tiles.append((image, "ten edits, with overlay" if overlay else "ten edits"))
    return demo.draw_sheet([("32 pixels at a time, along the upper and lower edge", tiles)])


def draw_clips(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Frames of one size side by side, a titled row for each clip."""
    width, height = rows[0][1][0].size
    columns, title, gap = len(rows[0][1]), 2 * demo.TITLE_SIZE, demo.GAP // 2
    inside = columns * (width + gap) - gap, len(rows) * (title + height)
    sheet = Image.new("RGB", tuple(side + 2 * demo.MARGIN for side in inside), demo.PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(demo.TITLE_SIZE)
    for row, (text, frames) in enumerate(rows):
        top = demo.MARGIN + row * (title + height)
        draw.text((demo.MARGIN, top + title / 2), text, demo.INK, font, anchor="lm")
        for column, frame in enumerate(frames):
            left = demo.MARGIN + column * (width + gap)
            sheet.paste(frame, (left, top + title))
            draw.rectangle((left - 1, top + title - 1, left + width, top + title + height), outline=demo.EDGE)
    return sheet


def moving_map() -> Image.Image:
    """A clip of a ball and its edits under three maps, by a denoiser that is known exactly."""
    pipe, shown = moving_ball.make_pipeline(), (0, 1, 3, 5, 8)
    clip = moving_ball.draw_clip(moving_ball.RED, "stripes")
    moving, standing = moving_ball.ball_maps(), moving_ball.ball_maps(moves=False)
    asked = "“a blue ball” under"
    rows = [
        ("The original: frames 1, 2, 4, 6 and 9", clip),
        (f"{asked} a black map: everything changes", moving_ball.edit(pipe, clip, 0 * moving)),
        ("A map that moves with the ball", as_pictures(moving)),
        (f"{asked} it: the ball changes in every frame, and nothing else", moving_ball.edit(pipe, clip, moving)),
        ("A map that stays where the ball begins", as_pictures(standing)),
        (f"{asked} it: the ball leaves it, and stays red", moving_ball.edit(pipe, clip, standing)),
    ]
    return draw_clips([(title, [frames[frame] for frame in shown]) for title, frames in rows])


def as_pictures(maps: np.ndarray) -> list[Image.Image]:
    """Change maps (F, H, W) in [0, 1] as pictures."""
    return [Image.fromarray(np.rint(255 * frame).astype(np.uint8)).convert("RGB") for frame in maps]


def page() -> Image.Image:
    """The page after an edit of the first example."""
    with tempfile.TemporaryDirectory() as folder, served(Path(folder, "log")) as address, sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        visitor = Visitor(browser, address)
        with visitor.waits("preview", "open"):
            visitor.tab.locator(".examples button").first.click()
        visitor.tab.wait_for_timeout(3000)  # the editor draws
        with visitor.waits("results", "edit"):
            visitor.press("Edit")
        visitor.tab.mouse.move(0, 0)
        visitor.tab.wait_for_timeout(2000)
        shot = visitor.tab.screenshot()
        browser.close()
    return Image.open(io.BytesIO(shot)).convert("RGB")


def run_page(name: str, pictures: Path) -> None:
    """Runs the code of NAME.md, and keeps the pictures that it saves."""
    page = FOLDER / f"{name}.md"
    pictures.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for example in Document.parse(str(page), *PARSERS).examples():
            example.evaluate()
        for saved in Path().glob("*.png"):
            Image.open(saved).save(pictures / saved.name, optimize=True)


def main() -> None:
    with editing.quiet_libraries():
        demo.make_sheet().save(CARD / "demo.png", optimize=True)
        proof().save(CARD / "proof.png", optimize=True)
        few_steps().save(FOLDER / "few-steps.png", optimize=True)
        words().save(FOLDER / "words.png", optimize=True)
        polarity().save(CARD / "polarity.png", optimize=True)
        repeated().save(FOLDER / "repeated.png", optimize=True)
        moving_map().save(FOLDER / "video" / "moving_map.png", optimize=True)
        page().save(FOLDER / "page.png", optimize=True)
    run_page("tutorial", FOLDER / "tutorial")
    run_page("workflows", CARD / "workflows")
    run_page("maps", FOLDER / "maps")
    run_page("regions", FOLDER / "regions")


if __name__ == "__main__":
    main()
