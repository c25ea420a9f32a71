"""An Optuna study around one configuration; the only room that knows Optuna."""
