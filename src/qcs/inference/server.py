"""Serve the page on this machine alone, until the user stops it."""

import contextlib
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from qcs.config.errors import UserError, reason
from qcs.inference.guard import HOST, MAX_UPLOAD, Guard

if TYPE_CHECKING:
    import gradio


def listen(port: int) -> socket.socket:
    """Listen on a port of this machine; 0 means any port that is free.

    Raises:
        UserError: it is in use, or permission is missing.
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
    """Serve a page until Ctrl-C or SIGTERM."""
    import fastapi
    import gradio
    import uvicorn

    port = listener.getsockname()[1]
    fonts: dict[str, Any] = {
        "font": ["system-ui", "sans-serif"],
        "font_mono": ["monospace"],
    }  # fonts of the system
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        blocks,
        path="/",
        server_name=HOST,
        server_port=port,
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=[],
        theme=gradio.themes.Default(**fonts),
    )
    guard = Guard(app, port, folder, _requests(blocks))
    config = uvicorn.Config(guard, log_level="warning", timeout_graceful_shutdown=2, ws="none")
    print(f"open http://{HOST}:{port} (Ctrl-C stops)", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both stop it and delete the uploads
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


class Upload(TypedDict):
    """A file of a request; it holds more keys, which gradio checks."""

    path: str


def _requests(blocks: "gradio.Blocks") -> dict[int | str, TypeAdapter]:
    """What each function of a page takes, by its number and its name."""
    found: dict[int | str, TypeAdapter] = {}
    for number, function in blocks.fns.items():
        data: Any = tuple[tuple(map(_takes, function.inputs))]  # type: ignore[misc]
        request = TypeAdapter(TypedDict("Request", {"data": data}))  # type: ignore[operator]
        found |= {number: request, str(function.api_name): request}
    return found


def _takes(block: Any) -> Any:
    """The type of what a browser sends for a component of gradio."""
    import gradio

    if isinstance(block, gradio.Dataset):  # the number of an example
        return Annotated[int, Interval(ge=0, lt=len(block.samples or ()))]
    types: dict[type, Any] = {gradio.Image: Upload | None, gradio.File: list[Upload] | None}
    types |= {gradio.Checkbox: bool, gradio.State: None}  # the state stays with the server
    return types[type(block)]
