"""Samples for the instance cascade: the zoomed CT, and the crop of one instance of the case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nnunet_oar.annotations import Annotations
from nnunet_oar.data.augmentation import in_plane_rotation
from nnunet_oar.data.cascade_loader import CascadeLoader
from nnunet_oar.data.coarse_cache import CoarseCache, CoarseCase
from nnunet_oar.instances import find_instances
from nnunet_oar.intensity import Normalisation
from nnunet_oar.plan import InstancePlan
from nnunet_oar.roi import Box

FORMAT = 2


@dataclass(frozen=True)
class InstanceCase(CoarseCase):
    """instances: boxes of what the case annotates of each instance, the largest first; shown: the labels, of those that it
    annotates, of which each box has voxels."""

    instances: tuple[Box, ...]
    shown: tuple[frozenset[int], ...]


class InstanceCache(CoarseCache):
    """CoarseCache with the boxes of the instances."""

    def __init__(self, dataset, plan: InstancePlan, labels: Sequence[int], annotations: Annotations):
        self.plan, self.annotations = plan, annotations
        annotated = {case: sorted(annotations.labels(case)) for case in dataset.identifiers}
        super().__init__(
            dataset,
            plan.coarse_shape,
            plan.data_window,
            labels,
            plan.coarse_labels,
            [
                FORMAT,
                plan.instance_labels,
                plan.max_instances,
                plan.component_fraction,
                plan.join_mm,
                plan.spacing_mm,
                sorted(annotated.items()),
            ],
        )

    def content(self, case: str, image: Tensor, normalisation: Normalisation, seg: np.ndarray) -> dict[str, np.ndarray]:
        labels = sorted(self.annotations.labels(case))
        boxes = instances_of_labels(seg[0], labels, self.plan)
        instances = np.array([(*box.start, *box.stop) for box in boxes], dtype=np.int64).reshape(-1, 6)
        annotated = np.isin(self.labels, labels)
        shown = np.array([annotated & np.isin(self.labels, seg[0][box.slices]) for box in boxes], dtype=bool)
        return super().content(case, image, normalisation, seg) | {"instances": instances, "shown": shown}

    def from_stored(self, stored) -> InstanceCase:
        instances = tuple(Box(tuple(row[:3]), tuple(row[3:])) for row in stored["instances"])
        shown = tuple(frozenset(np.array(self.labels)[row].tolist()) for row in stored["shown"])
        return InstanceCase(**vars(super().from_stored(stored)), instances=instances, shown=shown)


def instances_of_labels(labels: np.ndarray, annotated: Sequence[int], plan: InstancePlan) -> list[Box]:
    """Boxes of the instances in a label map (Z, Y, X) of the working spacing of which a case annotates the labels `annotated`."""
    wanted = [label for label in plan.instance_labels if label in annotated]
    return find_instances(
        np.isin(labels, wanted),
        plan.max_instances,
        voxel_mm=plan.spacing_mm,
        fraction=plan.component_fraction,
        join_mm=plan.join_mm,
    )


class InstanceLoader(CascadeLoader):
    """Batches as CascadeLoader's; "fine" is the crop of one instance, in training moved at random so that it stays inside (paper
    002, section 2.2), in validation one after the other; "instances", a list of B: their boxes in the preprocessed case."""

    lists = ("image_shape", "instances")
    plan: InstancePlan

    def _transforms(self, shape: Sequence[int]):
        if self.plan.augmentation == "rotation":
            return in_plane_rotation(shape, self.plan.slice_axis)
        return super()._transforms(shape)

    def _truth(self, case: InstanceCase, organs: dict[int, Box]) -> dict:
        return {"instances": list(case.instances)}

    def _box(self, n: int, case: InstanceCase, organs: dict[int, Box], complete: bool, rng: np.random.Generator) -> Box:
        plan, shape = self.plan, case.shape
        if not case.instances:  # teaches what background looks like
            return Box.full(shape)
        if not self.training:
            # of half of the cases the first one, of the others the second, and the other way round in the next pass
            turn = sum(divmod(n, len(self.cases)))
            return plan.fine_box(case.instances[turn % len(case.instances)], shape)
        instance = self._draw_instance(case, rng)
        box = plan.fine_box(instance, shape)
        reach = np.array(plan.margin_vox)
        # what keeps the instance in the box and the box in the image
        least = np.maximum(np.maximum(-reach, np.subtract(instance.stop, box.stop)), -np.array(box.start))
        most = np.minimum(np.minimum(reach, np.subtract(instance.start, box.start)), np.subtract(shape, box.stop))
        shift = rng.integers(least, most + 1)
        return Box(tuple(box.start + shift), tuple(box.stop + shift))

    def _draw_instance(self, case: InstanceCase, rng: np.random.Generator) -> Box:
        """One of the instances: each as likely, or one of those that show a label, each label of the case as likely."""
        instances = case.instances
        if self.plan.draw_by == "organ":
            label = rng.choice(sorted(frozenset.union(*case.shown)))
            instances = [box for box, shown in zip(instances, case.shown, strict=True) if label in shown]
        return instances[rng.integers(len(instances))]
