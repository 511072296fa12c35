"""The recipe of the guests' root image: what goes in, and the steps that make it.

The text of this file is part of the image's identity: any change here makes another image. What changes often (the
guest's boot script and its agent) is therefore not in the image; `/init` only finds them.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import BuildFailed, Unavailable

KERNEL = "linux.uml"
MODULES = Path("/usr/lib/uml/modules")
HOST_PACKAGES = "user-mode-linux mmdebstrap e2fsprogs"
_PACKAGES = (
    "jq python3-prometheus-client "
    "busybox-static dbus dmsetup e2fsprogs fio iproute2 iputils-ping kmod libiscsi-bin lvm2 multipath-tools "
    "open-iscsi openssh-client openssh-server procps psmisc python3 python3-fastjsonschema "
    "python3-hypothesis python3-jsonschema python3-os-brick python3-pyroute2 python3-pytest python3-pyudev "
    "python3-rtslib-fb python3-sdnotify python3-tomli python3-typing-extensions sg3-utils strace "
    "systemd systemd-sysv targetcli-fb tgt thin-provisioning-tools udev util-linux"
)
PACKAGES = _PACKAGES.split()
PYPI = ("jsonrpcserver==5.0.9", "OSlash==0.6.3")
UNWANTED = ("doc", "man", "info", "locale", "lintian", "help", "bash-completion", "zsh")
SPARE_BYTES = 512 << 20
INIT = """\
#!/bin/busybox sh
# Finds the boot script of this run: ctl=DIR on the kernel's command line names a directory of the host.
mount -t proc proc /proc
for word in $(cat /proc/cmdline); do
    case $word in ctl=*) mount -t hostfs -o "ro,${word#ctl=}" none /host/ctl ;; esac
done
exec /bin/busybox sh /host/ctl/boot.sh
"""


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say on stderr what is being done and how long it took."""
    started = time.monotonic()
    print(f"guest image: {what} ...", file=sys.stderr, flush=True)
    yield
    print(f"guest image: {what}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def command(argv: Sequence[str], *, timeout: float = 900, env: dict[str, str] | None = None) -> str:
    """Run one build command to its end; its output matters only when it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, env=env, check=False)
    except FileNotFoundError as error:
        raise Unavailable(f"{argv[0]} not found; install {HOST_PACKAGES}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{argv[0]} took more than {timeout} s") from error
    if done.returncode:
        tail = (done.stdout + done.stderr)[-1500:]
        raise BuildFailed(f"{' '.join(argv)[:200]} ended with {done.returncode}:\n{tail}")
    return done.stdout


def kernel_version() -> str:
    """The version of the installed User-Mode Linux; its modules must be there too."""
    if shutil.which(KERNEL) is None:
        raise Unavailable(f"{KERNEL} not found; apt install {HOST_PACKAGES}")
    version = command([KERNEL, "--version"], timeout=30).strip()
    if not (MODULES / version).is_dir():
        raise Unavailable(f"no modules of {version} in {MODULES}; apt install --reinstall user-mode-linux")
    return version


def suite() -> str:
    """The host's own Debian release: the one whose kernel package is installed."""
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian" or "VERSION_CODENAME" not in release:
        raise Unavailable("guests are built from the host's own Debian release; this host is no Debian")
    return release["VERSION_CODENAME"]


def sources(codename: str) -> list[str]:
    """The host's own apt sources of Debian proper for this release, as one-line entries."""
    wanted = {codename, f"{codename}-updates", f"{codename}-security", f"{codename}/updates"}
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"
    listed = command(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"])
    found = dict.fromkeys(_source(line) for line in listed.splitlines() if _is_debian(line.split(), wanted))
    if not found:
        raise BuildFailed(f"no apt source of Debian {codename} on this host")
    return list(found)


def _is_debian(fields: list[str], wanted: set[str]) -> bool:
    """The origin is known only once the host has fetched its lists; apt leaves the word out until then."""
    origin = fields[3] if len(fields) > 3 else "Debian"
    return fields[1] in wanted and fields[2] == "main" and origin in ("Debian", "$(ORIGIN)")


def _source(line: str) -> str:
    uri, release, component = line.split()[:3]
    return f"deb {uri} {release} {component}"


def apt_settings() -> str:
    """How the host's apt reaches its mirrors: proxies, certificates, validity checks."""
    dump = command(["apt-config", "dump"])
    kept = (line for line in dump.splitlines() if line.startswith("Acquire::") and not line.endswith(' "";'))
    return "\n".join(line for line in kept if "::IndexTargets::" not in line) + "\n"


def bootstrap(root: Path, scratch: Path, packages: Sequence[str]) -> None:
    """A minimal Debian with these packages, unpacked and configured in `root`."""
    codename = suite()
    conf, listed = scratch / "apt.conf", scratch / "sources.list"
    conf.write_text(apt_settings())
    listed.write_text("\n".join(sources(codename)) + "\n")
    argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}", f"--aptopt={conf}"]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNWANTED]
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    argv += [f"--keyring={keyring}"] if keyring.exists() else []
    command([*argv, codename, str(root), str(listed)])
    (root / "etc/apt/apt.conf.d/99mmdebstrap").unlink()


def add_python(root: Path) -> None:
    """What Debian lacks, from PyPI; then byte code for everything, since the guest never writes any."""
    library = next(path.name for path in (root / "usr/lib").glob("python3.*") if path.is_dir())
    packages = root / "usr/local/lib" / library / "dist-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command([*pip, "--target", str(packages), *PYPI])
    compiled = [f"/usr/local/lib/{library}", f"/usr/lib/{library}", "/usr/lib/python3/dist-packages"]
    excluded = "lib2to3/tests|/bad_|/test/"
    command(["chroot", str(root), "python3", "-m", "compileall", "-q", "-x", excluded, *compiled])


def add_modules(root: Path, version: str) -> None:
    """The kernel's own modules, indexed as the guest's kmod wants them."""
    shutil.copytree(MODULES / version, root / "usr/lib/modules" / version, symlinks=True)
    command(["chroot", str(root), "depmod", version])


def add_init(root: Path) -> None:
    """The first process and the directories that it mounts on."""
    for name in ("ctl", "repo", "out"):
        (root / "host" / name).mkdir(parents=True)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    (root / "etc/machine-id").write_text("6d2f8a4c0b9e4d5f8a7b3c1d2e4f5a6b\n")
    (root / "etc/fstab").write_text("")


def make_filesystem(root: Path, image: Path) -> None:
    """One ext4 file with some room to spare; sparse, so that the room costs nothing."""
    used = int(command(["du", "-s", "--block-size=1", str(root)]).split()[0])
    with image.open("wb") as file:
        file.truncate((int(used * 1.15) + SPARE_BYTES) & ~0xFFFFF)
    command(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", "-d", str(root), str(image)])


def build(image: Path, scratch: Path, packages: Sequence[str]) -> None:
    """Make `image`; everything on the way is in `scratch`, which the caller removes."""
    if os.geteuid():
        raise Unavailable("building the guest image needs root (file owners, chroot)")
    version, root = kernel_version(), scratch / "root"
    with step(f"Debian {suite()} with {len(packages)} packages"):
        bootstrap(root, scratch, packages)
    with step("Python packages and byte code"):
        add_python(root)
    with step(f"kernel modules {version}"):
        add_modules(root, version)
        add_init(root)
    with step("ext4"):
        make_filesystem(root, image)
