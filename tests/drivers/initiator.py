"""An iSCSI initiator for tests: libiscsi, the library inside QEMU, called directly.

It keeps secrets out of argv and, unlike QEMU, can be told not to reconnect: a session that the target ended
stays ended, and a test sees it at once. For what no honest initiator does there is Login, which speaks the protocol
step by step (RFC 7143).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import socket
import struct
import subprocess
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from functools import cache

from volattachd.model import Secret

LIBRARY = "libiscsi.so.7"
NORMAL_SESSION = 2
BLOCK = 512
TIMEOUT_SECONDS = 5


class Vector(ctypes.Structure):
    """struct scsi_iovec."""

    _fields_ = (("base", c_void_p), ("length", c_size_t))


@cache
def library() -> ctypes.CDLL:
    """libiscsi, with the signatures that are used here."""
    lib = ctypes.CDLL(LIBRARY)
    flags = [c_int] * 5
    signatures: dict[str, tuple[object, list[object]]] = {
        "iscsi_create_context": (c_void_p, [c_char_p]),
        "iscsi_destroy_context": (c_int, [c_void_p]),
        "iscsi_set_targetname": (c_int, [c_void_p, c_char_p]),
        "iscsi_set_session_type": (c_int, [c_void_p, c_int]),
        "iscsi_set_initiator_username_pwd": (c_int, [c_void_p, c_char_p, c_char_p]),
        "iscsi_set_noautoreconnect": (None, [c_void_p, c_int]),
        "iscsi_set_timeout": (c_int, [c_void_p, c_int]),
        "iscsi_full_connect_sync": (c_int, [c_void_p, c_char_p, c_int]),
        "iscsi_logout_sync": (c_int, [c_void_p]),
        "iscsi_get_error": (c_char_p, [c_void_p]),
        "iscsi_write10_sync": (
            POINTER(c_int),
            [c_void_p, c_int, c_uint32, c_char_p, c_uint32, c_int, *flags],
        ),
        "iscsi_read10_iov_sync": (
            POINTER(c_int),
            [c_void_p, c_int, c_uint32, c_uint32, c_int, *flags, POINTER(Vector), c_int],
        ),
        "scsi_free_scsi_task": (None, [POINTER(c_int)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class LoginRefused(Exception):
    """The target refused; its words."""


class Session:
    """A session with one logical unit."""

    def __init__(self, portal: str, target: str, lun: int, initiator: str, secret: Secret) -> None:
        self._lib = library()
        self._lun = lun
        self._context = self._lib.iscsi_create_context(initiator.encode())
        self._set_up(target, secret)
        if self._lib.iscsi_full_connect_sync(self._context, portal.encode(), lun):
            words = self._lib.iscsi_get_error(self._context).decode(errors="replace")
            self._destroy()
            raise LoginRefused(words)

    def _set_up(self, target: str, secret: Secret) -> None:
        lib, context = self._lib, self._context
        lib.iscsi_set_targetname(context, target.encode())
        lib.iscsi_set_session_type(context, NORMAL_SESSION)
        lib.iscsi_set_noautoreconnect(context, 1)
        lib.iscsi_set_timeout(context, TIMEOUT_SECONDS)
        if secret.username:
            user, password = secret.username.encode(), secret.password.encode()
            lib.iscsi_set_initiator_username_pwd(context, user, password)

    def write(self, data: bytes) -> bool:
        """Write at block 0; False where the target or the connection refuses."""
        arguments = (self._context, self._lun, 0, data, len(data), BLOCK)
        return self._succeeded(self._lib.iscsi_write10_sync(*arguments, 0, 0, 0, 0, 0))

    def read(self, size: int) -> bytes | None:
        """Read from block 0; None where the target or the connection refuses."""
        buffer = ctypes.create_string_buffer(size)
        vector = Vector(ctypes.addressof(buffer), size)
        arguments = (self._context, self._lun, 0, size, BLOCK, 0, 0, 0, 0, 0, ctypes.byref(vector), 1)
        return buffer.raw if self._succeeded(self._lib.iscsi_read10_iov_sync(*arguments)) else None

    def _succeeded(self, task: ctypes._Pointer[c_int]) -> bool:
        """The first member of struct scsi_task is its SCSI status; there is none where nothing was sent."""
        if not task:
            return False
        status = int(task[0])
        self._lib.scsi_free_scsi_task(task)
        return status == 0

    def logout(self) -> None:
        """Log out and let go."""
        if self._context:
            self._lib.iscsi_logout_sync(self._context)
            self._destroy()

    def _destroy(self) -> None:
        self._lib.iscsi_destroy_context(self._context)
        self._context = None


def inquire(portal: str, target: str, lun: int, initiator: str, secret: Secret) -> tuple[str, str]:
    """Unit serial number and WWID, as iscsi-inq reads them.

    Of the identifiers in page 0x83 it prints binary ones up to their first zero byte: the text one is taken, from
    whose digits the target makes the NAA identifier.
    """
    url = f"iscsi://{portal}/{target}/{lun}"
    environment = {
        "PATH": os.environ["PATH"],
        "LIBISCSI_CHAP_USERNAME": secret.username,
        "LIBISCSI_CHAP_PASSWORD": secret.password,
    }

    def page(code: int) -> str:
        command = ["iscsi-inq", "-i", initiator, "-e", "1", "-c", str(code), url]
        done = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=30)
        return done.stdout.decode("latin-1")

    serial = re.search(r"Unit Serial Number:\[(.*)\]", page(0x80))
    wwid = re.search(r"Designator Type:\(1\).*\nDesignator:\[(.*)\]", page(0x83))
    assert serial
    assert wwid
    return serial[1].strip(), wwid[1].strip(" \0")


SECURITY, OPERATIONAL, FULL_FEATURE = 0, 1, 3
#: What an initiator may offer in the operational stage.
OFFER = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "Yes",
    "ImmediateData": "No",
    "MaxRecvDataSegmentLength": "65536",
    "MaxBurstLength": "262144",
    "FirstBurstLength": "65536",
    "DefaultTime2Wait": "0",
    "DefaultTime2Retain": "0",
    "MaxOutstandingR2T": "1",
    "MaxConnections": "1",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
    "ErrorRecoveryLevel": "0",
    "IFMarker": "No",
    "OFMarker": "No",
}


class Login:
    """A login that stops where its user wants: authenticated, but not yet a session."""

    def __init__(self, address: tuple[str, int], initiator: str, target: str, alias: str = "none") -> None:
        self._socket = socket.create_connection(address, timeout=TIMEOUT_SECONDS)
        self._names = {"InitiatorName": initiator, "InitiatorAlias": alias, "TargetName": target}
        self._statsn = 0
        self._cmdsn = 1

    def close(self) -> None:
        """Let the connection go."""
        self._socket.close()

    def authenticate(self, secret: Secret) -> bool:
        """The security stage, to its end; whether the target was content."""
        offer = self._negotiate(SECURITY, None, self._names | {"SessionType": "Normal", "AuthMethod": "CHAP"})
        if offer is None or offer.get("AuthMethod") != "CHAP":
            return False
        challenge = self._negotiate(SECURITY, None, {"CHAP_A": "5"})
        assert challenge is not None
        number = bytes([int(challenge["CHAP_I"])])
        text = number + secret.password.encode() + bytes.fromhex(challenge["CHAP_C"][2:])
        proof = hashlib.md5(text).hexdigest()
        answer = {"CHAP_N": secret.username, "CHAP_R": f"0x{proof}"}
        return self._negotiate(SECURITY, OPERATIONAL, answer) is not None

    def begin(self) -> bool:
        """The first request alone; whether the target went on with it."""
        return (
            self._negotiate(SECURITY, None, self._names | {"SessionType": "Normal", "AuthMethod": "CHAP"}) is not None
        )

    def finish(self, offer: Mapping[str, str] | None = None) -> bool:
        """The operational stage; whether there is a session now. LIO wants every key to be offered."""
        return self._negotiate(OPERATIONAL, FULL_FEATURE, dict(offer or {})) is not None

    def wait_for_end(self) -> None:
        """Until the target closes the connection; a target that does not is an error after a few seconds."""
        while self._socket.recv(4096):
            pass

    def _negotiate(self, stage: int, following: int | None, keys: dict[str, str]) -> dict[str, str] | None:
        """One login request and its response's keys; None where the target refuses or hangs up."""
        data = b"".join(f"{key}={value}".encode() + b"\0" for key, value in keys.items())
        flags = stage << 2 | (0 if following is None else 0x80 | following)
        isid = bytes([0x80, 0, 0, 1, 0, 0])
        head = struct.pack(">BBBBI6sHIHHII16x", 0x43, flags, 0, 0, len(data), isid, 0, 1, 0, 0, 1, self._statsn)
        try:
            self._socket.sendall(head + data + bytes(-len(data) % 4))
            answer, text = self._receive()
        except (ConnectionError, EOFError):
            return None
        if answer[36]:
            return None
        return dict(key.split("=", 1) for key in text.decode().split("\0") if "=" in key)

    def command(self, lun: int, cdb: bytes, size: int = 0) -> tuple[int, bytes]:
        """A SCSI command that reads at most ``size`` bytes: its status and data."""
        flags = 0x81 | (0x40 if size else 0)
        address = struct.pack(">BB6x", 0, lun)
        block = cdb.ljust(16, b"\0")
        head = struct.pack(">BB2xI8sIIII16s", 1, flags, 0, address, 2, size, self._cmdsn, self._statsn, block)
        self._socket.sendall(head)
        self._cmdsn += 1
        data = b""
        while True:
            answer, part = self._receive()
            data += part if answer[0] & 0x3F == 0x25 else b""
            if answer[0] & 0x3F == 0x21 or answer[1] & 1:
                return answer[3], data

    def _receive(self) -> tuple[bytes, bytes]:
        head = self._read(48)
        size = int.from_bytes(head[5:8], "big")
        self._statsn = int.from_bytes(head[24:28], "big") + 1
        return head, self._read(size + -size % 4)[:size]

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data
