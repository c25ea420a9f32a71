"""The OpenAPI description of `POST /predict`, generated from the types of the results."""

from typing import TypedDict

import msgspec

from busi_tune import __version__
from busi_tune.results import PredictionEntry
from busi_tune.serve.uploads import FORM, MEGABYTE, MOST_BYTES, MOST_FILES, SECONDS


class FormAnswers(TypedDict):
    """The answer to a form of pictures: a prediction for each file, in order."""

    predictions: list[PredictionEntry]


class Refusal(TypedDict):
    """The answer to a request that is refused: one sentence."""

    error: str


REFUSALS = {
    400: f"The body is not a form with files, is cut off, or holds no file or more than {MOST_FILES} files.",
    403: "A page of another site sent the request.",
    408: f"The body did not arrive within {SECONDS} s.",
    413: f"The body is larger than {MOST_BYTES // MEGABYTE} MB.",
    415: f"The type of the body is not {FORM}.",
    422: "None of the files is a picture that can be read.",
}


def openapi() -> dict[str, object]:
    """The OpenAPI document."""
    _, schemas = msgspec.json.schema_components([FormAnswers, Refusal], ref_template="#/components/schemas/{name}")

    def answer(text: str, schema: str) -> dict[str, object]:
        content = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
        return {"description": text, "content": {"application/json": content}}

    refusals = {str(status): answer(text, "Refusal") for status, text in REFUSALS.items()}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": MOST_FILES}
    form = {"type": "object", "properties": {"files": files}, "required": ["files"]}
    operation = {
        "operationId": "predict",
        "summary": "Classify pictures",
        "description": "The predictions are those of busi-tune predict --json. A file that cannot be read has an error "
        "instead of a prediction. A field may have any name. Nothing is stored.",
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
