"""Transfer learning as a user meets it: presets, weights, frozen features, phases, and a kill in any of them."""

from __future__ import annotations

import json
import shutil
import signal
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import nn

from conftest import Convsmith, RunUntil
from convsmith.cli import verb_parser
from convsmith.config import RunConfig, compose, validate
from convsmith.contracts import InputSpec
from convsmith.data.config import DataConfig
from convsmith.data.expected import as_expected, differences
from convsmith.data.native import Native
from convsmith.data.preprocess import ToInput
from convsmith.errors import UserError
from convsmith.events import EpochEnd, FeatureExtractionProgress, Finished, Unfroze
from convsmith.nets.config import ModelConfig
from convsmith.prediction.evaluate import batches_of, logits_of
from convsmith.prediction.evaluation import evaluation
from convsmith.prediction.model_file import ModelCard, save_model
from convsmith.runtime import Interrupts
from convsmith.tracking import csv
from convsmith.training import checkpoint, kept, setup
from convsmith.training.experiment import Experiment
from convsmith.training.loop import Event, epochs
from convsmith.training.own import Parts
from convsmith.transfer.features import FeatureFiles
from convsmith.transfer.weights import own_size
from convsmith.verbs.flags import read_settings
from test_resume import same_run

SMALL = "--data.limit 300 --train.threads 1 --train.layout contiguous --track.wandb off".split()
BASE = [
    *"train --preset from-scratch --name base --model small-resnet --model.width 4 --model.depth 1".split(),
    *"--epochs 1 --schedule.warmup_epochs 0 --augment.hflip false".split(),
    *SMALL,
]
FINETUNE = [
    *"train --preset finetune --name run --transfer.weights runs/base --epochs 5 --batch-size 64".split(),
    *("--transfer.unfreeze", "{after: 2, stages: 2}", "--transfer.feature_views", "2", "--train.ema", "0.9"),
    *"--train.log_every 3 --train.checkpoint_minutes 0 --train.class_weights balanced".split(),
    *"--augment.hflip false --augment.shift 1".split(),
    *SMALL,
]
SPEC = InputSpec(224, 96, 3, (0.5, 0.4, 0.6), (0.2, 0.3, 0.1), "crop", 0.875, "bicubic")


def config_of(*flags: str, command: list[str] = FINETUNE) -> RunConfig:
    return read_settings(verb_parser("train").parse_all([*command[1:], *flags])).config


def begin(folder: Path, config: RunConfig, splits: dict[str, list[str]] | None = None) -> Experiment:
    return setup.start(setup.prepare(config, splits=splits), folder / "runs")


def follow(experiment: Experiment) -> list[Event]:
    return list(epochs(experiment, Interrupts()))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run to start from."""
    folder = tmp_path_factory.mktemp("base")
    follow(setup.start(setup.prepare(config_of(command=BASE)), folder / "runs", "base"))
    return folder


@pytest.fixture(scope="module")
def whole(base: Path, run_until: RunUntil) -> Path:
    assert run_until(base, "never", *FINETUNE) == 0
    return base / "runs" / "run"


@pytest.fixture
def here(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(base)
    return base


def test_the_phases_are_those_that_were_asked_for(whole: Path) -> None:
    log = (whole / "log.txt").read_text()
    assert "from epoch 3 on, stage3, stage2 train as well" in log
    assert "from epoch 4 on, stage1, stem train as well" in log
    tensors, facts = checkpoint.read(whole / "checkpoints" / "last.safetensors")
    assert facts["phase"] == 2
    assert tensors["optimizer.stem.conv.weight:step"] == 10
    assert tensors["optimizer.head.weight:step"] == 25
    assert len(csv.read(whole / "metrics.csv")) == 5


@pytest.mark.parametrize("moments", [["3", "11"], ["16", "22"]], ids=["on-features-and-at-the-thaw", "thawed"])
def test_killed_in_any_phase_and_resumed_is_bit_identical(
    whole: Path, tmp_path: Path, run_until: RunUntil, moments: list[str]
) -> None:
    shutil.copytree(whole.parent / "base", tmp_path / "runs" / "base")
    killed = [run_until(tmp_path, moments[0], *FINETUNE)]
    shutil.rmtree(tmp_path / "runs" / "base")  # a resumed run needs its weights no more
    killed += [run_until(tmp_path, moment, "resume", "runs/run") for moment in moments[1:]]
    assert killed == [-signal.SIGKILL] * len(moments), "a kill did not happen"
    assert run_until(tmp_path, "never", "resume", "runs/run") == 0
    same_run(whole, tmp_path / "runs" / "run")


def test_features_are_computed_once_for_all_runs(here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of("--data.cache", str(tmp_path / "cache"), "--train.seed", "7")
    passes, results = [], []
    for _ in range(2):
        events = follow(begin(tmp_path, config))
        passes.append([event for event in events if isinstance(event, FeatureExtractionProgress)])
        results.append(next(event.evaluation for event in events if isinstance(event, Finished)))
        assert [event.stages for event in events if isinstance(event, Unfroze)] == [
            ("stage3", "stage2"),
            ("stage1", "stem"),
        ]
    assert passes[0][-1].done == passes[0][-1].total > 0
    assert passes[1] == [], "the second run found them"
    assert results[0] == results[1]
    first, *others = (tmp_path / "cache" / "features").glob("*.safetensors")
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    for file in others:
        file.write_bytes(file.read_bytes()[:100])
    assert (
        next(event.evaluation for event in follow(begin(tmp_path, config)) if isinstance(event, Finished)) == results[0]
    )
    assert f"warning: the features in '{first}' were damaged and are computed anew" in caplog.messages
    assert len(caplog.messages) == 1 + len(others)


def test_processes_share_the_work_and_wait_for_each_other_no_longer_than_asked(here: Path, tmp_path: Path) -> None:
    prepared = setup.prepare(config_of("--transfer.feature_views", "2"))
    dataset, to_input = prepared.dataset, ToInput(prepared.dataset.preprocessing(), torch.device("cpu"))
    files = FeatureFiles(
        prepared.model, dataset, dataset.train.sample(9), to_input, prepared.config.augment, 2, tmp_path
    )
    assert len(list(files.compute(lambda: True))) == 1, "it stops where it is told to"
    (lock,) = tmp_path.glob("*.lock")
    assert not list(tmp_path.glob("*.safetensors"))
    with FileLock(lock):  # as another process would
        list(files.compute(lambda: len(list(tmp_path.glob("*.safetensors"))) == 2))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2, "the other view and val, in the meantime"
    assert list(files.compute(lambda: False))[-1] == (len(dataset.train), len(dataset.train)), "what was left"
    assert [tuple(view.shape) for view in files.load().views.values()] == 2 * [
        (len(dataset.train), prepared.model.head.in_features)
    ]


def test_while_another_process_computes_the_view_of_an_epoch_that_of_a_later_one_is_computed(
    here: Path, tmp_path: Path
) -> None:
    prepared = setup.prepare(config_of("--transfer.feature_views", "3"))
    dataset, to_input = prepared.dataset, ToInput(prepared.dataset.preprocessing(), torch.device("cpu"))
    sample, augment = dataset.train.sample(9), prepared.config.augment
    files = FeatureFiles(prepared.model, dataset, sample, to_input, augment, 3, tmp_path)
    list(files.compute(lambda: True, epoch=3))
    (lock,) = tmp_path.glob("*.lock")  # of the view of epochs 0 and 3
    with FileLock(lock):
        told = list(files.compute(lambda: len(list(tmp_path.glob("*.safetensors"))) == 2, epoch=0))
    assert {total for _, total in told} == {len(dataset.train) + len(dataset.joined(dataset.val, sample))}
    assert files.missing(epoch=0) == len(dataset.train)
    assert files.missing(epoch=1) == 0, "computed meanwhile"
    assert files.missing(epoch=2) == len(dataset.train)
    assert list(files.compute(lambda: False, epoch=0))[-1] == (len(dataset.train), len(dataset.train))
    loaded = files.load(epoch=0)
    assert list(loaded.views) == [0]
    assert list(files.load(epoch=4, before=loaded).views) == [0, 1]
    assert loaded.size == sum(
        len(part) * 4 * loaded.val.shape[1] for part in (*3 * [dataset.train], dataset.val, sample)
    )


def test_views_are_computed_in_the_precision_of_the_training_and_what_is_scored_in_float32(
    here: Path, tmp_path: Path
) -> None:
    prepared = setup.prepare(config_of("--transfer.feature_views", "1"))
    dataset, to_input = prepared.dataset, ToInput(prepared.dataset.preprocessing(), torch.device("cpu"))
    sample, augment = dataset.train.sample(9), prepared.config.augment
    found = {}
    for precision in ("float32", "bfloat16"):
        files = FeatureFiles(prepared.model, dataset, sample, to_input, augment, 1, tmp_path, precision=precision)
        list(files.compute(lambda: False))
        found[precision] = files.load()
    exact, rounded = found["float32"], found["bfloat16"]
    assert len(list(tmp_path.glob("*.safetensors"))) == 3, "the view twice, and what is scored once"
    assert torch.equal(exact.val, rounded.val)
    assert torch.equal(exact.clean, rounded.clean)
    assert rounded.view(0).dtype is torch.float32
    assert not torch.equal(exact.view(0), rounded.view(0))
    torch.testing.assert_close(exact.view(0), rounded.view(0), rtol=0.1, atol=0.05)


def test_cached_features_train_as_images_do(here: Path, tmp_path: Path) -> None:
    flags = "--transfer.unfreeze none --augment.shift 0 --train.ema 0 --train.patience none --epochs 4".split()
    heads, accuracies = [], []
    for cached in ("true", "false"):
        own_cache = ["--data.cache", str(tmp_path / cached)]
        experiment = begin(tmp_path, config_of(*flags, *own_cache, "--transfer.cache_features", cached))
        events = follow(experiment)
        assert any(isinstance(event, FeatureExtractionProgress) for event in events) == (cached == "true")
        heads.append(experiment.state.model.head.weight.detach())
        accuracies.append(csv.read(experiment.run.metrics)[-1]["val_accuracy"])
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-3, atol=1e-4)
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


STAGES = ["--transfer.cache_stages", "true", "--transfer.unfreeze", "{after: 2, stages: 2, most: 2}", "--epochs", "3"]


def test_a_run_on_the_outputs_of_frozen_stages_scores_as_on_images_and_resumes_to_the_bit(
    here: Path, tmp_path: Path, run_until: RunUntil
) -> None:
    shutil.copytree(here / "runs" / "base", tmp_path / "runs" / "base")
    cache = ["--data.cache", str(tmp_path / "cache")]
    config = config_of(*STAGES, *cache)
    experiment = begin(tmp_path / "whole", config)
    assert experiment.config.transfer.cache_stages
    rows = [event.row for event in follow(experiment) if isinstance(event, EpochEnd)]
    assert experiment.features is not None
    assert experiment.features.division is not None
    val, model = experiment.dataset.val, experiment.state.evaluated
    logits = logits_of(model, batches_of(val, experiment.device), experiment.to_input, experiment.device)
    on_images = evaluation(val.labels, logits, experiment.card.classes)
    assert rows[-1]["val_loss"] == pytest.approx(on_images["loss"], rel=1e-5)
    assert run_until(tmp_path, "12", *FINETUNE, *STAGES, *cache) == -signal.SIGKILL
    shutil.rmtree(tmp_path / "cache" / "features")
    assert run_until(tmp_path, "never", "resume", "runs/run") == 0
    same_run(experiment.run.path, tmp_path / "runs" / "run")


def test_a_view_is_computed_when_an_epoch_needs_it_with_the_same_bits_as_before_the_first(
    here: Path, tmp_path: Path
) -> None:
    runs, orders = [], []
    for number, before in enumerate((False, True)):
        experiment = begin(tmp_path / str(number), config_of(*STAGES, "--data.cache", str(tmp_path / f"cache{number}")))
        if before:
            files = kept.kept_files(experiment)
            assert files.stages
            assert files.head
            list(files.stages.compute(lambda: False))
            list(files.head.compute(lambda: False))
        events = [
            type(event) for event in follow(experiment) if isinstance(event, FeatureExtractionProgress | EpochEnd)
        ]
        orders.append([event for event, _ in groupby(events)])
        runs.append(experiment.run.path)
    assert orders[0] == [FeatureExtractionProgress, EpochEnd, FeatureExtractionProgress, EpochEnd], "two of the views"
    assert orders[1] == [EpochEnd]
    same_run(*runs)


def test_to_prepare_a_training_on_the_outputs_of_frozen_stages_changes_no_statistics(here: Path) -> None:
    prepared = setup.prepare(config_of(*STAGES))
    assert prepared.config.transfer.cache_stages
    given = load_file("runs/base/model/model.safetensors")
    found = prepared.model.state_dict()
    assert all(torch.equal(found[name], given[name]) for name in found if "running" in name)


def test_outputs_of_frozen_stages_that_find_no_room_are_not_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SHARE", 0)
    prepared = setup.prepare(config_of(*STAGES))
    assert not prepared.config.transfer.cache_stages
    (note,) = [note for note in prepared.notes if "transfer.cache_stages" in note]
    assert "MB, and half of the free memory and disk is 0 MB" in note


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--augment.mixup", "0.4"], "images are mixed"),
        (["--transfer.unfreeze", "{after: 2, stages: 9}"], "no stage stays frozen to the end"),
    ],
)
def test_where_no_stage_has_constant_outputs_a_note_says_why(here: Path, flags: list[str], reason: str) -> None:
    prepared = setup.prepare(config_of(*STAGES, *flags))
    assert not prepared.config.transfer.cache_stages
    assert any("transfer.cache_stages" in note and reason in note for note in prepared.notes)


def test_mixed_images_are_new_each_time_so_nothing_is_kept(here: Path, tmp_path: Path) -> None:
    events = follow(begin(tmp_path, config_of("--augment.mixup", "0.4", "--epochs", "4")))
    assert not [event for event in events if isinstance(event, FeatureExtractionProgress)]
    assert isinstance(events[-1], Finished)


class WithBusyHead(nn.Module):
    """A network of the user's own whose head behaves differently in train and in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(144), nn.Linear(144, 10))

    @property
    def stages(self) -> dict[str, nn.Module]:
        return {"conv": self.conv}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images).relu().flatten(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def test_features_are_validated_as_images_are(tmp_path: Path) -> None:
    """The head is in eval mode: its dropout drops nothing, and its batch norm learns nothing from val images."""
    flags = "--transfer.freeze all-but-head --epochs 2 --batch-size 64".split()
    parts = Parts(module=WithBusyHead())
    prepared = setup.prepare(config_of(*flags, *SMALL, command=["train"]), parts)
    experiment = setup.start(prepared, tmp_path, parts=parts)
    val, state = experiment.dataset.val, experiment.state
    for event in epochs(experiment, Interrupts()):
        if isinstance(event, EpochEnd):
            assert state.model.head[1].num_batches_tracked == state.step
            logits = logits_of(state.model, batches_of(val, experiment.device), experiment.to_input, experiment.device)
            on_images = evaluation(val.labels, logits, experiment.card.classes)
            assert event.row["val_loss"] == pytest.approx(on_images["loss"], rel=1e-5)
            assert event.row["val_accuracy"] == on_images["accuracy"]
    assert experiment.features is not None


def test_weights_of_a_run_bring_their_network_whatever_the_preset_says_of_its_own(here: Path) -> None:
    weights = {"transfer.weights": "runs/base"}
    assert compose("strong", None, weights).model == ModelConfig()
    assert compose("strong", None, {}).model != ModelConfig()
    config = config_of(command=["train", *SMALL, "--transfer.weights", "runs/base"])  # over the preset baseline
    assert setup.prepare(config).config.model.name == "small-resnet"


def test_folds_share_their_features(here: Path, tmp_path: Path) -> None:
    config = config_of("--data.cache", str(tmp_path / "cache"), "--transfer.unfreeze", "none", "--epochs", "1")
    prepared = setup.prepare(config)
    ids = list(prepared.dataset.pool().ids)
    passes = []
    for fold in range(2):
        held = ids[fold::3]
        rest = [name for name in ids if name not in held]
        splits = {"train": rest[20:], "val": rest[:20], "held-out": held}
        fold_config = prepared.config.with_values(train={"seed": fold})
        events = follow(
            begin(tmp_path, fold_config, splits | {"test": prepared.dataset.splits_record()["splits"]["test"]})
        )
        passes.append([event for event in events if isinstance(event, FeatureExtractionProgress)])
    assert passes[0]
    assert not passes[1]


def test_a_study_says_that_features_are_computed_first(base: Path, tmp_path: Path, convsmith: Convsmith) -> None:
    flags = ["--transfer.weights", base / "runs" / "base", "--data.cache", tmp_path / "cache", *SMALL]
    told = convsmith(*"crossval --preset linear-probe --folds 2 --epochs 2".split(), *flags).stdout
    assert told.count("features of 300 images") == 1, told


@pytest.mark.parametrize("preset", ["linear-probe", "finetune"])
def test_a_library_network_for_photographs_takes_small_gray_images(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(models.mobilenet_v3_small(weights=None).state_dict(), tmp_path / "weights.pth")
    flags = "--data.limit 40 --train.threads 1 --train.layout contiguous --track.wandb off --epochs 1".split()
    command = f"train --preset {preset} --model torchvision/mobilenet_v3_small --transfer.weights weights.pth".split()
    experiment = begin(tmp_path, config_of(*flags, "--transfer.unfreeze", "none", command=command))
    notes = " | ".join(experiment.notes)
    assert experiment.state.model.head.weight.abs().max() <= experiment.state.model.head.in_features**-0.5  # not timm's
    assert "the head is new, for 10 classes" in notes
    assert "they expect 224 x 224 pixels and get 96 x 96" in notes
    data = experiment.config.data
    assert (data.channels, data.resize, data.crop) == (3, "crop", 0.875)
    assert data.mean == (0.485, 0.456, 0.406)
    events = follow(experiment)
    assert isinstance(events[-1], Finished)
    card = json.loads((experiment.run.model / "model.json").read_text())
    assert card["preprocessing"] == experiment.card.preprocessing.model_dump(mode="json")
    assert card["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    again = validate(json.loads(json.dumps(experiment.config.model_dump(mode="json"))))
    assert setup.prepare(again).config == experiment.config, "the resolved config repeats itself"


def test_what_the_user_sets_wins_over_what_weights_expect() -> None:
    free = as_expected(DataConfig(), SPEC, Native((300, 400), 3))
    assert (free.image_size, free.channels, free.interpolation, free.mean) == (224, 3, "bicubic", SPEC.mean)
    asked = DataConfig(image_size=64, resize="pad", interpolation="bilinear", mean=(0.1,) * 3, std=(0.1,) * 3)
    filled = as_expected(asked, SPEC, Native((300, 400), 3))
    assert filled == asked.model_copy(update={"channels": 3})
    said = differences(filled, SPEC)
    assert said[0] == "they expect 224 x 224 pixels and get 64 x 64"
    assert "they expect crop to the centre 0.875 of the square and get pad" in said
    assert differences(as_expected(DataConfig(), SPEC, None), SPEC) == []


@pytest.mark.parametrize(
    ("native", "size"), [((8, 8), 96), ((32, 32), 96), ((96, 96), 96), ((97, 97), 224), (None, 224)]
)
def test_small_images_are_enlarged_no_more_than_needed(native: tuple[int, int] | None, size: int) -> None:
    assert as_expected(DataConfig(), SPEC, Native(native, 3)).image_size == size


@pytest.mark.parametrize(
    ("model", "native", "size"),
    [
        ("timm/vit_tiny_patch16_224", (32, 32), 224),
        ("timm/vit_tiny_patch16_224", None, 224),
        ("torchvision/resnet18", (32, 32), 32),
        ("torchvision/resnet18", None, 224),
        ("simple-cnn", None, None),
    ],
)
def test_a_network_with_random_weights_asks_for_its_size_alone(
    model: str, native: tuple[int, int] | None, size: int | None
) -> None:
    spec = own_size(compose("baseline", None, {"model.name": model}))
    shape = None if native is None else Native(native, 3)
    filled = as_expected(DataConfig(), spec, shape)
    assert filled == DataConfig().model_copy(update={"image_size": size})
    assert as_expected(DataConfig(image_size=64), spec, shape).image_size == 64


def test_gray_asked_for_gets_the_mean_of_the_means() -> None:
    gray = as_expected(DataConfig(channels=1), SPEC, None)
    assert gray.mean == pytest.approx((0.5,))
    assert gray.std == pytest.approx((0.2,))
    assert any("the stem's weights are summed" in said for said in differences(gray, SPEC))


def test_images_of_other_channels_keep_them_and_get_the_mean_of_the_means() -> None:
    bands = as_expected(DataConfig(), SPEC, Native((300, 400), 5))
    assert bands.channels == 5
    assert bands.mean == pytest.approx((0.5,) * 5)
    assert any("they expect 3 channels and get 5: the stem's weights are summed" in s for s in differences(bands, SPEC))


MISTAKES = [
    (["--transfer.weights", "nowhere.pth"], "'nowhere.pth' does not exist. Give none, default"),
    (
        ["--model", "resnet18", "--transfer.weights", "default"],
        "a network of a library: write --model torchvision/resnet18 or timm/resnet18",
    ),
    (["--transfer.weights", "default"], "'simple-cnn' has no pretrained weights; choose a --model that has"),
    (["--model", "convnet"], "is a small-resnet, but model.name is convnet: leave model.name out"),
    (["--model", "simple-cnn"], "is a small-resnet, but model.name is simple-cnn: leave model.name out"),
    (["--model.width", "8"], "its network has model.width 4 but 8 is set: leave model.width out"),
    (
        ["--model.depth", "2", "--model.dropout", "0.5", "--model.width", "4"],
        "has model.depth 1 but 2 is set, model.dropout 0.0 but 0.5 is set: leave model.depth, model.dropout out",
    ),
    (["--transfer.weights", "."], "run '.' is not a run directory"),
    (["--transfer.weights", "study"], "'study' is a study: name one of its runs, in folds/, arms/ or trials/"),
    (["--transfer.freeze", "[stage9]"], "'stage9' matches no stage and no parameter. Did you mean 'stage"),
    (["--epochs", "3"], "longer than the run: stage1, stem would be unfrozen after 3 epochs, but train.epochs is 3"),
    (["--model", "small-resnet", "--transfer.weights", "weights.safetensors"], "is of another architecture; missing: "),
    (
        ["--transfer.weights", "none", "--model", "small-resnet"],
        "since random ones have no statistics to keep: set --transfer.weights",
    ),
    (
        ["--transfer.freeze", "none"],
        "unfreeze has nothing to unfreeze: set --transfer.freeze as well, for example to all-but-head",
    ),
    (["--transfer.unfreeze", "{aftr: 1}"], "unknown key 'transfer.unfreeze.aftr'. Did you mean 'after'?"),
    (
        ["--model", "torchvision/alexnet", "--transfer.weights", "alexnet.pth", "--data.image_size", "32"],
        "does not accept 32",
    ),
    (["--data.mean", "[0.5]"], "std belong together: give both or neither"),
    (["--data.mean", "[0.5, 0.5]", "--data.std", "[1, 1]"], "have 2 values, but data.channels is 1"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_mistakes_are_one_line_that_says_what_to_do(here: Path, flags: list[str], message: str) -> None:
    from safetensors.torch import save_file

    save_file({"another.weight": torch.ones(2)}, here / "weights.safetensors")
    torch.save({"features.0.weight": torch.ones(2)}, here / "alexnet.pth")
    (here / "study").mkdir(exist_ok=True)
    (here / "study" / "study.yaml").touch()
    with pytest.raises(UserError) as error:
        setup.prepare(config_of(*flags))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_that_flattens_says_which_size_its_weights_are_for(here: Path, tmp_path: Path) -> None:
    small = setup.prepare(config_of(command=["train", *SMALL]))
    card = ModelCard(
        architecture=small.config.model,
        classes=small.dataset.classes,
        preprocessing=small.dataset.preprocessing(),
        layout="contiguous",
    )
    save_model(tmp_path, small.model, card)
    with pytest.raises(UserError, match=r"hidden.0.weight .*; they are for 8 x 8 images and get 16 x 16"):
        setup.prepare(config_of("--transfer.weights", str(tmp_path), "--data.image_size", "16"))


def test_keys_that_do_not_match_are_listed_in_full_on_both_sides(here: Path) -> None:
    from safetensors.torch import save_file

    names = [f"layer{number}.weight" for number in range(40)]
    save_file({name: torch.ones(2) for name in names}, here / "many.safetensors")
    with pytest.raises(UserError) as error:
        setup.prepare(config_of("--model", "small-resnet", "--transfer.weights", "many.safetensors"))
    model = setup.prepare(config_of()).model
    assert all(name in str(error.value) for name in names)
    assert all(
        name in str(error.value) for name in model.state_dict() if "head." not in name and "num_batches" not in name
    )


def test_the_length_of_a_finetuning_follows_the_number_of_images_unless_it_is_set(here: Path) -> None:
    free = [word for word in FINETUNE if word not in ("--epochs", "5", "--batch-size", "64")]
    few = setup.prepare(config_of(command=free)).config.train
    assert (few.batch_size, few.epochs) == (16, 12)
    set_by_hand = setup.prepare(config_of()).config.train
    assert (set_by_hand.batch_size, set_by_hand.epochs) == (64, 5)


def test_what_nobody_set_stays_unset_when_other_values_change() -> None:
    config = compose("finetune", None, {"train.seed": "3"})
    other = config.with_values(train={"threads": 1}, data={"limit": 9})
    assert other.train.model_fields_set == {"monitor", "patience", "seed", "threads"}
    assert (other.data.limit, other.train.patience) == (9, config.train.patience)
    assert other.data.model_fields_set == {"limit"}


def test_crop_keeps_the_centre(tmp_path: Path) -> None:
    from convsmith.data.config import DecodeRules
    from convsmith.data.decode import from_array

    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:35, 15:45] = 200  # the centre 0.75 of the centre square
    rules = {"working_size": 30, "resize": "crop"}
    assert (from_array(pixels, DecodeRules(**rules, crop=0.75)) == 200).all()
    assert not (from_array(pixels, DecodeRules(**rules)) == 200).all()
