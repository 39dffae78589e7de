"""Files and folders that are there whole or not at all, and what tells one from another."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path | str, *, shared: bool = False, keep_ending: bool = False) -> Iterator[Path]:
    """Context that gives a temporary path beside `path` to write to, and renames it to `path` at the end.

    If the body raises, `path` is as before and the temporary file is gone. shared: several processes, perhaps on several
    machines, may write the same file at once; the last one wins. keep_ending: for writers that choose a format by the file's
    ending; the name begins with a dot, so that nobody takes it for a result.
    """
    path = Path(path)
    # a process that is killed leaves its temporary file behind: one name, and the next attempt overwrites it
    unique = f".{uuid.uuid4().hex}" if shared else ""
    temporary = path.with_name(f".tmp{unique}.{path.name}" if keep_ending else f"{path.name}{unique}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """What `written_whole`, shared and with keep_ending, left in a folder when its process was killed; where nobody else writes
    there."""
    for path in folder.glob(f".tmp.{'[0-9a-f]' * 32}.*"):
        path.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: Path | str) -> Iterator[Path]:
    """Context that gives a temporary folder beside `folder`, which is new or empty, and renames it to `folder` at the end.

    If the body raises, `folder` is as before and the temporary one is gone.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        if folder.is_dir():
            folder.rmdir()  # raises unless it is empty; rename() does not replace a folder everywhere
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def sha256_of(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
