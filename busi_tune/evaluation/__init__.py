"""Metrics, their intervals, and paired comparisons of two models."""
