"""Training of one configuration, which can resume after every epoch. It does not depend on studies or output."""
