"""Damaged and unusual pictures, texts, tars and tables, with the outcome that each must have."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, features


class PictureCase(NamedTuple):
    """A picture file, its outcome in `download` and `pack`, and the reason if stages cannot decode it."""

    data: bytes
    outcome: str
    reason: str | None = None


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Return a picture with visible orientation: red above, green at the lower left, blue at the lower right."""
    image = Image.new("RGB", size, "red")
    image.paste((0, 255, 0), (0, size[1] // 2, size[0] // 2, size[1]))
    image.paste((0, 0, 255), (size[0] // 2, size[1] // 2, *size))
    return image


def encode_with_orientation(orientation: int) -> bytes:
    """Return a JPEG that an EXIF orientation turns into the scene."""
    turns = Image.Transpose
    undo = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(scene() if undo is None else scene().transpose(undo), "JPEG", exif=exif, quality=95)


def decompression_bomb(side: int = 30_000) -> bytes:
    """Return a valid PNG of `side` x `side` pixels in about a hundred kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(1 + (side + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit per pixel
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def picture_cases() -> dict[str, PictureCase]:
    """Return file name -> case."""
    intact = encode(scene(), "JPEG", quality=95)
    deep = np.repeat(np.linspace(0, 65535, 96).astype(np.uint16)[None], 72, axis=0)
    glass = scene().convert("RGBA")
    glass.putalpha(Image.new("L", glass.size, 128))
    frames = [Image.new("RGB", scene().size, colour) for colour in ("black", "white")]
    cases = {
        "fine.jpg": PictureCase(intact, "ok"),
        "truncated.jpg": PictureCase(intact[:-300], "decode_error", "truncated"),
        "html.jpg": PictureCase(b"<!DOCTYPE html><html>404</html>", "decode_error", "not_a_picture"),
        "empty.jpg": PictureCase(b"", "decode_error", "empty"),
        "video.jpg": PictureCase(b"\0\0\0\x20ftypisom" + bytes(100), "decode_error", "not_a_picture"),
        "postscript.jpg": PictureCase(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "decode_error", "not_a_picture"
        ),
        "bomb.png": PictureCase(decompression_bomb(), "too_large", "too_many_pixels"),
        "sixteen bits.png": PictureCase(encode(Image.fromarray(deep), "PNG"), "ok"),
        "grey.jpg": PictureCase(encode(scene().convert("L"), "JPEG"), "ok"),
        "four inks.jpg": PictureCase(encode(scene().convert("CMYK"), "JPEG"), "ok"),
        "palette.png": PictureCase(encode(scene().convert("P"), "PNG"), "ok"),
        "glass.png": PictureCase(encode(glass, "PNG"), "ok"),
        "moving.gif": PictureCase(encode(scene(), "GIF", save_all=True, append_images=frames), "ok"),
        "modern.webp": PictureCase(encode(scene(), "WEBP", lossless=True), "ok"),
        "one pixel.png": PictureCase(encode(Image.new("RGB", (1, 1)), "PNG"), "ok"),
        "thin.png": PictureCase(encode(Image.new("RGB", (3000, 1)), "PNG"), "ok"),
    }
    cases |= {f"turned {number}.jpg": PictureCase(encode_with_orientation(number), "ok") for number in range(1, 9)}
    if features.check("avif"):
        cases["newest.avif"] = PictureCase(encode(scene(), "AVIF", quality=90), "ok")
    return cases


# Web texts, and True if they have words that can be scored.
TEXTS: dict[str, tuple[str | None, bool]] = {
    "null": (None, False),
    "empty": ("", False),
    "blank": (" \t\n ", False),
    "emoji": ("🐈‍⬛🇳🇱 a cat 👩🏽‍🚀", True),
    "only emoji": ("🐈", True),
    "right to left": ("\u202eقطة سوداء\u202c חתול", True),
    "zero bytes": ("a\0cat\0", True),
    "quotes": ("a \"cat\", 'a' dog; <script>alert(1)</script>", True),
    "many lines": ("a\r\ncat\u2028on\u0085the\x0bleft", True),
    "long": ("cat " * 25_000, True),  # 100 kB
    "long word": ("c" * 100_000, True),
}


def write_unusual_tar(path: Path, cases: dict[str, PictureCase]) -> None:
    """Write a complete tar with the cases, under numbered keys, and with unusual and unsafe members."""
    fine = cases["fine.jpg"].data
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes, **fields: object) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))

        for number, (name, case) in enumerate(cases.items()):
            add(f"{number:04d}.{name.rpartition('.')[2]}", case.data)
        for number in range(len(cases)):  # not adjacent to their pictures
            add(f"{number:04d}.txt", f"a cat {number}".encode())
        add("dotted.v2.final.jpg", fine)
        add("dotted.txt", b"a dog")
        add("with space.jpg", fine)
        add("with space.txt", b"a tree")
        add("deep/er/folder.jpg", fine)
        add("deep/er/folder.txt", b"a square")
        add("twice.jpg", fine)
        add("twice.txt", b"one")
        add("twice.jpg", encode(Image.new("RGB", (8, 8)), "JPEG"))
        add("twice.txt", b"two")
        add("alone.txt", b"a text without a picture")
        add("badjson.jpg", fine)
        add("badjson.json", b'{"caption": ')
        add("badtext.jpg", fine)
        add("badtext.txt", b"a \xff\xfe cat")
        add("l" * 150 + ".jpg", fine)
        add("../escape.jpg", fine)
        add("/absolute.jpg", fine)
        add("a/../../escape.txt", b"x")
        add("link.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.jpg", b"", type=tarfile.LNKTYPE, linkname="../../etc/passwd")
        add("device.jpg", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add("pipe.jpg", b"", type=tarfile.FIFOTYPE)
        add("README", b"not a sample")
        add(".DS_Store", b"not a sample")


def write_damaged_set(folder: Path) -> Path:
    """Write a folder of damaged tars, some with damaged or foreign tables beside them."""
    folder.mkdir()
    picture = encode(scene(), "JPEG", quality=95)

    def write_complete_tar(name: str) -> bytes:
        with tarfile.open(folder / name, "w") as tar:
            for number in range(3):
                for suffix, data in (("jpg", picture), ("txt", f"a cat {number}".encode())):
                    member = tarfile.TarInfo(f"{name[:5]}{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        return (folder / name).read_bytes()

    write_unusual_tar(folder / "00000.tar", picture_cases())
    intact = write_complete_tar("00001.tar")
    (folder / "00001.tar").write_bytes(intact[: intact.index(b"000011.jpg") + 700])  # inside its second picture
    (folder / "00002.tar").write_bytes(b"this is not a tar " * 100)
    (folder / "00003.tar").write_bytes(b"")
    damaged = bytearray(write_complete_tar("00004.tar"))
    damaged[damaged.index(b"000041.txt") + 150] ^= 0xFF  # inside a header
    (folder / "00004.tar").write_bytes(damaged)
    write_complete_tar("00005.tar")
    (folder / "00005.parquet").write_bytes(b"PAR1" + bytes(100))  # no footer
    write_complete_tar("00006.tar")
    pq.write_table(pa.table({"something": [1, 2, 3]}), folder / "00006.parquet")
    (folder / ".00007.tar.part").write_bytes(b"being written")
    (folder / "notes.txt").write_text("another file")
    return folder
