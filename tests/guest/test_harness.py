"""The harness without a kernel: identity and cache of images, the wire, the supervisor, the bridge's reports."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import pytest

from tests.guest.harness import image, recipe, record, wire
from tests.guest.harness.errors import BuildFailed, GuestError
from tests.guest.harness.guest import HERE, REPO, Guest, size_bytes
from tests.guest.harness.link import Link

# -- images -----------------------------------------------------------------------------------------


def test_every_input_makes_another_image() -> None:
    """And the order of packages does not."""
    same = image.identity("bookworm", "6.1", ["a", "b"], ("p==1",), "source")
    assert image.identity("bookworm", "6.1", ["b", "a"], ("p==1",), "source") == same
    others = {
        image.identity("trixie", "6.1", ["a", "b"], ("p==1",), "source"),
        image.identity("bookworm", "6.2", ["a", "b"], ("p==1",), "source"),
        image.identity("bookworm", "6.1", ["a", "c"], ("p==1",), "source"),
        image.identity("bookworm", "6.1", ["a", "b"], ("p==2",), "source"),
        image.identity("bookworm", "6.1", ["a", "b"], ("p==1",), "other"),
    }
    assert len(others | {same}) == 6


def test_only_debian_itself_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Third parties, other releases and other components stay out; lists not fetched yet have no origin."""
    listed = (
        "http://mirror.test/debian/ bookworm main Debian\n"
        "http://mirror.test/debian/ bookworm contrib Debian\n"
        "http://mirror.test/debian/ bookworm-updates main $(ORIGIN)\n"
        "http://mirror.test/debian/ trixie main Debian\n"
        "http://mirror.test/debian/ bookworm-security main\n"
        "http://third.test/apt/ bookworm main Third\n"
    )
    monkeypatch.setattr(recipe, "command", lambda *_args: listed)
    base = "deb http://mirror.test/debian/"
    assert recipe.sources("bookworm") == [f"{base} bookworm{part} main" for part in ("", "-updates", "-security")]
    with pytest.raises(BuildFailed):
        recipe.sources("sid")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a current image that is not there, in a cache of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = image.cache_dir() / "current.img"
    monkeypatch.setattr(image, "image_path", lambda *_more: path)
    return path


def test_an_image_is_built_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a scratch directory, which goes; what a killed builder left goes too."""
    stale = cache.parent / "build-killed"
    stale.mkdir(parents=True)
    built: list[Path] = []

    def build(path: Path, scratch: Path, _packages: list[str]) -> None:
        assert path.parent == scratch and not cache.exists()
        built.append(path)
        path.write_text("image")

    monkeypatch.setattr(recipe, "build", build)
    assert [image.ensure_image(), image.ensure_image()] == [cache, cache]
    assert len(built) == 1
    assert sorted(path.name for path in cache.parent.iterdir()) == [".lock", "current.img"]


def test_a_failed_build_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half image that the next run would take for a whole one."""

    def build(path: Path, _scratch: Path, _packages: list[str]) -> None:
        path.write_text("half")
        raise BuildFailed("no network")

    monkeypatch.setattr(recipe, "build", build)
    with pytest.raises(BuildFailed, match="no network"):
        image.ensure_image()
    assert [path.name for path in cache.parent.iterdir()] == [".lock"]


def test_one_builder_at_a_time(cache: Path) -> None:
    """The second one gives up at its limit, and gets the lock once it is free."""
    first, second = image.locked(cache.parent), image.locked(cache.parent, 0)
    with first, pytest.raises(BuildFailed, match="another builder"), second:
        pytest.fail("two builders at a time")
    with image.locked(cache.parent, 0):
        pass


def test_clean_keeps_the_current_image(cache: Path) -> None:
    """Everything else in the cache goes."""
    cache.parent.mkdir(parents=True)
    cache.touch()
    (cache.parent / "old.img").touch()
    (cache.parent / "build-killed").mkdir()
    assert {path.name for path in image.clean()} == {"old.img", "build-killed"}
    assert sorted(path.name for path in cache.parent.iterdir()) == [".lock", "current.img"]


# -- guests that are never booted -------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("64M", 64 << 20), ("2G", 2 << 30), ("512", 512), ("disk.img", None)])
def test_sizes(text: str, size: int | None) -> None:
    """What is no size is a file."""
    assert size_bytes(text) == size


def test_a_path_that_the_kernel_would_misread_is_refused(tmp_path: Path) -> None:
    """And the guest that was not made leaves no directory."""
    before = set(tmp_path.parent.iterdir())
    with pytest.raises(GuestError, match="no comma"):
        Guest(tmp_path / "image", disk=tmp_path / "a,b")
    assert set(tmp_path.parent.iterdir()) == before


def test_a_link_has_two_ends() -> None:
    """With addresses of their own."""
    with Link() as link:
        ends = [link.join(), link.join()]
        assert len({value for end in ends for value in astuple(end)}) == 8
        with pytest.raises(ValueError, match="both are taken"):
            link.join()


# -- the wire ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 10000])
def test_messages_survive_any_cutting(size: int) -> None:
    """Line ends in values included."""
    messages: list[wire.Message] = [{"id": 1, "text": "a\nb\u20ac"}, {"id": 2}]
    messages += [*wire.pieces(3, "stdout", bytes(range(256)) * 40)]
    stream = b"".join(map(wire.encode, messages))
    decoder = wire.Decoder()
    got = [m for at in range(0, len(stream), size) for m in decoder.feed(stream[at : at + size])]
    assert got == messages
    assert b"".join(map(wire.piece_bytes, got[2:])) == bytes(range(256)) * 40


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b"\xff\n", b"\n"])
def test_noise_on_the_wire_is_an_error(line: bytes) -> None:
    """Never passed over."""
    with pytest.raises(ValueError):
        list(wire.Decoder().feed(line))


def test_a_report_cut_off_with_its_guest_is_left_out() -> None:
    """The whole ones before it count; a broken whole one is an error."""
    assert record.parse('{"nodeid": "a", "when": "setup"}\n{"nodeid": "a", "wh') == {
        "a": [{"nodeid": "a", "when": "setup"}]
    }
    with pytest.raises(ValueError):
        record.parse("{broken}\n")


# -- the supervisor ---------------------------------------------------------------------------------


@pytest.fixture
def supervised(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a shell line under the supervisor, as a guest would be."""

    def start(line: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-I", "-S", str(HERE / "supervise.py"), str(tmp_path / "scratch"), "sh", "-c", line]
        (tmp_path / "scratch").mkdir()
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return start


@pytest.mark.parametrize(("told", "kept"), [("k", True), ("", False)])
def test_supervisor_kills_all(
    supervised: Callable[[str], subprocess.Popen[str]], tmp_path: Path, told: str, kept: bool
) -> None:
    """On a byte, the whole group dies; at the end of input, meaning a dead owner, the scratch directory goes too."""
    with supervised("sleep 300 & sleep 300 & echo $! $$; wait") as process:
        assert process.stdout and process.stdin
        pids = process.stdout.readline().split()
        process.stdin.write(told)
        process.stdin.close()
        assert process.wait(20) == 128 + 9
    assert len(pids) == 2 and not [pid for pid in pids if Path("/proc", pid).exists()]
    assert (tmp_path / "scratch").exists() == kept


def test_supervisor_passes_the_status_on(supervised: Callable[[str], subprocess.Popen[str]], tmp_path: Path) -> None:
    """A guest that ends by itself leaves its background processes to be killed, too."""
    with supervised("sleep 300 & echo $!; exit 7") as process:
        assert process.stdout
        pid = process.stdout.readline().strip()
        assert process.wait(20) == 7
    assert not Path("/proc", pid).exists()
    assert (tmp_path / "scratch").exists()


# -- the bridge -------------------------------------------------------------------------------------

CONFTEST = """
import subprocess
from pathlib import Path
from tests.guest.harness.errors import Unavailable
from tests.guest.harness.local import LocalGuest
import os

if "VOLATTACHD_IN_GUEST" not in os.environ:
    from tests.guest.harness.plugin import Bridge

    class Boot(LocalGuest):
        def __init__(self, **settings):
            if "no-guest" in settings.get("extra_disks", ()):
                raise Unavailable("no kernel")
            super().__init__(**settings)
            (self.out / "daemon.log").write_text("the daemon's last words")

    def pytest_configure(config):
        config.addinivalue_line("markers", "guest: in a guest")
        config.pluginmanager.register(Bridge(config, Path(__file__).parent / "inside", Boot))
"""
OUTCOMES = """
import os, pytest

@pytest.fixture
def inside_only():
    assert os.environ["VOLATTACHD_IN_GUEST"] == "1"
    print("fixture ran")
    return 41

def test_passes(inside_only):
    assert inside_only == 41

@pytest.mark.parametrize("word", ["a b", "c/d[e]", "x::y"])
def test_parameters(word):
    assert word != "c/d[e]"

def test_fails(inside_only):
    print("printed inside")
    assert inside_only == 42, "a wrong answer"

def test_skips():
    pytest.skip("not today")

@pytest.mark.xfail(reason="known")
def test_xfails():
    assert False

@pytest.fixture
def broken():
    yield
    raise RuntimeError("teardown broke")

def test_breaks_in_teardown(broken):
    pass

class TestClass:
    def test_method(self):
        pass
"""
HANGS = """
import time
GUEST = {"timeout": 4}

def test_before():
    pass

def test_hangs():
    time.sleep(60)

def test_after():
    pass
"""
DIES = """
import os

def test_before():
    pass

def test_dies():
    os._exit(9)
"""


def run_outer(tmp_path: Path, modules: dict[str, str], ci: str = "") -> tuple[dict[str, str], str]:
    """A pytest of its own over these modules: the outcome of each test by its name, and all that was printed."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name, text in modules.items():
        (tmp_path / "inside" / f"{name}.py").write_text(text)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=junit.xml", "-rA", "."]
    env = os.environ | {"PYTHONPATH": str(REPO), "CI": ci}
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    cases = ElementTree.parse(tmp_path / "junit.xml").iter("testcase")
    outcomes = {case.attrib["name"]: next((kind.tag for kind in case), "passed") for case in cases}
    return outcomes, done.stdout + done.stderr


def test_outcomes_inside_are_outcomes_outside(tmp_path: Path) -> None:
    """Each kind, with what explains a failure: the traceback, the output, the console, the logs."""
    outcomes, text = run_outer(tmp_path, {"test_outcomes": OUTCOMES})
    assert outcomes == {
        "test_passes": "passed",
        "test_parameters[a b]": "passed",
        "test_parameters[c/d[e]]": "failure",
        "test_parameters[x::y]": "passed",
        "test_fails": "failure",
        "test_skips": "skipped",
        "test_xfails": "skipped",
        "test_breaks_in_teardown": "error",
        "test_method": "passed",
    }
    for words in ("assert 41 == 42", "a wrong answer", "printed inside", "the console's last words"):
        assert words in text
    for words in ("the daemon's last words", "teardown broke", "not today", "XFAIL"):
        assert words in text
    assert "2 failed, 5 passed, 1 skipped, 1 xfailed, 1 error" in text


def test_a_guest_that_hangs_or_dies_fails_the_rest(tmp_path: Path) -> None:
    """What had passed before counts."""
    modules = {"test_hang": HANGS, "test_die": DIES.replace("test_before", "test_first")}
    outcomes, text = run_outer(tmp_path, modules)
    passed = {name for name, outcome in outcomes.items() if outcome == "passed"}
    assert passed == {"test_before", "test_first"}
    assert set(outcomes) - passed == {"test_hangs", "test_after", "test_dies"}
    assert "killed at its limit of 4 s" in text
    assert "pytest in the guest ended with 9" in text


SHARES = """
import os
GUEST = {"together": "small", "extra_disks": %s}

def test_%s():
    assert os.environ.get("LAST_MODULE", "") == "%s"
    os.environ["LAST_MODULE"] = __name__
"""


def test_modules_that_belong_together_share_a_guest(tmp_path: Path) -> None:
    """And only these; their results are their own."""
    modules = {
        "test_a": SHARES % ([], "first", ""),
        "test_b": SHARES.replace("small", "other") % ([], "alone", ""),
        "test_c": SHARES % ([], "second", "test_a"),
    }
    outcomes, _ = run_outer(tmp_path, modules)
    assert outcomes == {"test_first": "passed", "test_second": "passed", "test_alone": "passed"}


def test_modules_that_belong_together_ask_for_the_same_guest(tmp_path: Path) -> None:
    modules = {"test_a": SHARES % ([], "first", ""), "test_b": SHARES % (["64M"], "second", "test_a")}
    outcomes, text = run_outer(tmp_path, modules)
    assert outcomes == {"test_first": "error", "test_second": "error"}
    assert "modules that share a guest ask for different ones" in text


@pytest.mark.parametrize(("ci", "outcome"), [("", "skipped"), ("true", "error")])
def test_without_guests(tmp_path: Path, ci: str, outcome: str) -> None:
    """Skipped with the reason on a developer's machine, failed where guests must work."""
    module = 'GUEST = {"extra_disks": ["no-guest"]}\ndef test_one(): pass\n'
    outcomes, text = run_outer(tmp_path, {"test_one": module}, ci)
    assert outcomes == {"test_one": outcome}
    assert "no guest: no kernel" in text


def test_a_misspelt_setting_is_told(tmp_path: Path) -> None:
    """Not passed over."""
    outcomes, text = run_outer(tmp_path, {"test_one": 'GUEST = {"disks": []}\ndef test_one(): pass\n'})
    assert outcomes == {"test_one": "error"}
    assert "unknown settings: ['disks']" in text
