"""The kernel and the tools that all other guest tests stand on: LIO's configfs, and a real login to it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

GUEST = {"together": "host"}

TARGET = Path("/sys/kernel/config/target")
IQN = "iqn.2001-04.test.guest:kernel"
PORTAL = "127.0.0.1:3260"
USER, SECRET = "kernel-user", "kernel-secret-16"
SIZE = 8 << 20


def iscsiadm(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One call of the initiator's tool; its words show in a failure."""
    done = subprocess.run(["iscsiadm", *words], capture_output=True, text=True, timeout=60, check=False)
    assert not check or done.returncode == 0, f"iscsiadm {' '.join(words)}: {done.returncode}\n{done.stderr}"
    return done


def initiator() -> str:
    """This guest's own initiator name."""
    return Path("/etc/iscsi/initiatorname.iscsi").read_text().strip().partition("=")[2]


def export(backing: Path) -> list[Path]:
    """One file as one LUN for one initiator with CHAP; returns what was made, in order of making."""
    store, target = TARGET / "core/fileio_0/kernel", TARGET / "iscsi" / IQN
    tpg = target / "tpgt_1"
    acl = tpg / "acls" / initiator()
    made = [store.parent, store, TARGET / "iscsi", target, tpg, tpg / "lun/lun_0", tpg / "np" / PORTAL, acl]
    for directory in [*made, acl / "lun_0"]:
        if not directory.exists():
            directory.mkdir()
        if directory == store:
            (store / "control").write_text(f"fd_dev_name={backing},fd_dev_size={SIZE}")
            (store / "enable").write_text("1")
    links = [tpg / "lun/lun_0/store", acl / "lun_0/mapped"]
    links[0].symlink_to(store)
    links[1].symlink_to(tpg / "lun/lun_0")
    (tpg / "attrib/authentication").write_text("1")
    (acl / "auth/userid").write_text(USER)
    (acl / "auth/password").write_text(SECRET)
    (tpg / "enable").write_text("1")
    made.remove(TARGET / "iscsi")
    return [*made[:5], links[0], *made[5:], acl / "lun_0", links[1]]


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[Path]:
    """The backing file of an export that is gone after the test, down to the last directory."""
    backing = tmp_path / "backing"
    backing.write_bytes(b"volattachd".ljust(SIZE, b"\0"))
    made = export(backing)
    yield backing
    (TARGET / "iscsi" / IQN / "tpgt_1/enable").write_text("0")
    for path in reversed(made):
        path.unlink() if path.is_symlink() else path.rmdir()
    assert not (TARGET / "iscsi" / IQN).exists() and not (TARGET / "core/fileio_0").exists()


@pytest.fixture
def node(exported: Path) -> Iterator[None]:
    """The initiator's record of the target, with the user's name and a secret that a test may change."""
    assert exported.exists()
    record = ["-m", "node", "-T", IQN, "-p", PORTAL]
    iscsiadm(*record, "-o", "new")
    settings = {"node.session.auth.authmethod": "CHAP", "node.session.auth.username": USER}
    for name, value in {**settings, "node.session.auth.password": SECRET}.items():
        iscsiadm(*record, "-o", "update", "-n", name, "-v", value)
    yield
    iscsiadm(*record, "--logout", check=False)
    iscsiadm(*record, "-o", "delete")


def test_configfs_and_lio() -> None:
    """The target core answers with its version."""
    assert "configfs /sys/kernel/config configfs" in Path("/proc/mounts").read_text()
    assert "Target Engine Core ConfigFS Infrastructure" in (TARGET / "version").read_text()


def test_chap_login_reaches_the_backing_file(node: None) -> None:
    """A login, a device under its well-known name, and the bytes of the backing file behind it."""
    iscsiadm("-m", "node", "-T", IQN, "-p", PORTAL, "--login")
    subprocess.run(["udevadm", "settle", "--timeout=30"], check=True, timeout=40)
    device = Path(f"/dev/disk/by-path/ip-{PORTAL}-iscsi-{IQN}-lun-0")
    with device.open("rb") as file:
        assert file.read(10) == b"volattachd"


def test_a_wrong_secret_is_refused(node: None) -> None:
    """24 is iscsiadm's status for a login that was refused."""
    record = ["-m", "node", "-T", IQN, "-p", PORTAL]
    iscsiadm(*record, "-o", "update", "-n", "node.session.auth.password", "-v", "another-secret-16")
    assert iscsiadm(*record, "--login", check=False).returncode == 24
    assert not list(Path("/sys/class/iscsi_session").iterdir())
