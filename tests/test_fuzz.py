"""Every input is accepted and runs to its end, or is refused by name before a model runs: 300 of them."""

from collections import Counter

from .fuzz import run


def test_no_input_ends_in_somebody_elses_error():
    fates: Counter[str] = Counter()
    stories = []

    def seen(fate: str, story: str, what: str) -> None:
        fates[fate] += 1
        stories.extend([f"{fate}: {what}\n{story}"] if story else [])

    run(300, seen)
    assert not stories, "\n\n".join(stories[:5])
    assert fates["finished"] >= 90
    assert fates["refused"] >= 90
