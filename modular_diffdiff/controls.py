"""The parameters of `edit` as controls on the page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import options, serving, studio


MAX_COUNT = 8


def share(label: str, value: float) -> gr.Slider:
    return gr.Slider(0, 1, value, step=0.05, label=label, min_width=140)


class Controls:
    """The controls, and what they say.

    Attributes:
        params: Those that hold one parameter of `edit`, by its name.
        of_map: Those that say what may change.
        depth: Those of its pairs, as `levels` and `limits`; `by_depth` says whether it counts.
        prompt: What the changed regions show, an argument of `edit`.
        regions: A pair for each region: where it is, in words, and what it shows.

    Args:
        steps: How many suit the model.
    """

    def __init__(self, steered_by: list[str], steps: int):
        self.steered_by, self.steps = steered_by, steps
        self.params: dict[str, gr.Component] = {}

    def all(self) -> list[gr.Component]:
        return [
            *self.params.values(),
            self.by_depth,
            *self.depth,
            *self.levels,
            *self.limits,
            *self._of_regions(),
            self.prompt,
        ]

    def seen(self) -> list[gr.Component]:
        """All that the preview shows."""
        return [*self.of_map, *(where for where, _ in self.regions)]

    def _of_regions(self) -> list[gr.Component]:
        return [part for pair in self.regions for part in pair]

    def draw_prompt(self) -> None:
        self.prompt = gr.Textbox(label="What to show there", placeholder="a green pear", max_length=2000)
        self.regions = []
        with gr.Accordion("Different things in different places", open=False, elem_classes="later"):
            gr.Markdown("Each place is found by its name, and has its colour in the preview.")
            for colour in studio.REGIONS:
                with gr.Row(elem_classes=f"region-{colour}"):
                    where = gr.Textbox(label=f"Where ({colour})", placeholder="the cup", max_length=200)
                    what = gr.Textbox(label="What to show", placeholder="a bottle", max_length=2000)
                self.regions.append((where, what))

    def draw_sources(self) -> None:
        add = self.params
        add["text"] = gr.Textbox(label="Or say it in words", placeholder="the apple", max_length=500)
        with gr.Accordion("Shape what may change", open=True, elem_classes="later"), gr.Row():
            add["grow"] = gr.Slider(-64, 64, 0, step=1, label="Grow (px)", min_width=140)
            add["feather"] = gr.Slider(0, 64, 0, step=1, label="Feather (px)", min_width=140)
            add["strength"] = share("Strength", 1)
        with gr.Accordion("Levels, limits and softness", open=False, elem_classes="later"):
            with gr.Row():
                self.levels = share("Levels: free up to", 0), share("Levels: kept from", 1)
            with gr.Row():
                self.limits = share("Limits: at least", 0), share("Limits: at most", 1)
            add["softness"] = share("Softness (how much of the photo shines through)", 0)
        with gr.Accordion("Point at it, or measure it", open=False, elem_classes="later"):
            add["threshold"] = share("Threshold (0: soft)", 0)
            with gr.Row():
                add["point"] = gr.Textbox(label="Points", placeholder="120,80; 30,40,0", max_length=500)
                add["box"] = gr.Textbox(label="Boxes", placeholder="10,10,90,120", max_length=500)
            gr.Markdown(
                "Clicks into the preview add points. A third number, 0, marks a point that is not on the object."
            )
            with gr.Row():
                self.by_depth = gr.Checkbox(label="By distance")
                self.depth = share("Kept at (0 is near)", 0), share("Free at", 1)
            ways = [("none", None), ("to the right", "0"), ("upwards", "90"), ("to the left", "180")]
            ways += [("downwards", "270"), ("to the middle", "radial")]
            add["gradient"] = gr.Dropdown(ways, label="Gradient")
            with gr.Row():
                add["mask"] = serving.photo(label="Mask, white changes", height=120)
                add["difference"] = serving.photo(label="The photo before it was painted over", height=120)
            add["combine"] = gr.Radio(
                [("change what any of them does", "change"), ("keep what any of them does", "keep")],
                value="change",
                label="Several of these and the painting together",
            )
        self.of_map = [*add.values(), self.by_depth, *self.depth, *self.levels, *self.limits]

    def draw_settings(self) -> None:
        add = self.params
        with gr.Accordion("Settings", open=False, elem_classes="later"):
            add["negative"] = gr.Textbox(label="What not to show", max_length=2000)
            with gr.Row():
                add["steps"] = gr.Slider(1, 100, self.steps, step=1, label="Steps")
                add["guidance_scale"] = serving.number(label="Guidance (empty: the model's)")
            with gr.Row():
                add["seed"] = gr.Number(label="Seed", value=0, precision=0, minimum=0, maximum=options.MAX_SEED)
                add["count"] = gr.Slider(1, MAX_COUNT, 1, step=1, label="How many")
            add["overlay"] = gr.Checkbox(True, label="Original pixels outside")
            add["match_colors"] = gr.Checkbox(label="Match colours")
            add["crop"] = serving.number(whole=True, label="Only around the change (pixels; empty: all)")
            self.dropped = serving.photo(
                label="Drop a picture that was made here: its settings come back", height=100, elem_id="dropped"
            )
        steered = bool(self.steered_by)
        with gr.Accordion("Follow outlines or a picture", open=False, visible=steered, elem_classes="later"):
            for name, label in (("control_image", "Outlines to follow"), ("ip_adapter_image", "A picture as a prompt")):
                add[name] = serving.photo(label=label, height=120, visible=name in self.steered_by)

    def params_of(self, given: dict) -> dict[str, Any]:
        """What is asked for, by the parameters of `edit`, of the controls' values."""
        params = {name: given[part] for name, part in self.params.items() if given[part] not in ("", None)}
        for name in {"point", "box"} & params.keys():
            params[name] = [part.strip() for part in params[name].split(";") if part.strip()]
        for name, pair in (("levels", self.levels), ("limits", self.limits), ("depth", self.depth)):
            params[name] = tuple(given[part] for part in pair)
        if not given[self.by_depth]:
            del params["depth"]
        if not params["threshold"]:
            del params["threshold"]
        params["regions"] = [tuple((given[part] or "").strip() for part in pair) for pair in self.regions]
        return params

    def showing(self, told: dict[str, Any]) -> list:
        """What `all` of them show where these parameters are asked for; the others stay as they are.

        So do those that cannot show what is told: strangers can write into a PNG what they like, even paths of files.
        """
        values = [self._as_shown(name, part, told) for name, part in self.params.items()]
        pairs = [told.get(name) for name in ("depth", "levels", "limits")]
        ends = [pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, None) for pair in pairs]
        by_depth = bool(told["depth"]) if "depth" in told else gr.skip()
        values += [by_depth, *(end for pair in ends for end in pair)]
        values += [*self._regions_as_shown(told), told.get("prompt", gr.skip())]
        parts = self.all()
        return [
            gr.skip() if isinstance(part, gr.Image) or serving.refused(part, value) else value
            for part, value in zip(parts, values, strict=True)
        ]

    def _regions_as_shown(self, told: dict[str, Any]) -> list:
        """Those of an edit that are named in words; a picture of one cannot come back."""
        if "prompt" not in told:
            return [gr.skip() for _ in self._of_regions()]
        regions = told.get("regions")
        regions = regions if isinstance(regions, list) else []
        known = [one for one in regions if isinstance(one, dict) and isinstance(one.get("where"), str)]
        pairs = [(one["where"], one.get("prompt")) for one in known[: len(self.regions)]]
        pairs += [("", "")] * (len(self.regions) - len(pairs))
        return [value for pair in pairs for value in pair]

    def _as_shown(self, name: str, part: gr.Component, told: dict[str, Any]) -> Any:
        value = told.get(name, gr.skip())
        if name in ("point", "box") and isinstance(value, list):
            return "; ".join(",".join(map(str, numbers)) for numbers in value if isinstance(numbers, list))
        if name in ("gradient", "guidance_scale", "crop") and isinstance(value, int | float):
            return f"{value:g}"
        return part.value if value is None else value
