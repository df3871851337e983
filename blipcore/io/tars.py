"""Pictures and texts inside tar files, found by their headers and read in any order.

In: a webdataset tar, whole or damaged. Out: for each key the place of its members, and their bytes on demand, from a
bounded number of open files. Python's own tarfile takes about seven times as long.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")
EXTENSIONS = {extension: extension for extension in (*IMAGE_EXTENSIONS, "txt", "json")}  # one string object each
EXTENDED = re.compile(r"^\d+ (path|size)=(.*)$", re.MULTILINE)  # records of a pax header that matter here
OPEN_TARS = 16  # indexed at a time, by data set; an index takes about 6 MB for 10,000 pictures
BLOCK = 512  # a tar is a sequence of blocks of this many bytes


@dataclass
class TarIndex:
    """Where the members of a tar lie: key -> extension -> (offset, size), and what is wrong with the file, if so."""

    members: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    problem: str = ""

    def image(self, key: str) -> tuple[int, int] | None:
        """Offset and size of the picture of `key`, None when there is none."""
        found = self.members.get(key, {})
        return next((place for extension, place in found.items() if extension in IMAGE_EXTENSIONS), None)


def index_tar(descriptor: int) -> TarIndex:
    """Index a tar by its headers alone, keeping every member that is whole when the file is cut short or damaged."""
    index, dotted = TarIndex(), []
    try:
        for name, offset, size in _members(descriptor):
            key, extension = _split(name)
            if extension in EXTENSIONS:
                index.members.setdefault(key, {}).setdefault(EXTENSIONS[extension], (offset, size))
            elif (last := extension.rpartition(".")[2]) in EXTENSIONS:
                dotted.append((key, EXTENSIONS[last], (offset, size)))
    except ValueError as error:
        index.problem = f"{error}; the {len(index.members)} keys before that are used"
    for key, extension, place in dotted:  # photo.v2.jpg is the picture where there is no other
        index.members.setdefault(key, {}).setdefault(extension, place)
    return index


def _members(descriptor: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file of a tar (ustar, GNU or pax); ValueError at damage or a cut."""
    offset, end = 0, os.fstat(descriptor).st_size
    extended: dict[str, str] = {}  # what an extended header says about the member after it
    while offset < end:
        header = os.pread(descriptor, BLOCK, offset)
        if header == bytes(BLOCK):
            return  # the end-of-archive block
        name, size, kind = _parse_header(header)
        size = int(extended.get("size", size))
        if size < 0:  # the walk would go back for ever
            raise ValueError("damaged, or no tar")
        data, offset = offset + BLOCK, offset + BLOCK + -(-size // BLOCK) * BLOCK
        if data + size > end:
            raise ValueError("truncated")
        if kind == b"x":
            records = os.pread(descriptor, size, data).decode(errors="replace")
            extended = dict(EXTENDED.findall(records))
        elif kind == b"L":  # GNU's long name
            extended = {"path": os.pread(descriptor, size, data).rstrip(b"\0").decode(errors="replace")}
        else:
            if kind in (b"0", b"\0"):  # the others are folders, links, global headers
                yield extended.get("path", name), data, size
            extended = {}
    raise ValueError("truncated")  # every tar ends with an empty block


def _parse_header(header: bytes) -> tuple[str, int, bytes]:
    """Name, size and type of a header block; ValueError when it is none."""
    if len(header) < BLOCK:
        raise ValueError("truncated")
    # The magic word tells a header from anything else at a tenth of the cost of the checksum; only the tars of before
    # 1988 lack it.
    size = _number(header[124:136])
    if header[257:262] != b"ustar" and _number(header[148:156]) != _checksum(header):
        raise ValueError("damaged, or no tar")
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:  # POSIX puts the start of long names elsewhere; GNU does not
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode(errors="replace"), size, header[156:157]


def _number(digits: bytes) -> int:
    if digits[0] & 0x80:  # GNU's binary form, for sizes from 8 GiB up
        return int.from_bytes(digits[1:], "big")
    try:
        return int(digits.strip(b" \0") or b"0", 8)
    except ValueError:
        raise ValueError("damaged, or no tar") from None


def _checksum(header: bytes) -> int:
    return sum(header[:148]) + 8 * ord(" ") + sum(header[156:])


def _split(name: str) -> tuple[str, str]:
    """`folder/key.ext` -> (`folder/key`, `ext`): the key ends at the first dot of the last part, as in webdataset."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


class TarReader:
    """Reads members by offset from a bounded number of open, indexed tars (the least recently used is closed).

    `locate` gives the local file of a tar when it is opened.
    """

    def __init__(self, capacity: int = OPEN_TARS, locate: Callable[[str], Path] = Path) -> None:
        self.capacity, self.locate = capacity, locate
        self.problems: dict[str, str] = {}
        self._open: OrderedDict[str, tuple[int, TarIndex]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": OrderedDict()}  # descriptors stay here

    def index(self, name: str) -> TarIndex:
        """The index of a tar, from memory or from its headers."""
        return self._entry(name)[1]

    def read(self, name: str, place: tuple[int, int]) -> bytes:
        """The bytes of a member at (offset, size)."""
        return os.pread(self._entry(name)[0], place[1], place[0])

    def _entry(self, name: str) -> tuple[int, TarIndex]:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        path = self.locate(name)
        descriptor = os.open(path, os.O_RDONLY)
        index = index_tar(descriptor)
        if index.problem:
            self.problems[name] = index.problem
        self._open[name] = descriptor, index
        if len(self._open) > self.capacity:
            os.close(self._open.popitem(last=False)[1][0])
        return descriptor, index

    def close(self) -> None:
        """Close every file."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __del__(self) -> None:
        self.close()
