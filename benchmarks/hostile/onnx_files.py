"""ONNX files that reach for other files, for operators of others, and for more memory or time than there is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from hostile import Base, Case, Json

Change = Callable[[onnx.ModelProto], None]


def sealed(model: onnx.ModelProto, folder: Path) -> bytes:
    """The file with the checksum that `export` would have written: an attacker can write one, too."""
    from convsmith.prediction.exported import seal

    _metadata("sha256", None)(model)
    file = folder / "sealed"
    file.write_bytes(model.SerializeToString())
    seal(file)
    return file.read_bytes()


def _external(location: str, offset: int | None = None, length: int | None = None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": offset, "length": length}.items():
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))

    return change


def _metadata(key: str, value: str | None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        kept = {prop.key: prop.value for prop in model.metadata_props if prop.key != key}
        del model.metadata_props[:]
        helper.set_model_props(model, kept if value is None else kept | {key: value})

    return change


def _node(op: str, domain: str = "", **attributes: Json) -> Change:
    """An operator before the first one, on the input's name, whose result nothing uses but an output."""

    def change(model: onnx.ModelProto) -> None:
        node = helper.make_node(op, [model.graph.input[0].name], ["hostile"], domain=domain, **attributes)
        model.graph.node.insert(0, node)
        model.graph.output.append(helper.make_tensor_value_info("hostile", TensorProto.UNDEFINED, None))
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def _constant(name: str, value: Json, kind: int = TensorProto.INT64) -> onnx.NodeProto:
    shape = [len(value)] if isinstance(value, list) else []
    tensor = helper.make_tensor(name, kind, shape, value if isinstance(value, list) else [value])
    return helper.make_node("Constant", [], [name], value=tensor)


def _before_the_output(*nodes: onnx.NodeProto) -> Change:
    """Nodes whose output "hostile" becomes the model's."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node.extend(nodes)
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info("hostile", TensorProto.FLOAT, None))

    return change


def _loop(trips: int) -> Change:
    """A loop that does nothing, `trips` times."""
    inside = helper.make_graph(
        [helper.make_node("Identity", ["keep"], ["kept"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("kept", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["trips", "true", "logits"], ["hostile"], body=inside)
    return _before_the_output(_constant("trips", trips), _constant("true", True, TensorProto.BOOL), loop)


def _nested(depth: int) -> Change:
    """An If within an If, `depth` times."""

    def graph(level: int) -> onnx.GraphProto:
        out = [helper.make_tensor_value_info(f"o{level}", TensorProto.FLOAT, None)]
        same = helper.make_node("Identity", ["logits"], [f"o{level}"])
        end = helper.make_graph([same], f"end{level}", [], out)
        if level == depth:
            return end
        node = helper.make_node("If", ["true"], [f"o{level}"], then_branch=graph(level + 1), else_branch=end)
        return helper.make_graph([node], f"level{level}", [], out)

    return _before_the_output(
        _constant("true", True, TensorProto.BOOL), *graph(0).node, helper.make_node("Identity", ["o0"], ["hostile"])
    )


def _expanded(*shape: int) -> Change:
    return _before_the_output(
        _constant("one", 1.0, TensorProto.FLOAT),
        _constant("shape", list(shape)),
        helper.make_node("Expand", ["one", "shape"], ["hostile"]),
    )


def _dims(*dims: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


def _function(body: list[onnx.NodeProto]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
        model.functions.append(helper.make_function("mine", "F", ["x"], ["y"], body, opsets))
        model.opset_import.append(helper.make_opsetid("mine", 1))
        _before_the_output(helper.make_node("F", ["logits"], ["hostile"], domain="mine"))(model)

    return change


def _input(kind: int, shape: list[int | str]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info(model.graph.input[0].name, kind, shape))

    return change


def _changes(base: Base) -> Iterator[tuple[str, Change]]:
    for location in (
        "/etc/passwd",
        "../../../../../../etc/passwd",
        "/dev/zero",
        "/dev/random",
        "/proc/self/mem",
        "x.onnx",
        "/dev/stdin",
        str(base.canary),
        ".",
        "",
        "\0",
        "fifo",
        "//host/share",
        "a" * 5000,
        "/proc/self/environ",
    ):
        yield f"external data {location[:30]!r}", _external(location)
        yield f"external data {location[:30]!r} to 2^40", _external(location, 0, 2**40)
    for offset, length in ((2**62, 8), (-1, 8), (0, -1), (2**63, 2**63), (0, 2**63 - 1)):
        yield f"external data at {offset}, {length} bytes", _external("x.onnx", offset, length)
    for name, domain in (
        ("F", "com.evil"),
        ("PyOp", "com.microsoft"),
        ("Attention", "com.microsoft"),
        ("ExecuteProgram", "ai.onnx.ml"),
        ("PythonOp", "com.microsoft"),
        ("EPContext", "com.microsoft"),
        ("Tokenizer", "com.microsoft"),
        ("Inverse", "com.microsoft"),
        ("DecodeImage", "ai.onnx.contrib"),
        ("PyCustomOp", "ai.onnx.contrib"),
    ):
        yield f"{domain}.{name}", _node(name, domain)
    yield "EPContext of another file", _node("EPContext", "com.microsoft", ep_cache_context="/etc/passwd", embed_mode=0)
    yield "PythonOp named os.system", _node("PythonOp", "com.microsoft", name="os.system")
    yield "ImageDecoder", _node("ImageDecoder")
    for trips in (10**6, 2**63 - 1):
        yield f"a loop of {trips} trips", _loop(trips)
    for depth in (2, 10, 20):
        yield f"If within If, {depth} deep", _nested(depth)
    for shape in ((10**12,), (10**6, 10**6), (2**31, 2**31, 4), (2**63 - 1,), (10**9,), (-1,)):
        yield f"Expand to {shape}", _expanded(*shape)
    for dims in ((10**12,), (2**40, 2**40), (-1,), (0,), (2**63 - 1,), ()):
        yield f"an initialiser of dims {dims}", _dims(*dims)
    calls_itself = [helper.make_node("F", ["x"], ["y"], domain="mine")]
    yield "a function that calls itself", _function(calls_itself)
    yield "a function named as an operator", _function([helper.make_node("Identity", ["x"], ["y"])])
    for kind, size in (
        (TensorProto.STRING, ["N", 8, 8, 1]),
        (TensorProto.FLOAT, ["N"]),
        (TensorProto.UINT8, [10**12]),
        (TensorProto.UINT8, ["N", 8, 8, 3]),
        (TensorProto.UINT8, []),
    ):
        yield f"an input of type {kind}, {size}", _input(kind, list(size))
    yield "no inputs", lambda model: model.graph.ClearField("input")
    yield "no outputs", lambda model: model.graph.ClearField("output")
    yield "no nodes", lambda model: model.graph.ClearField("node")
    yield "opset 10^9", lambda model: setattr(model.opset_import[0], "version", 10**9)
    yield "IR version 10^9", lambda model: setattr(model, "ir_version", 10**9)
    yield (
        "session options that load a library",
        _metadata(
            "ort_config", json.dumps({"session_options": {"custom_ops_library": "./evil.so", "enable_profiling": True}})
        ),
    )
    good = {prop.key: prop.value for prop in onnx.load(base.onnx).metadata_props}
    values = (
        "",
        "null",
        "7",
        "[]",
        "{}",
        "x",
        "[" * 10**5,
        "9" * 10**6,
        "NaN",
        "true",
        '"\\ud800"',
        "\x1b[2J",
        '["a", "a"]',
        '["\\u001b[2J", "b"]',
        json.dumps(["c"] * 10**6),
        json.dumps({"kind": "pixels"}),
        '{"kind": 7}',
        '{"kind": []}',
    )
    for key in good:
        yield f"no {key}", _metadata(key, None)
        for value in values:
            yield f"{key} {value[:30]!r}", _metadata(key, value)
    settings = json.loads(good["preprocessing"])
    for key in settings:
        for new in (None, -3, 0, 10**30, 10**6, 1e308, "x", [], {}, True, "\x1b[2J", [1e308] * 3, 1.5):
            yield f"preprocessing.{key} {str(new)[:20]}", _metadata("preprocessing", json.dumps({**settings, key: new}))


def onnx_files(base: Base) -> Iterator[Case]:
    for name, change in _changes(base):
        model = onnx.load(base.onnx)
        change(model)
        data = sealed(model, base.folder)
        yield Case(name, ("predict", "x.onnx", "{image}"), {"x.onnx": data, "evil.so": b"\x7fELF"}, make=_fifo)
    whole = base.onnx.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        yield Case(f"the first {length} bytes", ("predict", "x.onnx", "{image}"), {"x.onnx": whole[:length]})
    for depth in (100, 10**4):
        data = whole + _deep(depth)
        yield Case(f"graphs within graphs, {depth} deep", ("predict", "x.onnx", "{image}"), {"x.onnx": data})
    groups = b"\x3b" * 10**6  # starts of protobuf groups, each within the one before
    yield Case("10^6 nested groups", ("predict", "x.onnx", "{image}"), {"x.onnx": groups})
    yield Case("serve", ("serve", "x.onnx"), {"x.onnx": whole})
    yield Case("a FIFO named x.onnx", ("predict", "x.onnx", "{image}"), make=lambda folder: _fifo(folder, "x.onnx"))
    yield Case("a link to /dev/zero", ("predict", "x.onnx", "{image}"), make=_zero)


def _deep(depth: int) -> bytes:
    """A part of an ONNX file: a graph whose node has a graph whose node has one, which onnx's own writer refuses."""

    def part(tag: int, content: bytes) -> bytes:
        size, digits = len(content), b""
        while size > 127:
            digits, size = digits + bytes([size & 127 | 128]), size >> 7
        return bytes([tag << 3 | 2]) + digits + bytes([size]) + content

    graph = b""
    for _ in range(depth):
        graph = part(1, part(4, b"If") + part(5, part(1, b"then_branch") + part(6, graph)))
    return part(7, graph)


def _fifo(folder: Path, name: str = "fifo") -> None:
    import os

    os.mkfifo(folder / name)


def _zero(folder: Path) -> None:
    (folder / "x.onnx").symlink_to("/dev/zero")
