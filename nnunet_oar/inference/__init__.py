"""Prediction without nnU-Net's predictor."""

from nnunet_oar.inference.predictor import OARPredictor, Prediction

__all__ = ["OARPredictor", "Prediction"]
