"""`e2bench view`: the page over run folders that may still grow, served on this machine only.

Each state of the runs is a report in a temporary folder, under an address of its own (`/1/index.html`), so that a page
that is open goes on reading the samples it belongs to. Only names that the report wrote are served, looked up and never
joined to a path, and only to a browser that asked for this machine by its own name.
"""

from __future__ import annotations

import mimetypes
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from e2bench.errors import DataError, E2BenchError
from e2bench.reporting import write_report
from e2bench.terminal import say

HOST = "127.0.0.1"
EVERY_S = 5.0  # between two looks at the runs
KEPT = 3  # states that are still served: a page that is open finds its samples until it has the new one

Files = dict[str, Path]


class View:
    """The reports of a results folder's last states. `refresh` makes the next one where something changed."""

    def __init__(self, results: Sequence[Path], scratch: Path) -> None:
        self.results, self.scratch = list(results), scratch
        self.states: dict[str, Files] = {}
        self.waiting = ""  # why there is no report yet
        self._seen: object = None

    def refresh(self) -> bool:
        """Write a report of the runs as they are now; False where nothing changed. Raises DataError for no folder."""
        seen = _signature(self.results)
        if seen == self._seen:
            return False
        self._seen = seen
        name = str(len(self.states) + 1)
        out = self.scratch / name
        try:
            written = write_report(self.results, out, live=True)
        except DataError as error:
            if any(not folder.is_dir() for folder in self.results):
                raise
            self.waiting = str(error)
            return False
        self.states[name] = {path.relative_to(out).as_posix(): path for path in written}
        for old in [*self.states][:-KEPT]:
            for path in self.states[old].values():
                path.unlink(missing_ok=True)
            self.states[old] = {}
        return True

    def answer(self, address: str) -> tuple[HTTPStatus, str, bytes]:
        """(status, content type or new address, body) of a request."""
        parts = address.partition("?")[0].strip("/").split("/", 1)
        newest = next(reversed(self.states), "")
        if parts == ["version.js"]:
            return HTTPStatus.OK, "text/javascript", f'e2benchLoad("version","{newest}");\n'.encode()
        if parts == [""]:
            if newest:
                return HTTPStatus.FOUND, f"/{newest}/index.html", b""
            return HTTPStatus.OK, "text/plain; charset=utf-8", f"{self.waiting}\nReload to look again.\n".encode()
        path = self.states.get(parts[0], {}).get(parts[1] if len(parts) > 1 else "")
        try:
            body = path.read_bytes() if path else None
        except OSError:  # its state has just been taken away
            body = None
        if path is None or body is None:
            return HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"no such file of the report\n"
        kind = mimetypes.guess_type(path.name)[0] or "text/plain"
        return HTTPStatus.OK, f"{kind}; charset=utf-8" if kind.startswith("text/") else kind, body


def _signature(results: Sequence[Path]) -> object:
    """Changes when a file below `results` is written, made or taken away."""
    seen = []
    for folder in results:
        for path, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in files:
                try:
                    about = os.stat(os.path.join(path, name))
                except OSError:
                    continue
                seen.append((path, name, about.st_size, about.st_mtime_ns))
    return sorted(seen)


def _handler(view: View) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET from the view; a request under another host's name (DNS rebinding) gets nothing."""

        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (HOST, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN, "only this machine's own browser is served")
                return
            status, kind, body = view.answer(self.path)
            self.send_response(status)
            self.send_header("Location" if status == HTTPStatus.FOUND else "Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not news."""

    return Handler


def serve(
    results: Sequence[Path], port: int, *, started: Callable[[ThreadingHTTPServer], object] = lambda server: None
) -> None:
    """Serve the page until interrupted, and make a new one when a run changed.

    started: called with the server once it listens.
    Raises DataError: no such folder. E2BenchError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="e2bench-view-") as scratch:
        view = View(results, Path(scratch))
        view.refresh()
        try:
            server = ThreadingHTTPServer((HOST, port), _handler(view))
        except OSError as error:
            raise E2BenchError(f"port {port} of {HOST}: {error.strerror}; give another with --port") from None
        with server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            say(f"open http://{HOST}:{server.server_port}/ in a browser on this machine; Ctrl-C ends")
            started(server)
            try:
                while thread.is_alive():
                    time.sleep(EVERY_S)
                    view.refresh()
            finally:
                server.shutdown()
