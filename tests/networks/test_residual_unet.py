import pytest
import torch
from torch import nn

from nnunet_oar.networks import ResidualUNet3D

ANISOTROPIC = ((1, 2, 2), (1, 2, 2), (2, 2, 2))


def small(in_channels=1, num_classes=3, **options):
    torch.manual_seed(0)
    return ResidualUNet3D(in_channels, num_classes, **{"features": 4, **options}).eval()


def test_parameter_count_by_hand():
    """From the description: 3^3 = 27 weights for a pair of channels, two numbers a channel for each norm."""
    inputs, classes = 2, 5
    widths = [16, 32, 64, 128, 256]
    count = 0
    # context pathway: the convolution into each level, and two in each context module; norms: two in, one behind it
    count += 27 * (inputs * 16 + 16 * 32 + 32 * 64 + 64 * 128 + 128 * 256)
    count += sum(2 * 27 * w * w for w in widths)
    count += sum(3 * 2 * w for w in widths)
    # upsampling modules: a 3^3 convolution that halves the channels, with its norm
    count += 27 * (256 * 128 + 128 * 64 + 64 * 32 + 32 * 16) + 2 * (128 + 64 + 32 + 16)
    # three localisation modules after concatenation: 3^3 that halves, 1^3, a norm each
    count += sum(27 * 2 * w * w + 2 * w + w * w + 2 * w for w in (128, 64, 32))
    # the finest level: concatenation of 16 + 16 channels, one 3^3 convolution that keeps them
    count += 27 * 32 * 32 + 2 * 32
    # three segmentation layers, 3^3 with bias
    count += 27 * (64 + 32 + 32) * classes + 3 * classes
    assert sum(p.numel() for p in ResidualUNet3D(inputs, classes).parameters()) == count


def test_the_papers_dropout_and_norm():
    network = ResidualUNet3D(1, 5)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.3] * 5
    norms = [m for m in network.modules() if isinstance(m, nn.InstanceNorm3d)]
    assert len(norms) == 5 * 3 + 4 + 3 * 2 + 1
    assert all(m.affine and m.eps == 1e-5 and not m.track_running_stats for m in norms)
    assert {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)} == {1e-2}


@pytest.mark.parametrize(
    "strides, size",
    [
        (((2, 2, 2),) * 4, (32, 48, 64)),
        (((2, 2, 2),) * 4, (17, 32, 45)),
        (((2, 2, 2),) * 4, (1, 1, 17)),
        (ANISOTROPIC, (5, 37, 50)),
        (ANISOTROPIC, (1, 33, 20)),
        (((1, 3, 3), (3, 2, 1)), (7, 19, 10)),
        (((2, 2, 2),), (9, 7, 12)),
        (((2, 2, 2),) * 5, (20, 40, 33)),
    ],
)
def test_output_has_the_size_of_the_input(strides, size):
    with torch.no_grad():
        out = small(2, 5, strides=strides)(torch.randn(2, 2, *size))
    assert out.shape == (2, 5, *size) and out.isfinite().all()


@pytest.mark.parametrize("levels, layers", [(2, 1), (3, 2), (4, 3), (5, 3), (6, 3)])
def test_as_many_segmentation_layers_as_there_are_levels_for(levels, layers):
    network = small(strides=((2, 2, 2),) * (levels - 1))
    assert len(network.seg_layers) == layers
    assert network.seg_layers[-1].in_channels == 8  # finest last: twice the first level's width
    assert all(layer.kernel_size == (3, 3, 3) for layer in network.seg_layers)
    assert {key.split(".")[0] for key in network.state_dict()} == {"context", "upsample", "localise", "seg_layers"}


def test_strides_give_the_sizes_of_the_levels():
    sizes = []
    network = small(strides=ANISOTROPIC)
    for level in network.context:
        level.register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        network(torch.randn(1, 1, 5, 37, 50))
    assert sizes == [(4, 5, 37, 50), (8, 5, 19, 25), (16, 5, 10, 13), (32, 3, 5, 7)]


def test_max_features_bounds_the_width():
    network = ResidualUNet3D(1, 2, features=8, strides=((2, 2, 2),) * 4, max_features=20)
    assert [level.entry.out_channels for level in network.context] == [8, 16, 20, 20, 20]
    with torch.no_grad():
        assert network(torch.randn(1, 1, 18, 20, 22)).shape == (1, 2, 18, 20, 22)


@pytest.mark.parametrize("size", [(32, 32, 32), (17, 32, 45)])
@pytest.mark.parametrize("index", range(3))
def test_each_segmentation_layer_matters(index, size):
    network = small(strides=((2, 2, 2),) * 4)
    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        before = network(x)
        network.seg_layers[index].weight.zero_()
        network.seg_layers[index].bias.zero_()
        change = (network(x) - before).abs()
    assert change.max() > 1e-2
    # and everywhere: no part of the volume is left without the coarser levels
    assert change.amax((0, 1)).min() > 0


def test_the_output_is_the_sum_of_the_levels():
    network = small(strides=((2, 2, 2),) * 4)
    x = torch.randn(1, 1, 17, 32, 45)
    with torch.no_grad():
        for layer in network.seg_layers:
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([1.0, 2.0, 4.0]) * (1 + 9 * (layer is network.seg_layers[0])))
        out = network(x)
    # biases 10, 1, 1 times (1, 2, 4): upsampling a constant leaves it as it is
    torch.testing.assert_close(out, torch.tensor([12.0, 24.0, 48.0])[None, :, None, None, None].expand_as(out))


@pytest.mark.parametrize("strides", [((2, 2, 2),) * 4, ANISOTROPIC, ((2, 2, 2),)])
def test_a_gradient_reaches_every_parameter(strides):
    network = small(strides=strides).train()
    (network(torch.randn(1, 1, 24, 33, 40)) ** 2).mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-7, name  # not merely rounding: no parameter is without effect


@pytest.mark.parametrize("name", ["context.0.entry.weight", "context.2.entry.weight", "localise.0.0.weight"])
def test_the_gradient_is_that_of_the_output(name):
    """Finite differences, along a random direction: a path that the gradient misses (a skip, a sum) would show."""
    network = small().double()
    x = torch.randn(1, 1, 18, 20, 22, dtype=torch.float64)
    parameter = network.get_parameter(name)
    network(x).square().mean().backward()
    direction = torch.randn_like(parameter)
    values, step = [], 1e-8  # small, since every leaky ReLU has a kink
    with torch.no_grad():
        for sign in (1, -2):
            parameter += sign * step * direction
            values.append(network(x).square().mean())
    slope = (values[0] - values[1]) / (2 * step)
    assert float((parameter.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-3)


def test_a_context_module_adds_to_what_goes_past_it():
    level = small().context[1]
    x = torch.randn(1, 4, 6, 8, 10)
    with torch.no_grad():
        assert not torch.allclose(level(x), level.exit(level.entry(x)), atol=0.1)
        level.residual[-1].weight.zero_()
        assert torch.equal(level(x), level.exit(level.entry(x)))


def test_as_many_state_entries_as_parameters_and_buffers():
    network = ResidualUNet3D(1, 5)
    assert len(network.state_dict()) == len(list(network.parameters())) + len(list(network.buffers()))
    copy = ResidualUNet3D(1, 5)
    copy.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 18, 20, 22)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), copy.eval()(x))


@pytest.mark.parametrize("place", [(3, 5, 6), (20, 5, 33), (3, 26, 6)])
def test_what_lies_on_one_side_is_seen_on_that_side(place):
    network = small()
    x = torch.zeros(1, 1, 24, 32, 40)
    x[0, 0, 12, 16, 20] = 1.0  # something for the norms to work with, the same in both
    marked = x.clone()
    marked[(0, 0, *place)] = 5.0
    with torch.no_grad():
        # the norms see the whole volume; the median over space takes their global part out
        change = network(marked) - network(x)
    change = (change - change.flatten(2).median(2).values[:, :, None, None, None]).abs().sum((0, 1))
    position = [int(i) for i in torch.unravel_index(change.argmax(), change.shape)]
    assert all(abs(a - b) <= 3 for a, b in zip(position, place, strict=True)), position


def test_dropout_is_active_in_training_only():
    network = small(dropout=0.3)
    x = torch.randn(1, 1, 18, 20, 22)
    with torch.no_grad():
        assert torch.equal(network(x), network(x))
        network.train()
        assert not torch.equal(network(x), network(x))
        none = small(dropout=0.0).train()
        assert torch.equal(none(x), none(x))


def test_samples_do_not_see_each_other():
    network = small().double()
    x = torch.randn(2, 1, 18, 20, 22, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[1:], network(x[1:]))


def test_the_input_is_not_written_to():
    x = torch.randn(1, 1, 18, 20, 22)
    before = x.clone()
    small().train()(x)
    assert torch.equal(x, before)


def test_bfloat16_autocast_forward_and_backward():
    """Four voxels at the deepest level: what torch does with two of them is tests/networks/test_precision.py's."""
    network, x = small(dropout=0.0).train(), torch.randn(1, 1, 49, 56, 60)

    def gradients():
        network.zero_grad()
        out = network(x)
        out.float().square().mean().backward()
        return out, torch.cat([p.grad.flatten() for p in network.parameters()])

    reference, reference_gradient = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        out, gradient = gradients()
    assert out.shape == (1, 3, 49, 56, 60)
    assert (out.float() - reference).abs().mean() < 0.05 * reference.abs().mean()
    assert torch.cosine_similarity(gradient, reference_gradient, dim=0) > 0.95


@pytest.mark.parametrize("training", [False, True])
def test_traces_as_one_graph(training):
    network = small(dropout=0.0).train(training)
    x = torch.randn(1, 1, 17, 20, 25)
    with torch.no_grad():
        compiled = torch.compile(network, backend="eager", fullgraph=True)(x)
        torch.testing.assert_close(compiled, network(x))


@pytest.mark.parametrize("size", [(16, 16, 16), (1, 9, 16)])
@pytest.mark.parametrize("training", [False, True])
def test_an_input_that_shrinks_to_one_voxel_is_refused_with_the_minimum(size, training):
    network = small().train(training)
    with pytest.raises(ValueError, match=r"longer than its total stride, \(16, 16, 16\)"):
        network(torch.randn(1, 1, *size))
    network(torch.randn(1, 1, *size[:2], 17))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 2, 20, 20, 20\)"):
        small()(torch.zeros(1, 2, 20, 20, 20))
    with pytest.raises(ValueError, match=r"\(1, 20, 20, 20\)"):
        small()(torch.zeros(1, 20, 20, 20))
    for options, named in [
        ({"strides": ()}, r"\(\)"),
        ({"strides": ((2, 2),)}, r"\(2, 2\)"),
        ({"strides": ((2, 0, 2),)}, r"\(2, 0, 2\)"),
        ({"dropout": 1.0}, "1.0"),
        ({"features": 0}, "0"),
    ]:
        with pytest.raises(ValueError, match=named):
            small(**options)
