"""A guest with two processors for one command: QEMU's software emulation and the stock kernel of the root image.

User-Mode Linux has one processor, and what threads do to one another shows only on more. The image is the guests'
own with Debian's kernel in it, so the kernel and its initrd are taken out of its /boot. Nothing is written to it: the
root disk is thrown away, and the state of what is measured is on a second one, whose flushes reach this machine's disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.guest.harness import recipe, supervise
from tests.guest.harness.errors import GuestError, GuestHung
from tests.guest.harness.guest import END_LIMIT, REPO
from tests.guest.harness.image import ensure_image

#: What this guest has more than those of the tests: the kernel that users run, its modules, an initrd.
PACKAGES = ("linux-image-amd64",)
PROCESSORS = 2
_LIMIT = 1800.0
_STATE_BYTES = 256 << 20
_9P = "mount -t 9p -o trans=virtio,version=9p2000.L"
#: The first process finds the script of this run; whatever comes of that, the guest ends.
_FIRST = f"modprobe -a 9pnet_virtio 9p && {_9P} out /host/out && sh /host/out/boot; poweroff -ff"
_BOOT = """\
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8
{mount},ro repo /host/repo
mount -t tmpfs tmpfs /tmp
modprobe -a target_core_mod target_core_file iscsi_target_mod
mount -t configfs configfs /sys/kernel/config
ip link set lo up
mkdir /root/tree /var/lib/volattachd-bench
mount /dev/vdb /var/lib/volattachd-bench
cp -r /host/repo/volattachd /host/repo/bench /host/repo/tests /root/tree
cd /root/tree
{command} >/host/out/log 2>&1
touch /host/out/done
"""


def measure_together(rounds: int) -> dict[str, Any]:
    """What bench.together finds in such a guest."""
    image = ensure_image(PACKAGES)
    print("bench: many volumes at once, on two processors", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="volattachd-smp-") as name:
        work = Path(name)
        run(image, work, f"python3 -m bench.together /host/out/results.json --rounds {rounds}")
        found: dict[str, Any] = json.loads((work / "out/results.json").read_text())
        return found


def run(image: Path, work: Path, command: str) -> None:
    """Boot, run the command in the tree, power off. What it writes to /host/out is in ``work/out``."""
    out, disk = work / "out", work / "state"
    out.mkdir()
    (out / "boot").write_text(_BOOT.format(mount=_9P, command=command))
    with disk.open("wb") as file:
        file.truncate(_STATE_BYTES)
    recipe.command(["mkfs.ext4", "-q", "-F", str(disk)])
    kernel, initrd = (take_out(image, f"/boot/{name}", work) for name in ("vmlinuz-", "initrd.img-"))
    _supervise(work, [*_machine(kernel, initrd), *_disks(image, disk), *_shares(out)])
    if not (out / "done").exists():
        told = _tail(work / "console") + _tail(out / "log")
        raise GuestError(f"{command}: did not come to its end in the guest\n{told}")


def take_out(image: Path, beginning: str, directory: Path) -> Path:
    """Copy the one file whose path begins so out of an image; its name has a version in it."""
    folder, _, prefix = beginning.rpartition("/")
    lines = recipe.command(["debugfs", "-R", f"ls -p {folder}", str(image)]).splitlines()
    names = [line.split("/")[5] for line in lines if line.count("/") > 5]
    names = [name for name in names if name.startswith(prefix)]
    if len(names) != 1:
        raise GuestError(f"{image} should have one {beginning}*, and has {names}")
    [name] = names
    recipe.command(["debugfs", "-R", f"dump {folder}/{name} {directory / name}", str(image)])
    return directory / name


def _machine(kernel: Path, initrd: Path) -> list[str]:
    """The accelerator is named: a host may have a /dev/kvm that does not work."""
    words = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(PROCESSORS), "-m", "2048"]
    words += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]
    words += ["-kernel", str(kernel), "-initrd", str(initrd), "-append"]
    return [*words, f'console=ttyS0 quiet panic=-1 root=/dev/vda rw init=/bin/sh -- -c "{_FIRST}"']


def _disks(image: Path, state: Path) -> list[str]:
    disks = (f"file={image},snapshot=on", f"file={state},cache=writeback")
    return [word for disk in disks for word in ("-drive", f"format=raw,if=virtio,{disk}")]


def _shares(out: Path) -> list[str]:
    shares = (f"path={REPO},mount_tag=repo,readonly=on", f"path={out},mount_tag=out")
    return [word for share in shares for word in ("-virtfs", f"local,security_model=none,{share}")]


def _supervise(work: Path, command: list[str]) -> None:
    """Run it to its end; the harness's supervisor sees that nothing is left, whatever happens to this process."""
    words = [sys.executable, "-I", "-S", supervise.__file__, str(work), *command]
    environment = {**os.environ, "TMPDIR": str(work)}  # for what is written to the root disk
    with (work / "console").open("ab") as console:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=console, stderr=console, start_new_session=True, env=environment
        )
    try:
        process.wait(_LIMIT)
    except subprocess.TimeoutExpired as error:
        raise GuestHung(f"no end within {_LIMIT:g} s; killed\n{_tail(work / 'console')}") from error
    finally:
        process.communicate(b"k", END_LIMIT)


def _tail(path: Path) -> str:
    """The end of what was told there."""
    return path.read_text(errors="backslashreplace")[-3000:] if path.exists() else ""
