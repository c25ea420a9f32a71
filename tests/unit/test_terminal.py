"""The terminal: completion, suggestions, -q and -v, NO_COLOR, and --json for every command."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from busi_tune.cli import cli, exit_code
from busi_tune.cli.completion import SHELLS
from busi_tune.cli.suggestions import nearest
from busi_tune.training.model import ARCHITECTURES
from image_folders import folder_of
from small_export import small_model, write_export


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, ...]]:
    """The words of each command."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        else:
            yield *above, name


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A script that runs `busi-tune`."""
    path = tmp_path / "bin" / "busi-tune"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m busi_tune "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("busi-tune ver", ["verify"]),
        ("busi-tune data ", ["audit", "demo", "split"]),
        ("busi-tune export --int", ["--int8"]),
        ("busi-tune baseline --strategy gr", ["grouped"]),
        ("busi-tune completion f", ["fish"]),
        ("busi-tune baseline --arch resnet1", ["resnet101", "resnet152", "resnet18"]),
        ("busi-tune search --arch nothing", []),
    ],
)
def test_bash_completes(line: str, found: list[str], program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = line.split(" ")
    given = " ".join(f"'{word}'" for word in words)
    script += f"\nCOMP_WORDS=({given}); COMP_CWORD={len(words) - 1}\n"
    script += f"_busi_tune_completion {program}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == found


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_its_script_and_its_answers(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert exit_code(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": script.removesuffix("\n")}
    assert f"_BUSI_TUNE_COMPLETE={shell}_complete" in script
    environment = os.environ | {
        "_BUSI_TUNE_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "busi-tune pred",
        "COMP_CWORD": "pred" if shell == "fish" else "1",
    }
    command = [sys.executable, "-m", "busi_tune"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "predict" in done.stdout
    assert "baseline" not in done.stdout


def test_architectures_are_completed_without_importing_torch() -> None:
    program = "import sys; from busi_tune.cli.architectures import architectures; print(*architectures()); "
    program += "sys.exit(bool({'torch', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(ARCHITECTURES)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["completion", "csh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def test_the_file_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "exports" / "tuned").mkdir(parents=True)
    (tmp_path / "exports" / "tuned" / "model.onnx").touch()
    for given, meant in (
        ("exports/tunde", "exports/tuned"),
        ("export/tuned/model.onnx", "exports/tuned/model.onnx"),
        ("exports/Tuned", "exports/tuned"),
        ("export/tuned/nothing", ""),
        ("exports/tuned", ""),
        ("quite-another", ""),
        ("exports/tuned/model.onnx/x", ""),
        ("x" * 5000, ""),
        ("a\0b", ""),
    ):
        assert nearest(tmp_path / given) == (tmp_path / meant if meant else None)


def test_errors_name_the_file_that_was_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_export(Path("export"), {"model.onnx": small_model()})
    Image.fromarray(np.full((30, 40), 99, np.uint8)).save("scan.png")
    Path("images").mkdir()
    Path("options.toml").touch()
    for command, words in (
        (["verify", "exprt"], "Did you mean export?"),
        (["predict", "exprt", "scan.png"], "Did you mean export?"),
        (["predict", "export", "scn.png"], "scn.png does not exist; did you mean scan.png?"),
        (["baseline", "--data", "imags"], "Did you mean images?"),
        (["baseline", "--data=imags"], "Did you mean images?"),
        (["baseline", "--data", "images", "--config", "option.toml"], "Did you mean options.toml?"),
    ):
        assert exit_code(command) > 0
        error = capsys.readouterr().err
        assert error.endswith(f"{words}\n")
        assert error.count("\n") == 1
    assert exit_code(["verify", "nowhere"]) == 1
    assert "Did you mean" not in capsys.readouterr().err


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder of a few small images."""
    names = [f"class{letter}/{number}.png" for letter in "abc" for number in range(8)]
    folder = folder_of(tmp_path / "data", names)
    (folder / "classa" / "notes.txt").touch()
    return folder


def split(data: Path, out: Path) -> list[str]:
    """A command that prints notices on the classes and on the ignored file."""
    return ["data", "split", "--data", str(data), "--out", str(out), "--classes", "classa,classb,classc"]


def test_quiet_prints_results_and_errors_alone(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(split(few, tmp_path / "a.csv")) == 0
    loud = capsys.readouterr()
    assert "Other files left out: .txt 1." in loud.err
    assert exit_code([*split(few, tmp_path / "b.csv"), "-q"]) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert quiet.out == loud.out.replace("a.csv", "b.csv")
    assert exit_code(["verify", str(tmp_path / "c"), "--quiet"]) == 1
    assert capsys.readouterr().err.startswith("busi-tune: ")
    assert exit_code(["verify", str(tmp_path / "c"), "-q", "-v"]) == 2


def test_verbose_says_where_an_error_arose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["verify", str(tmp_path / "nothing")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert exit_code(["verify", str(tmp_path / "nothing"), "-v"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == line


@pytest.mark.parametrize("words", list(commands(cli)), ids=" ".join)
def test_every_command_has_them(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--json", "-q, --quiet", "-v, --verbose"))


@pytest.mark.slow
def test_demo_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["data", "demo", "--out", str(tmp_path / "data"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["planted"]).read_text().count("\n") > 1
    assert found["data"] == str(tmp_path / "data")


@pytest.mark.parametrize("plain", [True, False])
def test_no_color_is_heard_on_a_terminal(plain: bool, few: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "busi_tune", *split(few, tmp_path / "split.csv")]
    environment = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "CI"}}
    environment |= {"TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if plain else {})
    reader, writer = pty.openpty()
    process = subprocess.Popen(command, stdout=writer, stderr=writer, env=environment)
    os.close(writer)
    shown = b""
    try:
        while piece := os.read(reader, 65_536):
            shown += piece
    except OSError:
        # Linux reports the closed other end in this way.
        pass
    os.close(reader)
    assert process.wait() == 0
    assert b"split" in shown
    coloured = any(f"\x1b[{code}".encode() in shown for code in ("38;", "31m", "32m", "35m", "36m"))
    assert coloured is not plain
