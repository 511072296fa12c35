"""What a SCSI disk says that it is, asked now: INQUIRY with vital product data (SPC-4 section 7.8).

The kernel keeps a copy of these pages from when it found the disk, and keeps it even where the disk no longer has the
page: a unit that was exchanged below a live session would still carry the old name there. So the disk itself is asked.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

_SG_IO = 0x2285
_FROM_DEVICE = -3
_INQUIRY = 0x12
_SIZE = 252
_TIMEOUT_MS = 20_000

_SERIAL_PAGE, _IDENTIFIERS_PAGE = 0x80, 0x83
_NAA = 3


class _Header(ctypes.Structure):
    """struct sg_io_hdr of scsi/sg.h."""

    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


def inquire(path: str) -> tuple[str, str]:
    """The unit's serial number and its NAA identifier in hexadecimal; empty where it has none. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        serial = _page(fd, _SERIAL_PAGE).strip(b"\0 ").decode("ascii", "replace")
        return serial, naa_of(_page(fd, _IDENTIFIERS_PAGE))
    finally:
        os.close(fd)


def naa_of(identifiers: bytes) -> str:
    """The first NAA identifier among the designators of page 0x83."""
    while len(identifiers) > 4:
        kind, size = identifiers[1] & 0x0F, identifiers[3]
        if kind == _NAA:
            return identifiers[4 : 4 + size].hex()
        identifiers = identifiers[4 + size :]
    return ""


def _page(fd: int, page: int) -> bytes:
    """The body of a page; empty where the unit does not have it."""
    command = (ctypes.c_ubyte * 6)(_INQUIRY, 1, page, 0, _SIZE, 0)
    data, sense = ctypes.create_string_buffer(_SIZE), ctypes.create_string_buffer(32)
    header = _Header(
        interface_id=ord("S"),
        dxfer_direction=_FROM_DEVICE,
        cmd_len=len(command),
        mx_sb_len=len(sense),
        dxfer_len=_SIZE,
        dxferp=ctypes.addressof(data),
        cmdp=ctypes.addressof(command),
        sbp=ctypes.addressof(sense),
        timeout=_TIMEOUT_MS,
    )
    fcntl.ioctl(fd, _SG_IO, header)
    if header.host_status:
        raise OSError(errno.EIO, f"its target does not answer (host status {header.host_status})")
    if header.status or data.raw[1] != page:
        return b""
    return data.raw[4 : 4 + int.from_bytes(data.raw[2:4], "big")]
