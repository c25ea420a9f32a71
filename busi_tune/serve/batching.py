"""Prediction outside the event loop; pictures that wait at the same time go through the model together."""

import asyncio
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from busi_tune.inference import Classifier, Prediction, predict_pictures
from busi_tune.inference.predictions import BATCH_SIZE


class Waiting(NamedTuple):
    """A picture that waits for a thread, and the future of its prediction, with an explanation if `explain` is set."""

    name: str
    data: bytes
    explain: bool
    answer: Future[Prediction]


class Batching:
    """Threads that decode pictures and run the model.

    A free thread takes up to eight waiting pictures as one batch. A single picture therefore never waits for others to
    arrive, and many pictures are predicted as fast as files by `predict`.
    """

    def __init__(self, classifier: Classifier, pool: ThreadPoolExecutor) -> None:
        self.classifier = classifier
        self.pool = pool
        self.waiting: deque[Waiting] = deque()

    async def answer(self, name: str, data: bytes, *, explain: bool = False) -> Prediction:
        """The prediction for one picture, equal to that of `predict` for a file with this content.

        With `explain`, the prediction has an explanation. The model must have maps.

        Raises:
            FileError: the model fails on the picture.
        """
        one = Waiting(name, data, explain, Future())
        self.waiting.append(one)
        self.pool.submit(self._next)
        return await asyncio.wrap_future(one.answer)

    def _next(self) -> None:
        """Predict the waiting pictures, up to a batch; do nothing if another thread has taken them."""
        taken: list[Waiting] = []
        while self.waiting and len(taken) < BATCH_SIZE:
            try:
                one = self.waiting.popleft()
            except IndexError:
                break
            # Skip pictures whose client is gone.
            if one.answer.set_running_or_notify_cancel():
                taken.append(one)
        for explain in (False, True):
            self._predict([one for one in taken if one.explain == explain], explain=explain)

    def _predict(self, taken: list[Waiting], *, explain: bool) -> None:
        try:
            found = predict_pictures(self.classifier, [(one.name, one.data) for one in taken], explain=explain)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            for one in taken:
                one.answer.set_exception(error)
            return
        for one, prediction in zip(taken, found, strict=True):
            one.answer.set_result(prediction)
