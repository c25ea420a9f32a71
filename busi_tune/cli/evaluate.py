"""The command evaluate."""

from pathlib import Path

import click

from busi_tune.cli.parameters import (
    PATH,
    Command,
    config_option,
    data_option,
    examples,
    json_option,
    made,
    out_option,
    setting,
    stated_options,
)
from busi_tune.config import Config


@click.command(
    cls=Command,
    epilog=examples(
        "busi-tune evaluate exports/tuned --data data/clinic --map benign=B,malignant=M --out studies/clinic",
        "busi-tune evaluate studies/tuned/best --data data/clinic.csv --groups patients.csv --out studies/clinic",
    ),
)
@click.argument("model", type=PATH)
@data_option(
    required=True,
    help="Folder with one folder of images for each label, or a CSV file with the columns path and label.",
)
@setting(
    "--map",
    "mapping",
    metavar="CLASS=LABEL,...",
    group="data",
    unset="labels are class names",
    help="Label of each class whose images have another label than the class name, as in benign=B,malignant=M.",
)
@setting(
    "--groups",
    type=PATH,
    metavar="FILE.csv",
    group="data",
    help="CSV file with the columns path and group: images of one group, as of one patient, belong together.",
)
@stated_options(Config, "similarity")
@setting(
    "--training-data",
    type=PATH,
    metavar="DIR",
    group="data",
    unset="for a run its training folder, for an export none",
    help="Folder of the training images; near-duplicates of them are left out.",
)
@setting(
    "--leave-out-conflicts",
    is_flag=True,
    group="data",
    help="Leave out images with a near-duplicate of another label in the training data, instead of stopping.",
)
@out_option(required=True, help="Folder of the evaluation.")
@json_option
@config_option
def evaluate(
    model: Path,
    *,
    data: Path,
    mapping: str | None,
    groups: Path | None,
    training_data: Path | None,
    leave_out_conflicts: bool,
    out: Path,
    as_json: bool,
    **values: object,
) -> None:
    """Evaluate MODEL, a finished run or an export, on labelled external images.

    Writes evaluation.json, predictions.csv and pictures. An export needs no PyTorch.
    """
    config = made(Config, values)
    from busi_tune import pipeline
    from busi_tune.cli.evaluation_tables import show_evaluation
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.external.evaluation import Elsewhere

    elsewhere = Elsewhere(data, mapping, groups, config.similarity, leave_out_conflicts)
    with screen() as progress:
        found = pipeline.evaluate(model, elsewhere, out, progress, training_data=training_data)
    if as_json:
        print_json(found)
    else:
        show_evaluation(found, out)
