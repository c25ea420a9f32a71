"""A finished run to a verified ONNX model; the only room that knows ONNX files."""
