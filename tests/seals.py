"""A run folder changed by somebody who means to: what its seal cannot find, loading has to."""

from __future__ import annotations

import json
from pathlib import Path

from bayesmeta.seal import sealed


def resealed(folder: Path, **changed: object) -> None:
    """Write the record anew, with these entries, for the files as they are now."""
    path = folder / "run.json"
    record = json.loads(path.read_text("utf-8"))
    record.pop("seal")
    files = {name: (folder / name).read_bytes() for name in record.pop("files")}
    path.write_text(json.dumps(sealed(record | changed, files)), "utf-8")
