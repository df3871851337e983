"""Settings of `capfilt download`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from blipcore.io.config_diff import INCIDENTAL
from capfilt.ingest.lists.list_files import ListOptions, split_names
from capfilt.pictures.decode import MAX_PIXELS


@dataclass
class DownloadConfig:
    """Settings of `capfilt download`. Times are in seconds.

    Incidental settings do not change the stored bytes, given the same responses. The content of the list is identified
    by its fingerprint, not by its path.
    """

    # a file in one of list_files.FORMATS, a folder of such files or a pattern; paths or fsspec URLs
    urls: str = field(metadata=INCIDENTAL)
    out: str = field(metadata=INCIDENTAL)  # folder, or an fsspec URL
    url_col: str | None = None  # default: one of the usual names
    # columns of texts, the web text first; default: one of the usual names; ["none"] for no texts
    caption_col: list[str] = field(default_factory=list)
    no_header: bool = False  # the list has no header
    columns: str = ""  # names of the columns of a list without a header, joined by commas
    quoting: Literal["", "none", "double", "backslash"] = ""  # of csv and tsv; default: detected
    encoding: str = ""  # of text files; default: by a byte order mark, else UTF-8
    split: str = ""  # of a list of several files: one, several joined by "+", or "all"; default: the only one
    # Largest share of unreadable rows; a list with more is refused.
    max_bad_rows: float = field(default=0.01, metadata=INCIDENTAL)
    # further columns of the list that the shards keep; default: all; ["none"] for none
    keep_columns: list[str] = field(default_factory=list)
    shard_size: int = 10_000  # rows per shard
    image_size: int = 512  # longer side at most, larger pictures are shrunk; 0 keeps every size
    min_size: int = 0  # shorter side at least
    max_bytes: int = 50_000_000  # of a body
    max_pixels: int = MAX_PIXELS  # of a picture; 120_000_000 admits those of a phone with 108 megapixels
    quality: int = 95  # of pictures that are stored as a new JPEG
    timeout: float = field(default=10.0, metadata=INCIDENTAL)  # limit of a single wait on the network
    picture_seconds: float = field(default=60.0, metadata=INCIDENTAL)  # limit per picture
    # limit for fetching the rows of a shard, including retries
    shard_seconds: float = field(default=7200.0, metadata=INCIDENTAL)
    # time without any progress after which the fetching processes are killed
    stall_seconds: float = field(default=180.0, metadata=INCIDENTAL)
    retries: int = field(default=1, metadata=INCIDENTAL)  # retries of timeouts, broken connections, 429 and 5xx
    # wait before the first retry; doubled for each further one
    retry_wait: float = field(default=5.0, metadata=INCIDENTAL)
    # a row whose server asks for a longer wait with Retry-After is not retried
    retry_after: float = field(default=120.0, metadata=INCIDENTAL)
    # retry the rows of complete shards that have failed temporarily
    retry_failed: bool = field(default=False, metadata=INCIDENTAL)
    # mark duplicate pictures in DATA/duplicates
    duplicates: Literal["", "exact", "near"] = field(default="", metadata=INCIDENTAL)
    workers: int = field(default=0, metadata=INCIDENTAL)  # processes; 0 means one per core
    threads: int = field(default=64, metadata=INCIDENTAL)  # connections per process
    # name that sites see, and can refuse in X-Robots-Tag
    user_agent: str = field(default="capfilt", metadata=INCIDENTAL)
    allow_private: bool = False
    # stop the run if a smaller share of the first shards' rows is ok
    stop_below: float = field(default=0.05, metadata=INCIDENTAL)
    min_success: float = field(default=0.2, metadata=INCIDENTAL)  # share of rows that must be ok for exit code 0

    def __post_init__(self) -> None:
        for name in ("shard_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("min_success", "stop_below", "max_bad_rows"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, not {getattr(self, name)}.")
        self.list_options()  # raises for an unknown encoding

    def list_options(self) -> ListOptions:
        """Return how to read the list."""
        return ListOptions("", self.no_header, split_names(self.columns), self.quoting, self.encoding, self.split)
