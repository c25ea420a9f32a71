"""busi-tune: from a folder of breast-ultrasound images to a verified ONNX classifier."""

import os
import sys

__version__ = "0.1.0"

# ONNX Runtime and Ray send usage statistics over the network unless these variables are set before their import. Every
# busi-tune process imports this module first. Child processes inherit the variables.
os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "ORT_TELEMETRY_DISABLED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
if "onnxruntime" in sys.modules:
    sys.modules["onnxruntime"].disable_telemetry_events()
