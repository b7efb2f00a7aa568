"""How the page looks."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import studio


THEME = gr.themes.Default(
    primary_hue="red", neutral_hue="zinc", font=["system-ui", "sans-serif"], font_mono=["monospace"]
)
# On a phone both columns become one, and what is `later` in them comes last. In the head, as gradio changes selectors.
HEAD = """<style>
footer, .layer-wrap {display: none !important}
.gradio-container .app {max-width: 1400px !important; margin: auto}
.gradio-container h1 {margin: 0 !important}
.examples .grid-wrap {padding-top: 24px !important}
#command textarea {font-family: monospace}
@media (max-width: 720px) {
    .gradio-container .app {padding: 8px !important; max-width: 100vw !important}
    .sides {flex-direction: column; align-items: stretch !important; width: 100%}
    .sides > .column {display: contents !important}
    .sides > .column > * {min-width: 0 !important; max-width: calc(100vw - 16px)}
    .later {order: 1}
}
</style>"""
HEAD += "".join(
    f"<style>.region-{name} {{border-left: 8px solid rgb{colour} !important}}</style>"
    for name, colour in studio.REGIONS.items()
)


def picture(**given: Any) -> gr.Image:
    """A picture that is only looked at."""
    return gr.Image(show_label=False, format="png", interactive=False, height=380, **given)


def thumbnails(**given: Any) -> gr.Gallery:
    """Small pictures to choose from."""
    return gr.Gallery(format="png", allow_preview=False, buttons=[], **given)
