"""Resolving is a pure function: what is set stays, what is open is decided by facts alone, and twice is as once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsmith.config import RunConfig, compose, presets, validate
from convsmith.data.config import DataConfig
from convsmith.nets.config import ModelConfig
from convsmith.training.resolve import Facts, resolve

DATA = DataConfig(source="/data/flowers", image_size=32, working_size=32, channels=3, resize="stretch")


def facts_of(**changes: object) -> Facts:
    return Facts(**{"data": DATA, "train_images": 500, "val_images": 9, "device": "cpu", "threads": 2, **changes})  # type: ignore[arg-type]


@given(
    st.sampled_from(sorted(presets())),
    st.integers(1, 20_000),
    st.sampled_from([None, "Net"]),
    st.sampled_from([None, "SGD"]),
    st.sampled_from([None, "contiguous", "channels_last"]),
)
def test_a_resolved_config_stays_as_it_is(
    preset: str, images: int, module: str | None, optimizer: str | None, layout: str | None
) -> None:
    facts = facts_of(train_images=images, own_module=module, own_optimizer=optimizer, layout=layout)
    config = compose(preset, None, {})
    before = config.model_dump()
    once = resolve(config, facts)
    assert config.model_dump() == before
    assert resolve(once, facts) == once
    assert resolve(validate(once.model_dump(mode="json")), facts) == once, "read from its file, too"


def test_what_is_open_is_decided_by_facts() -> None:
    config = resolve(RunConfig(), facts_of(layout="channels_last"))
    assert config.data == DATA
    assert (config.train.device, config.train.threads, config.train.layout) == ("cpu", 2, "channels_last")
    assert config.optim.lr == 0.001
    own = resolve(RunConfig(), facts_of(own_module="Net", own_optimizer="SGD"))
    assert (own.model.name, own.optim.name, own.optim.lr) == ("own:Net", "own:SGD", None)
    network = ModelConfig(name="small-resnet", width=4)
    of_run = resolve(validate({"transfer": {"weights": "runs/a"}}), facts_of(model=network, weights="/here/runs/a"))
    assert (of_run.model, of_run.transfer.weights) == (network, "/here/runs/a")


@pytest.mark.parametrize(("images", "expected"), [(1_000, (16, 12)), (1_001, (32, 10)), (10_001, (64, 6))])
def test_a_finetuning_is_as_long_as_its_images_ask_for_unless_it_is_set(images: int, expected: tuple[int, int]) -> None:
    config = compose("finetune", None, {})
    found = resolve(config, facts_of(train_images=images)).train
    assert (found.batch_size, found.epochs) == expected
    chosen = resolve(compose("finetune", None, {"train.epochs": "7"}), facts_of(train_images=images)).train
    assert (chosen.batch_size, chosen.epochs) == (expected[0], 7)


def test_without_weights_the_defaults_stay() -> None:
    train = resolve(RunConfig(), facts_of(train_images=5)).train
    assert (train.batch_size, train.epochs) == (RunConfig().train.batch_size, RunConfig().train.epochs)
