"""The box of the patient's body in a CT.

Paper 004 (SegTHOR multitask), section 2.1: Otsu's threshold of the middle slice tells the body from what surrounds it. The guard,
the dropping of small components and the margin are ours.
"""

from __future__ import annotations

import numpy as np
from skimage.filters import threshold_otsu

from nnunet_oar.components import drop_small
from nnunet_oar.roi import Box

# A threshold between the body and air lies here; above, it tells one tissue from another, below, air from what a scanner pads with
PLAUSIBLE_HU = (-900.0, -150.0)
RANGE_HU = (-1024.0, 500.0)
# of the largest one; arms and legs may lie apart from the trunk, a table or a clip need not be kept
COMPONENT_FRACTION = 0.05
# the skin fills its voxels in part
MARGIN_VOX = 2


def find_body(image: np.ndarray, slice_axis: int, from_hu: tuple[float, float] | None) -> Box | None:
    """Box of the body in an image (Z, Y, X) of finite values; None where Otsu's threshold cannot be one between body and air.

    from_hu: the image's intensity is HU * slope + intercept; None where that is not known, and no threshold can be trusted.
    """
    if from_hu is None:
        return None
    slope, intercept = from_hu
    # what scanners write outside of the field of view may lie far below air, and metal far above bone
    image = np.clip(image, *(hu * slope + intercept for hu in RANGE_HU))
    middle = image.take(image.shape[slice_axis] // 2, slice_axis)
    if middle.min() == middle.max():
        return None
    # at Otsu's optimum the threshold lies midway between the means of what it divides; where no voxel lies between the two, every
    # threshold is as good, and the one returned may graze the noise of the air
    lower = middle <= threshold_otsu(middle)
    threshold = float(middle[lower].mean() + middle[~lower].mean()) / 2
    if not PLAUSIBLE_HU[0] <= (threshold - intercept) / slope <= PLAUSIBLE_HU[1]:
        return None
    return Box.from_mask(drop_small(image > threshold, COMPONENT_FRACTION)).grow(MARGIN_VOX).within(image.shape)
