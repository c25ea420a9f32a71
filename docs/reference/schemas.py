"""Generates the JSON Schemas in docs/reference/schemas from the types in busi_tune/results.py.

python docs/reference/schemas.py
"""

import json
from pathlib import Path

import msgspec

from busi_tune import results

FOLDER = Path(__file__).with_name("schemas")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Types of `--json` outputs that have no schema name of their own.
OUTPUTS: dict[str, object] = {
    "baseline": results.BaselineResult,
    "list": list[results.ListEntry],
    "prediction": results.PredictionEntry,
    "predictions": list[results.PredictionEntry],
}
METRICS = results.SCHEMAS[results.MetricsFile]
VERSIONS = {**results.SCHEMAS, results.BaselineResult: METRICS, results.BestTrial: METRICS}


def texts() -> dict[str, str]:
    """The text of each schema by name; the document `busi-tune.NAME/VERSION` has the name NAME."""
    named = {schema.removeprefix("busi-tune.").partition("/")[0]: kind for kind, schema in results.SCHEMAS.items()}
    return {name: _text(kind) for name, kind in {**named, **OUTPUTS}.items()}


def _text(kind: object) -> str:
    (schema,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    for document, version in VERSIONS.items():
        if document.__name__ in definitions:
            definitions[document.__name__]["properties"]["schema"] = {"const": version}
    return json.dumps({"$schema": DIALECT, **schema, "$defs": definitions}, indent=1) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, text in texts().items():
        (FOLDER / f"{name}.json").write_text(text)
