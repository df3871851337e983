"""Error messages of other libraries on one line."""

from __future__ import annotations

MAX_LENGTH = 300  # characters; some libraries put whole documents into a message


def one_line(error: BaseException | str) -> str:
    """Return the message of an error, or a text, without line breaks; an empty one gives the error's type."""
    message = " ".join(str(error).split())[:MAX_LENGTH]
    return message or ("" if isinstance(error, str) else type(error).__name__)
