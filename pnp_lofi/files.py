"""Output files: nothing is overwritten unasked, and a path that cannot be written is told at once."""

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_writable(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Refuse a path that exists or cannot be written, before the work is done.

    :raises FileExistsError: if it exists and overwrite is not asked for.
    :raises FileNotFoundError: if its folder does not exist.
    :raises PermissionError: if its folder is not writable.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass --overwrite (overwrite=True) to replace it")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {path.absolute().parent} does not exist; make it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"the folder {path.absolute().parent} is not writable")
    return path


@contextmanager
def written_whole(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give a path to write to, PATH.part, that becomes PATH at the end; an error on the way leaves neither.

    :raises: as :func:`check_writable`; OSError naming the path, when the disk is full for instance.
    """
    path = check_writable(path, overwrite=overwrite)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, f"{os.strerror(error.errno)}: {path} was not written") from error
        raise
    finally:
        part.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any, *, overwrite: bool = False) -> None:
    """Write JSON, whole or not at all. NaN and infinity, which JSON does not have, become null."""
    with written_whole(path, overwrite=overwrite) as part:
        part.write_text(json.dumps(_finite(value), indent=2, default=str, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
