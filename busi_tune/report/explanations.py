"""Class activation maps of the worst mistakes, as overlays in the album."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from busi_tune.errors import BusiTuneError, ConfigError
from busi_tune.images import Pixels
from busi_tune.inference import VERIFICATION, open_export
from busi_tune.names import composed
from busi_tune.overlays import Map
from busi_tune.report.pictures import Album
from busi_tune.results import MapMethod, Mistake, ReportMaps

SENTENCES: Mapping[MapMethod, str] = {
    "cam": "The colours are class activation maps (Zhou et al., 2016) of the wrongly predicted class. Each cell is the "
    "contribution of its place to the logit of this class, and the logit is the mean of all cells.",
    "grad-cam": "The colours are maps of the wrongly predicted class by Grad-CAM (Selvaraju et al., 2017), which "
    "weights the last feature map by gradients. They are approximations, because this network has no exact maps.",
}


def explain_mistakes(
    mistakes: Sequence[Mistake], models: Mapping[int, Path], folds: Sequence[int], album: Album
) -> ReportMaps:
    """Add the overlays of `mistakes` to the album, and return their description.

    `models` has the run or export of each fold, and `folds` the fold of each mistake. If there are no overlays, the
    description states the reason.
    """
    own = {fold: [each for each, its in zip(mistakes, folds, strict=True) if its == fold] for fold in models}
    shown = {fold: [each for each in some if composed(each["path"]) in album.pictures] for fold, some in own.items()}
    found: ReportMaps = {"method": "none", "cells": None, "sentence": ""}
    try:
        for fold, some in ((fold, some) for fold, some in shown.items() if some):
            maps, method = _maps(models[fold], some, album)
            found = {"method": method, "cells": list(maps[0].shape), "sentence": SENTENCES[method]}
            for mistake, cam in zip(some, maps, strict=True):
                album.explain(mistake["path"], cam)
    except BusiTuneError as error:
        album.overlays.clear()
        sentence = f"The page does not show where the network looked: {error}"
        return {"method": "none", "cells": None, "sentence": sentence}
    return found


def _maps(model: Path, mistakes: Sequence[Mistake], album: Album) -> tuple[Sequence[Map], MapMethod]:
    """The maps (h, w) of the predicted classes of `mistakes`, and their method."""

    def seen(size: int) -> Pixels:
        return np.stack([album.seen(mistake["path"], size) for mistake in mistakes])

    # The probabilities of all mistakes are in the order of the model's classes.
    classes = list(mistakes[0]["probabilities"])
    targets = [classes.index(mistake["predicted"]) for mistake in mistakes]
    if not (model / VERIFICATION).exists():
        from busi_tune.training.class_maps import maps_of_run

        return maps_of_run(model, seen, targets)
    classifier = open_export(model)
    if not classifier.has_maps:
        raise ConfigError(f"{model} has no output cam; `busi-tune export --cam` makes an export with one.")
    maps = classifier.run(seen(classifier.image_size), maps=True).maps
    assert maps is not None
    return [each[target] for each, target in zip(maps, targets, strict=True)], "cam"
