"""One answer to one question: whichever way an image comes in, the same model gives the same probabilities."""

from __future__ import annotations

import csv
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread, current_thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import convsmith
from convsmith.data.preprocess import InputPixels
from convsmith.errors import UserError
from convsmith.prediction import predictor as module
from convsmith.prediction.predictor import Predictor, load_predictor
from convsmith.rundir import RunDir

WAYS = {
    "stretch": {"resize": "stretch"},
    "pad": {"resize": "pad", "background": "teal"},
    "crop": {"resize": "crop"},
    "crop with a share": {"resize": "crop", "crop": 0.7, "working_size": 18},
}
EXACT = 1e-6  # of probabilities: batches of other sizes may round differently in the last bits
ROUNDED = 1e-5  # another runtime adds up in another order

Answers = dict[str, dict[str, float]]  # file -> class -> probability


def picture(label: int, number: int) -> Image.Image:
    """Bright at one end or at the other, so that crops, turns and double crops change what a net says of it."""
    rng = np.random.default_rng(1000 * label + number)
    slope = np.linspace(0, 1, 44) if label else np.linspace(1, 0, 44)
    pixels = 160 * slope[None, :, None] + rng.integers(0, 90, (30, 44, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all the forms that need care: gray, turned by EXIF, transparent, palettes, wide and high ones."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(("left", "right")):
        (root / name).mkdir()
        for number in range(30):
            image = picture(label, number)
            exif = Image.Exif()
            form = number % 6
            if form == 1:
                image = image.convert("L")
            if form == 2:
                exif[0x0112] = 6
            if form == 3:
                image.putalpha(Image.linear_gradient("L").resize(image.size))
            if form == 4:
                image = image.convert("P")
            if form == 5:
                image = image.rotate(90, expand=True)
            suffix = "jpg" if form == 2 else "png"
            image.save(root / name / f"{number:02d}.{suffix}", exif=exif)
    return root


@pytest.fixture(scope="module", params=WAYS)
def run(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    settings: dict[str, Any] = WAYS[request.param]
    trained = convsmith.train(
        data={"source": str(photos), "image_size": 16, "channels": 3, "val_fraction": 0.4, **settings},
        model="simple-cnn",
        epochs=3,
        runs_dir=tmp_path_factory.mktemp("runs"),
        device="cpu",
        train={"threads": 1},
        track={"wandb": "off"},
    )
    return trained.files


@pytest.fixture(scope="module")
def predictor(run: RunDir) -> Predictor:
    return load_predictor(run.path, "cpu")


@pytest.fixture(scope="module")
def files(run: RunDir, photos: Path) -> list[Path]:
    """The validation images."""
    splits = json.loads(run.splits.read_text())["splits"]
    return [photos / name for name in splits["val"]]


@pytest.fixture(scope="module")
def expected(files: list[Path], predictor: Predictor) -> Answers:
    found = {str(file): predictor.predict(file)[0].probabilities for file in files}
    chances = np.array([[chance[name] for name in predictor.classes] for chance in found.values()])
    assert np.ptp(chances[:, 0]) > 0.1, "a net that says the same of all images proves nothing"
    return found


def agree(found: Answers, expected: Answers, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, chances in found.items():
        assert chances == pytest.approx(expected[name], abs=tolerance), name


def upright(file: Path) -> Image.Image:
    """As a program would hold it in memory: turned, and a palette or gray resolved, but transparency kept."""
    image = ImageOps.exif_transpose(Image.open(file))
    return image.convert("RGB") if image.mode == "P" else image


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    """As PyTorch's programs hold images: [C, H, W]."""
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)


def test_evaluate_and_report_write_what_predict_says(
    run: RunDir, photos: Path, predictor: Predictor, expected: Answers
) -> None:
    """The report draws its probabilities from predictions-val.csv, which the training and `evaluate` write."""
    for _ in range(2):  # what the training wrote, and then evaluate
        with run.predictions("val").open(newline="") as file:
            rows = list(csv.DictReader(file))
        found = {str(photos / row["id"]): {c: float(row[f"p_{c}"]) for c in predictor.classes} for row in rows}
        agree(found, expected, EXACT)
        convsmith.load(run.path).evaluate("val")


def test_predict_takes_every_form(files: list[Path], predictor: Predictor, expected: Answers) -> None:
    forms: dict[str, Any] = {
        "paths": files,
        "bytes": [file.read_bytes() for file in files],
        "PIL images": [Image.open(file) for file in files],
        "arrays": [np.asarray(upright(file)) for file in files],
        "tensors": [channels_first(np.array(upright(file))) for file in files],
        "prepared": [predictor.pixels(file) for file in files],
        "prepared twice": [predictor.pixels(predictor.pixels(file)) for file in files],
    }
    forms["float tensors"] = [tensor.float() / 255 for tensor in forms["tensors"]]
    for form, images in forms.items():
        found = predictor.predict(images)
        assert len(found) == len(files), form
        agree({str(f): one.probabilities for f, one in zip(files, found, strict=True)}, expected, EXACT)


def test_a_batch_is_its_images(files: list[Path], predictor: Predictor, expected: Answers) -> None:
    same = [file for file in files if upright(file).size == (44, 30) and upright(file).mode == "RGB"]
    assert len(same) > 2
    batch = np.stack([np.asarray(upright(file)) for file in same])
    prepared = InputPixels(np.concatenate([predictor.pixels(file).array for file in same]))
    for images in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2), prepared):
        found = predictor.predict(images)
        agree(
            {str(file): one.probabilities for file, one in zip(same, found, strict=True)},
            {str(file): expected[str(file)] for file in same},
            EXACT,
        )


def test_pixels_of_another_model_are_refused(predictor: Predictor) -> None:
    with pytest.raises(UserError, match="prepared for another model"):
        predictor.predict(InputPixels(np.zeros((1, 9, 9, 3), np.uint8)))


def test_explain_asks_about_the_same_probabilities(
    run: RunDir, files: list[Path], predictor: Predictor, expected: Answers
) -> None:
    from convsmith.explain.context import ExplainContext
    from convsmith.explain.examples import examples_of_images

    for target, name in enumerate(predictor.classes):
        examples, broken = examples_of_images(ExplainContext(run, predictor), files, target)
        assert not broken
        for example in examples:
            assert example.probability == pytest.approx(expected[example.id][name], abs=EXACT)
            with torch.no_grad():  # what the heat maps are computed from
                logits = predictor.model(example.image[None])
            assert float(logits.softmax(1)[0, target]) == pytest.approx(expected[example.id][name], abs=ROUNDED)


def test_whoever_decodes_hears_signals(
    run: RunDir, files: list[Path], predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal is handled in the main thread, which waits for the end of whatever it decodes itself."""
    from convsmith.explain import network
    from convsmith.explain.context import ExplainContext
    from convsmith.explain.examples import examples_of_images

    threads: list[str] = []
    prepare = module.prepare
    monkeypatch.setattr(module, "prepare", lambda *given: threads.append(current_thread().name) or prepare(*given))
    context = ExplainContext(run, predictor)
    for decodes in (
        lambda: predictor.predict(files),
        lambda: examples_of_images(context, files, None),
        lambda: network._image(context, network.FigureOptions(image=files[0])),
    ):
        decodes()
        assert threads
        assert all(name.startswith("convsmith-decode") for name in threads)
        threads.clear()


def test_an_image_that_is_given_many_times_is_read_once_at_a_time(files: list[Path], predictor: Predictor) -> None:
    for _ in range(5):
        with Image.open(files[0]) as image:
            found = predictor.predict([image] * 200)
        assert len({one.confidence for one in found}) == 1


@contextmanager
def served(run: RunDir) -> Iterator[int]:
    """The port of a server in a thread of this process."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'convsmith[serve]'")
    from convsmith.serve.answers import Answers as Answering
    from convsmith.serve.app import make_app
    from convsmith.serve.decoder import Decoder
    from convsmith.serve.server import listen

    predictor = load_predictor(run.path, "cpu")
    with Decoder(predictor.card.preprocessing) as decoder, listen("127.0.0.1", 0) as listener:
        app = make_app(Answering(predictor, None), decoder, run.name, frozenset({"127.0.0.1"}))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="critical"))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def test_serve_answers_what_predict_says(run: RunDir, files: list[Path], expected: Answers) -> None:
    with served(run) as port:
        for path in ("/predict", "/explain"):
            found = {}
            for file in files if path == "/predict" else files[:6]:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("POST", path, file.read_bytes())
                found[str(file)] = json.loads(connection.getresponse().read())["probabilities"]
                connection.close()
            agree(found, {name: expected[name] for name in found}, EXACT)


def test_an_onnx_file_says_the_same(run: RunDir, files: list[Path], expected: Answers, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'convsmith[export]'")
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'convsmith[export]'")
    from convsmith.export import export

    written = export(run, "onnx", tmp_path / "model.onnx").path
    found = load_predictor(written).predict(files)
    agree({one.id: one.probabilities for one in found}, expected, ROUNDED)


def test_a_torch_export_archive_says_the_same(
    run: RunDir, files: list[Path], predictor: Predictor, expected: Answers, tmp_path: Path
) -> None:
    """Opened by torch itself: it is our own file, a moment old, and convsmith opens no such archive."""
    if torch.__version__ < "2.9":
        pytest.skip("needs PyTorch 2.9")
    from convsmith.export import export

    module = torch.export.load(export(run, "torch", tmp_path / "model.pt2").path).module()
    pixels = np.concatenate([predictor.pixels(file).array for file in files])
    chances = module(torch.from_numpy(pixels)).softmax(dim=1).tolist()
    found = {str(f): dict(zip(predictor.classes, row, strict=True)) for f, row in zip(files, chances, strict=True)}
    agree(found, expected, ROUNDED)
