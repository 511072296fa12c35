"""A few modules out of a big package, without what the package imports for everybody.

jsonrpcserver imports asyncio, an HTTP server and jsonschema; pyroute2 imports asyncio and an interface for everything
that netlink can do. Of both we use some small modules. Python runs a package's ``__init__`` before any module of it,
unless the package is there already.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_one_at_a_time = threading.Lock()


@contextmanager
def without_init(package: str) -> Iterator[None]:
    """Imports of the package's modules find them, and the package's ``__init__`` is not run.

    Afterwards it is as if nobody had asked for the package: who imports it then gets all of it. No other thread may
    import the package meanwhile, but for those that come through here. Raises ModuleNotFoundError.
    """
    with _one_at_a_time:
        if package in sys.modules:  # all of it was imported by somebody else
            yield
            return
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        sys.modules[package] = importlib.util.module_from_spec(spec)
        try:
            yield
        finally:
            del sys.modules[package]
