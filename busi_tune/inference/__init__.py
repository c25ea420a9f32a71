"""Prediction with ONNX Runtime, without PyTorch: from images to probabilities, for any exported model."""

from busi_tune.inference.certificate import MODEL, VERIFICATION, open_export
from busi_tune.inference.classifier import Classifier
from busi_tune.inference.predictions import Prediction, Predictions, predict, predict_files, predict_pictures

__all__ = [
    "MODEL",
    "VERIFICATION",
    "Classifier",
    "Prediction",
    "Predictions",
    "open_export",
    "predict",
    "predict_files",
    "predict_pictures",
]
