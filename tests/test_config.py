from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from convsmith.config import (
    ABSENT,
    RunConfig,
    choices,
    compose,
    differences,
    fields,
    flag_layer,
    flattened,
    merge,
    parse_yaml,
    presets,
    read_layer,
    read_run_config,
    to_yaml,
    unused,
    validate,
)
from convsmith.errors import UserError
from convsmith.nets.config import ModelConfig
from convsmith.records import FORMAT_VERSION


def test_precedence_is_defaults_preset_file_flags(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("optim: {name: sgd, momentum: 0.5}\ntrain: {epochs: 7}\n")
    config = compose("baseline", file, {"train.epochs": "3"})
    preset = compose("baseline", None, {})
    assert (config.optim.name, config.optim.momentum, config.train.epochs) == ("sgd", 0.5, 3)
    assert config.model == preset.model
    assert config.train.batch_size == preset.train.batch_size
    assert compose(None, None, {}) == preset, "without a preset and a file it is baseline"


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_and_says_its_command(name: str) -> None:
    compose(name, None, {})
    lines = presets()[name].splitlines()
    assert lines[0].startswith("# ")
    assert lines[0].endswith("."), "convsmith presets shows this line alone"
    assert any(line.startswith("#   convsmith ") for line in lines)


def test_the_resolved_config_repeats_itself(tmp_path: Path) -> None:
    for name in presets():
        config = compose(name, None, {"track.wandb": "off", "optim.lr": "1e-3", "model.pool": "none"})
        file = tmp_path / f"{name}.yaml"
        file.write_text(config.to_yaml())
        assert compose(None, file, {}) == config


ERRORS = [
    (
        {"optim": {"lrr": 1}},
        "unknown key 'optim.lrr'. Did you mean 'lr'? Keys of optim: name, lr, bias_lr_factor, momentum",
    ),
    ({"augment": {"hflip": "alternate"}}, "augment.hflip: must be true, false or alternating, but got 'alternate'"),
    ({"optim": {"batch_size": 1}}, "unknown key 'optim.batch_size'. Did you mean 'train.batch_size'?"),
    ({"optm": {}}, "unknown section 'optm'. Did you mean 'optim'? Sections: data, model, optim"),
    ({"optim": {"name": "adm"}}, "optim.name: 'adm' is not a choice. Did you mean 'adam'? Choices: sgd, adam, adamw"),
    ({"optim": {"lr": -1}}, "optim.lr: input should be greater than 0, but got '-1'"),
    ({"train": {"epochs": "many"}}, "train.epochs: input should be a valid integer"),
    (
        {"model": {"blocks": [{"channels": 3, "kernl": 3}]}},
        "unknown key 'model.blocks.0.kernl'. Did you mean 'kernel'?",
    ),
    ({"model": {"blocks": [{"kernel": 3}]}}, "model.blocks.0.channels: field required"),
    ({"model": {"blocks": [{"channels": 3, "order": ["conv"]}]}}, "must name each of conv, norm, activation"),
    ({"model": {"hidden": [0]}}, "model.hidden: widths must be at least 1 and at most 65,536"),
    ({"model": {"hidden": [10**30]}}, "model.hidden: widths must be at least 1 and at most 65,536"),
    ({"data": {"val_fraction": 0.6, "test_fraction": 0.5}}, "together leave nothing to train on"),
    ({"data": {"image_size": 64, "working_size": 32}}, "data.working_size 32 is smaller than data.image_size 64"),
    ({"train": {"loss": "focal"}, "regularize": {"label_smoothing": 0.1}}, "set one of them"),
    ({"train": {"class_weights": "balanced"}, "data": {"sampling": "balanced"}}, "choose one"),
    ({"train": {"epochs": 2}, "schedule": {"warmup_epochs": 2}}, "must be shorter than train.epochs (2)"),
    ({"optim": {"name": "sgd", "nesterov": True, "momentum": 0}}, "optim.nesterov needs optim.momentum"),
    ({"augment": {"saturation": 0.1}, "data": {"channels": 1}}, "needs RGB images, but data.channels is 1"),
]


@pytest.mark.parametrize(("layer", "message"), ERRORS)
def test_errors_name_the_key_the_choices_and_the_nearest(layer: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        validate(layer)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(UserError, match=r"optim\.lr.*; .*epochs"):
        validate({"optim": {"lr": -1}, "train": {"epochs": 0}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("optim: {lr: 1, lr: 2}", "'lr' is given twice"),
        ("- 1", "must contain sections"),
        ("optim: 3", "must contain sections"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "é.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_layer(file)
    assert message in str(error.value)
    assert "é.yaml" in str(error.value)


def test_words_that_older_yaml_takes_for_booleans_are_words(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("track: {wandb: off}\naugment: {hflip: true}\nmodel: {pool: none}\n")
    config = compose(None, file, {})
    assert (config.track.wandb, config.augment.hflip, config.model.pool) == ("off", True, "none")


def test_channels_are_a_number_from_1_to_16() -> None:
    assert compose("baseline", None, {"data.channels": "13"}).data.channels == 13
    with pytest.raises(UserError, match=r"data.channels: input should be less than or equal to 16, but got '17'"):
        compose("baseline", None, {"data.channels": "17"})


def test_flags_for_lists_and_for_nothing() -> None:
    layer = flag_layer({"model.blocks": "[{channels: 8, kernel: 5}, {channels: 16}]", "train.patience": "none"})
    config = validate(merge({"model": {"name": "convnet"}, "train": {"patience": 3}}, layer))
    assert config.model.blocks is not None
    assert [block.channels for block in config.model.blocks] == [8, 16]
    assert config.train.patience is None


@given(st.dictionaries(st.sampled_from([key for key, _ in fields()]), st.text(max_size=8), max_size=3))
def test_any_flag_text_gives_a_config_or_a_one_line_error(flags: dict[str, str]) -> None:
    try:
        config = compose("baseline", None, flags)
    except UserError as error:
        message = str(error)
    else:
        message = ""
        values = yaml.safe_load(config.to_yaml())
        assert values.pop("format_version") == FORMAT_VERSION
        assert validate(values) == config
    assert "\n" not in message


def test_every_key_of_the_config_is_described_or_speaks_for_itself() -> None:
    assert len(dict(fields())) == sum(len(field.annotation.model_fields) for field in RunConfig.model_fields.values())  # type: ignore[union-attr]


def test_a_presets_model_settings_do_not_reach_another_model() -> None:
    assert compose("digits", None, {}).model.hidden_dropout == 0.5
    assert compose("digits", None, {"model.name": "simple-cnn"}).model.hidden_dropout == 0.5
    other = compose("digits", None, {"model.name": "small-resnet"})
    assert other.model == ModelConfig(name="small-resnet")
    assert other.optim.lr == 0.002


WORDS = [
    "08",
    "1e3",
    "off",
    "no",
    "1:30",
    "2024-05-01",
    "010",
    "0x1f",
    "~",
    "null",
    "true",
    "a: b",
    "=",
    "<<",
    ".5",
    "",
    "ü",
]


@pytest.mark.parametrize("value", [*WORDS, 1e-05, 1.0, 7, -0.0, True, None, [1, 2.5], {"a": []}])
def test_what_is_written_is_read_back_as_it_was(value: object) -> None:
    read = parse_yaml(to_yaml({"key": value}), "text")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("1e-3", 0.001), ("1:30", "1:30"), ("2024-05-01", "2024-05-01"), ("off", "off"), ("True", True)],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert parse_yaml(f"key: {text}", "text") == {"key": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n\tepochs: 1", "line 2 is not valid YAML: found character '\\t' that cannot start any token (indent"),
        ("{[a]: 1}", "line 1 is not valid YAML: a key must be a word"),
        ("a: !!int b", "line 1 is not valid YAML: 'b' is not a value of !!int"),
        ("[" * 5000, "line 1 is not read as YAML: more than 50 levels"),
        ("a: !!python/object:os.system ls", "line 1 is not valid YAML: the tag !!python/object:os.system is not known"),
        ("a: 1\na: 2", "line 2 is not valid YAML: 'a' is given twice"),
    ],
)
def test_what_is_no_yaml_is_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_yaml(text, "text")
    assert message in str(error.value)


def test_none_is_no_value_and_true_is_no_number() -> None:
    config = validate(
        {"train": {"patience": "none"}, "model": {"name": "convnet", "blocks": [{"channels": 3, "pool": "none"}]}}
    )
    assert config.train.patience is None
    assert config.model.blocks is not None
    assert config.model.blocks[0].pool == "none"  # there, none is a choice
    with pytest.raises(UserError, match=r"train\.epochs: must be a number, but got 'True'"):
        validate({"train": {"epochs": True}})


def test_settings_that_change_nothing_are_named() -> None:
    assert unused(compose("strong", None, {})) == []
    idle = {
        "optim": {"name": "adam", "nesterov": True, "alpha": 0.5},
        "schedule": {"gamma": 0.5},
        "train": {"min_delta": 0.1},
    }
    assert unused(validate(idle)) == [
        "optim.alpha has no effect, since optim.name is adam",
        "optim.nesterov has no effect, since optim.name is adam",
        "schedule.gamma has no effect, since schedule.name is constant",
        "train.min_delta has no effect without train.patience",
    ]


def test_every_choice_says_which_keys_it_uses() -> None:
    """A new optimiser or schedule needs its line, and keys that are not in the table are for all."""
    known = dict(fields())
    named = set()
    for section, field in RunConfig.model_fields.items():
        for chooser, table in field.annotation.uses.items():  # type: ignore[union-attr]
            assert set(table) == set(choices(known[f"{section}.{chooser}"]))
            named |= {f"{section}.{key}" for keys in table.values() for key in keys}
        needs = field.annotation.needs  # type: ignore[union-attr]
        named |= {f"{section}.{key}" for key in [*needs, *needs.values()]}
    assert named <= known.keys()
    general = {"optim.name", "optim.lr", "optim.bias_lr_factor", "schedule.name", "schedule.warmup_epochs"}
    assert named | general >= {key for key in known if key.startswith(("optim.", "schedule."))}


def test_a_setting_of_a_pooling_is_used_where_a_block_has_that_pooling() -> None:
    blocks = [{"channels": 4}, {"channels": 4, "pool": "t-max-avg"}]
    layer = {"model": {"name": "convnet", "blocks": blocks, "pool_t": 0.5}}
    assert unused(validate(layer)) == []
    layer["model"]["blocks"] = blocks[:1]
    assert unused(validate(layer)) == ["model.pool_t has no effect, since model.pool is max"]


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"is a folder: to train on its images: convsmith train --data {tmp_path}"):
        read_layer(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"the config of that run is .*config\.yaml"):
        read_layer(tmp_path)
    with pytest.raises(UserError, match=r"is damaged \(it has no section data, model"):
        read_run_config(tmp_path / "config.yaml")


def test_configs_are_compared_down_to_the_keys_of_a_block():
    config = {"model": {"blocks": [{"norm": "none"}, {"pool": None}], "hidden": [3, 4]}, "transfer": {}}
    flat = {"model.blocks[0].norm": "none", "model.blocks[1].pool": None, "model.hidden": [3, 4], "transfer": {}}
    assert dict(flattened(config)) == flat
    other = {"model": {"blocks": [{"norm": "batch"}], "hidden": [3, 4]}, "transfer": {}}
    assert differences([config, config]) == []
    assert differences([config, other]) == [
        ("model.blocks[0].norm", ["none", "batch"]),
        ("model.blocks[1].pool", [None, ABSENT]),
    ]


def test_a_path_that_no_config_file_can_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.source 'caf\\xe9' is not UTF-8, so that no file can name it"):
        validate({"data": {"source": "caf\udce9"}}).to_yaml()
