"""Where pretrained weights are looked for, in which order, and what is said where they cannot be had."""

from __future__ import annotations

import http.server
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from convsmith import network
from convsmith.transfer import lookup
from convsmith.transfer.pretrained import hub_weights

LITE = "timm/tf_efficientnet_lite0"


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The libraries keep nothing on this machine, and this test's folder is theirs."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def in_hub_cache(tmp_path: Path, tagged: str, file: str = "model.safetensors") -> Path:
    """A file as Hugging Face's client keeps it."""
    repository = tmp_path / "hub" / f"models--timm--{tagged}"
    put(repository / "refs" / "main").write_text("abc")
    return put(repository / "snapshots" / "abc" / file)


def test_files_that_people_put_into_the_cache_folder_come_first(tmp_path: Path) -> None:
    assert lookup.at_hand(LITE, tmp_path) is None
    kept = in_hub_cache(tmp_path, "tf_efficientnet_lite0.in1k")
    assert lookup.at_hand(LITE, tmp_path) == kept
    own = put(tmp_path / "weights" / "tf_efficientnet_lite0.safetensors")
    assert lookup.at_hand(LITE, tmp_path) == own


def test_torchvisions_files_are_found_where_torch_keeps_them(tmp_path: Path) -> None:
    kept = put(tmp_path / "torch" / "checkpoints" / "resnet18-f37072fd.pth")
    assert lookup.at_hand("torchvision/resnet18", tmp_path) == kept
    assert lookup.at_hand("timm/resnet18", tmp_path) is None
    own = put(tmp_path / "weights" / "resnet18.pth")
    assert lookup.at_hand("torchvision/resnet18", tmp_path) == own


def test_all_that_is_at_hand_is_listed(tmp_path: Path) -> None:
    own = put(tmp_path / "weights" / "tf_efficientnet_lite1.safetensors")
    put(tmp_path / "weights" / "notes.safetensors")
    usual = in_hub_cache(tmp_path, "tf_efficientnet_lite0.in1k")
    tagged = in_hub_cache(tmp_path, "resnet18.tv_in1k", "pytorch_model.bin")
    torchvisions = put(tmp_path / "torch" / "checkpoints" / "resnet18-f37072fd.pth")
    assert lookup.all_at_hand(tmp_path) == {
        LITE: usual,
        "timm/tf_efficientnet_lite1": own,
        "timm/resnet18.tv_in1k": tagged,
        "torchvision/resnet18": torchvisions,
    }


def test_the_library_says_where_its_weights_are() -> None:
    found = lookup.origin(LITE)
    assert found is not None
    assert found.label == "timm's tf_efficientnet_lite0.in1k"
    assert found.address == "https://huggingface.co/timm/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors"
    assert lookup.origin("timm/test_vit4") is None, "of which timm has no weights"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/file"


def test_a_server_that_does_not_answer_costs_seconds(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "REACHED_WITHIN", 0.1)
    began = time.perf_counter()
    assert lookup.unreachable(lookup.Origin("", silent, None)) is not None
    assert time.perf_counter() - began < 2


def test_a_name_that_is_never_looked_up_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(network, "REACHED_WITHIN", 0.1)
    monkeypatch.setattr(network, "_asked", lambda address: waiting.wait(5))
    assert lookup.unreachable(lookup.Origin("", "https://example.org/a", None)) == "no answer within 0.15 s"
    waiting.set()


def test_a_closed_port_and_an_offline_client_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}/file"
    assert lookup.unreachable(lookup.Origin("", closed, None)) == "Connection refused"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert lookup.unreachable(lookup.Origin("", closed, None, hub="timm/a")) == "HF_HUB_OFFLINE is set"


def test_a_server_that_refuses_is_reached() -> None:
    """Why it refuses is for the library to find out, which may have a password."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert lookup.unreachable(lookup.Origin("", f"http://127.0.0.1:{server.server_port}/a", None)) is None


def test_without_a_network_one_line_names_file_place_and_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "unreachable", lambda origin: "no route to host")
    with pytest.raises(lookup.WeightsAbsent) as error:
        hub_weights(LITE, tmp_path)
    assert str(error.value) == (
        "the weights of 'timm/tf_efficientnet_lite0' are not on this machine and cannot be downloaded (no route to "
        "host): fetch https://huggingface.co/timm/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors on another "
        f"computer and save it as '{tmp_path}/weights/tf_efficientnet_lite0.safetensors', or name the file, "
        "--transfer.weights FILE"
    )


def test_real_weights_in_either_place_are_the_same(tmp_path: Path, shared: Path) -> None:
    given = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    kept = in_hub_cache(tmp_path, "tf_efficientnet_lite0.in1k")
    shutil.copy(given, kept)
    from_hub, what = hub_weights(LITE, tmp_path)
    assert what == "timm's tf_efficientnet_lite0.in1k"
    own = put(tmp_path / "weights" / "tf_efficientnet_lite0.safetensors")
    shutil.copy(given, own)
    from_folder, what = hub_weights(LITE, tmp_path)
    assert what == f"'{own}'"
    assert from_hub.keys() >= from_folder.keys()
    assert all(torch.equal(from_hub[name], from_folder[name]) for name in from_folder)
