"""Loss of heat maps: paper 001 (VISCERAL), equation (1)."""

from __future__ import annotations

from torch import Tensor, nn

from nnunet_oar.losses.dice import mean_of


class HeatmapL2Loss(nn.Module):
    """Mean over voxels and annotated organs of the squared difference, each voxel weighted by 1 + `heat_weight` * target.

    heat_weight 0 is the paper's loss. Heat fills about a thousandth of a CT: unweighted, a short training finds that no heat at all
    is nearly right.
    """

    def __init__(self, heat_weight: float = 0.0):
        super().__init__()
        self.heat_weight = heat_weight

    def forward(self, heat: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
        """A scalar of at least float32; 0 with a gradient where nothing is annotated.

        heat, target: (B, K - 1, *spatial); annotated: bool (B, K - 1), None for all. Raises ValueError for shapes that differ.
        """
        if heat.shape != target.shape or (annotated is not None and annotated.shape != heat.shape[:2]):
            raise ValueError(
                f"heat and target must be (B, K - 1, *spatial) and annotated (B, K - 1), got {tuple(heat.shape)}, "
                f"{tuple(target.shape)} and {None if annotated is None else tuple(annotated.shape)}"
            )
        target = target.float()
        square = (heat.float() - target).square() * (1 + self.heat_weight * target)
        return mean_of(square.flatten(2).mean(-1), annotated)
