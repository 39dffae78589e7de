"""Planners, one per trainer."""


def find_planner(trainer: str):
    """The planner of a trainer, by the trainer's name. Raises ValueError for a trainer that is not ours."""
    from nnunet_oar.planners.attention import OARAttentionPlanner
    from nnunet_oar.planners.cascade import OARCascadePlanner
    from nnunet_oar.planners.heatmap import OARHeatmapCascadePlanner
    from nnunet_oar.planners.instances import OARInstanceCascadePlanner
    from nnunet_oar.planners.shared_encoder import OARSharedEncoderPlanner

    known = (
        OARCascadePlanner,
        OARInstanceCascadePlanner,
        OARHeatmapCascadePlanner,
        OARSharedEncoderPlanner,
        OARAttentionPlanner,
    )
    planners = {planner.trainer_class.__name__: planner for planner in known}
    if trainer not in planners:
        raise ValueError(f"-tr must be one of {', '.join(planners)}, got {trainer!r}")
    return planners[trainer]
