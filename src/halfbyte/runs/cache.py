"""Where what can be made again is kept on this machine: prepared rows, hashes of weights, what runs took on its GPU."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """HALFBYTE_CACHE, or halfbyte in the user's cache folder."""
    asked = os.environ.get("HALFBYTE_CACHE")
    return Path(asked) if asked else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "halfbyte"
