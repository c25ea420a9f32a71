"""The commands that train: run, baseline, search."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from busi_tune.cli.parameters import (
    PATH,
    RESUMED,
    Command,
    all_option,
    config_option,
    data_option,
    dry_run_option,
    examples,
    follow_split,
    given,
    json_option,
    log_option,
    made,
    out_option,
    overwrite_option,
    refuse,
    repeated,
    setting,
    split_option,
    stated_options,
)
from busi_tune.config import Config
from busi_tune.export_options import ExportOptions
from busi_tune.logs import Tracker
from busi_tune.progress import Progress
from busi_tune.search_options import SearchOptions

if TYPE_CHECKING:
    from busi_tune.results import PlanFile

BASELINE = Path("studies/baseline")
IMAGES = "Folder with one folder of images for each class."


def hide_password(storage: str | None) -> None:
    """Hide the command line from the process list, where all users could read a password in the URL."""
    if storage and find_spec("setproctitle"):
        from setproctitle import setproctitle

        setproctitle("busi-tune")
        # Python would pass the arguments on to the processes that it starts.
        del sys.argv[1:]


@click.command(
    cls=Command,
    interrupted=RESUMED,
    epilog=examples(
        "busi-tune baseline --data data/busi", "busi-tune baseline --data data/busi --arch resnet18 --seeds 5 --json"
    ),
)
@data_option(required=True, help=IMAGES)
@split_option
@stated_options(Config)
@setting(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    group="training",
    metavar="INTEGER",
    help="Number of trainings on the same split, with --seed and the seeds after it.",
)
@out_option(default=BASELINE, help="Folder of the run.")
@log_option
@all_option
@json_option
@overwrite_option
@dry_run_option
@config_option
def baseline(
    *,
    data: Path,
    out: Path,
    seeds: int,
    split_file: Path | None,
    log: Tracker | None,
    everything: bool,
    as_json: bool,
    overwrite: bool,
    dry_run: bool,
    **values: object,
) -> None:
    """Train the documented configuration and evaluate it on the test split.

    With --seeds, also train it with further seeds, and print the spread of each metric over the seeds.
    """
    config = made(Config, follow_split(values, split_file))
    # Check that the last seed is valid before the first training.
    config.replace(seed=config.seed + seeds - 1)
    from busi_tune import pipeline
    from busi_tune.cli.plan_table import show_plan
    from busi_tune.cli.screen import print_end, print_json, print_text, screen
    from busi_tune.cli.tables import KEPT, show_run, show_seeds
    from busi_tune.logs.trackers import logged

    if dry_run:
        from busi_tune.dry_run import dry_baseline

        with screen() as progress:
            plan = dry_baseline(data, out, config, progress, seeds=seeds, split_file=split_file, overwrite=overwrite)
        show_plan(plan, as_json=as_json)
        return
    with screen() as progress, logged(log, [out], progress):
        figures = pipeline.baseline(
            data, out, config, progress, split_file=split_file, overwrite=overwrite, seeds=seeds
        )
        compared = pipeline.more_seeds(data, out, config, seeds, progress) if seeds > 1 else None
    if as_json:
        print_json({**figures, "seeds": compared} if compared else figures)
        return
    show_run(figures, out, everything=everything)
    if compared:
        show_seeds(compared, everything=everything)
    print_text(KEPT)
    following = ["search", "--data", data, *(["--split", split_file] if split_file else []), *repeated(Config)]
    if out != BASELINE:
        following += ["--baseline", out, "--out", out.with_name(f"{out.name}-tuned")]
    print_end(f"{out} has metrics.json, predictions.csv, history.csv and two pictures.", *following)


@click.command(
    cls=Command,
    interrupted=RESUMED,
    epilog=examples(
        "busi-tune search --data data/busi --trials 40 --timeout 2h",
        "busi-tune search --data data/busi --space space.toml --workers 4 --confirm 3",
    ),
)
@data_option(required=True, help=IMAGES)
@split_option
@stated_options(Config)
@setting(
    "--baseline",
    "baseline_run",
    type=PATH,
    metavar="RUN",
    group="search",
    unset="the folder baseline next to the study's folder, if it exists",
    help="Folder of a finished run of this configuration, which becomes trial 0; with --folds, folder of a finished "
    "cross-validation.",
)
@setting(
    "--folds",
    type=click.IntRange(min=2),
    group="search",
    metavar="INTEGER",
    unset="one split",
    help="Number of outer folds, to evaluate the search as a procedure; each fold has a study that does not use the "
    "fold's images.",
)
@stated_options(SearchOptions)
@out_option(default=Path("studies/tuned"), help="Folder of the study.")
@log_option
@all_option
@json_option
@overwrite_option
@dry_run_option
@config_option
def search(
    *,
    data: Path,
    out: Path,
    baseline_run: Path | None,
    folds: int | None,
    split_file: Path | None,
    log: Tracker | None,
    everything: bool,
    as_json: bool,
    overwrite: bool,
    dry_run: bool,
    **values: object,
) -> None:
    """Search for better hyperparameters with Optuna, then finish the training of the best trial."""
    if folds is not None and split_file is not None:
        raise click.UsageError("--split and --folds exclude each other; remove one.")
    values = follow_split(values, split_file)
    refuse(values, Config, SearchOptions)
    config, options = made(Config, values), made(SearchOptions, values)
    hide_password(options.storage)
    from busi_tune import pipeline
    from busi_tune.cli.plan_table import show_plan
    from busi_tune.cli.screen import print_end, print_json, print_text, screen
    from busi_tune.cli.tables import KEPT, show_nested, show_search, show_verdict
    from busi_tune.logs.trackers import logged

    if dry_run:
        with screen() as progress:
            plan = _search_plan(
                data,
                out,
                config,
                options,
                progress,
                folds=folds,
                baseline_run=baseline_run,
                split_file=split_file,
                overwrite=overwrite,
            )
        show_plan(plan, as_json=as_json)
        return
    if folds is not None:
        with screen() as progress, logged(log, [out], progress):
            judged = pipeline.search_folds(
                data, out, config, options, progress, folds=folds, baseline_run=baseline_run, overwrite=overwrite
            )
        if as_json:
            print_json(judged)
        else:
            show_nested(judged, out, everything=everything)
        return
    with screen() as progress, logged(log, [out], progress):
        result = pipeline.search(
            data,
            out,
            config,
            options,
            progress,
            baseline_run=baseline_run,
            split_file=split_file,
            overwrite=overwrite,
        )
    if as_json:
        print_json(result)
        return
    show_search(result, out, everything=everything)
    if "best" not in result:
        return
    verdict = result["verdict"]
    if verdict is not None:
        show_verdict(verdict, everything=everything)
    print_text(KEPT)
    print_end(f"{out} has trials.csv, best/ and verdict.json.", "export", out / "best")
    if verdict is not None:
        # The answer comes last.
        print_text(verdict["sentence"])


def _search_plan(
    data: Path,
    out: Path,
    config: Config,
    options: SearchOptions,
    progress: Progress,
    *,
    folds: int | None,
    baseline_run: Path | None,
    split_file: Path | None,
    overwrite: bool,
) -> "PlanFile":
    from busi_tune.dry_run import dry_search, dry_search_folds

    if folds is not None:
        return dry_search_folds(
            data, out, config, options, progress, folds=folds, baseline_run=baseline_run, overwrite=overwrite
        )
    return dry_search(
        data,
        out,
        config,
        options,
        progress,
        baseline_run=baseline_run,
        split_file=split_file,
        overwrite=overwrite,
    )


@click.command(
    cls=Command,
    interrupted=RESUMED,
    epilog=examples("busi-tune run --demo", "busi-tune run --data data/busi --trials 40 --name wide"),
)
@data_option(help=IMAGES)
@setting("--demo", is_flag=True, group="data", help="Draw phantom images and do a small run on them; needs no data.")
@split_option
@stated_options(Config)
@stated_options(SearchOptions)
@stated_options(ExportOptions)
@setting("--name", group="output", unset="tuned, or demo with --demo", help="Name of the study and of the export.")
@log_option
@all_option
@json_option
@overwrite_option
@dry_run_option
@config_option
def run(
    *,
    data: Path | None,
    demo: bool,
    name: str | None,
    split_file: Path | None,
    log: Tracker | None,
    everything: bool,
    as_json: bool,
    overwrite: bool,
    dry_run: bool,
    **values: object,
) -> None:
    """Run all steps: baseline, search, retrain, export, verify, predict.

    Finished steps are skipped, and an interrupted step is resumed.
    """
    if demo == (data is not None):
        raise click.UsageError("Give either --data DIR or --demo.")
    values = follow_split(values, split_file)
    refuse(values, Config, SearchOptions, ExportOptions)
    from busi_tune import pipeline
    from busi_tune.cli.plan_table import show_plan
    from busi_tune.cli.screen import print_end, print_json, print_text, screen
    from busi_tune.cli.tables import KEPT, show_all, show_verdict
    from busi_tune.logs.trackers import logged

    if demo:
        values |= {key: value for key, value in pipeline.DEMO.items() if not given(key)}
    options = made(SearchOptions, values)
    hide_password(options.storage)
    chosen = name or ("demo" if demo else "tuned")
    places = pipeline.Places(
        data=data or Path("data/demo"),
        baseline=Path("studies") / ("demo-baseline" if demo else "baseline"),
        study=Path("studies") / chosen,
        export=Path("exports") / chosen,
    )
    if dry_run:
        from busi_tune.dry_run import dry_run_all

        if demo and not places.data.exists():
            raise click.UsageError(f"A dry run draws no phantoms; first run busi-tune data demo --out {places.data}.")
        with screen() as progress:
            plan = dry_run_all(
                places,
                made(Config, values),
                options,
                progress,
                exported=made(ExportOptions, values),
                split_file=split_file,
                overwrite=overwrite,
            )
        show_plan(plan, as_json=as_json)
        return
    with screen() as progress, logged(log, [places.baseline, places.study], progress):
        if demo:
            pipeline.make_demo(places.data, progress)
        result = pipeline.run_all(
            places,
            made(Config, values),
            options,
            progress,
            exported=made(ExportOptions, values),
            split_file=split_file,
            overwrite=overwrite,
        )
    if as_json:
        print_json(result)
        return
    show_all(result, everything=everything)
    verdict = result["search"]["verdict"]
    if verdict is not None:
        show_verdict(verdict, everything=everything)
    print_text(KEPT)
    print_end(f"{places.export} has the models, their certificate and the card.", "predict", places.export, "IMAGE...")
    if verdict is not None:
        # The answer comes last.
        print_text(verdict["sentence"])
