"""The commands around the exported model: export, verify, predict."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from busi_tune.cli.options import FOLDER, common_options, json_option
from busi_tune.errors import FileError

if TYPE_CHECKING:
    from busi_tune import inference


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="The export's folder, as in exports/NAME.")
@click.option("--data", type=FOLDER, help="The images that the run was trained on, where they have moved.")
@common_options
def export(run: Path, out: Path, data: Path | None, as_json: bool, overwrite: bool) -> None:
    """Export the finished run RUN to ONNX, verified against PyTorch on its test split."""
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.cli.tables import show_certificate

    with screen() as progress:
        certificate = pipeline.export(run, out, data, progress, overwrite=overwrite)
    if as_json:
        print_json(certificate)
    else:
        show_certificate(certificate, out)


@click.command()
@click.argument("export_folder", type=FOLDER, metavar="EXPORT")
@click.option("--data", type=FOLDER, required=True, help="The folder of images that the model was evaluated on.")
@json_option
def verify(export_folder: Path, data: Path, as_json: bool) -> None:
    """Repeat the check of EXPORT on its test images, here and now."""
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.cli.tables import show_certificate
    from busi_tune.export.check import check_again

    with screen() as progress:
        certificate = check_again(export_folder, data, progress)
    if as_json:
        print_json(certificate)
    else:
        show_certificate(certificate, export_folder)


@click.command()
@click.argument("export_folder", type=FOLDER, metavar="EXPORT")
@click.argument("paths", type=FOLDER, nargs=-1, required=True, metavar="IMAGE_OR_FOLDER...")
@click.option("--csv", "csv_file", type=FOLDER, help="Write the answers to this file as well.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images at once.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads; 0 is one for each core.")
@json_option
def predict(
    export_folder: Path,
    paths: tuple[Path, ...],
    csv_file: Path | None,
    batch_size: int,
    threads: int,
    as_json: bool,
) -> int:
    """Classify images with ONNX Runtime; a file that cannot be read is a row with its error, and exit code 1."""
    from busi_tune import files, inference
    from busi_tune.cli.screen import print_json
    from busi_tune.cli.tables import prediction_dict, show_predictions

    classifier = inference.open_export(export_folder, threads)
    if csv_file is not None and csv_file.is_dir():
        raise FileError(f"{csv_file} is a folder; name the file to write.")
    predictions = list(inference.predict_files(classifier, inference.image_paths(paths), batch_size))
    if csv_file is not None:
        files.write_csv(csv_file, list(_csv_rows(predictions, classifier.classes)))
    if as_json:
        print_json([prediction_dict(prediction, classifier.classes) for prediction in predictions])
    else:
        show_predictions(predictions, classifier.classes)
    return int(any(prediction.error for prediction in predictions))


def _csv_rows(predictions: "list[inference.Prediction]", classes: tuple[str, ...]) -> Iterator[dict[str, object]]:
    for prediction in predictions:
        values = prediction.probabilities or [""] * len(classes)
        yield (
            {"path": prediction.path, "class": prediction.predicted}
            | {f"p_{name}": value for name, value in zip(classes, values, strict=True)}
            | {"error": prediction.error}
        )
