"""busi-tune: from a folder of breast-ultrasound images to a verified ONNX classifier.

The names in `__all__` are the Python interface. The module of a name is imported when the name is first used.
"""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# ONNX Runtime, Ray and MLflow send usage statistics over the network unless these variables are set before their
# import. Every busi-tune process imports this module first. Child processes inherit the variables.
os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "ORT_TELEMETRY_DISABLED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
if "onnxruntime" in sys.modules:
    sys.modules["onnxruntime"].disable_telemetry_events()

# The module of each name in `__all__`.
OFFERED = {
    "BusiTuneError": "errors",
    "Config": "config",
    "CrossvalOptions": "crossval_options",
    "Elsewhere": "external.evaluation",
    "ExportOptions": "export_options",
    "SearchOptions": "search_options",
    "audit_data": "pipeline",
    "baseline": "pipeline",
    "crossval": "pipeline",
    "evaluate": "pipeline",
    "export": "pipeline",
    "make_demo": "pipeline",
    "open_export": "inference",
    "predict": "inference",
    "predict_files": "inference",
    "report": "pipeline",
    "search": "pipeline",
    "split_data": "pipeline",
    "write_logs": "logs.trackers",
}

if TYPE_CHECKING:
    from busi_tune.config import Config
    from busi_tune.crossval_options import CrossvalOptions
    from busi_tune.errors import BusiTuneError
    from busi_tune.export_options import ExportOptions
    from busi_tune.external.evaluation import Elsewhere
    from busi_tune.inference import open_export, predict, predict_files
    from busi_tune.logs.trackers import write_logs
    from busi_tune.pipeline import (
        audit_data,
        baseline,
        crossval,
        evaluate,
        export,
        make_demo,
        report,
        search,
        split_data,
    )
    from busi_tune.search_options import SearchOptions

__all__ = [
    "BusiTuneError",
    "Config",
    "CrossvalOptions",
    "Elsewhere",
    "ExportOptions",
    "SearchOptions",
    "audit_data",
    "baseline",
    "crossval",
    "evaluate",
    "export",
    "make_demo",
    "open_export",
    "predict",
    "predict_files",
    "report",
    "search",
    "split_data",
    "write_logs",
]


def __getattr__(name: str) -> object:
    if name not in OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"busi_tune.{OFFERED[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The type of this package. It keeps the functions that have the name of a submodule, such as `search`.

    When Python imports a submodule, it sets an attribute of that name, which would replace the function. Imports work
    without this attribute.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in OFFERED and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
