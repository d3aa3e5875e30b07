"""Which columns of a Parquet or Arrow file hold the images, their labels and their splits. Reads no rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from convsmith.data.arrow import ColumnFile
from convsmith.data.config import DataConfig
from convsmith.data.labels import LABEL_NAMES, SPLIT_COLUMNS
from convsmith.data.tables import IMAGE_NAMES, plain
from convsmith.errors import UserError, choose
from convsmith.files import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

#: Names that are taken before all others; CIFAR-100 has a coarse label, too.
FIRST = {"image": ("img", "image"), "label": ("label", "fine_label")}


class Columns(NamedTuple):
    """The names of the columns, that of splits if there is one, and those of the classes if the file states them."""

    image: str
    label: str
    split: str | None
    classes: tuple[str, ...] | None


def find_columns(file: ColumnFile, config: DataConfig) -> Columns:
    """The columns that `config` names, or else those that are found by names and types. Raises UserError."""
    features = _features(file.schema)
    image = _found(file, "image", config.image_column, lambda column: _holds_images(file.schema, features, column))
    label = _found(
        file,
        "label",
        config.label_column,
        lambda column: column != image and _holds_labels(file.schema, features, column),
    )
    names = features.get(label, {}).get("names") if isinstance(features.get(label), dict) else None
    classes = _classes(file, label, names) if isinstance(names, list) else None
    return Columns(image, label, _split_column(file, config), classes)


def _classes(file: ColumnFile, label: str, names: list[Any]) -> tuple[str, ...]:
    """The names of the classes that the schema states, which the column `label` numbers."""
    import pyarrow as pa

    kind = _values(file.schema.field(label).type)
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise UserError(
            f"column '{label}' of '{file.path}' is of type {kind}, but its schema states classes, which labels of an "
            "integer type must number"
        )
    classes = tuple(map(str, names))
    wrong = [name for name in names if not isinstance(name, str | int) or "\0" in str(name)]
    wrong += [name for name in classes if classes.count(name) > 1]
    if wrong:
        raise UserError(
            f"the schema of '{file.path}' has the class name '{wrong[0]}' in the column '{label}', which is no text or "
            "occurs twice: give each class a name of its own"
        )
    return classes


def _found(file: ColumnFile, what: str, named: str | None, fits: Callable[[str], int]) -> str:
    """The named column, one of FIRST, or the one that fits best."""
    import pyarrow as pa

    names, key = file.schema.names, f"data.{what}_column"
    if named is not None and named not in names:
        raise choose(f"{key}: in '{file.path}' the column", named, names)
    column = named or next((name for name in FIRST[what] if name in names), None)
    if column is None:
        ranks = {name: rank for name in names if (rank := fits(name))}
        best = [name for name, rank in ranks.items() if rank == max(ranks.values())]
        if len(best) != 1:
            said = f"has several columns that may hold the {what}s: set --{key} to one of {', '.join(best)}"
            none = f"has no {what} column that is found by name or type: set --{key} to one of {', '.join(names)}"
            raise UserError(f"'{file.path}' {said if best else none}")
        column = best[0]
    kind = _values(file.schema.field(column).type)
    if names.count(column) > 1:
        raise UserError(f"'{file.path}' has {names.count(column)} columns '{column}': name each once")
    if what == "image" and not (_is_bytes(kind) or _is_text(kind) or _is_encoded(kind)):
        raise UserError(
            f"column '{column}' of '{file.path}' is of type {kind}, but must hold encoded images as binary or "
            f"struct<bytes, path>, or their paths as text"
        )
    if what == "label" and not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or _is_text(kind)
    ):
        raise UserError(
            f"column '{column}' of '{file.path}' is of type {kind}, but must hold one label per image, a number or a "
            f"string"
        )
    return column


def _holds_images(schema: pa.Schema, features: Mapping[str, Any], column: str) -> int:
    """How well a column fits as that of the images: 0 not at all."""
    kind = _values(schema.field(column).type)
    if isinstance(features.get(column), dict) and features[column].get("_type") == "Image":
        return 4
    if _is_encoded(kind):
        return 3
    return 2 if _is_bytes(kind) else int(_is_text(kind) and plain(column) in IMAGE_NAMES)


def _holds_labels(schema: pa.Schema, features: Mapping[str, Any], column: str) -> int:
    """How well a column fits as that of the labels: 0 not at all."""
    import pyarrow as pa

    kind = _values(schema.field(column).type)
    if not (pa.types.is_integer(kind) or _is_text(kind) or pa.types.is_boolean(kind)):
        return 0
    if isinstance(features.get(column), dict) and features[column].get("_type") == "ClassLabel":
        return 4
    if plain(column) in LABEL_NAMES:
        return 3
    if plain(column) in IMAGE_NAMES | SPLIT_COLUMNS:
        return 0
    return 2 if pa.types.is_int64(kind) else 1


def _split_column(file: ColumnFile, config: DataConfig) -> str | None:
    names = file.schema.names
    if config.split_column is not None and config.split_column not in names:
        raise choose(f"data.split_column: in '{file.path}' the column", config.split_column, names)
    if config.split_column is not None and not _is_text(_values(file.schema.field(config.split_column).type)):
        raise UserError(
            f"column '{config.split_column}' of '{file.path}' is of type "
            f"{file.schema.field(config.split_column).type}, but must hold train, val or test as text"
        )
    found = [name for name in names if plain(name) in SPLIT_COLUMNS and _is_text(_values(file.schema.field(name).type))]
    return config.split_column or (found[0] if len(found) == 1 else None)


def _values(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_encoded(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    types = {field.name: field.type for field in kind}
    content, path = types["bytes"], types.get("path", pa.null())
    return (pa.types.is_null(content) or _is_bytes(content)) and (pa.types.is_null(path) or _is_text(path))


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """What the library `datasets` notes of the columns."""
    try:
        features = parse_json(schema.metadata[b"huggingface"].decode())["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}
