"""The commands that train: run, baseline, search."""

import dataclasses
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from busi_tune.cli.parameters import FOLDER, Command, build_config, common_options, config_options
from busi_tune.search.search_options import PRUNERS, SearchOptions


class Duration(click.ParamType[float]):
    """A span of time with its unit, as in 2h, 30m or 1h30m; in seconds."""

    name = "SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse it, or fail with a usage error."""
        parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", str(value))
        if not parts or not any(parts.groups()):
            self.fail(f"{value!r} is not a span of time like 2h, 30m or 90s.", param, ctx)
        hours, minutes, seconds = (int(part or 0) for part in parts.groups())
        return float(hours * 3600 + minutes * 60 + seconds)


STUDY = (
    click.option("--trials", type=int, default=20, show_default=True, help="Trials in all, finished ones included."),
    click.option("--timeout", type=Duration(), help="Begin no trial after this time, as in 2h or 30m."),
    click.option("--epochs-total", type=int, help="Begin no trial once the study has so many epochs."),
    click.option("--trial-epochs", type=int, default=20, show_default=True, help="Epochs a trial gets at most."),
    click.option(
        "--metric",
        type=click.Choice(["val_loss", "val_accuracy", "val_macro_f1"]),
        default="val_loss",
        show_default=True,
        help="What a trial's best epoch is judged by.",
    ),
    click.option("--space", type=FOLDER, help="TOML file of the fields to vary; see the README."),
    click.option(
        "--pruner", type=click.Choice(PRUNERS), default="median", show_default=True, help="What ends hopeless trials."
    ),
    click.option(
        "--keep-trials", type=int, default=5, show_default=True, help="How many of the best trials keep checkpoints."
    ),
    click.option("--workers", type=int, default=1, show_default=True, help="Processes that train at the same time."),
    click.option(
        "--storage",
        envvar="BUSI_TUNE_STORAGE",
        metavar="URL",
        help="PostgreSQL database that several machines share, postgresql+psycopg://user@host/db; needs the extra "
        "postgres.  [default: a file of the study; env: BUSI_TUNE_STORAGE]",
    ),
    click.option(
        "--ray", metavar="ADDRESS", help="Train on this Ray cluster (auto: the one here); needs the extra ray."
    ),
    click.option(
        "--confirm", type=int, default=0, show_default=True, help="Train so many of the best on, with several seeds."
    ),
    click.option("--seeds", type=int, default=3, show_default=True, help="Seeds of each trial that is confirmed."),
    click.option(
        "--audit", type=int, default=0, show_default=True, help="Train so many pruned trials on, to see what was lost."
    ),
)


def hide_password(storage: str | None) -> None:
    """Take the command line out of the process list, where everybody could read a password in the URL."""
    if storage and find_spec("setproctitle"):
        from setproctitle import setproctitle

        setproctitle("busi-tune")
        # Python gives them to the processes that it starts.
        del sys.argv[1:]


def search_options(command: Command) -> Command:
    """Add what a study is asked for."""
    for option in reversed(STUDY):
        command = option(command)
    return command


@click.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with one folder of images for each class.")
@click.option("--out", type=FOLDER, default=Path("studies/baseline"), show_default=True, help="The run's folder.")
@common_options
@config_options
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings, a seed each.")
def baseline(
    data: Path,
    out: Path,
    seeds: int,
    config_file: Path | None,
    split_file: Path | None,
    as_json: bool,
    overwrite: bool,
    **given: Any,
) -> None:
    """Train the documented configuration and evaluate it on the test split.

    With --seeds, train it again with the seeds that follow, and print how much the seed alone changes.
    """
    config = build_config(config_file, given, split_file=split_file)
    # The last seed must be one before the first is trained.
    config.replace(seed=config.seed + seeds - 1)
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.cli.tables import show_run, show_seeds

    with screen() as progress:
        figures = pipeline.baseline(data, out, config, progress, split_file=split_file, overwrite=overwrite)
        if seeds > 1:
            figures = figures | {"seeds": pipeline.more_seeds(data, out, config, seeds, progress)}
    if as_json:
        print_json(figures)
        return
    show_run(figures, out)
    if seeds > 1:
        show_seeds(figures["seeds"])


@click.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with one folder of images for each class.")
@click.option("--out", type=FOLDER, default=Path("studies/tuned"), show_default=True, help="The study's folder.")
@click.option("--baseline", "baseline_run", type=FOLDER, help="A finished run of this configuration: trial 0 as it is.")
@search_options
@common_options
@config_options
def search(
    data: Path,
    out: Path,
    baseline_run: Path | None,
    config_file: Path | None,
    split_file: Path | None,
    as_json: bool,
    overwrite: bool,
    **given: Any,
) -> None:
    """Search around the configuration with Optuna, then train the best trial to its end."""
    options, given = split_options(given)
    hide_password(options["storage"])
    config = build_config(config_file, given, split_file=split_file)
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.cli.tables import show_search

    with screen() as progress:
        result = pipeline.search(
            data,
            out,
            config,
            SearchOptions(**options),
            progress,
            baseline_run=baseline_run,
            split_file=split_file,
            overwrite=overwrite,
        )
    if as_json:
        print_json(result)
    else:
        show_search(result, out)


def split_options(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The study's options, and the configuration's."""
    names = [field.name for field in dataclasses.fields(SearchOptions)]
    return {name: given[name] for name in names}, {k: v for k, v in given.items() if k not in names}


@click.command()
@click.option("--data", type=FOLDER, help="Folder with one folder of images for each class.")
@click.option("--demo", is_flag=True, help="Draw phantom images and run small on them; needs no data.")
@click.option("--name", default=None, help="Name of the study and the export.  [default: tuned, or demo]")
@search_options
@common_options
@config_options
@click.pass_context
def run(
    context: click.Context,
    /,
    data: Path | None,
    demo: bool,
    name: str | None,
    config_file: Path | None,
    split_file: Path | None,
    as_json: bool,
    overwrite: bool,
    **given: Any,
) -> None:
    """Do it all: baseline, search, retrain, export, verify, predict.

    What is finished is not done again, and what was interrupted goes on.
    """
    if demo == (data is not None):
        raise click.UsageError("Give either --data DIR or --demo.")
    from busi_tune import pipeline
    from busi_tune.cli.screen import print_json, screen
    from busi_tune.cli.tables import show_all

    options, given = split_options(given)
    hide_password(options["storage"])
    if demo:
        defaults = {"trials": pipeline.DEMO_TRIALS, "trial_epochs": pipeline.DEMO_TRIAL_EPOCHS}
        unset = {k for k in defaults if context.get_parameter_source(k) == click.core.ParameterSource.DEFAULT}
        options |= {key: value for key, value in defaults.items() if key in unset}
    config = build_config(config_file, given, pipeline.DEMO if demo else None, split_file=split_file)
    chosen = name or ("demo" if demo else "tuned")
    places = pipeline.Places(
        data=data or Path("data/demo"),
        baseline=Path("studies") / ("demo-baseline" if demo else "baseline"),
        study=Path("studies") / chosen,
        export=Path("exports") / chosen,
    )
    with screen() as progress:
        if demo:
            pipeline.make_demo(places.data, progress)
        result = pipeline.run_all(
            places, config, SearchOptions(**options), progress, split_file=split_file, overwrite=overwrite
        )
    if as_json:
        classes = list(result["baseline"]["test"]["per_class"])
        result["predictions"] = [p.to_entry(classes) for p in result["predictions"]]
        print_json(result | {"places": {key: str(path) for key, path in dataclasses.asdict(places).items()}})
    else:
        show_all(result, dataclasses.asdict(places))
