"""Train one configuration, resumable after every epoch; knows nothing of studies or screens."""
