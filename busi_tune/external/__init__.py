"""The evaluation of a finished model on labelled images of another source."""
