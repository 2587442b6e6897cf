"""What stands between a client and an object store, and answers in its place when it should fail."""

import http.client
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
_ENTRY = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
_KEY = re.compile(rb"<Key>(.*?)</Key>")
# Headers that each connection has of its own.
_OWN = {"connection", "expect", "transfer-encoding", "content-length"}


@dataclass
class Troubles:
    """What goes wrong, changed while it runs.

    Attributes
    ----------
    busy_every
        Each request of such a number is answered 503 SlowDown; 0 for none.
    expired_keys
        Access keys whose time is up.
    listing_delay_seconds
        So long a new object is in no listing.
    asked, refused, multipart, hidden
        So far: requests, those answered here, uploads begun in parts, entries kept out of listings.
    """

    busy_every: int = 0
    expired_keys: set[str] = field(default_factory=set)
    listing_delay_seconds: float = 0.0
    asked: int = 0
    refused: int = 0
    multipart: int = 0
    hidden: int = 0
    _first_put: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def calm(self) -> None:
        """End all troubles, and count anew."""
        self.busy_every, self.listing_delay_seconds = 0, 0.0
        self.expired_keys.clear()
        self.asked = self.refused = self.multipart = self.hidden = 0

    def answer(self, method: str, path: str, authorization: str) -> tuple[int, str, str] | None:
        """Status, S3's code and message of a request that the store shall not see."""
        with self._lock:
            self.asked += 1
            self.multipart += method == "POST" and path.endswith("?uploads")
            refusal = None
            if any(f"Credential={key}/" in authorization for key in self.expired_keys):
                refusal = (400, "ExpiredToken", "The provided token has expired.")
            elif self.busy_every and self.asked % self.busy_every == 0:
                refusal = (503, "SlowDown", "Please reduce your request rate.")
            self.refused += refusal is not None
            return refusal

    def take_note(self, method: str, path: str) -> None:
        """Of an object that has come."""
        if method == "PUT" or (method == "POST" and "uploadId=" in path):
            with self._lock:
                self._first_put.setdefault(urllib.parse.unquote(path.split("?")[0]), time.monotonic())

    def delay(self, path: str, listing: bytes) -> bytes:
        """An answer, if it is a listing, without what is too new for it."""
        if "list-type=2" not in path:
            return listing
        bucket = urllib.parse.unquote(path.split("?")[0]).strip("/")

        def keep(entry: "re.Match[bytes]") -> bytes:
            found = _KEY.search(entry[0])
            key = urllib.parse.unquote(found[1].decode()) if found else ""
            since = time.monotonic() - self._first_put.get(f"/{bucket}/{key}", float("-inf"))
            self.hidden += since < self.listing_delay_seconds
            return b"" if since < self.listing_delay_seconds else entry[0]

        return _ENTRY.sub(keep, listing)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endpoint: str, troubles: Troubles) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store, self.troubles = endpoint.removeprefix("http://"), troubles


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        body, troubles = self.rfile.read(int(self.headers.get("Content-Length", 0))), self.server.troubles
        refusal = troubles.answer(self.command, self.path, self.headers.get("Authorization", ""))
        if refusal is not None:
            status, code, message = refusal
            self._send(status, {"Content-Type": "application/xml"}, _ERROR.format(code=code, message=message).encode())
            return
        status, headers, content = self._forward(body)
        if status == 200:
            troubles.take_note(self.command, self.path)
            content = troubles.delay(self.path, content)
        self._send(status, headers, content)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.store, timeout=60)
        try:
            # The host as the client has signed it.
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _OWN}
            if self.command == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length", "0")
            return answer.status, kept, content
        finally:
            connection.close()

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Nothing: what is printed belongs to the tests."""


@contextmanager
def troubling(endpoint: str, troubles: Troubles) -> Iterator[str]:
    """An endpoint in front of another."""
    server = _Server(endpoint, troubles)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
