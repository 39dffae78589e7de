"""Labels on the slices of a CT series as a DICOM segmentation, through highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from nnunet_oar.dicom.files import CT_IMAGE, read
from nnunet_oar.dicom.rtstruct import CHARACTERS, COPIED, About, regions, valid_value
from nnunet_oar.dicom.series import Series, Slice
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
    """One binary segment for each label that occurs; arguments and errors as `rtstruct.write_rtstruct`, and ValueError for a header
    that highdicom cannot refer to."""
    import highdicom
    from highdicom.color import CIELabColor
    from pydicom.sr.coding import Code

    present = list(regions(series, labels, organs, "a segmentation")[1])
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
    numbers = np.zeros(max(max(organs), int(labels.max())) + 1, np.uint8 if len(present) < 256 else np.uint16)
    numbers[present] = np.arange(1, len(present) + 1)
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=[_source(one, series) for one in series.slices],
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
    except Exception as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{series.slices[0].path.parent}: highdicom cannot refer to these headers: {text}; write rtstruct"
        ) from error
    segmentation.SpecificCharacterSet = CHARACTERS
    with written_whole(path) as temporary:
        segmentation.save_as(temporary)


def _source(one: Slice, series: Series) -> pydicom.Dataset:
    """The slice's header with what highdicom asks for and archives leave out: elements that may be empty, but have to be there."""
    header = read(one.path, pixels=False)
    # highdicom does not know all character sets
    header.decode()
    header.SpecificCharacterSet = CHARACTERS
    for keyword in (*COPIED, "PositionReferenceIndicator"):
        setattr(header, keyword, valid_value(header, keyword))
    header.SOPClassUID = header.get("SOPClassUID", None) or CT_IMAGE
    header.SliceThickness = header.get("SliceThickness", None) or series.step_mm
    return header
