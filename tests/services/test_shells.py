"""Completion in the shells that Debian packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from busi_tune.cli import exit_code


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `busi-tune` is a command."""
    program = tmp_path / "bin" / "busi-tune"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m busi_tune "$@"\n')
    program.chmod(0o755)
    return os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; apt-get install {shell}")
    assert exit_code(["completion", shell]) == 0
    return capsys.readouterr().out


def test_fish_completes(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = script("fish", capsys) + '\ncomplete -C "busi-tune data "\n'
    done = subprocess.run(["fish", "-N", "-c", asked], capture_output=True, text=True, check=True, env=environment)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["audit", "demo", "split"]
    asked = script("fish", capsys) + '\ncomplete -C "busi-tune baseline --arch resnet1"\n'
    done = subprocess.run(["fish", "-N", "-c", asked], capture_output=True, text=True, check=True, env=environment)
    assert sorted(line.split("\t")[0] for line in done.stdout.splitlines()) == ["resnet101", "resnet152", "resnet18"]


def test_zsh_completes(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    # Parts of zsh that exist only during completion: the words of the line, and the builtins that show answers.
    asked = """
    compdef() { registered=$2 }
    _describe() { print -rl -- "${(@P)3}" }
    compadd() { local name=${@[-1]}; print -rl -- "${(@P)name}" }
    """
    asked += script("zsh", capsys)

    def answers(words: str, place: int) -> list[str]:
        whole = f"{asked}\nwords=({words}); CURRENT={place}; $1; print $registered\n"
        command = ["zsh", "-f", "-c", whole, "zsh", "_busi_tune_completion"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
        return [line.split(":")[0] for line in done.stdout.splitlines()]

    assert answers("busi-tune data ''", 3) == ["audit", "demo", "split", "busi-tune"]
    known = ["busi-tune", "resnet101", "resnet152", "resnet18"]
    assert sorted(answers("busi-tune baseline --arch resnet1", 4)) == known
