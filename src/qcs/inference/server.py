"""Serve the page on this machine alone: who may ask, for what, and with which files.

A page on loopback can still be reached by other sites in the user's browser: by requests of theirs
(their Origin is another) and by a name of theirs that resolves to this machine (their Host is
another, "DNS rebinding"). So `Guard` stands before gradio: it answers its own Host and Origin
alone, knows the few addresses that the page needs, and lets no request name a file outside of the
page's folder.
"""

import contextlib
import json
import signal
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcs.config.errors import UserError
from qcs.inference.inputs import reason
from qcs.inference.page import uploaded

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"
MOST_BYTES = 64 << 20  # of an upload, several files together
MOST_JSON = 1 << 20  # bytes of any other request
FOLDER_BYTES = 4 << 30  # of all uploads together
API = "/gradio_api/"
FILE = f"{API}file="
# What the page asks for; gradio knows many more addresses, and nobody here needs them.
GET = ("/assets/", "/static/", "/svelte/", FILE, f"{API}heartbeat/", f"{API}call/")
GET_EXACTLY = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"} | {
    f"{API}{name}" for name in ("queue/data", "upload_progress", "startup-events", "app_id", "info")
}
POST = (f"{API}call/", f"{API}run/", f"{API}api/")
POST_EXACTLY = {f"{API}{name}" for name in ("queue/join", "upload", "reset", "cancel")}

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that is not answered: a status of HTTP, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """An ASGI application before another: it passes on only what the page needs.

    Args:
        app: gradio's.
        port: that it is served on.
        folder: the one of uploads; files elsewhere are neither read nor sent.
        functions: numbers of the page's functions.
    """

    def __init__(
        self, app: Callable, port: int, folder: Path, functions: Collection[int] = ()
    ) -> None:
        self.app, self.folder, self.functions = app, folder, functions
        names = [f"{name}:{port}" for name in (HOST, "localhost")]
        self.hosts = {*names, *((HOST, "localhost") if port == 80 else ())}
        self.origins = {f"http://{name}" for name in self.hosts}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page opens no web sockets
            await send({"type": "websocket.close"})
            return
        try:
            self._check(scope)
            if scope["method"] == "POST":
                receive = await self._body(scope, receive)
        except Refused as refused:
            await _answer(send, refused.status, str(refused))
            return
        # A part of a file is never needed, and a range is one more thing to get wrong.
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await self.app(scope | {"headers": headers}, receive, _safely(send, scope["path"]))

    def _check(self, scope: Message) -> None:
        headers = [tuple(part.decode("latin-1") for part in pair) for pair in scope["headers"]]
        hosts = [value.lower() for name, value in headers if name == "host"]
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            raise Refused(403, "this page is served to its own host alone")
        if any(name == "origin" and value.lower() not in self.origins for name, value in headers):
            raise Refused(403, "this page answers no other site")
        modes = dict(headers)
        if modes.get("sec-fetch-site") in ("cross-site", "same-site") and (
            modes.get("sec-fetch-mode") != "navigate" or scope["method"] != "GET"
        ):
            raise Refused(403, "this page answers no other site")
        self._check_address(scope["method"], scope["path"])

    def _check_address(self, method: str, path: str) -> None:
        starts, exactly = {
            "GET": (GET, GET_EXACTLY),
            "HEAD": (GET, GET_EXACTLY),
            "POST": (POST, POST_EXACTLY),
        }.get(method, ((), set()))
        if ".." in path.split("/"):
            raise Refused(404, "there is nothing here")
        if path.rstrip("/") not in exactly and path not in exactly and not path.startswith(starts):
            raise Refused(404, "there is nothing here")
        if path.startswith(FILE):
            self._own(path.removeprefix(FILE))

    def _own(self, path: Any) -> None:
        try:
            uploaded(path, self.folder)
        except UserError as error:
            raise Refused(403, str(error)) from error

    async def _body(self, scope: Message, receive: Receive) -> Receive:
        """Read and check the body of a request; of an upload only how long it is."""
        if scope["path"].rstrip("/") == f"{API}upload":
            used = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
            if used > FOLDER_BYTES:
                raise Refused(413, "too much was uploaded: start the page again")
            return _repeat(await _read(receive, MOST_BYTES))
        body = await _read(receive, MOST_JSON)
        try:
            content = json.loads(body)
            if not isinstance(content, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            raise Refused(400, "that is no JSON object") from error
        for path in _paths(content):
            self._own(path)
        if content.get("fn_index") is not None and content["fn_index"] not in self.functions:
            raise Refused(404, "there is no such function")
        return _repeat(body)


def _paths(content: Any) -> Iterator[Any]:
    """All paths of files that a request names, however deep."""
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "path" in node:
                yield node["path"]
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


async def _read(receive: Receive, most: int) -> bytes:
    """The whole body of a request.

    Raises:
        Refused: it is longer than `most` bytes, or breaks off.
    """
    parts, length, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the request broke off")
        length += len(message.get("body", b""))
        if length <= most:
            parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    if length > most:  # said when all was sent: a browser does not listen before
        raise Refused(413, f"that is more than {most >> 20} MB")
    return b"".join(parts)


def _repeat(body: bytes) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    return receive


def _safely(send: Send, path: str) -> Send:
    """Answers that no browser takes for more than they are; a file never acts as a page."""
    extra = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
    extra += [(b"x-frame-options", b"DENY"), (b"cross-origin-resource-policy", b"same-origin")]
    if path.startswith(FILE):
        extra.append((b"content-security-policy", b"default-src 'none'; sandbox"))

    async def safe(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message.get("headers", []), *extra]}
        await send(message)

    return safe


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    send = _safely(send, "")
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def listen(port: int) -> socket.socket:
    """Take a port of this machine; 0 takes any that is free.

    Raises:
        UserError: it is in use, or may not be taken.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"port={port} cannot be used ({reason(error)}): write another, or port=0 for a free one"
        ) from error
    return listener


def serve(blocks: "gradio.Blocks", listener: socket.socket, folder: Path) -> None:
    """Serve a page until Ctrl-C or SIGTERM.

    Args:
        blocks: the page.
        listener: of `listen`.
        folder: of its uploads.
    """
    import fastapi
    import gradio
    import uvicorn

    port = listener.getsockname()[1]
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # none is fetched
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        blocks,
        path="/",
        server_name=HOST,
        server_port=port,
        show_error=False,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        theme=gradio.themes.Default(**fonts),
    )
    guard = Guard(app, port, folder, set(blocks.fns))
    config = uvicorn.Config(guard, log_level="warning", timeout_graceful_shutdown=2, ws="none")
    print(f"open http://{HOST}:{port} (Ctrl-C stops)", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads go with either
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
