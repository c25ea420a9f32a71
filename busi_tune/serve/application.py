"""The web application: a page for pictures, `POST /predict` for programs, and the description of this interface."""

import asyncio
import base64
from collections.abc import Sequence
from http import HTTPStatus
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from busi_tune.errors import FileError, listed, printable
from busi_tune.inference import Prediction
from busi_tune.overlays import overlay_png
from busi_tune.serve.batching import Batching
from busi_tune.serve.interface import EXPLAIN, FormAnswers, PictureAnswer, Refusal, openapi
from busi_tune.serve.pages import interface_page
from busi_tune.serve.uploads import EXAMPLE, read_pictures

# The maximum number of forms in memory, each of up to MOST_BYTES. Further requests wait before their forms are read.
MOST_FORMS = 32


class Endpoints:
    """The responses to requests, with predictions of a model that runs in `batching`."""

    def __init__(self, batching: Batching, page: str) -> None:
        self.batching = batching
        self.page = HTMLResponse(page)
        document = openapi(has_maps=batching.classifier.has_maps)
        self.interface = HTMLResponse(interface_page(document))
        self.openapi = JSONResponse(document)
        self.room = asyncio.Semaphore(MOST_FORMS)

    async def predict(self, request: Request) -> Response:
        """The predictions for a form of files, or an error response if none of them is a readable picture."""
        found = await self._predictions(request)
        if all(prediction.error for prediction in found):
            reasons = listed([f"{prediction.path}: {prediction.error}" for prediction in found], most=3)
            return _refusal(422, f"No picture could be read ({reasons}); {EXAMPLE}.")
        return await self._answers(found)

    async def rows(self, request: Request) -> Response:
        """The predictions for the page. The page shows errors in its table, so the request succeeds."""
        return await self._answers(await self._predictions(request))

    async def _predictions(self, request: Request) -> list[Prediction]:
        if request.headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
            raise HTTPException(403, "Requests from pages of other sites are refused; open this site's own page.")
        explain = self._explains(request)
        async with self.room:
            pictures = await read_pictures(request)
            return await asyncio.gather(*(self.batching.answer(name, data, explain=explain) for name, data in pictures))

    def _explains(self, request: Request) -> bool:
        """Whether a request asks for overlays."""
        asked = request.query_params.get(EXPLAIN, "false")
        if asked not in {"true", "false"}:
            raise HTTPException(400, f"{EXPLAIN} must be true or false, not {printable(asked)!r}.")
        if asked == "true" and not self.batching.classifier.has_maps:
            raise HTTPException(
                400,
                f"{self.batching.classifier.path.name} has no output cam to explain its predictions with; serve a "
                f"model.onnx that `busi-tune export --cam` made, or leave out {EXPLAIN}.",
            )
        return asked == "true"

    async def _answers(self, found: Sequence[Prediction]) -> Response:
        answers = await asyncio.gather(*(self._answer(prediction) for prediction in found))
        return JSONResponse(FormAnswers(predictions=list(answers)))

    async def _answer(self, prediction: Prediction) -> PictureAnswer:
        answer = cast("PictureAnswer", prediction.to_entry(self.batching.classifier.classes))
        if prediction.explanation is None:
            return answer
        # Drawing takes milliseconds, which would hold up all other requests.
        loop = asyncio.get_running_loop()
        png = await loop.run_in_executor(self.batching.pool, overlay_png, prediction.explanation)
        answer["overlay_png"] = base64.b64encode(png).decode()
        return answer


def application(batching: Batching, page: str, hosts: Sequence[str]) -> Starlette:
    """The application of a model; `page` is its HTML page, `hosts` are the host names that requests may use."""
    endpoints = Endpoints(batching, page)

    async def front(_: Request) -> Response:
        return endpoints.page

    async def interface(_: Request) -> Response:
        return endpoints.interface

    async def document(_: Request) -> Response:
        return endpoints.openapi

    return Starlette(
        routes=[
            Route("/", front),
            Route("/predict", endpoints.predict, methods=["POST"]),
            Route("/rows", endpoints.rows, methods=["POST"]),
            Route("/docs", interface),
            Route("/openapi.json", document),
            Mount("/static", StaticFiles(packages=[("busi_tune.serve", "static")])),
        ],
        # Another host name would mean that a foreign site has pointed its name to this address (DNS rebinding).
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={
            HTTPException: _refused,
            FileError: _failed,
            # The client is gone, so no one receives this response.
            ClientDisconnect: _failed,
        },
    )


def _refusal(status: int, text: str) -> Response:
    return JSONResponse(Refusal(error=text), status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    texts = {
        HTTPStatus.NOT_FOUND: f"There is no {path} here; /docs lists the addresses.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{path} does not accept {request.method}; /docs lists what it accepts.",
    }
    return JSONResponse(
        Refusal(error=texts.get(HTTPStatus(error.status_code), error.detail)), error.status_code, error.headers
    )


async def _failed(_: Request, error: Exception) -> Response:
    return _refusal(500, str(error))
