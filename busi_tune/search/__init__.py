"""An Optuna study around one configuration. No other package imports Optuna."""
