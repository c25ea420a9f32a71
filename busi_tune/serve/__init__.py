"""The local page of an exported model: pictures in, probabilities out."""
