"""Several stages trained side by side, each with its own optimiser, gradient clipping and loss scaling.

What one stage does cannot touch another, so that training them together equals training them in turn. To nnU-Net it looks like
one optimiser: `param_groups`, `state_dict`, `load_state_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nnunet_oar.plan import HeatmapPlan, SharedEncoderPlan, TwoStagePlan


class StageOptimizers:
    """stages: name -> (module, optimiser over its parameters). clip: largest gradient norm per stage; 0 is no clipping.

    Losses are scaled for float16 on CUDA.
    """

    def __init__(
        self, stages: Mapping[str, tuple[nn.Module, torch.optim.Optimizer]], clip: float, device: torch.device
    ):
        self.stages, self.clip = dict(stages), clip
        self.scalers = {name: torch.amp.GradScaler(device.type, enabled=device.type == "cuda") for name in stages}

    @property
    def param_groups(self) -> list[dict]:
        return [group for _, optimizer in self.stages.values() for group in optimizer.param_groups]

    def update(self, name: str, loss: Tensor) -> None:
        """Backward pass and one step of one stage."""
        module, optimizer = self.stages[name]
        scaler = self.scalers[name]
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if self.clip:
            nn.utils.clip_grad_norm_(module.parameters(), self.clip)
        scaler.step(optimizer)
        scaler.update()

    def state_dict(self) -> dict:
        return {
            name: {"optimizer": optimizer.state_dict(), "scaler": self.scalers[name].state_dict()}
            for name, (_, optimizer) in self.stages.items()
        }

    def load_state_dict(self, state: Mapping) -> None:
        for name, (_, optimizer) in self.stages.items():
            optimizer.load_state_dict(state[name]["optimizer"])
            self.scalers[name].load_state_dict(state[name]["scaler"])


class RateSchedule:
    """Learning rate of each stage: the one it was made with times a factor of the epoch, so that a resumed training needs no state.

    plan: with lr_decay the factor is lr_decay^epoch, as in the papers; without it nnU-Net's, (1 - epoch / epochs)^0.9.
    """

    def __init__(self, optimizer: StageOptimizers, plan: TwoStagePlan | HeatmapPlan | SharedEncoderPlan):
        self.optimizer, self.decay, self.epochs = optimizer, plan.lr_decay, plan.epochs
        self.initial = {
            name: [group["lr"] for group in of_stage.param_groups] for name, (_, of_stage) in optimizer.stages.items()
        }

    def factor(self, epoch: int) -> float:
        return max(0.0, 1 - epoch / self.epochs) ** 0.9 if self.decay is None else self.decay**epoch

    def step(self, epoch: int) -> None:
        for name, (_, of_stage) in self.optimizer.stages.items():
            for group, initial in zip(of_stage.param_groups, self.initial[name], strict=True):
                group["lr"] = initial * self.factor(epoch)
