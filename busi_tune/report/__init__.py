"""Plots of a run, the page of an audit, the card of an export."""
