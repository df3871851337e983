"""ICC profiles, built from their definitions."""

from __future__ import annotations

import struct
from collections.abc import Sequence

# Colorants (X, Y, Z of red, green and blue, adapted to D50) and gamma.
RGB_SPACES = {
    "display_p3": (((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)), 2.2),
    "adobe_rgb": (((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), 2.2),
    "prophoto": (((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491)), 1.8),
}
D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(name: str) -> bytes:
    colorants, gamma = RGB_SPACES[name]
    tags = {b"%cXYZ" % letter: xyz(values) for letter, values in zip(b"rgb", colorants, strict=True)}
    return _profile(b"RGB ", b"XYZ ", tags | {b"%cTRC" % letter: curve(gamma) for letter in b"rgb"})


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": curve(gamma)})


def cmyk_profile() -> bytes:
    """Return a profile of four inks; pure cyan is Lab (70, -8.4, -25.2)."""
    inks = ((70.0, -12.0, -36.0), (55.0, 70.0, -5.0), (90.0, -8.0, 80.0), (18.0, 0.0, 0.0))  # Lab
    corners = b""
    for number in range(16):  # the last ink varies fastest
        used = [ink for bit, ink in zip((8, 4, 2, 1), inks, strict=True) if number & bit]
        lightness = 100.0
        for ink in used:
            lightness *= ink[0] / 100
        a, b = (sum(ink[axis] for ink in used) * lightness / 100 for axis in (1, 2))
        corners += bytes((round(lightness * 2.55), min(255, max(0, round(a + 128))), min(255, max(0, round(b + 128)))))
    identity = b"".join(struct.pack(">i", round(value * 65536)) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + 4 * ramp + corners + 3 * ramp
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table}, kind=b"prtr")


def xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(D50)} | tags
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", offset + len(data), b"none", 0x02100000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + xyz(D50)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data
