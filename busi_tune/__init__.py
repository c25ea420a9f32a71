"""busi-tune: from a folder of breast-ultrasound images to a verified ONNX classifier."""

__version__ = "0.1.0"
