"""Finetuning: which parameters are trained in which epochs, and with which fraction of the learning rate.

Frozen parameters get neither gradient nor optimiser state, and frozen modules stay in eval mode. Stages are unfrozen
from the head towards the stem (gradual unfreezing, Howard and Ruder 2018, who also lower the rate from layer to layer).
Loads no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convsmith.contracts import Classifier
from convsmith.errors import UserError, nearest
from convsmith.optim.optimizers import Group, parameter_groups
from convsmith.transfer.config import ALL_BUT_HEAD, TransferConfig

HEAD = "head"
LIBRARY = "net."  # the prefix of a library's parameter names in a backbone; patterns may omit it


@dataclass(frozen=True)
class Phase:
    """The names of the parameters that are trained from `epoch` (from 0) on; `unfrozen` are the newly added stages."""

    epoch: int
    trains: frozenset[str]
    unfrozen: tuple[str, ...]
    head_alone: bool


@dataclass(frozen=True)
class Finetuning:
    """The phases of a run in order, each training more than the one before, and each stage's factor on the rate."""

    phases: tuple[Phase, ...]
    factors: Mapping[str, float]
    freeze_statistics: bool

    def number_at(self, epoch: int) -> int:
        return sum(phase.epoch <= epoch for phase in self.phases) - 1

    @property
    def image_epoch(self) -> int | None:
        """The first epoch in which more than the head is trained; None if there is none."""
        return next((phase.epoch for phase in self.phases if not phase.head_alone), None)

    def apply(self, model: nn.Module, number: int) -> Phase:
        """Make the parameters of a phase trainable, and no others."""
        phase = self.phases[number]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in phase.trains)
        return phase

    def frozen_to_eval(self, module: nn.Module) -> None:
        """Put modules whose parameters are all frozen, with their children, into eval mode, so that they do not drift.

        With `freeze_statistics`, this includes all batch norms, whose weights are still trained.
        """
        parameters = list(module.parameters())
        frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        if frozen or (self.freeze_statistics and isinstance(module, _BatchNorm)):
            module.eval()
            return
        for child in module.children():
            self.frozen_to_eval(child)

    def groups(self, model: nn.Module) -> list[Group]:
        """The groups of `parameter_groups`, or a pair of groups for each stage if stages have different rates.

        They contain the parameters that are trained in the last phase. An optimiser ignores parameters without
        gradients, so one that is still frozen has no state, and gets a new one in the epoch in which it is unfrozen.
        """
        self.apply(model, len(self.phases) - 1)
        groups = parameter_groups(model)
        if len(set(self.factors.values())) > 1:
            assert isinstance(model, Classifier)
            stage_of = {id(p): stage for stage, module in stages_and_head(model) for p in module.parameters()}
            groups = [
                {**group, "stage": stage, "params": members, "lr_factor": factor}
                for stage, factor in self.factors.items()
                for group in groups
                if (members := [p for p in group["params"] if stage_of[id(p)] == stage])
            ]
        self.apply(model, 0)
        return groups


def plan(model: nn.Module, config: TransferConfig, epochs: int) -> Finetuning | None:
    """The finetuning that `config` describes; None if all parameters are treated alike and trained from the start.

    Raises UserError for a network without stages, for stages and patterns that match nothing, if nothing is left to
    train, and for stages that would be unfrozen after the last epoch.
    """
    if not config.finetunes:
        return None
    if not isinstance(model, Classifier):
        raise UserError(
            f"the transfer section needs a network with stages, head and features (convsmith.contracts.Classifier), "
            f"which {type(model).__name__} is not"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = {stage: {names[id(p)] for p in module.parameters()} for stage, module in stages_and_head(model)}
    if loose := set(names.values()) - set().union(*members.values()):
        raise UserError(f"transfer: these parameters are neither in a stage nor in the head: {_listed(loose)}")
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = _frozen(config, members) & trainable
    if trainable == frozen:
        raise UserError(f"transfer.freeze {_listed(config.freeze)} leaves nothing to train: do not freeze the head")
    phases = list(_phases(config, members, trainable, frozen))
    if phases[-1].epoch >= epochs:
        last = phases[-1]
        raise UserError(
            f"transfer.unfreeze is longer than the run: {_listed(last.unfrozen)} would be unfrozen after {last.epoch} "
            f"epochs, but train.epochs is {epochs}: train for at least {last.epoch + 1}, or unfreeze sooner or less "
            "(after, every, stages, most)"
        )
    stages = [stage for stage in members if stage != HEAD]
    factors = {
        stage: config.backbone_lr * config.lr_decay ** (len(stages) - index) for index, stage in enumerate(stages)
    }
    return Finetuning(tuple(phases), {HEAD: 1.0, **dict(reversed(factors.items()))}, config.freeze_statistics)


def stages_and_head(model: Classifier) -> Iterator[tuple[str, nn.Module]]:
    """The stages from stem to head. What a library calls head, with more than the last layer, is a stage here."""
    yield from ((LIBRARY + stage if stage == HEAD else stage, module) for stage, module in model.stages.items())
    yield HEAD, model.head


def _frozen(config: TransferConfig, members: Mapping[str, set[str]]) -> set[str]:
    """The names of the parameters that `config.freeze` names."""
    every = set().union(*members.values())
    frozen: set[str] = set()
    for word in config.freeze:
        if word == ALL_BUT_HEAD:
            matched = every - members[HEAD]
        elif word in members:
            matched = members[word]
        else:
            matched = {n for n in every if fnmatchcase(n, word) or fnmatchcase(n.removeprefix(LIBRARY), word)}
        if not matched:
            raise UserError(
                f"transfer.freeze: '{word}' matches no stage and no parameter."
                f"{nearest(word, [*members, ALL_BUT_HEAD])} Stages: {', '.join(members)}; "
                f"parameters such as {min(every)}"
            )
        frozen |= matched
    return frozen


def _phases(
    config: TransferConfig, members: Mapping[str, set[str]], trainable: set[str], frozen: set[str]
) -> Iterator[Phase]:
    def phase(epoch: int, unfrozen: tuple[str, ...]) -> Phase:
        trains = frozenset(trainable - frozen)
        return Phase(epoch, trains, unfrozen, trains <= members[HEAD])

    yield phase(0, ())
    if config.unfreeze is None:
        return
    waiting = [stage for stage in reversed(list(members)) if members[stage] & frozen][: config.unfreeze.most]
    for number, start in enumerate(range(0, len(waiting), config.unfreeze.stages)):
        unfrozen = tuple(waiting[start : start + config.unfreeze.stages])
        frozen = frozen - set().union(*(members[stage] for stage in unfrozen))
        yield phase(config.unfreeze.after + number * config.unfreeze.every, unfrozen)


def _listed(names: object) -> str:
    assert isinstance(names, tuple | set)
    return ", ".join(sorted(names) if isinstance(names, set) else names)
