"""The export of a finished run to a verified ONNX model. No other package imports onnx."""
