"""What tests with a real kernel have in common: the bridge to the guests, the image, guests that end with their test.

Modules in inside/ run in guests of their own; the others, here and in tests/package, drive guests from outside.
Inside a guest this plug-in is not loaded: there, the modules of inside/ are ordinary tests.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.guest.harness.errors import Unavailable
from tests.guest.harness.guest import Guest
from tests.guest.harness.image import ensure_image
from tests.guest.harness.link import Link
from tests.guest.harness.plugin import Bridge, unavailable

GUESTS = pytest.StashKey[list[Guest]]()


def pytest_configure(config: pytest.Config) -> None:
    """The bridge to the guests."""
    config.addinivalue_line("markers", "guest: needs a real kernel in a guest")
    config.pluginmanager.register(Bridge(config, Path(__file__).parent / "inside"), "guest-bridge")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the consoles of its guests said last."""
    report = yield
    if report.failed:
        for guest in item.stash.get(GUESTS, []):
            report.sections.append((f"console of {guest.name}", guest.console[-6000:]))
    return report


def image_of(config: pytest.Config, more: Sequence[str] = ()) -> Path:
    """The root image, with ``more`` packages in it; building one is told at once. Without one, the end of the test."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled():
            return ensure_image(more)
    except Unavailable as error:
        unavailable(error)


@pytest.fixture(scope="session")
def guest_image(pytestconfig: pytest.Config) -> Path:
    """The root image."""
    return image_of(pytestconfig)


@pytest.fixture
def link() -> Iterator[Link]:
    """An Ethernet link for two guests."""
    with Link() as made:
        yield made


@pytest.fixture
def new_guest(guest_image: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Guest]]:
    """Makes and boots guests (arguments as of Guest); all are gone after the test."""
    made: list[Guest] = request.node.stash.setdefault(GUESTS, [])
    with ExitStack() as stack:

        def make(**settings: Any) -> Guest:
            guest = Guest(guest_image, **settings)
            stack.callback(guest.close)
            made.append(guest)
            return guest.boot()

        yield make
