"""An HTTP server on loopback with every fault that the downloader distinguishes."""

from __future__ import annotations

import gzip
import io
import threading
import time
import zlib
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from PIL import Image


def picture(number: int, size: tuple[int, int] = (32, 24), kind: str = "JPEG", **options: object) -> bytes:
    """Return an encoded picture: red above, green and blue below, and one pixel that encodes the number."""
    image = Image.new("RGB", size, "red")
    image.paste((0, 255, 0), (0, size[1] // 2, size[0] // 2, size[1]))
    image.paste((0, 0, 255), (size[0] // 2, size[1] // 2, *size))
    image.putpixel((0, 0), (number % 256, number // 256, 0))
    if kind == "JPEG":
        options = {"quality": 90} | options
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sideways() -> bytes:
    """Return a landscape stored as a portrait with an EXIF orientation, as telephones do."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    landscape = Image.open(io.BytesIO(picture(0, (640, 480))))
    landscape.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


class Web(ThreadingHTTPServer):
    """The server at `url`. `hits` counts requests by path; /mending works once `mended` is set.

    Requests that hang or drip end when the server closes.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.hits: Counter[str] = Counter()
        self.closing = threading.Event()
        self.mended = threading.Event()
        self.files: dict[str, bytes] = {}  # served under /file/
        self.agents: set[str] = set()

    def __enter__(self) -> Web:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Print nothing: clients that close the connection are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def do_GET(self) -> None:
        self.server.hits[self.path] += 1
        self.server.agents.add(self.headers["User-Agent"])
        name, _, number = self.path.strip("/").partition("/")
        if name == "file":
            self.body(self.server.files[unquote(number.partition("?")[0])])
            return
        getattr(self, "get_" + name.partition(".")[0], self.get_missing)(number.partition(".")[0])

    def body(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def get_good(self, number: str) -> None:
        self.body(picture(int(number)))

    def get_missing(self, number: str) -> None:
        self.body(b"no", 404)

    def get_status(self, number: str) -> None:
        self.body(b"no", int(number))

    def get_flaky(self, number: str) -> None:
        first = self.server.hits[self.path] == 1
        self.body(picture(int(number)), 503 if first else 200)

    def get_mending(self, number: str) -> None:
        mended = self.server.mended.is_set()
        self.body(picture(int(number)), 200 if mended else 503)

    def get_busy(self, number: str) -> None:
        """Send Retry-After once, then the picture."""
        if self.server.hits[self.path] == 1:
            self.body(b"", 429, Retry_After="1")
        else:
            self.body(picture(int(number)))

    def get_closed(self, number: str) -> None:
        self.body(b"", 503, Retry_After="Fri, 31 Dec 2100 23:59:59 GMT")

    def get_robots(self, number: str) -> None:
        self.body(picture(1), X_Robots_Tag="noai")

    def get_noml(self, number: str) -> None:
        self.body(picture(1), X_Robots_Tag="capfilt: noml")

    def get_reserved(self, number: str) -> None:
        self.body(picture(1), tdm_reservation="1")

    def get_video(self, number: str) -> None:
        self.body(b"\0\0\0\x20ftypisom" + bytes(5000), Content_Type="image/jpeg")

    def get_mislabelled(self, number: str) -> None:
        self.body(picture(int(number)), Content_Type="text/html")

    def get_redirect(self, number: str) -> None:
        self.body(b"", 302, Location=f"/good/{number}.jpg")

    def get_elsewhere(self, number: str) -> None:
        port = self.server.server_port
        self.body(b"", 302, Location=f"http://127.0.0.2:{port}/good/{number}.jpg")

    def get_encoded(self, name: str) -> None:
        """Send /encoded/gzip.jpg with the content encoding gzip, whatever the client accepts."""
        encode = {"gzip": gzip.compress, "deflate": zlib.compress}.get(name, bytes)
        self.body(encode(picture(5)), Content_Encoding=name)

    def get_bomb(self, number: str) -> None:
        self.body(gzip.compress(bytes(10**7)), Content_Encoding="gzip")

    def get_cookie(self, number: str) -> None:
        """Redirect to the same URL until the client sends the cookie."""
        if "seen=yes" in self.headers.get("Cookie", ""):
            self.body(picture(int(number)))
        else:
            self.body(b"", 302, Location=self.path, Set_Cookie="seen=yes; Path=/")

    def get_cookieaway(self, number: str) -> None:
        """Set a cookie and redirect to another host, which sends back the cookies that it gets."""
        location = f"http://localhost:{self.server.server_port}/showcookie/{number}.jpg"
        self.body(b"", 302, Location=location, Set_Cookie="secret=1; Path=/")

    def get_showcookie(self, number: str) -> None:
        self.body(self.headers.get("Cookie", "none").encode())

    def get_tofile(self, number: str) -> None:
        self.body(b"", 302, Location="file:///etc/passwd")

    def get_tohost(self, number: str) -> None:
        """Redirect /tohost/a_b.jpg to the host a.b."""
        self.body(b"", 302, Location=f"http://{number.replace('_', '.')}:{self.server.server_port}/good/9.jpg")

    def get_chain(self, number: str) -> None:
        self.body(b"", 302, Location=f"/chain/{number}x")

    def get_loop(self, number: str) -> None:
        self.body(b"", 302, Location=self.path)

    def get_html(self, number: str) -> None:
        self.body(b"<!DOCTYPE html><html>gone</html>")

    def get_empty(self, number: str) -> None:
        self.body(b"")

    def get_truncated(self, number: str) -> None:
        self.body(picture(3, (320, 240))[:-200])

    def get_sideways(self, number: str) -> None:
        self.body(sideways())

    def get_png(self, number: str) -> None:
        self.body(picture(int(number), kind="PNG"))

    def get_large(self, number: str) -> None:
        self.body(picture(0, (1600, 1200)))

    def get_tiny(self, number: str) -> None:
        self.body(picture(0, (4, 4)))

    def get_fat(self, number: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**9))
        self.end_headers()

    def get_endless(self, number: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            while not self.server.closing.is_set():
                self.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    def get_short(self, number: str) -> None:
        data = picture(4)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True

    def get_reset(self, number: str) -> None:
        self.close_connection = True

    def get_hang(self, number: str) -> None:
        self.server.closing.wait()

    def get_dripbody(self, number: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.drip()

    def get_dripchunk(self, number: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5;")  # a chunk extension, which goes on until the end of the line
        self.drip()

    def get_driphead(self, number: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self.drip()

    def drip(self) -> None:
        with suppress(OSError):
            while not self.server.closing.is_set():
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
