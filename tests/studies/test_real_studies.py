"""The benchmarks that make studies of small nets: what they train, what they count, and the page that they write."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CIFAR10 = np.repeat(np.arange(10), 6000)


@pytest.fixture(scope="module")
def nets():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("small_trainings")


@pytest.fixture(scope="module")
def studies(nets):
    return importlib.import_module("real_studies")


@pytest.mark.parametrize(("kind", "count", "size"), [("600", 100, 600), ("2000", 30, 2000), ("skewed", 90, 600)])
def test_populations_share_no_image(nets, kind, count, size):
    found = nets.populations(kind, CIFAR10)
    assert [len(rows) for rows in found] == [size] * count
    assert len(np.unique(np.concatenate(found))) == count * size


def test_the_classes_of_skewed_populations_differ_in_size(nets):
    sizes = np.stack([np.bincount(CIFAR10[rows], minlength=10) for rows in nets.populations("skewed", CIFAR10)])
    assert (sizes.max(axis=1) > 4 * sizes.min(axis=1)).all()
    assert (sizes.argmax(axis=1)[:10] == np.arange(10)).mean() > 0.5  # another class is the largest each time


def test_nets_side_by_side_are_those_that_the_package_builds(nets):
    alone = [nets.new_net(4, seed).train() for seed in (1, 2)]
    images = [torch.randn(20, 3, nets.SIZE, nets.SIZE, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    together = nets.Nets(alone).train()(nets.side_by_side(images))
    for number, (net, own) in enumerate(zip(alone, images, strict=True)):
        torch.testing.assert_close(together[:, number], net(own), atol=1e-5, rtol=1e-4)


def test_nets_side_by_side_are_trained_as_each_alone(nets, monkeypatch):
    monkeypatch.setattr(nets, "EPOCHS", 1)
    draw = torch.Generator().manual_seed(0)
    images = [torch.randn(60, 3, nets.SIZE, nets.SIZE, generator=draw) for _ in range(3)]
    labels = [torch.randint(nets.CLASSES, (60,), generator=draw) for _ in range(3)]
    together = nets.train(images, labels, 4, [1, 2, 3])
    for number in range(3):
        alone = nets.train([images[number]], [labels[number]], 4, [number + 1])
        torch.testing.assert_close(
            together(nets.side_by_side(images))[:, number],
            alone(nets.side_by_side([images[number]]))[:, 0],
            atol=1e-4,
            rtol=1e-3,
        )


def test_null_studies_of_a_design_share_no_training(studies):
    assert [(one.ours.seeds, one.theirs.seeds) for one in studies.pairs("A", 6, 3)] == [((1, 2, 3), (4, 5, 6))]
    for design in studies.DESIGNS:
        trainings = [
            (side.arm, seed, repeat)
            for one in design.null
            for side in (one.ours, one.theirs)
            for seed in side.seeds
            for repeat in one.repeats
        ]
        assert len(trainings) == len(set(trainings)), design.title
        assert all(one.ours.arm == one.theirs.arm for one in design.null)


def test_a_study_has_the_differences_of_the_metrics_of_its_folds(studies, tmp_path):
    draw = np.random.default_rng(0)
    labels, fold_of = draw.integers(0, 3, 60), np.arange(60) % 4
    scores = {f"{arm}-{seed}-1": np.log(draw.dirichlet(np.ones(3), 60)) for arm, seed in (("A", 1), ("A", 2))}
    folder = tmp_path / "60-4"
    folder.mkdir()
    np.savez(folder / "000.npz", **{"labels": labels, "fold-1": fold_of, **scores})
    (population,) = studies.World(folder).populations
    found = population.study("accuracy", studies.Side("A", (1,)), studies.Side("A", (2,)), (1,))
    right = {place: kept.argmax(axis=1) == labels for place, kept in scores.items()}
    assert [one.fold for one in found] == [1, 2, 3, 4]
    for fold, one in enumerate(found):
        held = fold_of == fold
        assert one.images.tolist() == np.flatnonzero(held).tolist()
        assert one.values.mean() == pytest.approx(right["A-1-1"][held].mean() - right["A-2-1"][held].mean())


def test_the_page_has_the_figures_of_the_record(studies):
    text = studies.PAGE.read_text(encoding="utf-8")
    result = json.loads(studies.RESULT.read_text(encoding="utf-8"))
    assert text == studies.with_tables(text, studies.page(result)), "run: python benchmarks/real_studies.py page"
