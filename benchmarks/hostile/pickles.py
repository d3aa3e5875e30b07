"""Pickles with every opcode that can call or name something, in every container that holds pickles."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from hostile import Base, Case

TRAIN = ("train", "--data", "digits", "--model", "simple-cnn", "--epochs", "1", "--track.wandb", "off")


def _text(value: str) -> bytes:
    """Push a short string: the opcode BINUNICODE."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _payloads(base: Base) -> Iterator[tuple[str, str, str]]:
    """module, name, argument: calls that touch the canary."""
    code = f"__import__('os').system({base.touch!r})"
    for module, name in (("os", "system"), ("posix", "system"), ("subprocess", "getoutput"), ("os", "popen")):
        yield module, name, base.touch
    for module, name in (
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("__builtin__", "eval"),
        ("code", "InteractiveInterpreter.runcode"),
        ("timeit", "timeit"),
        ("torch._inductor.codecache", "eval"),
        ("numpy.testing._private.utils", "runstring"),
        ("torch.serialization", "os.system"),
        ("collections", "_sys.modules"),
        ("_posixsubprocess", "fork_exec"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.jit._script", "load"),
        ("runpy", "run_path"),
        ("ctypes", "CDLL"),
        ("importlib", "import_module"),
        ("imp", "load_dynamic"),
        ("pty", "spawn"),
    ):
        yield module, name, code
    yield "pathlib", "Path.touch", str(base.canary)
    yield "io", "FileIO", str(base.canary)


def _opcodes(module: str, name: str, argument: str) -> Iterator[tuple[str, bytes]]:
    """The same call by each opcode that can make it."""
    named, pushed = f"{module}\n{name}\n".encode(), _text(argument)
    fetched = b"c" + named
    pair = _text(module) + _text(name)
    yield "GLOBAL REDUCE, protocol 0", fetched + b"(V" + argument.encode("raw_unicode_escape") + b"\ntR."
    yield "GLOBAL REDUCE, protocol 2", b"\x80\x02" + fetched + pushed + b"\x85R."
    yield "INST", b"(" + pushed + b"i" + named + b"."
    yield "OBJ", b"(" + fetched + pushed + b"o."
    yield "NEWOBJ", b"\x80\x02" + fetched + pushed + b"\x85\x81."
    yield "NEWOBJ_EX", b"\x80\x04" + fetched + pushed + b"\x85}\x92."
    yield "STACK_GLOBAL", b"\x80\x04" + pair + b"\x93" + pushed + b"\x85R."
    yield (
        "STACK_GLOBAL in a FRAME, protocol 5",
        b"\x80\x05\x95" + struct.pack("<Q", 9) + pair + b"\x93" + pushed + b"\x85R.",
    )
    partial = b"cfunctools\npartial\n" + fetched + b"\x85R"
    yield "partial, REDUCE", b"\x80\x02" + partial + pushed + b"\x85R."
    yield "BUILD", b"\x80\x02" + fetched + b")\x81" + pushed + b"b."
    ordered = b"\x80\x02ccollections\nOrderedDict\n)R"
    yield "BUILD of an OrderedDict", ordered + b"}" + _text("__class__") + fetched + b"sb."
    yield "value of an OrderedDict", ordered + _text("weight") + fetched + pushed + b"\x85Rs."
    yield "default of a dict", b"ccollections\ndefaultdict\n" + fetched + b"\x85R" + pushed + b"s."
    extension = b"ccopyreg\nadd_extension\n(" + pair + b"K\x01tR0"
    yield "EXT1", b"\x80\x02" + extension + b"\x82\x01" + pushed + b"\x85R."
    yield "EXT4", b"\x80\x02" + extension + b"\x84\x01\x00\x00\x00" + pushed + b"\x85R."
    yield "PERSID", b"P" + argument.replace("\n", " ").encode() + b"\n."
    yield "BINPERSID", b"\x80\x02(" + _text("storage") + fetched + _text("0") + _text("cpu") + b"K\x01tQ."
    yield "REDUCE with an allowed name first", b"\x80\x02ctorch\nFloatStorage\n0" + fetched + pushed + b"\x85R."
    yield "map", b"\x80\x02cbuiltins\nlist\ncbuiltins\nmap\n" + fetched + b"]" + pushed + b"a\x86R\x85R."
    yield "after POP and MEMO", b"\x80\x04" + pair + b"\x93\x94" + b"N0" + b"h\x00" + pushed + b"\x85R0N."


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Pickles that call nothing, and exhaust memory, time or the stack instead."""
    yield "LONG_BINPUT 2^31", b"\x80\x02Nr\xff\xff\xff\x7f."
    yield "BINUNICODE8 of 2^62", b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x."
    yield "BINBYTES8 of 2^40", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x."
    yield "BYTEARRAY8 of 2^40", b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x."
    yield "FRAME of 2^63", b"\x80\x05\x95" + struct.pack("<Q", 1 << 63) + b"N."
    yield "LONG4 of 10^6 bytes", b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"."
    yield "LONG of 10^6 digits", b"L" + b"9" * 10**6 + b"L\n."
    yield "LONG4 of -1 bytes", b"\x80\x02\x8b\xff\xff\xff\xff."
    yield "10^6 nested tuples", b"N" + b"\x85" * 10**6 + b"."
    yield "10^6 nested lists", b"]" * 10**6 + b"a" * (10**6 - 1) + b"."
    yield "a tuple that doubles 60 times", b"N" + b"2\x86" * 60 + b"."
    yield "a key that doubles 40 times", b"\x80\x02}N" + b"2\x86" * 40 + b"Ns."
    yield "itself within itself", b"]q\x00h\x00a."
    yield "MARK and no more", b"(" * 10**6 + b"."
    yield "an unknown opcode", b"\x80\x02\xff."
    yield "protocol 255", b"\x80\xffN."
    yield "empty", b""
    for name in ("values", "items", "get", "keys", "_metadata", "__iter__"):
        state = b"}" + _text(name) + b"K\x01s"
        yield f"OrderedDict whose {name} is 1", b"\x80\x02ccollections\nOrderedDict\n)R" + state + b"b."


def _zip(pickled: bytes, **others: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **others}.items():
            archive.writestr(f"archive/{name}", content)
    return held.getvalue()


def _tar(pickled: bytes) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled)
            archive.addfile(member, io.BytesIO(pickled))
    return held.getvalue()


def _legacy(pickled: bytes) -> bytes:
    """torch's format before 1.6: pickles of a number, a version and the system, and then the object."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)) + pickled


def _npy(pickled: bytes) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return header.getvalue() + pickled


def _npz(pickled: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("weight.npy", _npy(pickled))
    return held.getvalue()


CONTAINERS: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "torch zip": (_zip, (".pth", ".pt", ".bin")),
    "TorchScript zip": (lambda pickled: _zip(pickled, **{"constants.pkl": pickled, "code/x.py": b"1"}), (".pt",)),
    "bare": (lambda pickled: pickled, (".pth", ".bin", ".ckpt", ".pkl", ".safetensors")),
    "torch before 1.6": (_legacy, (".pth",)),
    "tar": (_tar, (".pth",)),
    "npy": (_npy, (".pth", ".npy")),
    "npz": (_npz, (".pth", ".npz")),
}


def _loaded(path: Path) -> object:
    pickle.loads(path.read_bytes())
    return None


def pickles(base: Base) -> Iterator[Case]:
    from convsmith.transfer.pretrained import read_tensors

    made = [(f"{m}.{n} by {how}", data) for m, n, arg in _payloads(base) for how, data in _opcodes(m, n, arg)]
    for number, (name, data) in enumerate([*made, *_bombs()]):
        for turn, (container, (wrap, suffixes)) in enumerate(CONTAINERS.items()):
            # Every container for the first payload and the bombs; the other payloads take turns.
            if 20 <= number < len(made) and number % len(CONTAINERS) != turn:
                continue
            file = "weights" + suffixes[number % len(suffixes)]
            argv = (*TRAIN, "--transfer.weights", file)
            armed, direct = _loaded if container == "bare" else None, read_tensors if number % 50 else None
            yield Case(f"{name}, in {container}", argv, {file: wrap(data)}, armed=armed, direct=direct)
    for number, (name, data) in enumerate(made[:20:2]):
        for container, (wrap, _) in CONTAINERS.items():
            held = wrap(data)
            yield Case(f"{name}, {container} as model", ("predict", "x.onnx", "{image}"), {"x.onnx": held})
            yield Case(f"{name}, {container} as image", ("predict", "{run}", "x.png"), {"x.png": held})
            if number < 2:
                weights = {"model/model.safetensors": held}
                yield Case(f"{name}, {container} in a run", ("predict", "{run}", "{image}"), in_run=weights)
                last = {"checkpoints/last.safetensors": held, "checkpoints/previous.safetensors": held}
                resumed = ("resume", "{run}")
                yield Case(f"{name}, {container} as checkpoint", resumed, in_run=last, make=_unfinished)
                yield Case(f"{name}, {container} as data", ("data", "check", "x.npy"), {"x.npy": held})


def _unfinished(folder: Path) -> None:
    (folder / "run/summary.json").unlink()


def odd_tensors(base: Base) -> Iterator[Case]:
    """Files that torch's loader for weights accepts, whose tensors are no plain weights."""
    from convsmith.prediction.model_file import load_model

    good = load_model(base.run / "model", torch.device("cpu"))[0].state_dict()
    name, weight = next((name, value) for name, value in good.items() if value.dim() == 4)
    odd: dict[str, object] = {
        "bool": weight > 0,
        "int64": weight.to(torch.int64),
        "complex": weight.to(torch.complex64),
        "float16": weight.to(torch.float16),
        "float64": weight.to(torch.float64),
        "float8": weight.to(torch.float8_e4m3fn),
        "sparse": weight.to_sparse(),
        "sparse, indices outside": torch.sparse_coo_tensor(
            torch.full((4, 1), 10**9), torch.ones(1), weight.shape, check_invariants=False
        ),
        "compressed rows": weight.reshape(len(weight), -1).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "meta": weight.to("meta"),
        "NaN": weight * float("nan"),
        "10^15 values by a stride of 0": torch.zeros(1).expand(len(weight), 10**12, 3, 3),
        "10^11 values by a stride of 0": torch.zeros(1).expand(len(weight), 10**8, 3, 3),
        "no values": torch.zeros(0, 1, 3, 3),
        "no dimensions": torch.tensor(1.0),
        "a list": [1.0],
        "a word": "weight",
        "a number": 10**30,
        "nothing": None,
        "nested": {"state_dict": {"model": good}},
    }
    for what, value in odd.items():
        held = io.BytesIO()
        torch.save({**good, name: value}, held)
        argv = (*TRAIN, "--transfer.weights", "x.pth")
        yield Case(f"first weight: {what}", argv, {"x.pth": held.getvalue()})
    for what, keys in {"ints": 7, "tuples": (1, 2), "bytes": b"x", "none": None, "escape": "\x1b[2J\r\u202e"}.items():
        held = io.BytesIO()
        torch.save({**good, keys: weight}, held)
        yield Case(f"a key of {what}", (*TRAIN, "--transfer.weights", "x.pth"), {"x.pth": held.getvalue()})
    for what, bad in {"storage beyond the file": "../../../../etc/passwd", "absolute": "/etc/passwd"}.items():
        key = _text("storage") + b"ctorch\nFloatStorage\n" + _text(bad) + _text("cpu") + b"K\x08tQ"
        tensor = (
            b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + key
            + b"K\x00K\x08\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
        )
        data = _zip(b"\x80\x02}" + _text("weight") + tensor + b"s.")
        yield Case(f"{what}", (*TRAIN, "--transfer.weights", "x.pth"), {"x.pth": data})
