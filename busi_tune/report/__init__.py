"""Plots, HTML pages, model cards and lists of results."""
