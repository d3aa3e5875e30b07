"""Exported files compute what the run does, say what they need, and hold nothing that opening would execute."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convsmith import export as exporting
from convsmith.cli import main
from convsmith.data.preprocess import ToInput
from convsmith.errors import RunFailed, UserError
from convsmith.export import FromPixels, export
from convsmith.prediction.exported import METADATA, open_exported, seal
from convsmith.prediction.predictor import Predictor, load_predictor
from convsmith.rundir import RunDir
from server import trained

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'convsmith[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'convsmith[export]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'convsmith[export]'")
if torch.__version__ < "2.9":
    pytest.skip("needs PyTorch 2.9", allow_module_level=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Its working size, 10, is not its image size, 8: the graph has to resize."""
    return RunDir(trained(tmp_path_factory.mktemp("export"), augment={"random_resized_crop": 0.5}))


@pytest.fixture(scope="module")
def files(run: RunDir) -> dict[str, Path]:
    """One of each kind, by format and where the preprocessing is."""
    folder = run.path / "export"
    return {
        f"{form} {place}": export(run, form, folder / f"{place}{exporting.SUFFIXES[form]}", place).path
        for form in exporting.SUFFIXES
        for place in ("graph", "metadata")
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, size in enumerate([(8, 8), (10, 10), (31, 17), (5, 40), (10, 10, 3)]):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


KINDS = ["onnx graph", "onnx metadata"]


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_of_a_file_are_those_of_the_run(
    run: RunDir, files: dict[str, Path], images: list[Path], kind: str
) -> None:
    expected = load_predictor(run.path, "cpu").predict(images)
    for batch in (images, images[:1], images * 3):
        found = load_predictor(files[kind]).predict(batch)
        assert len(found) == len(batch)
        for one, other in zip(found, expected, strict=False):
            assert one.id == other.id
            assert one.label == other.label
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.parametrize(("form", "file"), [("onnx", "net.onnx"), ("torch", "net.pt2")])
def test_what_export_proposes_next_works(
    form: str, file: str, run: RunDir, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run.path), "--format", form, "--out", str(tmp_path / file)]) == 0
    step = capsys.readouterr().out.rpartition("next: convsmith ")[2]
    assert main([str(images[0]) if word == "IMAGE" else word for word in shlex.split(step)]) == 0


def test_predict_takes_files_on_the_command_line(
    run: RunDir, files: dict[str, Path], images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for source in (run.path, files["onnx graph"]):
        assert main(["predict", str(source), str(images[0].parent), "--device", "cpu"]) == 0
        outputs.append(capsys.readouterr().out.partition("next: ")[0])  # a file has no stages to explain
    assert outputs[0] == outputs[1]
    assert main(["predict", str(files["onnx graph"]), str(images[0]), "--device", "mps"]) == 2
    assert "computes on the CPU" in capsys.readouterr().err


def test_an_onnx_file_is_all_that_onnxruntime_needs(run: RunDir, files: dict[str, Path]) -> None:
    """The use that docs/guide.md shows: Pillow, NumPy and onnxruntime, nothing of ours."""
    session = onnxruntime.InferenceSession(files["onnx graph"], providers=["CPUExecutionProvider"])
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (10, 10), np.uint8))
    (logits,) = session.run(None, {"pixels": np.asarray(image)[None, :, :, None]})
    expected = load_predictor(run.path, "cpu").predict(image)[0]
    assert classes[int(logits[0].argmax())] == expected.label
    chances = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert dict(zip(classes, chances.tolist(), strict=True)) == pytest.approx(expected.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "name", "dtype", "shape"),
    [
        ("onnx graph", "pixels", "tensor(uint8)", [10, 10, 1]),
        ("onnx metadata", "images", "tensor(float)", [1, 8, 8]),
    ],
)
def test_an_onnx_file_states_its_input_and_opset(
    run: RunDir, files: dict[str, Path], kind: str, name: str, dtype: str, shape: list[int]
) -> None:
    model = onnx.load(files[kind])
    onnx.checker.check_model(model, full_check=True)
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {exporting.OPSET}
    session = onnxruntime.InferenceSession(files[kind], providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == (name, dtype, shape)
    assert isinstance(given.shape[0], str), "any number of images"
    metadata = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    card = json.loads((run.model / "model.json").read_text())
    assert metadata["classes"] == card["classes"]
    assert metadata["preprocessing"] == card["preprocessing"]
    assert str(shape)[1:-1] in metadata["input"]["input"]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "working"), [(8, 8), (8, 10), (7, 20), (20, 7)])
def test_pixels_in_the_graph_are_prepared_as_in_training(
    run: RunDir, interpolation: Any, size: int, working: int
) -> None:
    update = {"image_size": size, "working_size": working, "interpolation": interpolation}
    settings = load_predictor(run.path, "cpu").card.preprocessing.model_copy(update=update)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, working, working, 1), np.uint8))
    expected = ToInput(settings, torch.device("cpu"))(pixels)
    torch.testing.assert_close(FromPixels(torch.nn.Identity(), settings)(pixels), expected, atol=1e-5, rtol=1e-5)


def test_the_command_prints_the_difference_it_measured(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.path), "--format", "torch"]) == 0
    said = capsys.readouterr().out
    assert "checked 64 validation images" in said
    assert "uint8 [N, 10, 10, 1], gray" in said
    assert (run.path / "export" / "model.pt2").exists()


def test_a_file_that_disagrees_is_refused_and_removed(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exporting._WRITERS["torch"]

    class Off(torch.nn.Module):
        def __init__(self, network: torch.nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network(pixels) * 1.001

    monkeypatch.setitem(exporting._WRITERS, "torch", lambda network, *rest: write(Off(network).eval(), *rest))
    out = tmp_path / "model.pt2"
    out.write_text("an earlier one, with its convsmith.json")
    with pytest.raises(RunFailed, match="disagrees with PyTorch by"):
        export(run, "torch", out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text().startswith("an earlier one")


def test_without_the_validation_images_nothing_is_exported(run: RunDir, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy, ignore=shutil.ignore_patterns("export", "checkpoints"))
    splits = json.loads((copy / "splits.json").read_text())
    (copy / "splits.json").write_text(json.dumps(splits | {"hash": "another"}))
    with pytest.raises(UserError, match="has changed since it was trained"):
        export(RunDir(copy), "torch")
    assert not (copy / "export").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "onnx", "--out", "model.pt2"], "must end in .onnx"),
        (["--format", "keras"], "'keras' is not a choice. Choices: onnx, torch"),
        ([], "--format"),
    ],
)
def test_wrong_usage_is_one_line(
    run: RunDir, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run.path), *arguments]) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1


def opened(path: Path) -> Predictor:
    return load_predictor(path)


def test_files_that_are_damaged_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    whole = files["onnx graph"].read_bytes()
    for content in (b"", b"no model at all", whole[: len(whole) // 2]):
        (path := tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(UserError, match="model"):
            opened(path)


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What onnxruntime was given to open: nothing of what is refused."""
    given: list[Any] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, **more: given.append(1) or session(*args, **more)
    )
    return given


def test_each_flipped_byte_of_an_onnx_file_is_noticed(
    files: dict[str, Path], tmp_path: Path, no_session: list[Any]
) -> None:
    whole = files["onnx metadata"].read_bytes()
    step = len(whole) // 100
    path = tmp_path / "model.onnx"
    for at in {*range(0, len(whole), step), *range(len(whole) - 80, len(whole), 3), len(whole) - 1}:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"model\.onnx"):
            opened(path)
    path.write_bytes(whole + b"\x0a\x00")
    with pytest.raises(UserError, match="has changed since its export"):
        opened(path)
    assert not no_session


def rewritten(old: Path, new: Path, change: Callable[[Any], Any]) -> Path:
    """A copy with a change and a checksum that matches it."""
    model = onnx.load(old)
    assert model.metadata_props.pop().key == "sha256"
    change(model)
    new.write_bytes(model.SerializeToString())
    seal(new)
    return new


def reads_a_file(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def calls_a_library(model: Any) -> None:
    model.opset_import.add(domain="com.example", version=1)
    model.graph.node[0].domain = "com.example"


def has_a_function(model: Any) -> None:
    model.functions.add(name="f", domain="com.example")


def loops(model: Any) -> None:
    model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.name = "inner"


def lies_about_a_size(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def has_a_negative_size(model: Any) -> None:
    model.graph.initializer[0].dims[0] = -1


def has_a_second_output(model: Any) -> None:
    model.graph.output.add().CopyFrom(model.graph.output[0])


def has_another_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3


def has_one_class_less(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9


def has_sparse_tensors(model: Any) -> None:
    model.graph.sparse_initializer.add()


def has_an_unknown_operator(model: Any) -> None:
    model.graph.node[0].op_type = "NoSuchThing"


def has_a_lying_attribute(model: Any) -> None:
    model.graph.node[0].attribute.add(name="t", type=onnx.AttributeProto.TENSOR).t.dims.append(2**62)


def says(name: str, value: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        next(entry for entry in model.metadata_props if entry.key == name).value = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        reads_a_file,
        calls_a_library,
        has_a_function,
        loops,
        lies_about_a_size,
        has_a_negative_size,
        has_a_second_output,
        has_another_input,
        has_one_class_less,
        has_sparse_tensors,
        has_an_unknown_operator,
        has_a_lying_attribute,
        *(says(name, value) for name in METADATA for value in ("", "3", "[]", "null", "{}", "[" * 100_000, "[1, 2]")),
        says("preprocessing", '{"image_size": -3}'),
        says("classes", '["only one"]'),
        says("format_version", "99"),
        says("format_version", '"x"'),
    ],
)
def test_what_export_never_writes_does_not_reach_onnxruntime(
    change: Callable[[Any], None], files: dict[str, Path], tmp_path: Path, no_session: list[Any]
) -> None:
    with pytest.raises(UserError, match=r"model\.onnx") as caught:
        opened(rewritten(files["onnx metadata"], tmp_path / "model.onnx", change))
    assert len(str(caught.value)) < 400
    assert not no_session


def test_an_onnx_file_without_a_checksum_is_opened_as_before(
    run: RunDir, files: dict[str, Path], images: list[Path], tmp_path: Path
) -> None:
    model = onnx.load(files["onnx graph"])
    for key in ("sha256", "format_version"):
        model.metadata_props.remove(next(entry for entry in model.metadata_props if entry.key == key))
    onnx.save(model, path := tmp_path / "earlier.onnx")
    assert opened(path).predict(images[0]) == opened(files["onnx graph"]).predict(images[0])


def test_an_archive_holds_the_checksum_of_its_files(files: dict[str, Path]) -> None:
    with zipfile.ZipFile(files["torch graph"]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/extra/sha256"))
        assert archive.read(name).decode() == exporting.digest_of_archive(archive)


def test_an_exported_file_names_no_folder_of_this_machine(files: dict[str, Path]) -> None:
    for path in files.values():
        assert str(Path(exporting.__file__).parent).encode() not in path.read_bytes()


def test_an_onnx_file_of_other_origin_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(files["onnx graph"])
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="give a file that convsmith export wrote"):
        opened(tmp_path / "other.onnx")


def test_an_archive_of_torch_export_is_never_opened(
    run: RunDir, files: dict[str, Path], images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torch compiles the name of an input into source code: one such as this would run a command."""
    canary, bad = tmp_path / "canary", tmp_path / "bad.pt2"
    code = f"pixels=__import__('os').system('touch {canary}')"
    with zipfile.ZipFile(files["torch graph"]) as old, zipfile.ZipFile(bad, "w") as new:
        contents = {name: old.read(name) for name in old.namelist()}
        assert any(b'"pixels"' in content for content in contents.values())
        for name, content in contents.items():
            new.writestr(name, content.replace(b'"pixels"', json.dumps(code).encode()))
    for path in (files["torch graph"], bad):
        for verb in (["predict", str(path), str(images[0])], ["explain", str(path)], ["serve", str(path)]):
            assert main(verb) == 2
            line = capsys.readouterr().err
            assert line.count("\n") == 1
            assert verb[0] != "predict" or "can run code when it is opened" in line
    assert not canary.exists()


def test_onnxruntime_reports_nothing_to_its_makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with pytest.raises(UserError):
        open_exported(tmp_path / "missing.onnx")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("place", ["graph", "metadata"])
def test_the_program_beside_an_onnx_file_predicts_as_the_run_does(
    run: RunDir, images: list[Path], place: Any, tmp_path: Path
) -> None:
    made = export(run, "onnx", tmp_path / "net.onnx", place)
    assert made.script == tmp_path / "predict_onnx.py"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    command = [sys.executable, "-I", str(made.script), *map(str, images), str(broken)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{broken}: cannot identify image file" in done.stderr
    expected = load_predictor(run.path, "cpu").predict(images)
    for line, one in zip(done.stdout.splitlines(), expected, strict=True):
        name, label, probability = line.split("\t")
        assert (name, label) == (one.id, one.label)
        assert float(probability) == pytest.approx(one.confidence, abs=1e-5)
    made.script.write_text("print('mine')\n")
    with pytest.raises(UserError, match=r"predict_onnx\.py' exists and is not a program that export wrote"):
        export(run, "onnx", tmp_path / "net.onnx", place)
