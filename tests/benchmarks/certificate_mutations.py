"""Make every change in an export's folder, one at a time, and count those that `verify` does not notice.

    PYTHONPATH=.:tests/support python tests/benchmarks/certificate_mutations.py EXPORT

Each change is made in the unsigned export. Changes that `verify` does not notice are also made in the signed export,
which is checked with its key. The script then forges each model: it exchanges two classes in the last layer, or their
names in the metadata. Each forgery is hidden in four ways, up to a completely new certificate. Only a signature reveals
the last one.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from busi_tune.inference.certificate import read_certificate, write_certificate
from busi_tune.inference.signature import Signer
from edits import Edit
from mutations import applied, forge_model, is_noticed, mutations_of

DEPTHS = range(4)


def sign(folder: Path, place: Path) -> str:
    """Sign an export with a new key, and return the public key."""
    key, form = place / "key.pem", serialization.PrivateFormat.PKCS8
    private = Ed25519PrivateKey.generate()
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    signer = Signer(key)
    write_certificate(folder, read_certificate(folder), signer)
    return signer.public


def last_weight(path: Path) -> str:
    """The name of the last tensor with a row for each class."""
    model = onnx.load(path)
    classes = len(json.loads(next(entry.value for entry in model.metadata_props if entry.key == "classes")))
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    used = [name for node in model.graph.node for name in node.input if name in held]
    last: str = next(name for name in reversed(used) if len(held[name].dims) > 1 and held[name].dims[0] == classes)
    return last


def forgeries(folder: Path, public: str, place: Path) -> tuple[Counter[str], list[str]]:
    """The number of forgeries by depth of hiding, and the unnoticed ones."""
    tried: Counter[str] = Counter()
    unnoticed: list[str] = []
    certificate = read_certificate(folder)
    for name in certificate["models"]:
        classes = json.loads((folder / "labels.json").read_text())["classes"]
        swapped = json.dumps([classes[1], classes[0], *classes[2:]])
        for what in ({"tensor": last_weight(folder / name)}, {"facts": {"classes": swapped}}):
            for depth in DEPTHS:
                changed = Path(shutil.copytree(folder, place / "forged"))
                forge_model(changed, name, depth=depth, **what)
                tried[f"forged models, hidden to depth {depth}"] += 1
                if not is_noticed(changed) or not is_noticed(changed, public):
                    unnoticed.append(f"{name}: {what}, depth {depth}")
                shutil.rmtree(changed)
    return tried, unnoticed


def unnoticed_edits(folder: Path, key: str, edits: Iterable[Edit], tried: Counter[str]) -> list[Edit]:
    """The edits of an export that its check does not notice. All edits are counted in `tried`."""
    unnoticed = []
    for edit in edits:
        tried[f"changes of {Path(edit.path).name}"] += 1
        with applied(edit, folder.parent):
            if not is_noticed(folder, key):
                unnoticed.append(edit)
        if tried.total() % 500 == 0:
            print(f"{tried.total()} changes, {len(unnoticed)} not noticed", file=sys.stderr, flush=True)
    return unnoticed


def main() -> int:
    """Print the number of changes in each file, and the unnoticed changes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    given = parser.parse_args()
    tried: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folder = Path(shutil.copytree(given.export, place / "unsigned" / "export"))
        doubtful = unnoticed_edits(folder, "", mutations_of(folder), tried)
        signed = Path(shutil.copytree(given.export, place / "signed" / "export"))
        public = sign(signed, place)
        places = {edit.what.removesuffix(", with its SHA-256") for edit in doubtful}
        again = [edit for edit in mutations_of(signed) if edit.what.removesuffix(", with its SHA-256") in places]
        missed = unnoticed_edits(signed, public, again, Counter())
        forged, hidden = forgeries(signed, public, place)
    for title, count in sorted((tried + forged).items()):
        print(f"{count:6} {title}")
    print(f"{len(doubtful)} changes were not noticed without a signature", *(edit.what for edit in doubtful), sep="\n")
    wrong = [f"{edit.path}: {edit.what}" for edit in missed] + hidden
    print(f"{len(wrong)} changes and forgeries were not noticed with a signature", *wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
