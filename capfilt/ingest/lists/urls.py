"""Usual names of the columns of URL lists, and checks of URLs before they are requested."""

from __future__ import annotations

import ipaddress
from urllib.parse import quote, urlsplit, urlunsplit

# Usual column names, compared in lower case. Beside an "image_url", a "url" or "link" is that of the page.
URL_COLUMNS = ("image_url", "img_url", "imageurl", "image_link", "photo_image_url", "image_urls", "url", "src", "link")
CAPTION_COLUMNS = (
    *("caption", "text", "alt", "alt_text", "alttext", "title", "description", "txt"),
    *("captions", "texts", "sentences"),  # lists of texts
)
# All IPv6 addresses that have been assigned; `is_global` does not check this.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
PRIVATE = "private address"  # begins the error of a refused URL
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses in an IPv6-only network, RFC 6052


def encode_url(url: str | None) -> str:
    """Return a URL percent-encoded and with an ASCII host; ValueError if it is invalid."""
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
        ascii_host = host.encode("idna").decode("ascii")  # also refuses labels that are empty or too long
    except UnicodeError:
        raise ValueError(f"not a host name: {host[:100]}") from None
    bracketed = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
    netloc = bracketed if parts.port is None else f"{bracketed}:{parts.port}"
    # "%" is safe, so that nothing is encoded twice.
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]|")
    return urlunsplit((parts.scheme.lower(), netloc, path, query, ""))


def check_url(url: str | None, allow_private: bool) -> str:
    """Return the encoded URL; ValueError if it is invalid or has a private host."""
    encoded = encode_url(url)
    host = urlsplit(encoded).hostname or ""
    if not allow_private and is_private_host(host):
        raise ValueError(f"{PRIVATE}: {host}")
    return encoded


def is_public(address: str) -> bool:
    """Return whether an IP address is on the open internet: not private, link-local, reserved or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = _embedded_ipv4(ip)
        if embedded is None:
            return ip.is_global and not ip.is_multicast and ip in GLOBAL_UNICAST
        ip = embedded
    return ip.is_global and not ip.is_multicast


def _embedded_ipv4(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip in NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def is_private_host(host: str) -> bool:
    """Return whether the host of a URL is private by its text alone. Names are resolved later, on connecting."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith((".localhost", ".local")):
        return True
    try:
        return not is_public(host)
    except ValueError:
        return False
