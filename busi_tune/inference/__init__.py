"""Images in, probabilities out, with ONNX Runtime alone; nothing here knows how the model was made."""

from busi_tune.inference.certificate import MODEL, VERIFICATION, open_export
from busi_tune.inference.classifier import Classifier
from busi_tune.inference.predictions import Prediction, predict_files

__all__ = ["MODEL", "VERIFICATION", "Classifier", "Prediction", "open_export", "predict_files"]
