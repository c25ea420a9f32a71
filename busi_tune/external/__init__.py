"""A finished model judged on labelled images from elsewhere."""
