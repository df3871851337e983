"""A list of URLs with or without captions in, (url, caption) rows out; and which URLs are not worth a request."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from capfilt.ingest.lists import ListColumn, as_text, read_columns

# Column names in use for the two, the commonest first; compared in lower case.
URL_COLUMNS = ("url", "image_url", "img_url", "imageurl", "image_link", "link", "src")
CAPTION_COLUMNS = ("caption", "text", "alt", "alt_text", "alttext", "title", "description", "txt")
GLOBAL_UNICAST = ipaddress.ip_network(
    "2000::/3"
)  # all of IPv6 that has been given out, which `is_global` alone does not ask
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses as an IPv6-only network reaches them, RFC 6052


def read_urls(path: str, url_col: str | None = None, caption_col: str | None = None) -> Iterator[tuple[Any, Any]]:
    """(url, caption) of each row of the input in its order, None where there is none.

    Columns are found by their usual names unless named; mistakes are ValueError or FileNotFoundError in one sentence.
    """
    columns = (
        ListColumn("a URL", URL_COLUMNS, url_col, "--url-col"),
        ListColumn("a caption", CAPTION_COLUMNS, caption_col, "--caption-col", required=False),
    )
    return ((as_text(url), as_text(caption)) for url, caption in read_columns(path, columns))


def encode_url(url: str | None) -> str:
    """The URL as it goes over the wire, percent-encoded and with an ASCII host; ValueError says why it is none."""
    url = (url or "").strip()
    if not url:
        raise ValueError("no URL")
    parts = urlsplit(url)  # ValueError for a broken IPv6 host
    if parts.scheme.lower() not in ("http", "https"):
        raise ValueError(f"not an http(s) URL: {url[:100]}")
    host = parts.hostname
    if not host or any(letter <= " " for letter in host):
        raise ValueError(f"no host in the URL: {url[:100]}")
    try:
        ascii_host = host.encode("idna").decode("ascii")  # refuses labels that are empty or too long, too
    except UnicodeError:
        raise ValueError(f"not a host name: {host[:100]}") from None
    bracketed = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
    place = bracketed if parts.port is None else f"{bracketed}:{parts.port}"
    # "%" stays: what is encoded already is not encoded twice
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]|")
    return urlunsplit((parts.scheme.lower(), place, path, query, ""))


def is_public(address: str) -> bool:
    """Whether an IP address lies on the open internet: not private, loopback, link-local, reserved or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:  # an IPv4 address may lie inside
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else inner or ip
    return ip.is_global and not ip.is_multicast and (ip.version == 4 or ip in GLOBAL_UNICAST)


def is_private_host(host: str) -> bool:
    """Whether a URL's host says by itself that it is private; names are looked up later, when a connection is made."""
    if host.rstrip(".").lower() == "localhost" or host.rstrip(".").lower().endswith((".localhost", ".local")):
        return True
    try:
        return not is_public(host)
    except ValueError:
        return False
