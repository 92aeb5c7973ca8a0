"""A guard before the page's server: which requests are answered.

Other web sites in the user's browser can reach a page on this machine: by requests of theirs, which
have another Origin, and by a name of theirs that resolves to this machine, which is another Host
("DNS rebinding"). `Guard` therefore stands before gradio. It answers only requests with the page's
own Host and Origin, only at the few addresses that the page needs, and no request may name a file
outside of the page's folder.
"""

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qcs.config.errors import UserError
from qcs.inference.uploads import uploaded_file

HOST = "127.0.0.1"
MAX_UPLOAD = 64 << 20  # bytes of one request, which can hold several files
MAX_JSON = 1 << 20  # bytes of any other request
MAX_FOLDER = 4 << 30  # bytes of all uploads together
API = "/gradio_api/"
FILE = f"{API}file="
# The addresses that the page needs; gradio has many more, which are not served.
GET = ("/assets/", "/static/", "/svelte/", FILE, f"{API}heartbeat/", f"{API}call/")
GET_EXACTLY = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"} | {
    f"{API}{name}" for name in ("queue/data", "upload_progress", "startup-events", "app_id", "info")
}
POST = (f"{API}call/", f"{API}run/", f"{API}api/")
WITHOUT_DATA = {f"{API}reset", f"{API}cancel"}
POST_EXACTLY = {f"{API}queue/join", f"{API}upload"} | WITHOUT_DATA

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that is refused, with a status of HTTP and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """An ASGI application before another one, to which it passes only the requests of the page.

    Args:
        folder: of uploads; files elsewhere are neither read nor sent.
        functions: by the number and the name of each of the page's functions, the request that it
            takes.
    """

    def __init__(
        self, app: Callable, port: int, folder: Path, functions: Mapping[Any, TypeAdapter]
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
        # The page asks for whole files only, so requests for parts of files are not passed on.
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        try:
            await self.app(
                scope | {"headers": headers}, receive, _with_headers(send, scope["path"])
            )
        except RuntimeError as error:
            # Gradio's way to end the answer to a page that was open before this process began.
            if "response already started" not in str(error):
                raise
            await send({"type": "http.response.body", "body": b""})

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
            self._require_own(path.removeprefix(FILE))

    def _require_own(self, path: Any) -> None:
        """Refuse a path outside of the page's folder."""
        try:
            uploaded_file(path, self.folder)
        except UserError as error:
            raise Refused(403, str(error)) from error

    async def _body(self, scope: Message, receive: Receive) -> Receive:
        """Read and check the body of a request; of an upload only its length is checked."""
        if scope["path"].rstrip("/") == f"{API}upload":
            used = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
            if used > MAX_FOLDER:
                raise Refused(413, "too much was uploaded: start the page again")
            return _repeat(await _read(receive, MAX_UPLOAD))
        body = await _read(receive, MAX_JSON)
        try:
            content = json.loads(body)
            if not isinstance(content, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            raise Refused(400, "that is no JSON object") from error
        for path in _paths(content):
            self._require_own(path)
        if scope["path"].rstrip("/") not in WITHOUT_DATA:
            self._check_call(scope["path"], content, body)
        return _repeat(body)

    def _check_call(self, path: str, content: Message, body: bytes) -> None:
        """Refuse a call that gradio would answer with a traceback in the log."""
        name = content.get("fn_index")
        if name is None:
            name = next((path.removeprefix(p) for p in POST if path.startswith(p)), None)
        if not isinstance(name, (int, str)) or name not in self.functions:
            raise Refused(404, "there is no such function")
        try:
            self.functions[name].validate_json(body, strict=True)
        except ValidationError as error:
            raise Refused(400, "the function takes other data") from error


def _paths(content: Any) -> Iterator[Any]:
    """All paths of files in a request, at any depth."""
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "path" in node:
                yield node["path"]
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


async def _read(receive: Receive, limit: int) -> bytes:
    """The whole body of a request.

    Raises:
        Refused: it is longer than `limit` bytes, or breaks off.
    """
    parts: list[bytes] = []
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the request broke off")
        length += len(message.get("body", b""))
        if length <= limit:
            parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    if length > limit:  # only now, as browsers read the answer after they have sent all
        raise Refused(413, f"that is more than {limit >> 20} MB")
    return b"".join(parts)


def _repeat(body: bytes) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return waiting.pop() if waiting else {"type": "http.disconnect"}

    return receive


def _with_headers(send: Send, path: str) -> Send:
    """Add headers by which a browser never runs a file as a page, or shows the page in another."""
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
    send = _with_headers(send, "")
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
