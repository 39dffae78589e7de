"""What all losses on label maps share: the checks of their arguments, and partial annotation in the target."""

from __future__ import annotations

import torch
from torch import Tensor


def check_annotated(logits: Tensor, annotated: Tensor | None) -> None:
    """Raise ValueError unless `annotated` is None or bool (B, K-1) for logits (B, K, ...)."""
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(
            f"logits must be (B, K, ...) with the background and at least one organ, got {tuple(logits.shape)}"
        )
    if annotated is None:
        return
    expected = (logits.shape[0], logits.shape[1] - 1)
    if annotated.dtype != torch.bool or tuple(annotated.shape) != expected:
        raise ValueError(
            f"annotated must be bool {expected}, one entry per sample and organ, for logits of {tuple(logits.shape)}; "
            f"got {annotated.dtype} {tuple(annotated.shape)}"
        )


def check_labels(logits: Tensor, target: Tensor, annotated: Tensor | None) -> None:
    """Raise ValueError unless target (B, 1, *spatial) of integers in [0, K) fits logits (B, K, *spatial)."""
    check_annotated(logits, annotated)
    if tuple(target.shape) != (logits.shape[0], 1, *logits.shape[2:]):
        raise ValueError(
            f"target must be (B, 1, *spatial) for logits (B, K, *spatial), got {tuple(target.shape)} for "
            f"{tuple(logits.shape)}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ValueError(f"target must hold integer labels, got {target.dtype}")
    if target.numel() == 0:
        raise ValueError(f"target must hold at least one voxel, got shape {tuple(target.shape)}")
    lowest, highest = (int(value) for value in target.aminmax())
    if lowest < 0 or highest >= logits.shape[1]:
        found = lowest if lowest < 0 else highest
        hint = "; nnU-Net writes -1 around the image, map it to 0 first" if found == -1 else ""
        raise ValueError(f"target must hold labels from 0 to {logits.shape[1] - 1}, got {found}{hint}")


def unannotated_to_background(target: Tensor, annotated: Tensor | None) -> Tensor:
    """`target` (B, 1, *spatial) with the labels of organs that a sample does not annotate replaced by 0."""
    if annotated is None:
        return target
    organs = torch.arange(1, annotated.shape[1] + 1, device=target.device)
    mapping = torch.nn.functional.pad(organs * annotated.to(target.device), (1, 0))  # (B, K): new label of each label
    return mapping.gather(1, target.flatten(1).long()).view_as(target)
