"""The models of a cross-validation as one network: the mean of their probabilities, each at its own temperature."""

from functools import partial

import numpy as np

from busi_tune.errors import ConfigError
from busi_tune.evaluation.metrics import Answers, Labels, softmax, summarise
from busi_tune.export import quantisation
from busi_tune.export.calibration import calibration_figures, fit_temperature
from busi_tune.export.gate import latency
from busi_tune.export.graphs import folded
from busi_tune.export.parity import Logits, distance
from busi_tune.export.source import Averaged, Fitted, Source, at_temperature, guard_of
from busi_tune.export_options import ExportOptions
from busi_tune.results import AveragedEntry
from busi_tune.training import exportable
from busi_tune.training.exportable import AveragedModel

REFUSED = ("int8", "float16", "sensitivity")


def check_average(source: Source, options: ExportOptions) -> None:
    """Refuse options that an average cannot have, such as those that need images that no model was trained on.

    Raises:
        ConfigError: such an option is set, or the models' image sizes differ.
    """
    asked = [name for name in REFUSED if getattr(options, name)]
    if asked:
        raise ConfigError(
            f"{asked[0]} needs images that no model was trained on, and for the {len(source.members)} models of "
            "this average there are none; export one of them with --fold."
        )
    single = [name for name, asked in (("network_only", options.network_only != "none"), ("cam", options.cam)) if asked]
    if single:
        raise ConfigError(
            f"{single[0]} needs a single network, and this export is the mean of {len(source.members)}; export one of "
            "them with --fold."
        )
    sizes = sorted({member.size for member in source.members})
    if len(sizes) > 1:
        raise ConfigError(
            f"image_size must be the same for all models of an average, not {', '.join(map(str, sizes))}; export one "
            "of them with --fold."
        )


def fit_average(source: Source) -> Fitted:
    """The average of the source's members, each at the temperature fitted on its own validation images.

    The guard is fitted on the first member's split. The average has no operating point.

    Raises:
        RunError: a member's predictions of its fold differ from those that its run recorded.
    """
    validation = [_logits(member, "validation") for member in source.members]
    temperatures = [
        fit_temperature(logits, member.labels("validation"))
        for logits, member in zip(validation, source.members, strict=True)
    ]
    test = [_checked(member) for member in source.members]
    models = [at_temperature(member, each) for member, each in zip(source.members, temperatures, strict=True)]
    model = AveragedModel(models).eval()
    network, single = (folded(exportable.to_onnx(each, source.size)) for each in (model, models[0]))
    groups = np.concatenate([member.groups("test") for member in source.members])
    entry: AveragedEntry = {
        "models": len(models),
        "temperatures": temperatures,
        "bytes": {"average": len(network), "single": len(single)},
        "latency_ms": _latency(source, {"average": network, "single": single}),
    }
    averaged = Averaged(_pooled(source, "test", test), _pooled(source, "test", test, temperatures), groups, entry)
    before, after = (_pooled(source, "validation", validation, each) for each in (None, temperatures))
    figures = calibration_figures(before, after)
    return Fitted(
        temperature=1.0,
        calibration=figures,
        risk_coverage=summarise(after)["risk_coverage"],
        point=None,
        model=model,
        network=network,
        guard=guard_of(network, source),
        averaged=averaged,
    )


def _logits(member: Source, part: str) -> Logits:
    """A member's float64 logits (n, classes) of its images in `part`, before the temperature."""
    return exportable.computed(member.model, member.part(part).pixels(), "float64").before


def _checked(member: Source) -> Logits:
    """A member's logits of its fold, checked against the predictions that its run recorded."""
    exact = _logits(member, "test")
    rounded = exportable.computed(member.model, member.part("test").pixels(), "float32").before
    member.check_answers(exact, distance(rounded, exact))
    return exact


def _pooled(source: Source, part: str, logits: list[Logits], temperatures: list[float] | None = None) -> Answers:
    """The predictions of all members, each for its own images."""
    scales = temperatures or [1.0] * len(logits)
    labels: Labels = np.concatenate([member.labels(part) for member in source.members])
    probabilities = np.concatenate([softmax(each / scale) for each, scale in zip(logits, scales, strict=True)])
    return Answers(labels, probabilities, source.classes, source.identity.config.positive)


def _latency(source: Source, networks: dict[str, bytes]) -> dict[str, float]:
    """The median milliseconds of each network for one image, measured in turn."""
    (batch, *_) = quantisation.batches(source.part("test").pixels()[:1])
    sessions = {name: quantisation.session(network) for name, network in networks.items()}
    return latency({name: partial(session.run, ["logits"], batch) for name, session in sessions.items()})
