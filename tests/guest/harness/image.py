"""The cache of root images: one file for each identity, built once, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import recipe
from .errors import BuildFailed

BUILD_LIMIT = 1800.0


def cache_dir() -> Path:
    """Where images are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "volattachd" / "guest"


def identity(suite: str, kernel: str, packages: list[str], pypi: tuple[str, ...], source: str) -> str:
    """The name of the image that these inputs make; any change in one makes another image."""
    parts = [suite, kernel, " ".join(sorted(packages)), " ".join(sorted(pypi)), source]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def image_path(more: Sequence[str] = ()) -> Path:
    """Where the image for this machine, this recipe and ``more`` packages is, or would be."""
    source = Path(recipe.__file__).read_text(encoding="utf-8")
    name = identity(recipe.suite(), recipe.kernel_version(), [*recipe.PACKAGES, *more], recipe.PYPI, source)
    return cache_dir() / f"{name}.img"


@contextmanager
def locked(directory: Path, limit: float = BUILD_LIMIT) -> Iterator[None]:
    """One builder at a time, across processes and threads; the lock ends with its holder."""
    directory.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + limit
    with (directory / ".lock").open("w") as file:
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise BuildFailed(f"another builder has held {directory}/.lock for {limit} s")
            time.sleep(0.2)
        yield


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def ensure_image(more: Sequence[str] = ()) -> Path:
    """The path of the current image, with ``more`` packages than tests need; builds it first if it is not there."""
    path = image_path(more)
    if path.exists():
        return path
    with locked(path.parent):
        if not path.exists():
            _build(path, [*recipe.PACKAGES, *more])
    return path


def _build(path: Path, packages: Sequence[str]) -> None:
    """Build beside the final place and rename. A builder that was killed left its scratch: the lock is ours now."""
    for stale in path.parent.glob("build-*"):
        shutil.rmtree(stale)
    scratch = Path(tempfile.mkdtemp(prefix="build-", dir=path.parent))
    scratch.chmod(0o755)
    try:
        with recipe.step(f"all of {path}"):
            recipe.build(scratch / "image", scratch, packages)
            (scratch / "image").rename(path)
    finally:
        shutil.rmtree(scratch)


def clean() -> list[Path]:
    """Drop every image but the current one, and what killed builders left; returns what was dropped."""
    current = image_path()
    with locked(current.parent):
        dropped = [path for path in current.parent.iterdir() if path.name != ".lock" and path != current]
        for path in dropped:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return dropped
