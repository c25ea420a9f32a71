"""The search space: its default, and the content that a space file may have."""

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from busi_tune.config import Config
from busi_tune.errors import ConfigError, FileError
from busi_tune.search.space import FIXED, Space, default_space, read_space


def read(folder: Path, text: str, **changed: Any) -> Space:
    path = folder / "space.toml"
    path.write_text(text)
    return read_space(path, Config(**changed))


def problems(folder: Path, text: str, **changed: Any) -> str:
    """The reasons for which a space file is refused, without the rest of the sentence."""
    with pytest.raises(ConfigError) as error:
        read(folder, text, **changed)
    start, end = f"The search space in {folder / 'space.toml'} cannot be used: ", "."
    assert str(error.value).startswith(start)
    assert str(error.value).endswith(end)
    assert error.value.exit_code == 2
    return str(error.value).removeprefix(start).removesuffix(end)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    return distribution._contains(distribution.to_internal_repr(value))


def test_the_default_space_is_the_documents() -> None:
    assert default_space(Config()) == {
        "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
        "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
        "scheduler_patience": IntDistribution(2, 9),
    }


def test_the_default_space_contains_the_baseline() -> None:
    baseline = Config()
    for name, distribution in default_space(baseline).items():
        assert contains(distribution, getattr(baseline, name)), name


@pytest.mark.parametrize(("stopping", "patience", "low", "high"), [(10, 5, 2, 9), (3, 2, 2, 2), (4, 1, 1, 3)])
def test_the_default_space_stays_below_the_stopping_patience(stopping: int, patience: int, low: int, high: int) -> None:
    space = default_space(Config(early_stopping_patience=stopping, scheduler_patience=patience))
    assert space["scheduler_patience"] == IntDistribution(low, high)


def test_the_default_space_is_widened_to_hold_the_baseline() -> None:
    space = default_space(Config(learning_rate=0.05, weight_decay=1e-7))
    assert space["learning_rate"] == FloatDistribution(1e-5, 0.05, log=True)
    assert space["weight_decay"] == FloatDistribution(1e-7, 0.1, log=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Config(early_stopping_patience=5),
            "scheduler_patience must be below early_stopping_patience (5) for a search, not 5.",
        ),
        (
            Config(weight_decay=0.0),
            "weight_decay must be above 0 for a search on a log scale, not 0; name a --space.",
        ),
    ],
)
def test_a_baseline_that_the_default_space_cannot_hold_is_refused(config: Config, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        default_space(config)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate = {low = 1e-4, high = 1e-2}", {"learning_rate": FloatDistribution(1e-4, 1e-2)}),
        (
            "learning_rate = {low = 1e-4, high = 1e-2, log = true}",
            {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)},
        ),
        ("weight_decay = {low = 0, high = 1}", {"weight_decay": FloatDistribution(0.0, 1.0)}),
        (
            "weight_decay = {low = 0.01, high = 0.51, step = 0.1}",
            {"weight_decay": FloatDistribution(0.01, 0.51, step=0.1)},
        ),
        ("horizontal_flip = {low = 0.5, high = 0.5}", {"horizontal_flip": FloatDistribution(0.5, 0.5)}),
        ("batch_size = {low = 8, high = 64}", {"batch_size": IntDistribution(8, 64)}),
        ("batch_size = {low = 8, high = 64, step = 8}", {"batch_size": IntDistribution(8, 64, step=8)}),
        ("batch_size = {low = 8, high = 64, log = true}", {"batch_size": IntDistribution(8, 64, log=True)}),
        ("batch_size = {choices = [16, 32]}", {"batch_size": CategoricalDistribution([16, 32])}),
        ("class_weights = {choices = [true, false]}", {"class_weights": CategoricalDistribution([True, False])}),
        ('arch = {choices = ["resnet50"]}', {"arch": CategoricalDistribution(["resnet50"])}),
        ("weight_decay = {choices = [0.0, 0.01]}", {"weight_decay": CategoricalDistribution([0.0, 0.01])}),
        ("scheduler_patience = {low = 0, high = 9}", {"scheduler_patience": IntDistribution(0, 9)}),
        ("scheduler_patience = {choices = [9, 5]}", {"scheduler_patience": CategoricalDistribution([9, 5])}),
        ("early_stopping_patience = {low = 6, high = 20}", {"early_stopping_patience": IntDistribution(6, 20)}),
        (
            "[scheduler_patience]\nlow = 1\nhigh = 5\n[early_stopping_patience]\nchoices = [10, 8]\n",
            {"scheduler_patience": IntDistribution(1, 5), "early_stopping_patience": CategoricalDistribution([10, 8])},
        ),
    ],
)
def test_space_files(tmp_path: Path, text: str, expected: Space) -> None:
    space = read(tmp_path, text)
    assert space == expected
    assert [type(space[name]) for name in expected] == [type(value) for value in expected.values()]


def test_fields_keep_the_files_order(tmp_path: Path) -> None:
    text = (
        "weight_decay = {low = 0, high = 1}\nhorizontal_flip = {choices = [0.5]}\nbatch_size = {low = 8, high = 32}\n"
    )
    assert list(read(tmp_path, text)) == ["weight_decay", "horizontal_flip", "batch_size"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it names no field"),
        ("learning_rat = {low = 1, high = 2}", "unknown key 'learning_rat', did you mean 'learning_rate'?"),
        ("zzz = {low = 1, high = 2}", "unknown key 'zzz'"),
        ("learning_rate = 0.1", "learning_rate must be a table with low and high, or choices, not 0.1"),
        (
            "learning_rate = [1e-4, 1e-2]",
            "learning_rate must be a table with low and high, or choices, not [0.0001, 0.01]",
        ),
        ("learning_rate = {low = 1e-4}", "learning_rate must have low and high (and log, step), or choices, not low"),
        (
            "learning_rate = {low = 1e-4, high = 1e-2, scale = 1}",
            "learning_rate must have low and high (and log, step), or choices, not low, high, scale",
        ),
        (
            "learning_rate = {low = 1e-4, high = 1e-2, choices = [1]}",
            "learning_rate must have low and high (and log, step), or choices, not low, high, choices",
        ),
        (
            "learning_rate = {low = 1e-2, high = 1e-3}",
            "low of learning_rate must not be above high, and 0.01 is above 0.001",
        ),
        ("weight_decay = {low = 0, high = 1, log = true}", "low of weight_decay must be above 0 on a log scale, not 0"),
        ("learning_rate = {low = 1e-4, high = 20}", "learning_rate must be between 1e-08 and 10, not 20"),
        ("learning_rate = {low = nan, high = 1}", "learning_rate must be between 1e-08 and 10, not nan"),
        ('learning_rate = {low = "a", high = 1}', "learning_rate must be a number, not 'a'"),
        ("batch_size = {low = 1, high = 32}", "batch_size must be between 2 and 4096, not 1"),
        ("batch_size = {low = 8.0, high = 32}", "batch_size must be a whole number, not 8.0"),
        ("batch_size = {low = 8, high = true}", "batch_size must be a whole number, not True"),
        ('arch = {low = "a", high = "b"}', "arch is not a number and needs choices, not low and high"),
        (
            "class_weights = {low = false, high = true}",
            "class_weights is not a number and needs choices, not low and high",
        ),
        ("batch_size = {}", "batch_size must have low and high (and log, step), or choices, not an empty table"),
        ("batch_size = {choices = [8, 16, 8]}", "choices of batch_size must differ from each other, not [8, 16, 8]"),
        ("batch_size = {low = 8, high = 30, step = 8}", "step of batch_size must lead from 8 to 30, and 8 does not"),
        ("batch_size = {choices = []}", "choices of batch_size must be a list of values, not []"),
        ("batch_size = {choices = 8}", "choices of batch_size must be a list of values, not 8"),
        ("batch_size = {choices = [8, 5000]}", "batch_size must be between 2 and 4096, not 5000"),
        ("class_weights = {choices = [true, 1]}", "class_weights must be true or false, not 1"),
        ('arch = {choices = ["resnet50", "resnet19"]}', "unknown architecture 'resnet19', did you mean 'resnet18'?"),
        (
            'precision = {choices = ["float16"]}',
            "precision must be one of auto, float32, bfloat16, not 'float16'",
        ),
        (
            "scheduler_patience = {low = 2, high = 10}",
            "scheduler_patience goes up to 10, which must be below the stopping patience of 10",
        ),
        (
            "scheduler_patience = {choices = [12, 5]}",
            "scheduler_patience goes up to 12, which must be below the stopping patience of 10",
        ),
        (
            "early_stopping_patience = {low = 5, high = 20}",
            "scheduler_patience goes up to 5, which must be below the stopping patience of 5",
        ),
        (
            "scheduler_patience = {low = 1, high = 7}\nearly_stopping_patience = {choices = [10, 6]}",
            "scheduler_patience goes up to 7, which must be below the stopping patience of 6",
        ),
    ],
)
def test_space_files_that_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    assert problems(tmp_path, text) == problem


@pytest.mark.parametrize("name", sorted(FIXED))
def test_fields_that_all_trials_share(tmp_path: Path, name: str) -> None:
    assert name in Config.options
    assert problems(tmp_path, f"{name} = {{choices = [1]}}") == f"{name} must be the same for all trials"


def test_the_patience_of_the_configuration_counts(tmp_path: Path) -> None:
    text = "scheduler_patience = {low = 2, high = 10}"
    assert read(tmp_path, text, early_stopping_patience=11) == {"scheduler_patience": IntDistribution(2, 10)}
    expected = "scheduler_patience goes up to 10, which must be below the stopping patience of 4"
    assert problems(tmp_path, text, early_stopping_patience=4) == expected


def test_all_problems_stand_in_one_message(tmp_path: Path) -> None:
    text = (
        "lerning_rate = {low = 1e-4, high = 1e-2}\n"
        "epochs = {low = 10, high = 20}\n"
        "weight_decay = {low = 0, high = 1, log = true}\n"
        "batch_size = {choices = [0]}\n"
        "horizontal_flip = {low = 0, high = 1}\n"
        "scheduler_patience = {low = 5, high = 15}\n"
    )
    assert problems(tmp_path, text) == (
        "unknown key 'lerning_rate', did you mean 'learning_rate'?; epochs must be the same for all trials; "
        "low of weight_decay must be above 0 on a log scale, not 0; batch_size must be between 2 and 4096, not 0; "
        "scheduler_patience goes up to 15, which must be below the stopping patience of 10"
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("batch_size = {low = 8, high = 32, step = -1}", "step of batch_size must be above 0"),
        (
            "learning_rate = {low = 1e-4, high = 1e-2, log = true, step = 1e-3}",
            "step of learning_rate must be above 0",
        ),
    ],
)
def test_steps_that_optuna_refuses(tmp_path: Path, text: str, part: str) -> None:
    assert part in problems(tmp_path, text)


def test_a_space_file_that_is_not_there_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.toml could not be read: No such file or directory; fix"):
        read_space(tmp_path / "none.toml", Config())
    with pytest.raises(ConfigError, match=r"space\.toml is not valid TOML: "):
        read(tmp_path, "learning_rate = {low = 1")


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("learning_rate = {low = 0.002, high = 0.1}", "learning_rate 0.001"),
        ("batch_size = {low = 8, high = 62, step = 9}", "batch_size 32"),
        ('arch = {choices = ["resnet18"]}\nclass_weights = {choices = [false]}', "arch 'resnet50', class_weights True"),
    ],
)
def test_a_space_without_the_baseline_is_refused(tmp_path: Path, text: str, outside: str) -> None:
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_space(path, Config())
    assert str(error.value) == (
        f"The search space in {path} cannot be used: it does not hold the baseline's {outside}, "
        "and the baseline is the first trial."
    )


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate = {low = 0.001, high = 0.1, log = true}",
        "batch_size = {low = 8, high = 32, step = 8}",
        "horizontal_flip = {low = 0.1, high = 0.7, step = 0.1}",
        'arch = {choices = ["resnet18", "resnet50"]}',
    ],
)
def test_a_space_that_holds_the_baseline_is_taken(tmp_path: Path, text: str) -> None:
    path = tmp_path / "space.toml"
    path.write_text(text)
    space = read_space(path, Config())
    assert len(space) == 1
