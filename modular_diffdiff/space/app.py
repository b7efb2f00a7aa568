"""The page as a Space: `settings.json` beside it says which models it edits with."""

import json
import os
from pathlib import Path

from modular_diffdiff import web


try:
    import spaces
except ModuleNotFoundError:  # not a Space whose GPU comes with each call
    spaces = None

settings = Path(os.environ.get("DIFFDIFF_SETTINGS") or Path(__file__).with_name("settings.json"))
web.serve(json.loads(settings.read_text()), spaces.GPU if spaces else lambda run: run)
