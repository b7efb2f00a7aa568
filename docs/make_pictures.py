"""Makes the pictures of the README and of these pages: `python docs/make_pictures.py`."""

import contextlib
import tempfile
from pathlib import Path

from conftest import PARSERS
from PIL import Image
from sybil import Document

from modular_diffdiff import demo, editing, loading
from modular_diffdiff.still_life import GUIDANCE_SCALE
from modular_diffdiff.still_life.scene import render


FOLDER = Path(__file__).parent


def polarity() -> Image.Image:
    """The sheet's first row: an original, its half map, and one result."""
    row = demo.plan_rows()[0]
    pipe = loading.load_pipeline(loading.Model(loading.EMBEDDED, "cpu", "float32"), GUIDANCE_SCALE)
    result = demo.run_rows(pipe, [row])[0][0]
    tiles = [
        (Image.fromarray(render(row.scene)), "original"),
        (demo.shown_map(row.results), "change map"),
        (result, row.results[0].caption),
    ]
    return demo.draw_sheet([("", tiles)])


def run_page(name: str) -> None:
    """Runs the code of NAME.md; the pictures that it saves go into the folder NAME."""
    page, pictures = FOLDER / f"{name}.md", FOLDER / name
    pictures.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for example in Document.parse(str(page), *PARSERS).examples():
            example.evaluate()
        for saved in Path().glob("*.png"):
            Image.open(saved).save(pictures / saved.name, optimize=True)


def main() -> None:
    with editing.quiet_libraries():
        demo.make_sheet().save(FOLDER / "demo.png", optimize=True)
        polarity().save(FOLDER / "polarity.png", optimize=True)
    for name in ("tutorial", "workflows"):
        run_page(name)


if __name__ == "__main__":
    main()
