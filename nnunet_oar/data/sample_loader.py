"""Batches that are a function of their number alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.intensity import Normalisation, replace_non_finite


def read_image(data, index: tuple, normalisation: Normalisation) -> Tensor:
    """That region of a preprocessed image, normalised as the whole case is, float32."""
    image = torch.from_numpy(np.asarray(data[index], dtype=np.float32))
    return normalisation.apply(replace_non_finite(image)[0])


def read_labels(seg, index: tuple) -> Tensor:
    """That region of a preprocessed label map, int16; nnU-Net's -1 is background."""
    return torch.from_numpy(np.maximum(np.asarray(seg[index], dtype=np.int16), 0))


class SampleLoader:
    """Endless iterator over batches for nnU-Net's (ordered) MultiThreadedAugmenter; a sub-class implements `sample`.

    Batch n is a function of (seed in the plan, fold, n) alone: worker i of w makes the batches i, i + w, i + 2w, ..., which the
    augmenter hands out in turn, so neither the number of workers nor an interruption (start) changes what is seen.

    entropy: what random numbers are drawn from, beside the number of the sample.
    """

    lists: tuple[str, ...] = ()
    """Keys of a sample that are gathered in a list; all others are tensors and stacked."""

    def __init__(self, seed: int, batch_size: int, *, fold: int | str, training: bool, start: int, workers: int):
        # nnU-Net's fold "all" gets a number that no fold has
        self.entropy = (seed, 1_000_000 if fold == "all" else int(fold), int(training))
        self.batch_size, self.training = batch_size, training
        self.next_batch, self.step, self.workers = start, 1, workers

    def sample(self, n: int) -> dict:
        raise NotImplementedError

    def case_of(self, n: int, cases: Sequence[str]) -> str:
        """The case of sample n: all of them in each pass, in training in a new order each time."""
        passes, index = divmod(n, len(cases))
        if self.training:
            index = np.random.default_rng((*self.entropy, passes, 0)).permutation(len(cases))[index]
        return cases[index]

    def set_thread_id(self, thread_id: int) -> None:
        """Called by the augmenter in each worker process."""
        self.next_batch += thread_id
        self.step = self.workers
        # a forked worker that uses torch's thread pool may wait for ever for threads that were not forked with it
        torch.set_num_threads(1)

    def __iter__(self) -> SampleLoader:
        return self

    def __next__(self) -> dict:
        first = self.next_batch * self.batch_size
        self.next_batch += self.step
        samples = [self.sample(n) for n in range(first, first + self.batch_size)]
        return {
            key: [sample[key] for sample in samples]
            if key in self.lists
            else torch.stack([sample[key] for sample in samples])
            for key in samples[0]
        }
