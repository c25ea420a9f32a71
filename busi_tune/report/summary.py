"""The summary of an audit as a few lines of text."""

from collections.abc import Mapping

from busi_tune.results import AuditFile


def summary(audit: AuditFile) -> list[tuple[str, str]]:
    """The lines of an audit's summary, as pairs of name and value."""
    leak = audit["leak"]
    meter = leak["nearest_neighbour_accuracy"]
    copies = audit["copies"]
    none = leak["split"].startswith("none, ")
    return [
        ("images", f"{audit['images']} ({_listed(audit['classes'])})"),
        ("formats", _listed(audit["formats"])),
        ("modes", _listed(audit["modes"])),
        ("sizes in pixels", _listed(audit["sizes"])),
        (
            "read with a change",
            "; ".join(f"{len(paths)} {change}" for change, paths in audit["changed"].items()) or "none",
        ),
        ("images with colour", str(len(audit["coloured"]))),
        ("blank images", _blank(audit)),
        ("unreadable files", str(len(audit["unreadable"]))),
        ("masks left out", str(audit["masks"])),
        ("other files left out", _listed(audit["other_files"]) or "none"),
        ("exact copies", f"{sum(map(len, copies))} files in {len(copies)} {'set' if len(copies) == 1 else 'sets'}"),
        (
            "near-duplicates",
            f"{audit['images_with_a_twin']} images in {len(audit['groups'])} groups "
            f"(similarity {audit['similarity']:g} or more)",
        ),
        ("groups with two labels", str(len(audit["conflicts"]))),
        (
            "share of test images with a twin in training",
            leak["split"] if none else f"{_share(leak['leaked'])} (split: {leak['split']})",
        ),
        (
            "accuracy of the nearest thumbnail",
            "none"
            if meter["all"] is None
            else f"{_share(meter['leaked'])} on these, {_share(meter['clean'])} on the rest, by memory alone",
        ),
    ]


def _listed(counts: Mapping[str, int], most: int = 6) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:most])
    return shown + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _blank(audit: AuditFile) -> str:
    """The number of blank images, with counts by class: blank images in two classes contradict each other."""
    counts = {label: len(paths) for label, paths in audit["blank"].items()}
    return str(sum(counts.values())) + (f" ({_listed(counts)})" if counts else "")


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
