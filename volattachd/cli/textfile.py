"""A file that others read at any moment, replaced whole or not at all: for node_exporter's textfile collector."""

from __future__ import annotations

import os
import tempfile

from volattachd.client.protocol import ClientError


def replace_file(path: str, text: str) -> None:
    """Make ``text`` the content of ``path``, readable by everybody. Raises ClientError, and leaves what was there."""
    directory, name = os.path.split(path)
    try:
        # Its name does not end in .prom while it is written: the collector passes it over.
        fd, scratch = tempfile.mkstemp(dir=directory or ".", prefix=f".{name}.")
        try:
            with open(fd, "w", encoding="utf-8") as file:
                file.write(text)
                os.fchmod(file.fileno(), 0o644)
            os.rename(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as error:
        raise ClientError(f"cannot write {path}: {error.strerror}") from error
