"""The division of batches among ranks, and what one rank computes alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from convsmith import launch
from convsmith.config import validate
from convsmith.contracts import Batch
from convsmith.data.sampler import batch_positions, epoch_order, steps_per_epoch
from convsmith.data.sources import ARRAYS, from_arrays
from convsmith.errors import UserError
from convsmith.launch import Place
from convsmith.training import setup
from convsmith.training.config import TrainConfig
from convsmith.training.loss import build_loss, share_of
from convsmith.training.own import Parts
from convsmith.training.ranks import ALONE, Ranks
from convsmith.training.synchronised import SynchronisedBatchNorm, batch_norm
from convsmith.training.together import refuse_small

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")


class Unconnected(Ranks):
    """A rank that divides as one of several and never sends anything."""

    def __init__(self, rank: int, size: int) -> None:
        self.place = Place(rank, size, rank, size)


@given(images=st.integers(2, 500), batch=st.integers(2, 64), ranks=st.integers(2, 9), balanced=st.booleans())
def test_the_ranks_see_exactly_the_batches_of_one_process(images: int, batch: int, ranks: int, balanced: bool) -> None:
    labels = np.arange(images) % 2
    order = epoch_order(labels, 3, 1, balanced)
    for whole in batch_positions(order, batch):
        parts = [Unconnected(rank, ranks).share(whole) for rank in range(ranks)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert min(map(len, parts)) >= (images // steps_per_epoch(images, batch)) // ranks


@pytest.mark.parametrize("settings", [{}, {"loss": "focal"}])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.5]])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_losses_of_all_ranks_add_up_to_that_of_the_whole_batch(
    settings: dict[str, str], weights: list[float] | None, mixed: bool
) -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, 11), torch.from_numpy(rng.normal(size=(11, 3)))
    given = None if weights is None else torch.tensor(weights)
    loss = build_loss(TrainConfig(**settings), 0.1, None if given is None else given.double())

    def of(rows: np.ndarray, others: np.ndarray) -> torch.Tensor:
        here = torch.from_numpy(labels[rows])
        batch = Batch(logits[rows], here, torch.from_numpy(labels[others]), 0.7) if mixed else Batch(logits[rows], here)
        return loss(logits[rows], batch)

    parts = [Unconnected(rank, 3).share(np.arange(11)) for rank in range(3)]
    partners = [rng.permutation(part) for part in parts]  # images are mixed with others of their rank
    shares = [share_of(labels[part], labels, given) for part in parts]
    assert {share.images for share in shares} == {11}
    summed = sum(of(part, other) * share.weight for part, other, share in zip(parts, partners, shares, strict=True))
    torch.testing.assert_close(summed, of(np.arange(11), np.concatenate(partners)))


@pytest.mark.parametrize("dimensions", [2, 4])
def test_synchronised_batch_norm_of_one_rank_is_that_of_torch(dimensions: int) -> None:
    torch.manual_seed(1)
    shape = (6, 3, 5, 4)[:dimensions]
    inputs = [(torch.randn(shape).double() * 3 + 100).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    layers = [torch.nn.BatchNorm2d(3).double() if dimensions == 4 else torch.nn.BatchNorm1d(3).double() for _ in "ab"]
    towards = torch.randn(shape).double()
    outputs = [layers[0](inputs[0])]
    with SynchronisedBatchNorm(ALONE):
        outputs.append(layers[1](inputs[1]))
    for output in outputs:
        (output * towards).sum().backward()
    near = {"rtol": 1e-4, "atol": 1e-4}  # the synchronised one computes in float32
    torch.testing.assert_close(outputs[1], outputs[0], **near)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **near)
    for ours, theirs in zip(layers[1].state_dict().values(), layers[0].state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, **near)
    torch.testing.assert_close(layers[1].weight.grad, layers[0].weight.grad, **near)


def test_batch_norm_in_eval_mode_is_left_alone() -> None:
    layer, images = torch.nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4)
    with SynchronisedBatchNorm(ALONE):
        torch.testing.assert_close(layer(images), F.batch_norm(images, torch.zeros(3), torch.ones(3)))
    assert batch_norm(ALONE, images.bfloat16(), None, None, None, None, True, 0.1, 1e-5).dtype == torch.bfloat16


def test_a_process_alone_sends_nothing_and_gets_back_what_it_gives() -> None:
    values = np.arange(5)
    assert ALONE.share(values) is values
    assert ALONE.every_value({"a": 1}) == [{"a": 1}]
    assert ALONE.told(lambda: "word") == "word"
    assert ALONE.agreed(None) is None
    assert torch.equal(ALONE.sum(torch.ones(2)), torch.ones(2))
    before = torch.get_rng_state()
    ALONE.seed([0, 1], torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_place_is_read_from_what_torchrun_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert launch.place() == Place(0, 1, 0, 1, 0)
    for variable, value in zip(VARIABLES, "58142", strict=True):
        monkeypatch.setenv(variable, value)
    assert launch.place() == Place(rank=5, size=8, local_rank=1, local_size=4, restarts=2)
    for variable, value, message in (
        ("RANK", "8", "ranks are counted from 0"),
        ("RANK", "x", "the environment variable RANK must be a number from 0 on, but is 'x'"),
        ("WORLD_SIZE", "0", "WORLD_SIZE must be a number from 1 on"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            with pytest.raises(UserError, match=message):
                launch.place()
    monkeypatch.delenv("RANK")
    with pytest.raises(UserError, match="RANK must be a number"):
        launch.place()


def test_batches_are_refused_that_leave_each_rank_too_little() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 2))
    parts = Parts(
        from_arrays(np.random.default_rng(0).integers(0, 255, (40, 4, 4), np.uint8), np.arange(40) % 2), module
    )
    config = validate({"data": {"source": ARRAYS}, "train": {"batch_size": 3, "threads": 1, "layout": "contiguous"}})
    made = setup.prepare(config, parts)

    def refused(rank: Ranks, **train: object) -> None:
        refuse_small(rank, made.config.with_values(train=train), made.dataset, made.model, made.finetuning)

    refused(ALONE)
    refused(Unconnected(0, 2), batch_size=4)
    refused(Unconnected(0, 2), sync_batch_norm=True)
    with pytest.raises(UserError, match="gets one, on which batch norm cannot be trained: raise"):
        refused(Unconnected(0, 2))
    with pytest.raises(UserError, match="batches of 2 images cannot be divided among 4 processes"):
        refused(Unconnected(0, 4))
    with pytest.raises(UserError, match="mps trains in one process"):
        refused(Unconnected(0, 2), device="mps")
