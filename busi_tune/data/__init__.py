"""Find images, tell twins, split without leaks, decode once; nothing here knows of training."""
