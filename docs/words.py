"""Finds turns of phrase that we avoid, in the pages, docstrings and messages: `python docs/words.py`."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parents[1]
AVOIDED = re.compile(
    r"\b(shall|is none|are none|(?<!there )is no(?! longer)|of which|without a word|tells|a file a subject|a class each"
    r"|its own past|in vain|where they hurt|neither is asked for|its time has come|be no NaN|no finite"
    r"|takes nothing with|paper's algorithm leaks)\b",
    re.IGNORECASE,
)


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page, or of the texts in a module, with their numbers."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(
            re.sub(r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), text, flags=re.M | re.S).splitlines(), 1
        )
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from enumerate(node.value.splitlines(), node.lineno)


def main() -> int:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "modular_diffdiff").rglob("*.md")]
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match[0]}"
        for path in sorted({*pages, *(ROOT / "modular_diffdiff").rglob("*.py")})
        for line, text in texts_of(path)
        for match in AVOIDED.finditer(text)
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
