"""What a canvas holds while it is drawn: one value for each structure that some region labels."""

from enum import IntEnum


class Organ(IntEnum):
    """Values in `Canvas.labels`; a region turns those that it annotates into the values of its data set."""

    ESOPHAGUS = 1
    HEART = 2
    TRACHEA = 3
    AORTA = 4
    LUNG_LEFT = 5
    LUNG_RIGHT = 6
    BRAINSTEM = 7
    EYE_LEFT = 8
    EYE_RIGHT = 9
    PAROTID_LEFT = 10
    PAROTID_RIGHT = 11
    MANDIBLE = 12
    SPINAL_CORD = 13
    LIVER = 14
    SPLEEN = 15
    STOMACH = 16
    KIDNEY_LEFT = 17
    KIDNEY_RIGHT = 18
    KIDNEY_TUMOUR = 19

    @classmethod
    def of_side(cls, name: str, sign: int) -> "Organ":
        """The left (sign 1, the direction of x) or the right (-1) one of a pair."""
        return cls[f"{name}_{'LEFT' if sign > 0 else 'RIGHT'}"]
