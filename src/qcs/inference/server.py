"""Serve the page on this machine alone, until the user stops it."""

import contextlib
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcs.config.errors import UserError
from qcs.inference.guard import HOST, MAX_UPLOAD, Guard
from qcs.inference.inputs import reason

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
    """Serve a page until Ctrl-C or SIGTERM.

    Args:
        blocks: the page.
        listener: from `listen`.
        folder: of uploads.
    """
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
    guard = Guard(app, port, folder, set(blocks.fns))
    config = uvicorn.Config(guard, log_level="warning", timeout_graceful_shutdown=2, ws="none")
    print(f"open http://{HOST}:{port} (Ctrl-C stops)", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both stop it and delete the uploads
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
