"""Trainers for benchmarks: they learn what their base class learns, and log the time of the steps and of waiting for data.

nnU-Net finds them through nnUNet_extTrainer.
"""

from __future__ import annotations

import os
import time

import torch
from nnunet_oar.trainers.attention import OARAttentionTrainer
from nnunet_oar.trainers.cascade import OARCascadeTrainer
from nnunet_oar.trainers.heatmap import OARHeatmapCascadeTrainer
from nnunet_oar.trainers.instances import OARInstanceCascadeTrainer
from nnunet_oar.trainers.shared_encoder import OARSharedEncoderTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

EPOCHS, ITERATIONS, VALIDATION_ITERATIONS = "OAR_BENCHMARK_EPOCHS", "OAR_BENCHMARK_ITERATIONS", 2
# steps that are not timed, where two are left that are: kernels are chosen, networks compiled, and batches are there that were made
# before
WARM_UP = 4


class WaitingFor:
    """A data loader, and the seconds that its batches were waited for."""

    def __init__(self, loader):
        self.loader, self.seconds = loader, 0.0

    def __next__(self):
        start = time.perf_counter()
        batch = next(self.loader)
        self.seconds += time.perf_counter() - start
        return batch


class Timed:
    def on_train_start(self):
        super().on_train_start()
        self.steps, self.seconds_of_steps = 0, 0.0
        self.dataloader_train = WaitingFor(self.dataloader_train)
        self.warm_up = max(0, min(WARM_UP, self.num_epochs * self.num_iterations_per_epoch - 2))

    def train_step(self, batch: dict) -> dict:
        start = time.perf_counter()
        output = super().train_step(batch)
        if self.warm_up:
            self.warm_up, self.dataloader_train.seconds = self.warm_up - 1, 0.0
        else:
            self.steps, self.seconds_of_steps = self.steps + 1, self.seconds_of_steps + time.perf_counter() - start
        return output

    def on_train_end(self):
        waited, self.dataloader_train = self.dataloader_train.seconds, self.dataloader_train.loader
        gpu = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        self.print_to_log_file(
            f"timed: {self.steps} steps, {self.seconds_of_steps:.2f} s in steps, {waited:.2f} s waited for data, {gpu:.2f} GB on "
            f"the GPU"
        )
        super().on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False):
        """Left out: what a benchmark predicts, it predicts and times by itself."""


class nnUNetTrainer_timed(Timed, nnUNetTrainer):
    """Stock nnU-Net with another length of training; its schedule of the learning rate follows."""

    # nnU-Net looks at the names of the arguments
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ[EPOCHS])
        self.num_iterations_per_epoch = int(os.environ[ITERATIONS])
        self.num_val_iterations_per_epoch = VALIDATION_ITERATIONS


class OARCascadeTrainer_timed(Timed, OARCascadeTrainer):
    pass


class OARInstanceCascadeTrainer_timed(Timed, OARInstanceCascadeTrainer):
    pass


class OARHeatmapCascadeTrainer_timed(Timed, OARHeatmapCascadeTrainer):
    pass


class OARSharedEncoderTrainer_timed(Timed, OARSharedEncoderTrainer):
    pass


class OARAttentionTrainer_timed(Timed, OARAttentionTrainer):
    pass
