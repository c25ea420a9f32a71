"""The plan of a dry run as a table and sentences."""

from datetime import timedelta

from busi_tune.cli.screen import print_json, print_table, print_text
from busi_tune.results import PlanFile

# The share of its processors below which a process waits for others.
ENOUGH = 0.8


def show_plan(plan: PlanFile, *, as_json: bool) -> None:
    """Print a plan."""
    if as_json:
        print_json(plan)
        return
    columns = ("training", "train", "validation", "test", "steps/epoch", "done", "epochs done", "left at most", "time")
    rows = [
        (
            stage["name"],
            *stage["images"].values(),
            stage["steps_per_epoch"],
            f"{stage['finished']} of {stage['trainings']}",
            stage["epochs_done"],
            stage["epochs_left"],
            span(stage["seconds"]),
        )
        for stage in plan["stages"]
    ]
    print_table(f"Plan of {plan['command']}, of which nothing has been begun or written", columns, rows)
    if not any(stage["epochs_left"] for stage in plan["stages"]):
        print_text("All trainings are finished; the command evaluates what is missing and shows the results.")
    beside = f" with {plan['workers']} workers" if plan["workers"] > 1 else ""
    pruned = ""
    if plan["seconds_with_pruning"] < plan["seconds"]:
        pruned = f", or {span(plan['seconds_with_pruning'])} with the pruner's usual savings"
    print_text(
        f"Time on {plan['device']} in {plan['precision']}{beside}: at most {span(plan['seconds'])}{pruned}, of which "
        f"{span(plan['preparation_seconds'])} for the images and {span(plan['evaluation_seconds'])} for evaluation. "
        "Early stopping can end a training before."
    )
    had, threads = plan["processors"], plan["threads"]
    if had is not None and plan["device"] == "cpu" and had < ENOUGH * threads:
        print_text(
            f"The measurement had {had:.1f} of the {threads} processors that it computes on, because others are busy; "
            "on an idle machine it is faster."
        )
    cache = f", and {_size(plan['cache_bytes'])} of decoded images in the cache" if plan["cache_bytes"] else ""
    print_text(f"Disk: up to {_size(plan['disk_bytes'])} of checkpoints{cache}.")
    sizes = ((plan["memory_bytes"], ""), (plan["gpu_memory_bytes"], " on the GPU"))
    memory = [f"{_size(size)}{where}" for size, where in sizes if size]
    if memory:
        print_text(f"Memory: {' and '.join(memory)}.")
    if plan["without_export"]:
        print_text("The export at the end is not measured; it takes minutes.")
    print_text("To begin, run the same command without --dry-run.")


def span(seconds: float) -> str:
    """A span of time in hours, minutes and seconds, as in 1:02:03."""
    return str(timedelta(seconds=round(seconds)))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
