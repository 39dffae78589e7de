"""An nnU-Net dataset object over arrays in memory, which notes what is read."""

import numpy as np

from nnunet_oar.annotations import Annotations, Source

EVERYTHING = Annotations(("one", "two"))
# cases 0 and 1 annotate only organ 1, the others only organ 2
HALVES = Annotations(
    ("one", "two"),
    (
        Source("first", ("case_0", "case_1"), frozenset({"one"})),
        Source("second", ("case_2", "case_3"), frozenset({"two"})),
    ),
)


class Region:
    """Looks like a blosc2 array; slicing is recorded."""

    def __init__(self, array, reads):
        self.array, self.reads, self.shape = array, reads, array.shape

    def __getitem__(self, index):
        self.reads.append(index)
        return self.array[index]


class FakeDataset:
    def __init__(self, folder, cases: dict[str, tuple[np.ndarray, np.ndarray]]):
        self.source_folder, self.cases, self.identifiers, self.reads = str(folder), cases, sorted(cases), []
        for name in cases:
            (folder / f"{name}.b2nd").write_text(name)

    def load_case(self, name):
        data, seg = self.cases[name]
        return Region(data, self.reads), Region(seg, self.reads), None, {}


def case(seed: int, shape=(30, 36, 40)):
    """Image = noise around -100 with two bright boxes, labels 1 and 2 on them, -1 in a corner as nnU-Net writes it."""
    rng = np.random.default_rng(seed)
    image = rng.normal(-100, 5, (1, *shape)).astype(np.float32)
    labels = np.zeros((1, *shape), dtype=np.int16)
    at = rng.integers(4, 10, 3)
    for label, offset in ((1, 0), (2, 9)):
        where = tuple(slice(a + offset, a + offset + 7) for a in at)
        labels[(0, *where)] = label
        image[(0, *where)] = 100 * label
    labels[0, :2, :2, :2] = -1
    return image, labels
