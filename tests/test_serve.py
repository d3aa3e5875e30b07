"""The server as its users meet it: a process of its own, asked over real connections."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import convsmith
from convsmith.cli import main
from server import Server, serving

MEMORY = 2e9  # bytes that the guide promises for digits


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving(tmp_path_factory.mktemp("serve"))


class Reply(NamedTuple):
    status: int
    content: Any
    headers: dict[str, str]


def ask(server: Server, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=90)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        text = reply.read()
        found = {name.lower(): value for name, value in reply.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return Reply(reply.status, json.loads(text) if is_json else text.decode(), found)
    finally:
        connection.close()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def send(server: Server, image: bytes, path: str = "/predict") -> Reply:
    return ask(server, "POST", path, image, Content_Type="image/png")


def form(image: bytes, file_name: str = "a.png", field: str = "image") -> tuple[bytes, str]:
    head = f'--cut\r\nContent-Disposition: form-data; name="{field}"; filename="{file_name}"\r\n\r\n'.encode()
    return head + image + b"\r\n--cut--\r\n", "multipart/form-data; boundary=cut"


def send_form(server: Server, *arguments: Any, **settings: Any) -> Reply:
    body, kind = form(*arguments, **settings)
    return ask(server, "POST", "/predict", body, Content_Type=kind)


def decoders(server: Server) -> list[int]:
    """The process that decodes for the server."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not children.exists():
        pytest.skip("reads /proc, which this system does not have")
    return [int(word) for word in children.read_text().split()]


def counted(process: int, file: str, name: str) -> int:
    return int(re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{process}/{file}").read_text(), re.M)[1])  # type: ignore[index]


def peak_memory(server: Server) -> int:
    return sum(1024 * counted(process, "status", "VmHWM") for process in [server.process.pid, *decoders(server)])


def bytes_written(server: Server) -> int:
    """What the processes wrote to files and pipes so far; what was sent over connections does not count."""
    return sum(counted(process, "io", "wchar") for process in [server.process.pid, *decoders(server)])


@pytest.fixture(scope="module")
def image() -> bytes:
    return png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)))


def test_programs_get_what_predict_says(server: Server, image: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image)
    expected = convsmith.load(server.run).predict([tmp_path / "a.png"])[0]
    whole, part = send(server, image), send_form(server, image)
    assert whole.status == part.status == 200
    assert whole.content == part.content
    assert whole.content["label"] == expected.label
    assert list(whole.content["probabilities"]) == list(expected.probabilities)
    assert whole.content["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)


def test_a_training_image_is_its_own_nearest(server: Server) -> None:
    from convsmith.prediction.evaluate import run_dataset
    from convsmith.rundir import RunDir

    train = run_dataset(RunDir(server.run)).train
    for position in (0, 700):
        pixels = train.gather([position])[0]
        answer = send(server, png(Image.fromarray(pixels[:, :, 0])), "/explain").content
        assert answer["heat_map"].startswith("data:image/png;base64,")
        near = [one["id"] for one in answer["nearest"]]
        assert train.ids[position] in near
        assert len(near) == 6
        assert set(near) <= set(train.ids), "neither val nor test"
        similarities = [one["similarity"] for one in answer["nearest"]]
        assert similarities[0] == pytest.approx(1, abs=1e-4)
        assert similarities == sorted(similarities, reverse=True)


def test_health_names_run_classes_and_limits(server: Server) -> None:
    reply = ask(server, "GET", "/health")
    assert reply.status == 200
    assert reply.content["status"] == "ok"
    assert reply.content["run"] == "served"
    assert reply.content["classes"] == [str(digit) for digit in range(10)]
    assert reply.content["limits"] == {"bytes": 16 * 2**20, "pixels": 25_000_000, "waiting": 64}


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/icon.svg", "/health", "/nowhere"])
def test_every_answer_forbids_what_a_page_does_not_need(server: Server, path: str) -> None:
    reply = ask(server, "GET", path)
    assert reply.status == (404 if path == "/nowhere" else 200)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert "server" not in reply.headers
    text = str(reply.content)
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def bomb(width: int, height: int) -> bytes:
    """A gray PNG of these sizes whose pixels were never there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 400, "no image was sent"),
        (b"hello, I am a text", 422, "not-an-image"),
        (b"\x89PNG\r\n\x1a\n and no more", 422, "cannot be read"),
        (png(Image.new("L", (50, 50)))[:-20], 422, "truncated"),
        (bomb(50_000, 50_000), 413, "bomb"),
        (bomb(5_001, 5_000), 413, "5001 x 5000 pixels, at most 25 million"),
        (b"\0" * (16 * 2**20 + 1), 413, "larger than 16 MB"),
        (b"\0" * (40 * 2**20), 413, "larger than 16 MB"),
    ],
    ids=["nothing", "text", "corrupt", "truncated", "bomb", "many pixels", "many bytes", "very many bytes"],
)
def test_bad_images_get_a_line_that_says_why(server: Server, content: bytes, status: int, says: str) -> None:
    reply = send(server, content)
    assert reply.status == status
    assert says in reply.content["error"]
    assert "\n" not in reply.content["error"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"file_name": "n" * 256}, "file name is too long"),
        ({"file_name": "n" * 2**20}, "file name is too long"),
        ({"field": "picture"}, "as the field 'image'"),
    ],
    ids=["long name", "giant name", "other field"],
)
def test_bad_forms_get_a_line_that_says_why(server: Server, image: bytes, settings: Any, says: str) -> None:
    reply = send_form(server, image, **settings)
    assert reply.status == 400
    assert says in reply.content["error"]


def test_a_form_that_breaks_off_is_refused(server: Server, image: bytes) -> None:
    body, kind = form(image)
    broken = ask(server, "POST", "/predict", body[:-30], Content_Type=kind)
    assert (broken.status, "the form cannot be read" in broken.content["error"]) == (400, True)
    assert ask(server, "POST", "/predict", body, Content_Type="multipart/form-data").status == 400


def test_wrong_ways_are_told_the_right_ones(server: Server) -> None:
    assert ask(server, "GET", "/predict").status == 405
    assert "POST /predict" in ask(server, "GET", "/predict").content["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8000"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "192.168.0.7"}, 200),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else str(value),
)
def test_other_names_and_other_sites_are_turned_away(
    server: Server, image: bytes, headers: dict[str, str], status: int
) -> None:
    assert ask(server, "POST", "/predict", image, **headers).status == status


def test_fifty_at_once_are_answered_or_told_when_to_come_back(server: Server, image: bytes) -> None:
    big = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)))
    assert len(big) > 2**22
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda _: send(server, big, "/explain"), range(50)))
    answered = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 503]
    assert len(answered) + len(refused) == 50
    assert len(answered) >= 1
    assert refused, "more than the queue holds came at once"
    assert all(int(reply.headers["retry-after"]) > 0 and "busy" in reply.content["error"] for reply in refused)
    assert len({json.dumps(reply.content) for reply in answered}) == 1
    assert send(server, image).status == 200


def test_who_never_ends_the_head_of_a_request_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn, listening = pytest.importorskip("uvicorn"), pytest.importorskip("convsmith.serve.server")
    connections = pytest.importorskip("convsmith.serve.connections")
    monkeypatch.setattr(connections, "UPLOAD_SECONDS", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        time.sleep(0.6)  # longer than the deadline: an answer may take its time
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with listening.listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, http=connections.Connections(), lifespan="off", log_level="critical")
        waiting = uvicorn.Server(config)
        thread = Thread(target=waiting.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            for head, answer in (
                (b"", b""),
                (b"GET / HT", b""),
                (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 204"),
            ):
                with socket.create_connection(listener.getsockname(), timeout=10) as connection:
                    connection.sendall(head)
                    assert connection.recv(12) == answer
        finally:
            waiting.should_exit = True
            thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no second address of the machine itself")
def test_who_does_not_end_an_upload_keeps_nobody_else_waiting(server: Server, image: bytes) -> None:
    begun = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nbegun"
    with ExitStack() as open_ones:
        for number in range(600):  # more than are kept open
            one = socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.2", 0))
            open_ones.enter_context(one)
            one.sendall((begun, begun[:30], b"")[number % 3])
        began = time.monotonic()
        assert send(server, image).status == 200
        assert time.monotonic() - began < 10


def test_a_sender_who_gives_up_leaves_no_trace(server: Server, image: bytes) -> None:
    for _ in range(12):  # more than the queue holds
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nbegun")
    deadline = time.monotonic() + 20
    while (reply := send(server, image)).status == 503 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert reply.status == 200


def test_the_costliest_image_stays_within_the_memory_that_is_promised(server: Server, image: bytes) -> None:
    costly = png(Image.fromarray(np.full((5_000, 5_000, 4), 128, np.uint8)))
    assert send(server, costly).status in (200, 504)  # a busy machine may need longer than the server grants
    assert send(server, image).status == 200
    assert peak_memory(server) < MEMORY


def test_nothing_of_what_was_sent_is_written_to_the_disk(server: Server) -> None:
    big = png(Image.fromarray(np.random.default_rng(1).integers(0, 256, (1200, 1200, 3), np.uint8)))
    before = bytes_written(server)
    for reply in (send_form(server, big), send(server, big, "/explain"), send(server, big[:-9]), send(server, big * 9)):
        assert reply.status in (200, 413, 422)
    passed_on = 3 * len(big)  # to the process that decodes; the last one was too large for that
    assert bytes_written(server) - before < passed_on + 2_000
    assert list(server.temporary.rglob("*")) == []
    folder = server.run.parents[1]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith("runs/served/")} == {"log.txt"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "no.such.host.invalid"], "is not an address of this machine"),
        (["--port", "70000"], "--port must be from 0 to 65535"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line(
    server: Server, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(server.run), *arguments]) == 2
    assert says in (line := capsys.readouterr().err)
    assert line.count("\n") == 1


def test_a_port_in_use_is_one_line(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(server.run), "--port", str(server.port)]) == 2
    line = capsys.readouterr().err
    assert f"port {server.port} of 127.0.0.1 is in use" in line
    assert "--port" in line
    assert line.count("\n") == 1
