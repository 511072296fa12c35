"""The qemu connector: its contract; and QEMU's own initiator against tgt, with what was printed and as nobody."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.agent.contract import *  # noqa: F403 - the suite
from tests.agent.contract import Bench
from tests.drivers.tgt.test_driver import MISSING, TgtCase
from tests.support import ADMIN, Service, make_file, serving, wait_until
from volattachd.agent import Agent, SentAgain
from volattachd.agent.answers import IscsiInfo, VolumeInfo
from volattachd.agent.connectors import base, qemu, registry  # noqa: F401 - a child without rights has them already
from volattachd.agent.connectors.base import Connection
from volattachd.api.access import Access
from volattachd.client.sync import Client
from volattachd.config import Config
from volattachd.errors import SessionActive
from volattachd.state.journal import Journal

NOBODY = pwd.getpwnam("nobody")
SECRET = "s0123456789abcdef"
SERIAL = "6f1c8a52-9d0e-4b7a-8f23-5c1d2e3f4a5b"
VOLUME = VolumeInfo("vol-1", "/srv/vol-1", 1 << 20, "attaching", False, "iqn.2026-11.x:vol-1", SERIAL)
INFO = IscsiInfo(VOLUME.target_name, ("[fd77::1]:3260",), 1, "volattach-1", SECRET)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    connection = Connection("6f1c8a52-9d0e-4b7a-8f23-5c1d2e3f4a5b", VOLUME, "rw", INFO)
    return Bench(
        qemu.QemuConnector(directory=tmp_path), connection, lambda: [p.name for p in tmp_path.iterdir()], SECRET
    )


def test_the_secret_is_in_a_file_of_its_user_alone(bench: Bench, tmp_path: Path) -> None:
    device = bench.connector.connect(bench.connection)
    (file,) = tmp_path.iterdir()
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (SECRET, 0o600)
    assert json.loads(device.details["object"])["file"] == str(file)


def test_the_url_and_the_disk_name_portal_target_and_unit(bench: Bench) -> None:
    device = bench.connector.connect(replace(bench.connection, mode="ro"))
    assert device.path == "iscsi://[fd77::1]:3260/iqn.2026-11.x:vol-1/1"
    disk = ElementTree.fromstring(device.details["libvirt"])
    source = disk.find("source")
    assert source is not None and source.get("name") == "iqn.2026-11.x:vol-1/1"
    host = source.find("host")
    assert host is not None and host.attrib == {"name": "fd77::1", "port": "3260"}
    assert disk.find("readonly") is not None
    assert json.loads(device.details["blockdev"])["read-only"] is True


def test_each_user_of_a_host_has_an_initiator_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("6d2f8a4c0b9e4d5f8a7b3c1d2e4f5a6b\n")
    (tmp_path / "b").write_text("7d2f8a4c0b9e4d5f8a7b3c1d2e4f5a6b\n")
    first, second = qemu.initiator_name(tmp_path / "a"), qemu.initiator_name(tmp_path / "b")
    assert first != second and first == qemu.initiator_name(tmp_path / "a")
    unnamed = qemu.initiator_name(tmp_path / "missing")
    assert unnamed not in (first, second) and unnamed == qemu.initiator_name(tmp_path / "missing")
    assert "6d2f8a4c" not in first, "systemd asks that the id itself be told to nobody"


# QEMU itself.

needs_qemu = pytest.mark.skipif(
    (bool(MISSING) or shutil.which("qemu-io") is None) and os.environ.get("CI") != "true",
    reason="not installed: tgt, libiscsi-bin, qemu-utils or qemu-block-extra",
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody can reach, and a runtime directory of nobody in it."""
    path = Path(tempfile.mkdtemp(prefix="volattach-qemu-"))
    path.chmod(0o755)
    (path / "nobody").mkdir(mode=0o700)
    os.chown(path / "nobody", NOBODY.pw_uid, NOBODY.pw_gid)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def storage(place: Path) -> Iterator[Service]:
    """The daemon's half over a real tgtd; nobody is an agent of it."""
    target = TgtCase(place)
    config = replace(Config(), state_dir=place / "state", agent=("nobody",))
    journal = Journal(config.state_dir)
    service = Service(config, journal, target.driver)
    with serving(place / "d.sock", service, access=Access(config)):
        yield service
    journal.close()
    target.close()


def as_nobody(body: Callable[[], Any], place: Path) -> Any:
    """Run ``body`` in a child that has given up every right; its result comes back as JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY.pw_gid)
            os.setuid(NOBODY.pw_uid)
            os.environ["XDG_RUNTIME_DIR"] = str(place / "nobody")
            os.write(writing, json.dumps(body()).encode())
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(writing, json.dumps({"error": repr(error)}).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:
        told = json.loads(answer.read())
    os.waitpid(child, 0)
    assert not (isinstance(told, dict) and "error" in told), told
    return told


@needs_qemu
@pytest.mark.skipif(os.geteuid() != 0, reason="tgtd needs root; the initiator is what does not")
def test_qemu_reads_and_writes_as_nobody_with_what_was_printed(storage: Service, place: Path) -> None:
    path = make_file(place / "volume.img", 4 << 20)
    storage.register_volume(ADMIN, "vol-1", path)

    def agent() -> Agent:
        return Agent(SentAgain(lambda: Client(str(place / "d.sock"))), host="compute")

    found = as_nobody(lambda: agent().attach("vol-1", connector="qemu").view(), place)
    assert found["device"].startswith("iscsi://127.0.0.1:")
    words = ["qemu-io", "--object", found["object"], "json:" + found["blockdev"]]
    commands = ["write -P 0xa5 0 1M", "flush", "read -P 0xa5 0 1M", "length"]
    words += [word for command in commands for word in ("-c", command)]
    secret = storage.journal.attachments.of_volume("vol-1")[0].secret
    assert secret is not None and not any(secret.password in word for word in words)
    done = subprocess.run(
        words, capture_output=True, text=True, user="nobody", group="nogroup", timeout=60, check=False
    )
    assert done.returncode == 0 and "verification failed" not in done.stdout, done.stdout + done.stderr
    assert "4 MiB" in done.stdout
    assert Path(path).read_bytes()[: 1 << 20] == b"\xa5" * (1 << 20), "it is in the volume"
    gone = as_nobody(lambda: agent().detach("vol-1").view(), place)
    assert gone == {"volume": "vol-1", "status": "available", "lost": []}
    assert [path.name for path in (place / "nobody/volattach").iterdir()] == ["volumes.lock"]


@needs_qemu
@pytest.mark.skipif(os.geteuid() != 0, reason="tgtd needs root")
def test_a_volume_that_qemu_still_has_is_not_detached(storage: Service, place: Path) -> None:
    storage.register_volume(ADMIN, "vol-1", make_file(place / "volume.img", 4 << 20))
    agent = Agent(SentAgain(lambda: Client(str(place / "d.sock"))), host="compute", runtime=place)
    found = agent.attach("vol-1", connector="qemu")
    words = ["qemu-io", "--object", found.device.details["object"], "json:" + found.device.details["blockdev"]]
    target = storage.journal.volumes["vol-1"].target_name
    with subprocess.Popen([*words, "-c", "sleep 600000"]) as running:
        wait_until(lambda: storage.driver.list_sessions(target))
        with pytest.raises(SessionActive, match="still logged in"):
            agent.detach("vol-1")
        running.kill()
    wait_until(lambda: not storage.driver.list_sessions(target))
    assert agent.detach("vol-1").status == "available"
