"""Who is answered by the page, and with which files."""

import asyncio
import json
import socket
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from qcs.config.errors import UserError
from qcs.inference import guard as guards
from qcs.inference.guard import Guard
from qcs.inference.server import _requests, listen

API = "/gradio_api/"


@pytest.fixture
def ask(tmp_path):
    """Ask a guarded application that answers everything; the answer is status, headers, body."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "photo.png").write_bytes(b"photo")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")

    async def app(scope, receive, send):
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        headers = [(b"access-control-allow-origin", b"*")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"].endswith("queue/data"):  # as gradio does for a session it does not know
            raise RuntimeError("Caught handled exception, but response already started.")
        await send({"type": "http.response.body", "body": b"passed on " + body})

    request = TypeAdapter(TypedDict("Request", {"data": Any}))
    guard = Guard(app, 7860, folder, dict.fromkeys((0, 1, "classify"), request))

    def ask(method="GET", path="/", body=b"", host="127.0.0.1:7860", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        pairs = {"host": host} | {k.replace("_", "-"): v for k, v in headers.items()}
        encoded = [(k.encode(), v.encode()) for k, v in pairs.items() if v is not None]
        scope = {"type": "http", "method": method, "path": path, "headers": encoded}
        parts, answer = [body[:9], body[9:]], []

        async def receive():
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message):
            answer.append(message)

        asyncio.run(guard(scope, receive, send))
        return answer[0]["status"], dict(answer[0]["headers"]), answer[1]["body"]

    ask.folder = folder
    return ask


def test_only_its_own_host_is_served(ask):
    for host in ("127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860"):
        assert ask(host=host)[0] == 200
    for host in ("evil.example:7860", "127.0.0.1", "127.0.0.1:80", "[::1]:7860", "", None):
        assert ask(host=host)[0] == 403, host


def test_no_other_site_is_answered(ask):
    assert ask(origin="http://localhost:7860")[0] == 200
    for origin in ("http://evil.example", "http://localhost:1", "https://127.0.0.1:7860", "null"):
        for method in ("GET", "POST", "OPTIONS"):
            status, headers, _ = ask(method, f"{API}queue/join", {"data": []}, origin=origin)
            assert status == 403 and b"access-control-allow-origin" not in headers
    assert ask(sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] == 403
    assert ask(sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == 200  # a link


@pytest.mark.parametrize(
    "path",
    [f"{API}proxy=http://x", f"{API}component_server", f"{API}custom_component/a/b/c/d", "/docs",
     "/openapi.json", "/login", f"{API}vibe-code", "/assets/../secret.png", f"{API}deep_link"],
)  # fmt: skip
def test_only_the_addresses_of_the_page_are_known(ask, path):
    assert {ask(method, path, {})[0] for method in ("GET", "POST", "PUT", "DELETE")} == {404}


def test_a_file_is_only_sent_from_the_folder_and_never_acts_as_a_page(ask, tmp_path):
    status, headers, _ = ask(path=f"{API}file={ask.folder}/photo.png")
    assert status == 200 and headers[b"x-content-type-options"] == b"nosniff"
    assert b"sandbox" in headers[b"content-security-policy"]
    secret = tmp_path / "secret.png"
    places = [secret, "/etc/passwd", "/nowhere", f"{ask.folder}/link.png", ask.folder, "http://x/y"]
    answers = {ask(path=f"{API}file={place}")[::2] for place in places}
    assert len(answers) == 1 and answers.pop()[0] == 403  # nor does it tell which files exist


@pytest.mark.parametrize(
    "wrap", [lambda f: [f, True], lambda f: [[{"x": [f]}]], lambda f: {"a": f}]
)
@pytest.mark.parametrize("address", ["queue/join", "run/classify", "call/classify"])
def test_a_request_names_uploads_alone(ask, wrap, address, tmp_path):
    def sent(path):
        return ask("POST", f"{API}{address}", {"data": wrap({"path": path}), "fn_index": 0})[0]

    assert sent(f"{ask.folder}/photo.png") == 200
    for path in (str(tmp_path / "secret.png"), f"{ask.folder}/link.png", "http://x/y.png", 5, None,
                 "", "\0", f"{ask.folder}/../secret.png", "/dev/zero", ["a"]):  # fmt: skip
        assert sent(path) == 403, path


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b"[" * 100_000, b"\xff", {"fn_index": 7}, {"fn_index": -1},
     {"fn_index": []}, {"data": []}, {"fn_index": 0}],
)  # fmt: skip
def test_a_body_that_is_none_of_the_pages_is_refused(ask, body):
    assert ask("POST", f"{API}queue/join", body)[0] in (400, 404)


def test_a_function_of_the_page_takes_what_its_components_hold(tmp_path):
    gradio = pytest.importorskip("gradio")
    with gradio.Blocks() as blocks:
        inputs = [gradio.Image(), gradio.Checkbox(), gradio.File(), gradio.State()]
        gradio.Button().click(lambda *_: None, inputs, api_name="classify")
        gradio.Examples([["a.png", True], ["b.png", True]], inputs[:2], cache_examples=False)
    requests = _requests(blocks)
    upload = {"path": "a.png", "orig_name": "b.png"}

    def taken(function, *data):
        try:
            requests[function].validate_json(json.dumps({"data": data}), strict=True)
        except ValidationError:
            return False
        return True

    assert taken("classify", upload, True, [upload], None) and taken(0, None, False, None, None)
    for wrong in ([], [None], ["a.png", True, None, None], [upload, "yes", None, None],
                  [upload, True, upload, None], [{"url": "x"}, True, None, None],
                  [upload, True, None, 5], [None] * 9):  # fmt: skip
        assert not taken("classify", *wrong), wrong
    assert taken("load_example", 1) and not any(
        taken("load_example", n) for n in (2, -1, None, 0.5)
    )


def test_a_page_of_a_former_process_gets_an_answer_that_ends(ask):
    assert ask(path=f"{API}queue/data")[::2] == (200, b"")


def test_bytes_are_limited(ask, monkeypatch):
    monkeypatch.setattr(guards, "MAX_UPLOAD", 100)
    monkeypatch.setattr(guards, "MAX_JSON", 50)
    assert ask("POST", f"{API}upload", b"x" * 100)[0] == 200
    assert ask("POST", f"{API}upload", b"x" * 101)[0] == 413
    assert ask("POST", f"{API}queue/join", {"data": "x" * 50})[0] == 413
    monkeypatch.setattr(guards, "MAX_FOLDER", 1)
    assert ask("POST", f"{API}upload", b"x")[0] == 413


def test_a_port_in_use_is_a_sentence():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="cannot be used .*port=0 for a free one"):
            listen(other.getsockname()[1])
    with pytest.raises(UserError, match="cannot be used"):
        listen(99_999)
    with listen(0) as free:
        assert free.getsockname()[0] == "127.0.0.1"
