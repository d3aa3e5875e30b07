"""The size equation against torch's own layers; tables against torch's counters."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convsmith.errors import UserError
from convsmith.nets.build import build
from convsmith.nets.config import BlockConfig, ModelConfig
from convsmith.nets.shapes import discarded, equation, estimate, fitted_size, output_size, totals, trace

windows = st.tuples(st.integers(1, 40), st.integers(1, 7), st.integers(0, 3), st.integers(1, 4))

NETS = {
    "simple-cnn": ModelConfig(),
    "study": ModelConfig(name="convnet", blocks=(BlockConfig(channels=32, padding=0),), hidden=(200,), norm="none"),
    "global pool": ModelConfig(name="convnet", blocks=(BlockConfig(channels=8, kernel=5),), global_pool="max"),
    "residual": ModelConfig(
        name="convnet",
        blocks=(BlockConfig(channels=8), BlockConfig(channels=8, pool="none", residual=True)),
        pool="t-max-avg",
    ),
    "small-resnet": ModelConfig(name="small-resnet", depth=2, width=4),
}


@given(windows)
def test_output_size_is_that_of_torch(window):
    size, kernel, padding, stride = window
    assume(size + 2 * padding >= kernel)
    image = torch.empty(1, 1, size, size, device="meta")
    conv = nn.Conv2d(1, 1, kernel, stride, padding, device="meta")
    assert conv(image).shape[2] == output_size(*window)
    if padding <= kernel // 2:
        assert nn.MaxPool2d(kernel, stride, padding)(image).shape[2] == output_size(*window)


@given(windows)
def test_windows_that_do_not_fit_have_no_output(window):
    size, kernel, padding, _ = window
    assert (output_size(*window) < 1) == (kernel > size + 2 * padding)


@given(windows)
def test_discarded_pixels_reach_no_output(window):
    size, kernel, padding, stride = window
    assume(size + 2 * padding >= kernel)
    row = torch.zeros(1, 1, size + 2 * padding, requires_grad=True)
    torch.nn.functional.conv1d(row, torch.ones(1, 1, kernel), stride=stride).sum().backward()
    reached = row.grad.flatten().nonzero().max().item() + 1
    assert discarded(*window) == row.shape[2] - reached


@pytest.mark.parametrize(
    ("window", "text"),
    [
        ((32, 3, 0, 1), "(32 - 3 + 2*0)/1 + 1 = 30"),
        ((31, 2, 0, 2), "floor((31 - 2 + 2*0)/2) + 1 = 15, discards 1"),
        ((32, 3, 1, 2), "floor((32 - 3 + 2*1)/2) + 1 = 16, discards 1 of padding"),
        ((10, 3, 1, 4), "floor((10 - 3 + 2*1)/4) + 1 = 3, discards 1 of padding"),
        ((11, 3, 1, 4), "floor((11 - 3 + 2*1)/4) + 1 = 3, discards 2, 1 of padding"),
    ],
)
def test_equation_is_worked_out(window, text):
    assert equation(*window) == text


def test_a_size_that_does_not_fit_is_refused_with_its_equation():
    with pytest.raises(UserError) as error:
        fitted_size("block 3 conv", (2, 2), 5, 0, 1, "use a smaller kernel")
    assert str(error.value) == (
        "block 3 conv: (2 - 5 + 2*0)/1 + 1 = -2: a 5 x 5 window does not fit into 2 x 2 pixels; use a smaller kernel"
    )


def test_study_example_shows_30_15_and_7200():
    rows = {row.name: row for row in trace(build(NETS["study"], 3, 32, 10), 3, 32)}
    assert rows["blocks.0.conv"].equation == "(32 - 3 + 2*0)/1 + 1 = 30"
    assert rows["blocks.0.conv"].parameters == 32 * (3 * 3 * 3 + 1)
    assert rows["blocks.0.pool"].equation == "(30 - 2 + 2*0)/2 + 1 = 15"
    assert rows["flatten"].equation == "32*15*15 = 7200"
    assert rows["hidden.0"].input_shape == (7200,)
    assert rows["hidden.0"].output_shape == (200,)


@pytest.mark.parametrize("name", NETS)
def test_totals_agree_with_torch(name):
    model = build(NETS[name], 3, 32, 10).eval()
    total = totals(trace(model, 3, 32))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    assert total.parameters == sum(p.numel() for p in model.parameters())
    assert 2 * total.macs == counter.get_total_flops()


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 2), st.sampled_from(["none", "average"])), min_size=1, max_size=3
    )
)
def test_receptive_field_is_what_the_gradient_reaches(layers):
    """With all weights positive, one output's gradient is nonzero on exactly the pixels that it sees."""
    blocks = tuple(
        BlockConfig(channels=1, kernel=kernel, stride=stride, padding=0, pool=pool) for kernel, stride, pool in layers
    )
    # Windows without gaps between them, or the field has holes.
    assume(all(stride <= kernel for kernel, stride, _ in layers))
    config = ModelConfig(name="convnet", blocks=blocks, norm="none", activation="sigmoid", global_pool="average")
    model = build(config, 1, 160, 2).double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.01)
    told = [row.receptive_field for row in trace(model, 1, 160) if row.name.startswith("blocks")][-1]
    image = torch.zeros(1, 1, 160, 160, dtype=torch.float64, requires_grad=True)
    maps = model.blocks(image)
    maps[0, 0, maps.shape[2] // 2, maps.shape[3] // 2].backward()
    rows_reached = image.grad[0, 0].sum(dim=1).nonzero()
    assert rows_reached.max() - rows_reached.min() + 1 == told


def test_receptive_field_takes_the_longest_path():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.long = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 3, 1, 1))
            self.short = nn.Conv2d(1, 1, 1, 2)
            self.last = nn.Conv2d(2, 1, 3)

        def forward(self, x):
            return self.last(torch.cat([self.long(x), self.short(x)], dim=1))

    fields = {row.name: row.receptive_field for row in trace(Branches(), 1, 16)}
    assert fields == {"long.0": 3, "long.1": 7, "short": 1, "last": 11}


def test_trace_counts_shared_and_uncalled_parameters_once():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice = nn.Conv2d(2, 2, 3, padding=1)
            self.scale = nn.Parameter(torch.ones(5))
            self.unused = nn.Linear(3, 4)

        def forward(self, x):
            return self.twice(self.twice(x))

    rows = trace(Odd(), 2, 8)
    assert [row.name for row in rows] == ["twice", "twice", "", "unused"]
    assert [row.parameters for row in rows] == [38, 0, 5, 16]
    assert rows[-1].output_shape == ()


def test_trace_handles_dilation_same_padding_and_rectangles():
    model = nn.Sequential(
        nn.Conv2d(1, 1, 3, dilation=2),
        nn.Conv2d(1, 1, 5, padding="same"),
        nn.Conv2d(1, 1, (1, 3)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    rows = trace(model, 1, 20)
    assert [row.equation for row in rows] == [
        "(20 - 5 + 2*0)/1 + 1 = 16",
        "(16 - 5 + 2*2)/1 + 1 = 16",
        "(16 - 1 + 2*0)/1 + 1 = 16; (16 - 3 + 2*0)/1 + 1 = 14",
        "",  # rounds up
    ]
    assert [row.receptive_field for row in rows] == [5, 9, 9, 11]


def test_trace_leaves_the_model_as_it_was():
    model = build(NETS["simple-cnn"], 3, 32, 10)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    trace(model, 3, 32)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", NETS)
def test_estimate_of_activations_is_near_what_autograd_keeps(name):
    batch, model = 4, build(NETS[name], 3, 32, 10)
    guess = estimate(trace(model, 3, 32), batch=batch, state_per_parameter=2)
    kept: dict[int, int] = {}
    weights = {p.data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.rand(batch, 3, 32, 32)).sum()
    assert 0.5 < guess.activations / sum(kept.values()) < 2


def test_estimate_adds_up():
    model = build(NETS["simple-cnn"], 3, 32, 10)
    rows = trace(model, 3, 32)
    guess = estimate(rows, batch=128, state_per_parameter=2)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    moments = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v.dim())
    assert (guess.parameters, guess.gradients, guess.optimizer) == (weights, weights, moments)
    assert guess.memory == 2 * weights + moments + guess.activations


def test_a_forward_pass_alone_keeps_two_layers_at_most():
    rows = trace(build(NETS["simple-cnn"], 3, 32, 10), 3, 32)
    guess = estimate(rows, batch=32, state_per_parameter=2, backward=False)
    widest = max(torch.Size(row.input_shape).numel() + torch.Size(row.output_shape).numel() for row in rows)
    assert (guess.gradients, guess.optimizer, guess.activations) == (0, 0, 32 * 4 * widest)
    assert guess.activations < estimate(rows, batch=32, state_per_parameter=2).activations
