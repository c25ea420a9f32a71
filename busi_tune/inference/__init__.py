"""Images in, probabilities out, with ONNX Runtime alone; nothing here knows how the model was made."""

from busi_tune.inference.answers import Prediction, predict_files
from busi_tune.inference.classifier import Classifier
from busi_tune.inference.opening import MODEL, VERIFICATION, open_export

__all__ = ["MODEL", "VERIFICATION", "Classifier", "Prediction", "open_export", "predict_files"]
