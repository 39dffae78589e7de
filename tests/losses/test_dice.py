import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_oar.losses import MulticlassDiceLoss
from nnunet_oar.losses.dice import soft_dice


def reference(logits, target, annotated=None, weights=None, include_background=False):
    """The contract as slow loops in float64, from the formula on paper."""
    batch, classes = logits.shape[:2]
    logits = logits.astype(np.float64)
    terms, term_weights = [], []
    for b in range(batch):
        e = np.exp(logits[b] - logits[b].max(0))
        p = e / e.sum(0)
        g = np.stack([target[b, 0] == c for c in range(classes)]).astype(np.float64)
        for organ in range(1, classes):
            if annotated is not None and not annotated[b, organ - 1]:
                p[0] += p[organ]
                g[0] += g[organ]
                p[organ] = g[organ] = 0
        for c in range(0 if include_background else 1, classes):
            if c == 0 or annotated is None or annotated[b, c - 1]:
                terms.append((2 * (p[c] * g[c]).sum() + 1) / (p[c].sum() + g[c].sum() + 1))
                term_weights.append(1 if weights is None else weights[c if include_background else c - 1])
    if not terms or sum(term_weights) == 0:
        return 0.0
    return 1 - np.average(terms, weights=term_weights)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(1, 2, 3, 4, 5), (2, 4, 5, 3, 6), (3, 5, 1, 7, 2), (2, 3, 6, 4), (2, 6, 11)]),
    partial=st.booleans(),
    weighted=st.booleans(),
    include_background=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.int16, torch.int64]),
)
def test_agrees_with_the_formula(seed, shape, partial, weighted, include_background, dtype):
    rng = np.random.default_rng(seed)
    batch, classes, *spatial = shape
    logits = rng.normal(size=shape) * 4
    target = rng.integers(0, rng.integers(1, classes + 1), size=(batch, 1, *spatial))  # some organs may be absent
    annotated = rng.random((batch, classes - 1)) < 0.5 if partial else None
    weights = (rng.random(classes - (not include_background)) + 0.01).tolist() if weighted else None

    loss = MulticlassDiceLoss(weights, include_background)
    given_annotated = None if annotated is None else torch.from_numpy(annotated)
    expected = reference(logits, target, annotated, weights, include_background)
    got = loss(torch.from_numpy(logits), torch.from_numpy(target).to(dtype), given_annotated)
    assert got.ndim == 0 and got.dtype == torch.float64
    # weights are kept as float32
    assert float(got) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    single = loss(torch.from_numpy(logits).float(), torch.from_numpy(target).to(dtype), given_annotated)
    assert single.dtype == torch.float32
    assert float(single) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def hard_logits(prediction, classes):
    return 160.0 * torch.nn.functional.one_hot(prediction, classes).movedim(-1, 1).double() - 80


def test_by_hand():
    # organ 1: 2 voxels predicted, 3 true, 1 in common: (2 * 1 + 1) / (2 + 3 + 1) = 1/2
    # organ 2: 4 voxels predicted, 4 true, all in common: 1. Background: 2, 1, 0 -> 1 / 4
    prediction = torch.tensor([[1, 1, 0, 0, 2, 2, 2, 2]])
    target = torch.tensor([[[1, 0, 1, 1, 2, 2, 2, 2]]])
    logits = hard_logits(prediction, 3)
    assert MulticlassDiceLoss()(logits, target).item() == pytest.approx(1 - (1 / 2 + 1) / 2)
    assert MulticlassDiceLoss([3, 1])(logits, target).item() == pytest.approx(1 - (3 / 2 + 1) / 4)
    with_background = MulticlassDiceLoss(include_background=True)
    assert with_background(logits, target).item() == pytest.approx(1 - (1 / 4 + 1 / 2 + 1) / 3)
    only_first = torch.tensor([[True, False]])
    assert MulticlassDiceLoss()(logits, target, only_first).item() == pytest.approx(1 / 2)
    # with organ 2 unannotated its voxels are background in both: 6 predicted, 5 true, 4 in common: 9 / 12
    assert with_background(logits, target, only_first).item() == pytest.approx(1 - (9 / 12 + 1 / 2) / 2)


def test_soft_dice_by_hand():
    p = torch.tensor([[[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]])
    g = torch.tensor([[[True, True, False], [False, False, False]]])
    torch.testing.assert_close(soft_dice(p, g), torch.tensor([[4 / 4.5, 1.0]]))


def test_an_absent_organ_counts():
    target = torch.zeros(1, 1, 4, 5, 6, dtype=torch.long)
    silent = hard_logits(torch.zeros(1, 4, 5, 6, dtype=torch.long), 3)
    assert MulticlassDiceLoss()(silent, target).item() == pytest.approx(0, abs=1e-12)
    # nine voxels of organ 2 predicted although absent: 1 / (9 + 1), and the mean with organ 1's 1
    prediction = torch.zeros(1, 4, 5, 6, dtype=torch.long)
    prediction[0, 0, :3, :3] = 2
    assert MulticlassDiceLoss()(hard_logits(prediction, 3), target).item() == pytest.approx(1 - (1 + 0.1) / 2)
    logits = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    MulticlassDiceLoss()(logits, target).backward()
    assert (logits.grad[:, 0] < 0).all() and logits.grad.isfinite().all()  # less foreground would lower the loss


def test_samples_are_scored_one_by_one():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 5, 6, 7, generator=generator)
    target = torch.randint(0, 4, (3, 1, 5, 6, 7), generator=generator)
    target[1] = 0
    loss = MulticlassDiceLoss()
    alone = torch.stack([loss(logits[b : b + 1], target[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(loss(logits, target), alone.mean())
    # with different numbers of annotated organs each PAIR counts once
    annotated = torch.tensor([[True, True, True], [False, False, False], [True, False, False]])
    alone = [loss(logits[b : b + 1], target[b : b + 1], annotated[b : b + 1]) for b in range(3)]
    torch.testing.assert_close(loss(logits, target, annotated), (3 * alone[0] + alone[2]) / 4)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0]])
def test_nothing_annotated_is_zero_with_a_gradient_of_zeros(weights):
    logits = torch.randn(2, 4, 3, 4, 5, requires_grad=True)
    target = torch.randint(0, 4, (2, 1, 3, 4, 5))
    value = MulticlassDiceLoss(weights)(logits, target, torch.zeros(2, 3, dtype=torch.bool))
    assert value.item() == 0
    value.backward()
    assert logits.grad.shape == logits.shape and (logits.grad == 0).all()


def test_what_is_annotated_nowhere_but_weighted_alone_is_zero_too():
    logits = torch.randn(1, 3, 4, requires_grad=True)
    value = MulticlassDiceLoss([0, 1])(logits, torch.ones(1, 1, 4, dtype=torch.long), torch.tensor([[True, False]]))
    value.backward()
    assert value.item() == 0 and (logits.grad == 0).all()


def test_the_background_always_counts_if_included():
    logits = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    target = torch.randint(0, 3, (1, 1, 4, 5))
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    # all of target and prediction are background then
    assert MulticlassDiceLoss(include_background=True)(logits, target, nothing).item() == pytest.approx(0, abs=1e-9)
    heavy = MulticlassDiceLoss([1, 0, 0], include_background=True)
    expected = reference(logits.numpy(), target.numpy(), None, [1, 0, 0], True)
    assert heavy(logits, target).item() == pytest.approx(expected)


def test_an_unannotated_organ_is_no_mistake_but_an_annotated_one_in_its_place_is():
    target = torch.tensor([[[0, 1, 1, 2, 2, 2]]])
    annotated = torch.tensor([[True, False]])
    as_organ_2 = hard_logits(torch.tensor([[0, 1, 1, 2, 2, 2]]), 3)
    as_background = hard_logits(torch.tensor([[0, 1, 1, 0, 0, 0]]), 3)
    as_organ_1 = hard_logits(torch.tensor([[0, 1, 1, 1, 1, 1]]), 3)
    loss = MulticlassDiceLoss()
    assert loss(as_organ_2, target, annotated).item() == pytest.approx(0, abs=1e-9)
    assert loss(as_background, target, annotated).item() == pytest.approx(0, abs=1e-9)
    assert loss(as_organ_1, target, annotated).item() == pytest.approx(1 - 5 / 8)


def test_the_perfect_prediction_is_the_minimum():
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(0, 4, (2, 1, 4, 5, 6), generator=generator)
    perfect = hard_logits(target[:, 0], 4)
    loss = MulticlassDiceLoss()
    assert loss(perfect, target).item() == pytest.approx(0, abs=1e-12)
    for _ in range(20):
        assert loss(perfect + 120 * torch.randn(perfect.shape, generator=generator), target) > 0
    # gradient descent finds it
    logits = torch.zeros(2, 4, 4, 5, 6, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.3)
    for _ in range(80):
        optimiser.zero_grad()
        value = loss(logits, target)
        value.backward()
        optimiser.step()
    assert value < 0.02 and torch.equal(logits.argmax(1), target[:, 0])


@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("partial", [False, True])
def test_gradcheck(include_background, partial):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 2, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    target = torch.randint(0, 3, (2, 1, 2, 3, 2), generator=generator)
    annotated = torch.tensor([[True, False], [True, True]]) if partial else None
    loss = MulticlassDiceLoss([0.2, 0.3, 0.5][not include_background :], include_background)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, annotated), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_does_not_overflow(dtype, autocast):
    """128^3 voxels are 32 times what float16 can count to."""
    target = torch.zeros(1, 1, 128, 128, 128, dtype=torch.uint8)
    target[..., 64:, :] = 1
    logits = torch.zeros(1, 2, 128, 128, 128, dtype=dtype)
    logits[:, 1, :, 64:] = 2
    logits.requires_grad_()
    with torch.autocast("cpu", dtype, enabled=autocast):
        value = MulticlassDiceLoss(include_background=True)(logits, target)
    half = 128**3 / 2
    p = np.exp(2) / (1 + np.exp(2))
    organ = (2 * half * p + 1) / (half * p + half / 2 + half + 1)
    background = (2 * half / 2 + 1) / (half / 2 + half * (1 - p) + half + 1)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(1 - (organ + background) / 2, abs=1e-5)
    value.backward()
    assert logits.grad.isfinite().all()


def test_extreme_logits_give_finite_gradients():
    target = torch.randint(0, 3, (2, 1, 5, 6, 7), generator=torch.Generator().manual_seed(4))
    for annotated in (None, torch.tensor([[True, False], [False, False]])):
        logits = (hard_logits(2 - target[:, 0], 3)).float().requires_grad_()
        value = MulticlassDiceLoss()(logits, target, annotated)
        value.backward()
        assert value.isfinite() and logits.grad.isfinite().all()


def test_the_target_is_left_alone_and_the_weights_are_no_part_of_a_checkpoint():
    target = torch.tensor([[[0, 1, 2, 2]]])
    before = target.clone()
    loss = MulticlassDiceLoss([1, 2])
    loss(torch.zeros(1, 3, 4), target, torch.tensor([[True, False]]))
    assert torch.equal(target, before) and not loss.state_dict()


@pytest.mark.parametrize(
    "target, annotated, named",
    [
        (torch.zeros(2, 4, 5, 6, dtype=torch.long), None, r"\(2, 4, 5, 6\)"),
        (torch.zeros(2, 1, 4, 5, 7, dtype=torch.long), None, r"\(2, 1, 4, 5, 7\)"),
        (torch.zeros(2, 3, 4, 5, 6, dtype=torch.long), None, r"\(2, 3, 4, 5, 6\)"),
        (torch.zeros(2, 1, 4, 5, 6), None, "float32"),
        (torch.full((2, 1, 4, 5, 6), 3), None, "got 3"),
        (torch.full((2, 1, 4, 5, 6), -1, dtype=torch.int16), None, "got -1; nnU-Net"),
        (torch.zeros(2, 1, 4, 5, 6, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool), r"\(2, 3\)"),
        (torch.zeros(2, 1, 4, 5, 6, dtype=torch.long), torch.ones(2, 2), "float32"),
    ],
)
def test_what_does_not_fit_is_refused(target, annotated, named):
    with pytest.raises(ValueError, match=named):
        MulticlassDiceLoss()(torch.zeros(2, 3, 4, 5, 6), target, annotated)


def test_weights_that_do_not_fit_are_refused():
    logits, target = torch.zeros(1, 3, 4), torch.zeros(1, 1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="2 entries.*got 3"):
        MulticlassDiceLoss([1, 1, 1])(logits, target)
    with pytest.raises(ValueError, match="3 entries.*got 2"):
        MulticlassDiceLoss([1, 1], include_background=True)(logits, target)
    for wrong in ([0, 0], [1, -1], [1, float("nan")], []):
        with pytest.raises(ValueError, match="weights"):
            MulticlassDiceLoss(wrong)
