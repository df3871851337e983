"""Parts of messages: errors of other libraries on one line, and shortened lists of names."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LENGTH = 300  # characters; some messages contain whole documents


def one_line(error: BaseException | str) -> str:
    """Return the message of an error without line breaks, or its type if it is empty."""
    message = " ".join(str(error).split())[:MAX_LENGTH]
    return message or ("" if isinstance(error, str) else type(error).__name__)


def shorten(names: Sequence[str], limit: int = 3) -> str:
    """Return names joined by commas: the first `limit`, and the number of the others."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
