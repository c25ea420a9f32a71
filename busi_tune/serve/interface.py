"""The OpenAPI description of `POST /predict`, generated from the types of the results."""

from typing import NotRequired, TypedDict

import msgspec

from busi_tune import __version__
from busi_tune.results import PredictionEntry
from busi_tune.serve.uploads import FORM, MEGABYTE, MOST_BYTES, MOST_FILES, SECONDS


class PictureAnswer(PredictionEntry):
    """The response for one picture. With `explain=true`, `overlay_png` is a base64 PNG of where the network looked."""

    overlay_png: NotRequired[str]


class FormAnswers(TypedDict):
    """The response to a form of pictures: a prediction for each file, in order."""

    predictions: list[PictureAnswer]


class Refusal(TypedDict):
    """The response to a request that is refused: one sentence."""

    error: str


# The query parameter that requests overlays.
EXPLAIN = "explain"
REFUSALS = {
    400: f"The body is not a form with files, is cut off, or holds no file or more than {MOST_FILES} files; or the "
    "request asks a model without maps for overlays.",
    403: "A page of another site sent the request.",
    408: f"The body did not arrive within {SECONDS} s.",
    413: f"The body is larger than {MOST_BYTES // MEGABYTE} MB.",
    415: f"The type of the body is not {FORM}.",
    422: "None of the files is a picture that can be read.",
}


def openapi(*, has_maps: bool) -> dict[str, object]:
    """The OpenAPI document of a model with or without class activation maps."""
    _, schemas = msgspec.json.schema_components([FormAnswers, Refusal], ref_template="#/components/schemas/{name}")

    def answer(text: str, schema: str) -> dict[str, object]:
        content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
        return {"description": text, "content": {"application/json": content}}

    refusals = {str(status): answer(text, "Refusal") for status, text in REFUSALS.items()}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": MOST_FILES}
    form = {"type": "object", "properties": {"files": files}, "required": ["files"]}
    able = "" if has_maps else " This model has no maps; `busi-tune export --cam` makes a model with maps."
    explain = {
        "name": EXPLAIN,
        "in": "query",
        "description": "true adds overlay_png to each prediction: the picture under the class activation map of its "
        f"predicted class, which shows where the network looked, as a base64 PNG.{able}",
        "schema": {"type": "boolean", "default": False},
    }
    operation = {
        "operationId": "predict",
        "summary": "Classify pictures",
        "description": "The predictions are those of busi-tune predict --json. A file that cannot be read has an error "
        "instead of a prediction. The form's fields may have any names. Nothing is stored.",
        "parameters": [explain],
        "requestBody": {"required": True, "content": {FORM: {"schema": form}}},
        "responses": {"200": answer("A prediction for each file, in order.", "FormAnswers"), **refusals},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "busi-tune serve",
            "version": __version__,
            "description": "Probabilities for breast-ultrasound pictures. Not a medical device.",
        },
        "paths": {"/predict": {"post": operation}},
        "components": {"schemas": schemas},
    }
