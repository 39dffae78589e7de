"""What a network reads of a CT, straight from its original voxels: no copy at the working spacing in between."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nnunet_oar.networks.volume import Volume
from nnunet_oar.plan import OARPlan, Triple
from nnunet_oar.roi import Box
from nnunet_oar.sampling import Between, between, centres, interpolated_along

# So many voxels are converted to float32 at once
CHUNK_VOXELS = 4_000_000
# After these nothing is left of the scale, which the network's own normalisation makes good; masks would change parts of an image
SCALES = ("NoNormalization", "ZScoreNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")


class Intensities:
    """From a CT's stored values to those that the network sees: what nnU-Net's normalisation clips before it resamples, and the
    plan's window afterwards.

    Raises ValueError for a scheme of nnU-Net that is not known.
    """

    def __init__(self, configuration: Mapping, foreground: Mapping, plan: OARPlan):
        self.bounds, self.window, self.scale = [], [], []
        schemes, masks = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
        for channel, (scheme, mask) in enumerate(zip(schemes, masks, strict=True)):
            if (scheme not in SCALES or mask) and scheme != "CTNormalization":
                raise ValueError(
                    f"plans: channel {channel} is normalised with {scheme}{' in a mask' if mask else ''}, which needs the whole "
                    f"image at once; use nnUNetv2_predict"
                )
            bounds, mean, std = None, 0.0, 1.0
            if scheme == "CTNormalization":
                known = foreground[str(channel)]
                bounds = known["percentile_00_5"], known["percentile_99_5"]
                mean, std = known["mean"], max(known["std"], 1e-8)
            window = plan.data_window and tuple(value * std + mean for value in plan.data_window)
            self.bounds.append(bounds)
            self.window.append(window)
            self.scale.append((mean, std))

    def clip_stored(self, values: Tensor, channel: int) -> Tensor:
        """What nnU-Net does before it resamples; in place, float32."""
        bounds = self.bounds[channel]
        return values if bounds is None else values.clamp_(*bounds)

    def clip(self, values: Tensor, channel: int) -> Tensor:
        """What the network does with resampled values; in place, float32."""
        window = self.window[channel]
        return values if window is None else values.clamp_(*window)

    def whole(self, values: Tensor, channel: int) -> Tensor:
        """In the units of preprocessed data; in place."""
        mean, std = self.scale[channel]
        return values if std == 1 and mean == 0 else values.sub_(mean).div_(std)


class OriginalVolume(Volume):
    """A CT (C, Z, Y, X) of finite numbers in the model's axis order, without faces that are 0; nothing of it is copied whole.

    shape: what it would have at the working spacing. Of the voxels there those that a sample needs are interpolated, slab by slab,
    as nnU-Net's resampling does (`resample_torch_fornnunet`, linear): networks see what they see through nnUNetv2_predict.
    """

    def __init__(self, array: np.ndarray, shape: Triple, intensities: Intensities, device: torch.device):
        self.array, self.shape, self.device = array, tuple(shape), device
        self.intensities = intensities
        statistics = [self._measure(channel) for channel in range(len(array))]
        self.mean, self.std, lowest = zip(*statistics, strict=True)
        self.lowest = torch.tensor(
            [(low - mean) / std for low, mean, std in zip(lowest, self.mean, self.std, strict=True)],
            dtype=torch.float32,
            device=device,
        )

    def sample(self, box: Box, shape: Sequence[int]) -> Tensor:
        # of the box' voxels those that the grid lies between
        places = [between(centres(0, m, m, n), 0, n, n) for n, m in zip(box.shape, shape, strict=True)]
        needed = [np.unique(np.concatenate((place.lower, place.upper))) for place in places]
        places = [
            Between(np.searchsorted(index, place.lower), np.searchsorted(index, place.upper), place.weight)
            for index, place in zip(needed, places, strict=True)
        ]
        needed = [index + start for index, start in zip(needed, box.start, strict=True)]
        out = []
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            planes = []
            for values in self._at(channel, needed):
                values = self.intensities.clip(values, channel)
                planes.append(interpolated_along(interpolated_along(values, 1, places[1]), 2, places[2]))
            out.append(interpolated_along(torch.cat(planes), 0, places[0]).sub_(mean).div_(std))
        return torch.stack(out)[None]

    def whole(self) -> Tensor:
        everything = [np.arange(size) for size in self.shape]
        channels = range(len(self.array))
        return torch.stack([self.intensities.whole(torch.cat(list(self._at(c, everything))), c) for c in channels])

    def _at(self, channel: int, voxels: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Intensities, in the file's units, of these voxels of the working spacing (ascending indices of each axis), in slabs."""
        places = [
            between((index + 0.5), 0, size, stored)
            for index, size, stored in zip(voxels, self.shape, self.array.shape[1:], strict=True)
        ]
        rows, columns = (slice(int(place.lower[0]), int(place.upper[-1]) + 1) for place in places[1:])
        in_rows, in_columns = places[1].moved(-rows.start), places[2].moved(-columns.start)
        step = max(1, CHUNK_VOXELS // ((rows.stop - rows.start) * (columns.stop - columns.start)))
        for first in range(0, len(voxels[0]), step):
            lower, upper, weight = (of[first : first + step] for of in places[0])
            slices = np.unique(np.concatenate((lower, upper)))
            values = self.intensities.clip_stored(self._tensor(self.array[channel][slices, rows, columns]), channel)
            values = interpolated_along(interpolated_along(values, 1, in_rows), 2, in_columns)
            here = Between(np.searchsorted(slices, lower), np.searchsorted(slices, upper), weight)
            yield interpolated_along(values, 0, here)

    def _measure(self, channel: int) -> tuple[float, float, float]:
        """Mean and standard deviation of all voxels, clipped, and the least of them, as intensity.measure."""
        count, mean, squares, lowest = 0, 0.0, 0.0, math.inf
        for values in self._at(channel, [np.arange(size) for size in self.shape]):
            values = self.intensities.clip(values, channel)
            size = values.numel()
            of_chunk, chunk_mean = (float(value) for value in torch.var_mean(values, correction=0))
            lowest = min(lowest, float(values.min()))
            gap, total = chunk_mean - mean, count + size
            squares += of_chunk * size + gap**2 * count * size / total
            mean, count = mean + gap * size / total, total
        std = math.sqrt(squares / count)
        return mean, std if std > 1e-6 * max(abs(mean), 1.0) else 1.0, lowest

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.device)
