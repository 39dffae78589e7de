"""nnunet_oar predict, with organs of ordinary size at places of their own instead of what the untrained network says.

    python scripts/predict_in_places.py -i IN -o OUT -m MODEL_FOLDER

Takes the arguments of nnunet_oar predict, for the models and CTs of benchmark_inference.py. The network runs as ever; its logits,
those of random weights, are replaced by those of ellipsoids, so that a benchmark of time and memory is one of organs as large and
as far apart as real ones, however many there are and however long the CT.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from benchmark_inference import SPACING_MM

from nnunet_oar.cli import main
from nnunet_oar.inference import model
from nnunet_oar.networks.cascade import CascadeNetwork
from nnunet_oar.networks.volume import Volume
from nnunet_oar.plan import CascadePlan
from nnunet_oar.roi import Box

# from an optic nerve to a lung
VOLUMES_ML = (1.0, 2000.0)
# half of the part of the body, in the middle of the CT, in which the centres lie
HALF_MM = (200.0, 80.0, 140.0)


class OrgansInPlaces(CascadeNetwork):
    def segment(self, volume: Volume, box: Box, flips: tuple[int, ...] = ()) -> torch.Tensor:
        logits = super().segment(volume, box, flips)
        shape = logits.shape[2:]
        # millimetres from the middle of the CT
        axes = [
            ((start + (np.arange(n) + 0.5) * (stop - start) / n) - size / 2) * spacing
            for start, stop, n, size, spacing in zip(box.start, box.stop, shape, volume.shape, SPACING_MM, strict=True)
        ]
        rng = np.random.default_rng(0)
        volumes = rng.permutation(np.geomspace(*VOLUMES_ML, len(self.organs))) * 1000
        for label, mm3 in enumerate(volumes, start=1):
            radius = (mm3 * 3 / (4 * np.pi)) ** (1 / 3)
            centre = rng.uniform(-1, 1, 3) * HALF_MM
            distance = sum(
                (torch.as_tensor(axis - at, dtype=torch.float32).view([-1 if i == k else 1 for k in range(3)]) / radius)
                ** 2
                for i, (axis, at) in enumerate(zip(axes, centre, strict=True))
            )
            logits[0, label] = 8 * (1 - distance.clamp_max(2))
        return logits


if __name__ == "__main__":
    model.NETWORKS[CascadePlan] = OrgansInPlaces
    sys.exit(main(["predict", *sys.argv[1:]]))
