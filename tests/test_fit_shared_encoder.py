"""What is fitted to a data set for the shared encoder, and its section."""

import json
from dataclasses import replace

import numpy as np
import pytest

from nnunet_oar.axes import AnatomicalAxes
from nnunet_oar.fit import Budget, CaseFacts, DatasetFacts
from nnunet_oar.fit_shared_encoder import (
    DECODER_BYTES_PER_VOXEL_AND_FEATURE,
    ENCODER_BYTES_PER_VOXEL_AND_FEATURE,
    LEAST_SHARE,
    fit_shared_encoder,
)
from nnunet_oar.networks.shared_encoder import SharedEncoderNet
from nnunet_oar.plan import SHARED_PHASES, SharedEncoderPlan
from nnunet_oar.roi import Box

CANONICAL = AnatomicalAxes(left_right=2, anterior_posterior=1, inferior_superior=0, sides_agree=True)
LABELS = {"heart": 1, "lung_left": 2, "lung_right": 3}


def facts(spacing=(3.0, 1.0, 1.0), shape=(120, 400, 500), axes=CANONICAL, organ_mm=None) -> DatasetFacts:
    organs = {1: Box((2, 3, 4), (6, 9, 9)), 2: Box((1, 1, 1), (5, 5, 5)), 3: Box((1, 1, 7), (5, 5, 9))}
    if organ_mm:
        organs = dict.fromkeys(organs, Box.full(tuple(round(organ_mm / s) for s in spacing)))
    return DatasetFacts(spacing, [CaseFacts(shape, organs)] * 3, LABELS, axes, (-500.0, 300.0), (1.0, 0.0))


def test_the_paper_recipe_is_the_paper():
    plan, paper = fit_shared_encoder(facts(), "paper", Budget(memory_gb=12)), SharedEncoderPlan(organs=("a",))
    for name in ("grid_spacing_mm", "features", "strides", "dilations", "convolutions", "phases", "epochs", "margin_vox",
                 "cross_entropy_weight", "organs_per_iteration", "hu_window", "grow_attempts"):  # fmt: skip
        assert getattr(plan, name) == getattr(paper, name), name
    assert plan.spacing_mm == (3, 1, 1) and plan.phases == SHARED_PHASES and plan.swap_on_flip == ((2, 3),)
    assert [phase.start for phase in plan.phases] == [0, 40, 65] and plan.epochs == 90


def step_gb(plan: SharedEncoderPlan, decoders: int, facts: DatasetFacts, reach=(0, 0, 0)) -> float:
    """What a training step takes: the part, and the boxes that decoders of the largest organs see in its middle; reach: by how much
    each of their sides was moved."""
    network, part = SharedEncoderNet(1, replace(plan, features=1)), plan.crop_shape
    boxes = []
    for organ in facts.cases[0].organs.values():
        size = [
            max(1, round(n * mm / grid))
            for n, mm, grid in zip(organ.shape, facts.spacing_mm, plan.grid_spacing_mm, strict=True)
        ]
        size = np.minimum(np.add(size, np.multiply(2, reach)), part)
        start = (np.subtract(part, size) // 2).tolist()
        boxes.append(network.fine_box(Box.full(tuple(size.tolist())).moved(start), part).volume)
    seen = sum(sorted(boxes, reverse=True)[:decoders])
    bytes_per_feature = ENCODER_BYTES_PER_VOXEL_AND_FEATURE * np.prod(part) + DECODER_BYTES_PER_VOXEL_AND_FEATURE * seen
    return bytes_per_feature * plan.features / 1e9


@pytest.mark.parametrize("memory", [0.1, 0.5, 4, 24])
@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (5.0, 0.8, 0.8), (4.0, 3.0, 3.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("organ_mm", [40, 200])
def test_the_part_of_a_ct_fits_the_memory_and_is_not_too_small(memory, spacing, organ_mm):
    shape = tuple(int(mm / s) for mm, s in zip((360, 400, 500), spacing, strict=True))
    given = facts(spacing, shape, organ_mm=organ_mm)
    plan = fit_shared_encoder(given, "fitted", Budget(memory_gb=memory))
    grid = np.array(plan.grid_spacing_mm)
    assert (grid >= np.maximum((3, 1, 1), spacing) - 1e-3).all()
    assert all(size % step == 0 for size, step in zip(plan.crop_shape, plan.total_stride, strict=True))
    share = np.prod(plan.crop_shape) / np.prod(np.multiply(shape, spacing) / grid)
    # sizes are multiples of the strides
    assert step_gb(plan, 4, given) < 1.4 * memory and share > 0.7 * LEAST_SHARE
    utmost = step_gb(plan, 4, given, np.add(plan.jitter_vox, plan.total_stride))
    assert utmost < (1.3 if memory >= 4 else 2.4) * memory
    # what the memory allows is used, for a larger part or a finer grid
    assert step_gb(plan, 4, given) > 0.6 * memory or (
        share >= 1 and (grid <= np.maximum((3, 1, 1), spacing) + 1e-3).all()
    )
    assert (np.multiply(plan.margin_vox, grid) >= 10).all() and (np.multiply(plan.jitter_vox, grid) >= 5).all()
    assert all(np.less_equal(plan.coarse_stride, reach).all() for reach in (plan.margin_vox, plan.jitter_vox))
    paper = fit_shared_encoder(given, "paper", Budget(memory_gb=memory))
    assert step_gb(paper, 3, given) < 1.4 * memory or paper.crop_shape == paper.total_stride


@pytest.mark.parametrize(
    "spacing", [(3.0, 1.0, 1.0), (5.0, 0.8, 0.8), (4.0, 3.0, 3.0), (1.0, 1.0, 1.0), (12.0, 9.0, 9.0)]
)
def test_the_coarse_segmentation_is_about_as_fine_as_the_papers(spacing):
    plan = fit_shared_encoder(facts(spacing), "fitted", Budget(memory_gb=24))
    grid = np.array(plan.grid_spacing_mm)
    # two voxels of the grid, however coarse that is
    assert (plan.coarse_stride * grid <= np.maximum(10, 2 * grid.max())).all()
    assert (plan.total_stride * grid <= np.maximum(20, 4 * grid.max())).all()
    assert np.prod(plan.total_stride) >= 8 and plan.strides[-1] == (1, 1, 1) and len(plan.strides) == 4


def test_phases_keep_their_proportions():
    plan = fit_shared_encoder(facts(), "fitted", Budget(epochs=9))
    assert [phase.start for phase in plan.phases] == [0, 4, 6]
    assert [plan.phase(epoch).fine for epoch in range(9)] == [False] * 4 + [True] * 5
    assert [plan.phase(epoch).boxes for epoch in (4, 5, 6, 8)] == ["truth", "truth", "coarse", "coarse"]


def test_unknown_axes_take_the_thickest_for_slices():
    plan = fit_shared_encoder(facts((1.0, 5.0, 1.0), (400, 80, 500), None), "fitted", Budget())
    assert plan.slice_axis == 1 and plan.grid_spacing_mm[1] >= 5 and plan.flip_axes == ()


def test_round_trip_and_what_is_refused():
    plan = SharedEncoderPlan(organs=("a", "b"))
    section = json.loads(json.dumps(plan.to_section()))
    assert SharedEncoderPlan.from_section(section) == plan
    for changes, sentence in (
        ({"phases": []}, "the first must start at 0"),
        ({"phases": [{"start": 3}]}, "the first must start at 0"),
        ({"epochs": 30}, "the last epoch must train the decoders"),
        ({"phases": [{"start": 0}, {"start": 5, "fine": False}, {"start": 9}]}, "all that follow the first one"),
        ({"phases": [{"start": 0, "boxes": "guess"}]}, "phases is .* one of truth, coarse"),
        ({"dilations": [1, 3]}, "one entry per block"),
        ({"batch_size": 2}, "batch_size is 2"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"low_high_pairs": [[1, 2]]}, "it needs left_right_axis"),
        ({"crop_shape": [2, 7, 64]}, "less than a deepest voxel"),
    ):
        with pytest.raises(ValueError, match=sentence):
            SharedEncoderPlan.from_section(section | changes)
