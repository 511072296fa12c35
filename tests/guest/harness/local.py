"""Something in a guest's place that runs commands right here, for the tests of the bridge itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .channel import Completed
from .guest import HERE, REPO


class LocalGuest:
    """A guest's paths mean this host's directories."""

    console = "the console's last words"

    def __init__(self, *, share: Mapping[str, Path], **settings: Any) -> None:
        self.settings = settings
        self.out = Path(tempfile.mkdtemp(prefix="volattachd-local-"))
        self._paths = {"/host/out": self.out, "/host/ctl": HERE / "inguest", "/host/repo": REPO}
        self._paths |= {f"/host/{name}": path for name, path in share.items()}

    def _here(self, text: str) -> str:
        for path, real in self._paths.items():
            text = text.replace(path, str(real))
        return text

    def run(self, command: Sequence[str], *, timeout: float, env: Mapping[str, str], cwd: str) -> Completed:
        """As Guest.run, with this interpreter for python3."""
        argv = [sys.executable if word == "python3" else self._here(word) for word in command]
        here = {name: self._here(value) for name, value in env.items()}
        environ = os.environ | here | {"VOLATTACHD_IN_GUEST": "1"}
        return subprocess.run(
            argv, timeout=timeout, env=environ, cwd=self._here(cwd), text=True, capture_output=True, check=False
        )

    def kill(self) -> None:
        """Nothing runs when nobody waits for it."""

    def __enter__(self) -> LocalGuest:
        return self

    def __exit__(self, *_exc: object) -> None:
        shutil.rmtree(self.out)
