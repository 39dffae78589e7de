import numpy as np
import pytest
import torch

from nnunet_oar.losses import DiceCrossEntropyLoss, recalibrate
from nnunet_oar.losses.recalibration import never_raised


def equation_4(logits, annotated):
    """Equation (4) as printed, on probabilities, in float64: an organ's p * w, the background 1 - sum of them."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    w = annotated.reshape(*annotated.shape, *[1] * (logits.ndim - 2))
    organs = p[:, 1:] * w
    return np.concatenate((1 - organs.sum(1, keepdims=True), organs), 1)


def random_case(seed, shape=(3, 5, 4, 6, 7), scale=3.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * scale, rng.random((shape[0], shape[1] - 1)) < 0.5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(3, 5, 4, 6, 7), (2, 3, 8, 5), (4, 2, 9), (3, 4)])
def test_agrees_with_the_equation(seed, shape):
    logits, annotated = random_case(seed, shape)
    got = recalibrate(torch.from_numpy(logits), torch.from_numpy(annotated)).exp().numpy()
    np.testing.assert_allclose(got, equation_4(logits, annotated), rtol=1e-10, atol=1e-13)


def test_by_hand():
    # probabilities 0.1, 0.2, 0.3, 0.4; the second organ is not annotated
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    got = recalibrate(logits, torch.tensor([[True, False, True]]))
    torch.testing.assert_close(got.exp(), torch.tensor([[0.4, 0.2, 0.0, 0.4]]))
    assert got[0, 2] == -1e4


@pytest.mark.parametrize("seed", range(3))
def test_everything_annotated_is_log_softmax(seed):
    logits = torch.from_numpy(random_case(seed)[0]).float()
    expected = logits.log_softmax(1)
    assert torch.equal(recalibrate(logits, None), expected)
    assert torch.equal(recalibrate(logits, torch.ones(3, 4, dtype=torch.bool)), expected)


def test_nothing_annotated_is_all_background():
    logits = torch.from_numpy(random_case(0)[0])
    got = recalibrate(logits, torch.zeros(3, 4, dtype=torch.bool))
    torch.testing.assert_close(got[:, 0], torch.zeros_like(got[:, 0]))
    assert (got[:, 1:] == -1e4).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite_with_finite_gradients(dtype):
    signs = torch.tensor([[a, b, c] for a in (-80, 0, 80) for b in (-80, 0, 80) for c in (-80, 0, 80)], dtype=dtype)
    for annotated in ([True, True], [True, False], [False, False]):
        logits = signs.clone().requires_grad_()
        got = recalibrate(logits, torch.tensor([annotated] * len(signs)))
        assert got.dtype == torch.float32 and got.isfinite().all()
        torch.testing.assert_close(got.exp().sum(1), torch.ones(len(signs)))
        # what a loss does with it: 0 * log p must be 0 for an organ that the target does not hold
        (0.0 * got + got.exp()[:, :1]).sum().backward()
        assert logits.grad.isfinite().all()


def test_certainty_about_an_unannotated_organ_is_certainty_about_the_background():
    # 1 - sum would give log 0 or log of a rounding error for the background here
    logits = torch.tensor([[-80.0, -80.0, 80.0]])
    assert recalibrate(logits, torch.tensor([[True, False]]))[0, 0] == 0
    # and log of exactly 0 here, where the right answer is -160
    assert recalibrate(logits, torch.tensor([[False, True]]))[0, 0] == pytest.approx(-160 + np.log(2), rel=1e-6)


def test_unannotated_channels_carry_no_gradient():
    logits = torch.from_numpy(random_case(1)[0]).requires_grad_()
    annotated = torch.tensor([[True, False, True, False]] * 3)
    recalibrate(logits, annotated)[:, [2, 4]].sum().backward()
    assert (logits.grad == 0).all()


def test_gradcheck():
    logits, annotated = random_case(2, (2, 4, 3, 2))
    annotated = torch.from_numpy(annotated)
    assert annotated.any() and not annotated.all()
    logits = torch.from_numpy(logits).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: recalibrate(x, annotated)[:, :1], logits)
    assert torch.autograd.gradcheck(lambda x: recalibrate(x, annotated).exp(), logits)


def test_float32_under_autocast():
    logits, annotated = (torch.from_numpy(x) for x in random_case(3))
    with torch.autocast("cpu", torch.bfloat16):
        got = recalibrate(logits.bfloat16(), annotated)
    assert got.dtype == torch.float32
    assert torch.equal(got, recalibrate(logits.bfloat16().float(), annotated))


@pytest.mark.parametrize(
    "logits, annotated, named",
    [
        (torch.zeros(2, 4, 3), torch.ones(2, 4, dtype=torch.bool), r"\(2, 3\).*\(2, 4\)"),
        (torch.zeros(2, 4, 3), torch.ones(1, 3, dtype=torch.bool), r"\(2, 3\).*\(1, 3\)"),
        (torch.zeros(2, 4, 3), torch.ones(2, 3), "float32"),
        (torch.zeros(2, 1, 3), None, r"\(2, 1, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(logits, annotated, named):
    with pytest.raises(ValueError, match=named):
        recalibrate(logits, annotated)


def gradient_of(logits, target, annotated, guard):
    logits = logits.clone().requires_grad_()
    seen = guard(logits, annotated)
    loss = DiceCrossEntropyLoss(1.0)(seen, target, annotated)
    loss.backward()
    return loss.item(), logits.grad


@pytest.mark.parametrize("seed", range(3))
def test_a_case_never_raises_what_it_does_not_annotate(seed):
    logits, annotated = random_case(seed, (3, 4, 5, 6))
    annotated[0], annotated[1] = [True, False, True], [False, True, False]
    logits, annotated = torch.from_numpy(logits), torch.from_numpy(annotated)
    target = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (3, 1, 5, 6)))
    plain_loss, plain = gradient_of(logits, target, annotated, lambda x, _: x)
    loss, guarded = gradient_of(logits, target, annotated, never_raised)
    missing = torch.cat((torch.zeros(3, 1, dtype=torch.bool), ~annotated), 1)
    assert loss == plain_loss
    assert (guarded[missing] >= 0).all() and (guarded[missing] > 0).any()
    # what is lowered, and what is annotated, is as before
    assert torch.equal(guarded[missing], plain[missing].clamp_min(0)) and (plain[missing] < 0).any()
    assert torch.equal(guarded[~missing], plain[~missing])


def test_with_everything_annotated_the_guard_is_nothing():
    logits = torch.randn(2, 3, 4)
    assert never_raised(logits, None) is logits
    assert never_raised(logits, torch.ones(2, 2, dtype=torch.bool)) is logits
    with pytest.raises(ValueError, match="annotated must be bool"):
        never_raised(logits, torch.ones(2, 5, dtype=torch.bool))
