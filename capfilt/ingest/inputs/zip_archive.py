"""Zip archives of pictures, read in place as folders."""

from __future__ import annotations

from blipcore.io.storage import AnyPath, Remote, open_file_system

MAX_RATIO = 200  # of a member's size to its bytes in the archive; texts reach about 20, and a zip bomb 1,000
SMALL = 10 << 20  # bytes of a member that is never refused


def open_zip(path: AnyPath) -> Remote:
    """Return the folder in a zip archive; ValueError if it is damaged, encrypted, or names files outside of it.

    Nothing is unpacked on the disk. A member that would grow to far more than its bytes in the archive is refused.
    """
    root = Remote(f"zip://::{path}")
    archive = open_file_system(root.url)[0].zip
    for member in archive.infolist():
        if member.flag_bits & 1:
            raise ValueError(f"{path} is encrypted ({member.filename}); decrypt it first.")
        if member.filename.startswith("/") or ".." in member.filename.split("/"):
            raise ValueError(
                f"{path} names the file {member.filename} outside of the archive; such archives are refused."
            )
        if member.file_size > max(SMALL, MAX_RATIO * member.compress_size):
            raise ValueError(
                f"{path}: {member.filename} would grow from {member.compress_size:,} to {member.file_size:,} bytes; "
                "such archives are refused."
            )
    if not archive.infolist():
        raise ValueError(f"{path} is an empty zip archive.")
    return root
