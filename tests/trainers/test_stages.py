"""Training both stages side by side equals training them in turn."""

import copy

import pytest
import torch
from nnunet_oar.trainers.stages import RateSchedule, StageOptimizers
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from nnunet_oar.plan import CascadePlan


def two_stages(clip=1.0):
    torch.manual_seed(0)
    modules = {name: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)) for name in ("coarse", "fine")}
    optimizers = {
        name: (module, torch.optim.Adam(module.parameters(), 1e-2, weight_decay=1e-2))
        for name, module in modules.items()
    }
    return modules, StageOptimizers(optimizers, clip, torch.device("cpu"))


def update(modules, optimizers, name, step):
    torch.manual_seed(100 * step + len(name))
    scale = 100 if name == "coarse" else 0.01  # with one common norm the large gradients would clip the small ones away
    loss = scale * (modules[name](torch.full((3, 4), float(step))) ** 2).mean()
    optimizers.update(name, loss)


def test_in_turn_or_side_by_side():
    together, both = two_stages()
    apart, each = two_stages()
    for step in range(8):
        for name in together:
            update(together, both, name, step)
    for name in apart:
        for step in range(8):
            update(apart, each, name, step)
    for name in together:
        for a, b in zip(together[name].parameters(), apart[name].parameters(), strict=True):
            assert torch.equal(a, b)


def test_each_stage_is_clipped_by_its_own_norm():
    modules, optimizers = two_stages(clip=1.0)
    update(modules, optimizers, "coarse", 1)
    update(modules, optimizers, "fine", 1)
    norms = [torch.cat([p.grad.flatten() for p in module.parameters()]).norm().item() for module in modules.values()]
    assert norms[0] == pytest.approx(1.0, rel=1e-3) and norms[1] < 1


def test_state_goes_through_a_checkpoint(tmp_path):
    modules, optimizers = two_stages()
    for step in range(3):
        update(modules, optimizers, "coarse", step)
    saved = {"weights": {k: m.state_dict() for k, m in modules.items()}, "optimizer": optimizers.state_dict()}
    torch.save(copy.deepcopy(saved), tmp_path / "checkpoint.pth")
    update(modules, optimizers, "coarse", 3)

    others, resumed = two_stages()
    stored = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    for name, module in others.items():
        module.load_state_dict(stored["weights"][name])
    resumed.load_state_dict(stored["optimizer"])
    update(others, resumed, "coarse", 3)
    for a, b in zip(modules["coarse"].parameters(), others["coarse"].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("decay", [0.985, None])
def test_the_rate_is_a_closed_form_of_the_epoch(decay):
    _, optimizers = two_stages()
    schedule = RateSchedule(optimizers, CascadePlan(organs=("heart",), epochs=40, lr_decay=decay))
    # nnU-Net's own
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1e-2)
    reference = PolyLRScheduler(other, 1e-2, 40)
    for epoch in (10, 0, 39):
        schedule.step(epoch)
        reference.step(epoch)
        wanted = 1e-2 * decay**epoch if decay else other.param_groups[0]["lr"]
        assert [group["lr"] for group in optimizers.param_groups] == pytest.approx([wanted] * 2, rel=1e-12)


def test_a_rate_never_falls_below_zero():
    _, optimizers = two_stages()
    schedule = RateSchedule(optimizers, CascadePlan(organs=("heart",), epochs=40, lr_decay=None))
    schedule.step(41)
    assert {group["lr"] for group in optimizers.param_groups} == {0.0}
