"""Where a library's pretrained weights lie: on this machine, or else at which address. Reads and downloads nothing.

On this machine they are looked for in this order: the folder ``weights`` in the cache folder, where people put files by
hand (``<timm name>.safetensors``, ``<torchvision name>.pth``); then where the libraries keep what they have downloaded
(Hugging Face's cache, torch's hub folder).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from convsmith import network
from convsmith.errors import UserError

SUFFIXES = {"timm": ".safetensors", "torchvision": ".pth"}  # of the files that people put into the folder
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm names them on the hub, the safe one first
#: Pretrained networks for photographs. The first whose weights are on this machine is taken, or else the first.
PREFERRED = (
    "timm/tf_efficientnet_lite0",
    "timm/tf_efficientnet_lite1",
    "timm/tf_efficientnet_lite2",
    "timm/efficientnet_b0",
    "timm/mobilenetv3_large_100",
    "timm/resnet18",
    "timm/resnet50",
    "torchvision/mobilenet_v3_large",
    "torchvision/resnet18",
    "torchvision/resnet50",
)
_HUB_FOLDER = "models--timm--"  # in Hugging Face's cache, before the name of a model of timm's


class WeightsAbsent(UserError):
    """Pretrained weights are not on this machine and cannot be downloaded; the message names file, folder and fix."""


@dataclass(frozen=True)
class Origin:
    """A library's weights of one architecture: their `label`, the file on the net, and where the library keeps it.

    `kept` is None if the library does not have it on this machine. `hub` is the file's repository of Hugging Face.
    """

    label: str
    address: str
    kept: Path | None
    hub: str | None = None


def weights_folder(cache: Path) -> Path:
    """The folder for files of weights that people have fetched themselves."""
    return cache / "weights"


def placed(model: str, cache: Path) -> Path:
    """Where a file with the weights of ``timm/<name>`` or ``torchvision/<name>`` is looked for first."""
    library, _, name = model.partition("/")
    return weights_folder(cache) / f"{name}{SUFFIXES[library]}"


def at_hand(model: str, cache: Path) -> Path | None:
    """The file on this machine with the weights of ``timm/<name>`` or ``torchvision/<name>``, or None."""
    path = placed(model, cache)
    if path.is_file():
        return path
    found = origin(model)
    return None if found is None else found.kept


def all_at_hand(cache: Path) -> dict[str, Path]:
    """Every architecture of timm's and torchvision's whose weights are on this machine, with their file, by name."""
    import timm
    from torchvision import models

    found: dict[str, Path] = {}
    torchvisions = models.list_models(module=models)
    names = {"timm": timm.is_model, "torchvision": torchvisions.__contains__}
    for library, suffix in SUFFIXES.items():
        for path in weights_folder(cache).glob(f"*{suffix}"):
            if path.is_file() and names[library](path.name.removesuffix(suffix)):
                found[f"{library}/{path.name.removesuffix(suffix)}"] = path
    candidates = [f"torchvision/{name}" for name in torchvisions]
    for folder in _hub_cache().glob(f"{_HUB_FOLDER}*"):
        tagged = folder.name.removeprefix(_HUB_FOLDER)
        if timm.is_model(tagged):
            candidates.append(f"timm/{untagged(tagged)}")
    for model in candidates:
        if model not in found and (known := origin(model)) is not None and known.kept is not None:
            found[model] = known.kept
    return dict(sorted(found.items()))


def untagged(name: str) -> str:
    """timm's name without the tag of its weights, where these are the ones that the bare name stands for."""
    import timm

    architecture, _, tag = name.partition(".")
    config = timm.get_pretrained_cfg(architecture)
    return architecture if config is not None and config.tag == tag else name


def origin(model: str) -> Origin | None:
    """Where the library has its weights of an architecture that it knows from; None if it has none."""
    library, _, name = model.partition("/")
    return {"timm": _timm_origin, "torchvision": _torchvision_origin}[library](name)


def _torchvision_origin(name: str) -> Origin | None:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    return Origin(f"torchvision's {weights}", weights.url, _in_hub_folder(weights.url))


def _timm_origin(name: str) -> Origin | None:
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        return None
    architecture = name.partition(".")[0]
    label = f"timm's {architecture}.{config.tag}" if config.tag else f"timm's {architecture}"
    if not config.hf_hub_id:
        return Origin(label, str(config.url), _in_hub_folder(str(config.url)))
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    repository, _, revision = config.hf_hub_id.partition("@")
    names = (config.hf_hub_filename,) if config.hf_hub_filename else HUB_FILES
    kept = [try_to_load_from_cache(repository, file, revision=revision or None) for file in names]
    paths = [Path(path) for path in kept if isinstance(path, str)]
    address = hf_hub_url(repository, names[0], revision=revision or None)
    return Origin(label, address, next(iter(paths), None), repository)


def _in_hub_folder(url: str) -> Path | None:
    import torch

    path = Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(url).name)
    return path if path.is_file() else None


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def unreachable(origin: Origin) -> str | None:
    """Why the server of a file cannot be reached or may not be; None if it answers, whatever it says."""
    if origin.hub is not None:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set"
    return network.unreachable(origin.address)


def by_hand(model: str, address: str, cache: Path) -> str:
    """What to do where weights cannot be had here, in words."""
    return f"fetch {address} on another computer and save it as '{placed(model, cache)}'"


def absent(model: str, origin: Origin, reason: str, cache: Path) -> WeightsAbsent:
    """The error for weights that cannot be had."""
    return WeightsAbsent(
        f"the weights of '{model}' are not on this machine and cannot be downloaded ({reason[:200]}): "
        f"{by_hand(model, origin.address, cache)}, or name the file, --transfer.weights FILE"
    )
