"""Invalid and private URLs are refused before any request."""

from __future__ import annotations

import pytest

from capfilt.ingest.lists.urls import encode_url, is_private_host, is_public


def test_urls_are_encoded() -> None:
    assert encode_url(" HTTP://Host.Example/a b/ü.jpg?q=北 x#part ") == (
        "http://host.example/a%20b/%C3%BC.jpg?q=%E5%8C%97%20x"
    )
    assert encode_url("https://bücher.example:8080/%20x") == "https://xn--bcher-kva.example:8080/%20x"
    assert encode_url("http://[::1]:80/x") == "http://[::1]:80/x"
    for bad in (None, "", "  ", "cat.jpg", "file:///etc/passwd", "ftp://x/y", "http://", "http://a b/", "http://[::1"):
        with pytest.raises(ValueError):
            encode_url(bad)
    for bad in ("http://x:port/", "http://a..b/", f"http://{'a' * 64}.example/", "http://ü..b/"):
        with pytest.raises(ValueError):
            encode_url(bad)
    assert encode_url("http://a_b.example./x") == "http://a_b.example./x"


def test_private_addresses() -> None:
    for address in ("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "0.0.0.0"):
        assert not is_public(address), address
        assert is_private_host(address), address
    for address in ("::ffff:127.0.0.1", "100.64.0.1", "224.0.0.1", "fc00::1", "64:ff9b::7f00:1", "2002:7f00:1::"):
        assert not is_public(address), address
    for address in ("fec0::1", "::127.0.0.1", "64:ff9b:1::7f00:1"):  # site-local, IPv4-compatible, local NAT64
        assert not is_public(address), address
    assert is_public("8.8.8.8") and is_public("64:ff9b::808:808")
    assert is_public("2606:4700::1111")
    assert is_private_host("LOCALHOST.")
    assert not is_private_host("example.org")
