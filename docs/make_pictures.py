"""Makes the pictures of the README: `python docs/make_pictures.py`."""

from pathlib import Path

from PIL import Image

from modular_diffdiff import demo, editing
from modular_diffdiff.still_life import GUIDANCE_SCALE
from modular_diffdiff.still_life.scene import render


FOLDER = Path(__file__).parent


def polarity() -> Image.Image:
    """The sheet's first row: an original, its half map, and one result."""
    row = demo.plan_rows()[0]
    pipe = editing.load_pipeline(editing.Model(editing.EMBEDDED, "cpu", "float32"), GUIDANCE_SCALE)
    result = demo.run_rows(pipe, [row])[0][0]
    tiles = [
        (Image.fromarray(render(row.scene)), "original"),
        (demo.shown_map(row.results), "change map"),
        (result, row.results[0].caption),
    ]
    return demo.draw_sheet([("", tiles)])


def main() -> None:
    with editing.quiet_libraries():
        demo.make_sheet().save(FOLDER / "demo.png", optimize=True)
        polarity().save(FOLDER / "polarity.png", optimize=True)


if __name__ == "__main__":
    main()
