"""Labels on the slices of a CT series as a DICOM segmentation, through highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid

from nnunet_oar.dicom.files import read
from nnunet_oar.dicom.rtstruct import About, require_names, require_references
from nnunet_oar.dicom.series import Series
from nnunet_oar.files import written_whole
from nnunet_oar.version import __version__


def require_highdicom() -> None:
    """Raise ValueError where the optional library is missing."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise ValueError("DICOM segmentations need highdicom: pip install 'nnunet_oar[dicom]'") from None


def write_segmentation(
    path: Path,
    series: Series,
    labels: np.ndarray,
    organs: Mapping[int, str],
    colours: Mapping[int, Sequence[int]],
    about: About,
) -> None:
    """One binary segment for each label that occurs; arguments and errors as `rtstruct.write_rtstruct`."""
    import highdicom
    from highdicom.color import CIELabColor
    from pydicom.sr.coding import Code

    require_references(series)
    present = [label for label in organs if (labels == label).any()]
    if not present:
        raise ValueError(f"{series.slices[0].path.parent}: no organ was found, and a segmentation cannot be empty")
    require_names([organs[label] for label in present])
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=about.algorithm,
        version=__version__,
        family=Code("123109", "DCM", "Artificial Intelligence"),
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=organs[label],
            segmented_property_category=Code("91723000", "SCT", "Anatomical Structure"),
            segmented_property_type=Code("113343008", "SCT", "Organ"),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=CIELabColor.from_rgb(*colours[label]),
        )
        for number, label in enumerate(present, start=1)
    ]
    numbers = np.zeros(max(max(organs), int(labels.max())) + 1, np.uint8)
    numbers[present] = np.arange(1, len(present) + 1)
    segmentation = highdicom.seg.Segmentation(
        source_images=[read(one.path) for one in series.slices],
        pixel_array=numbers[labels],
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(prefix=None),
        series_number=1,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer="nnunet_oar",
        manufacturer_model_name="nnunet_oar",
        software_versions=__version__,
        device_serial_number="0",
        content_description=about.label,
        series_description=about.label,
    )
    with written_whole(path) as temporary:
        segmentation.save_as(temporary)
