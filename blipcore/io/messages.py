"""Error messages of other libraries on one line."""

from __future__ import annotations

MAX_LENGTH = 300  # characters; some messages contain whole documents


def one_line(error: BaseException | str) -> str:
    """Return the message of an error without line breaks, or its type if it is empty."""
    message = " ".join(str(error).split())[:MAX_LENGTH]
    return message or ("" if isinstance(error, str) else type(error).__name__)
