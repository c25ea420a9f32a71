"""Results for TensorBoard and MLflow, written from the files of result folders."""

from typing import Literal

Tracker = Literal["tensorboard", "mlflow"]
