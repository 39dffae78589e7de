"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path | str, *, shared: bool = False) -> Iterator[Path]:
    """Context that gives a temporary path beside `path` to write to, and renames it to `path` at the end.

    If the body raises, `path` is as before and the temporary file is gone. shared: several processes, perhaps on several
    machines, may write the same file at once; the last one wins.
    """
    path = Path(path)
    # a process that is killed leaves its temporary file behind: one name, and the next attempt overwrites it
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp" if shared else f"{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
