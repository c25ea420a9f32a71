"""The three classes of options: defaults, rules, and one sentence that lists all violations."""

import dataclasses
import pydoc
import tomllib
from pathlib import Path
from typing import Any

import pytest

from busi_tune.config import Config, differences, read_toml
from busi_tune.errors import ConfigError, FileError
from busi_tune.export_options import ExportOptions
from busi_tune.option import Option, Options, unknown
from busi_tune.search_options import SearchOptions

CLASSES: tuple[type[Options], ...] = (Config, SearchOptions, ExportOptions)
BASELINE = {
    "fractions": (0.7, 0.15, 0.15),
    "arch": "resnet50",
    "weights": "imagenet",
    "image_size": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "horizontal_flip": 0.5,
    "class_weights": True,
    "weighted_sampler": True,
    "batch_size": 32,
    "epochs": 80,
    "learning_rate": 0.001,
    "weight_decay": 0.01,
    "scheduler_factor": 0.5,
    "scheduler_patience": 5,
    "min_learning_rate": 1e-5,
    "early_stopping_patience": 10,
}


@pytest.mark.parametrize(("name", "value"), BASELINE.items())
def test_each_default_is_the_documents_value(name: str, value: object) -> None:
    default = getattr(Config(), name)
    assert default == value
    assert type(default) is type(value)


def test_what_the_documents_do_not_say_has_the_designs_default() -> None:
    rest = {name: value for name, value in vars(Config()).items() if name not in BASELINE}
    assert rest == {
        "strategy": "grouped",
        "similarity": 0.93,
        "conflicts": "exclude",
        "classes": None,
        "positive": None,
        "split_seed": 0,
        "seed": 0,
        "precision": "auto",
        "device": "auto",
    }


def test_the_defaults_of_a_study_and_of_an_export() -> None:
    assert vars(SearchOptions()) == {
        "trials": 20,
        "timeout": None,
        "epochs_total": None,
        "trial_epochs": None,
        "metric": "val_loss",
        "space": None,
        "pruner": "stalled",
        "keep_trials": 1,
        "confirm": 0,
        "confirm_seeds": 3,
        "audit_pruned": 0,
        "workers": 1,
        "storage": None,
        "ray": None,
    }
    assert vars(ExportOptions()) == {
        "cam": False,
        "int8": False,
        "float16": False,
        "network_only": "none",
        "max_drop": 0.01,
        "sensitivity": None,
    }


@pytest.mark.parametrize("kind", CLASSES)
def test_they_are_frozen_and_keyword_only(kind: type[Options]) -> None:
    name = next(iter(kind.options))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), name, None)
    assert all(field.kw_only for field in dataclasses.fields(kind))


@pytest.mark.parametrize("kind", CLASSES)
def test_help_shows_each_options_help_values_and_default(kind: type[Options]) -> None:
    text = pydoc.plain(pydoc.render_doc(kind))
    for one in kind.options.values():
        assert one.text
        assert not one.text.endswith(".")
        assert f"{one.name}: {one.help}" in text
        assert f"{one.values}. Default: {one.shown_default}." in text or not one.values
    if kind is Config:
        line = "Height and width of the model's input, in pixels. It must be between 16 and 1024. Default: 224."
        assert f"image_size: {line}" in text


@pytest.mark.parametrize("kind", CLASSES)
def test_each_default_keeps_its_own_rule(kind: type[Options]) -> None:
    for one in kind.options.values():
        assert one.checked(one.default) == one.default


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("epochs", 0, "epochs must be between 1 and 10000, not 0"),
        ("epochs", 10_001, "epochs must be between 1 and 10000, not 10001"),
        ("batch_size", 1, "batch_size must be between 2 and 4096, not 1"),
        ("image_size", 15, "image_size must be between 16 and 1024, not 15"),
        ("image_size", 1025, "image_size must be between 16 and 1024, not 1025"),
        ("learning_rate", 0.0, "learning_rate must be between 1e-08 and 10, not 0.0"),
        ("learning_rate", 10.5, "learning_rate must be between 1e-08 and 10, not 10.5"),
        ("learning_rate", float("nan"), "learning_rate must be between 1e-08 and 10, not nan"),
        ("learning_rate", float("inf"), "learning_rate must be between 1e-08 and 10, not inf"),
        ("weight_decay", -0.1, "weight_decay must be between 0 and 10, not -0.1"),
        ("scheduler_factor", 1.0, "scheduler_factor must be between 0.01 and 0.99, not 1.0"),
        ("scheduler_patience", -1, "scheduler_patience must be between 0 and 10000, not -1"),
        ("min_learning_rate", -1e-6, "min_learning_rate must be between 0 and 1, not -1e-06"),
        ("early_stopping_patience", 0, "early_stopping_patience must be between 1 and 10000, not 0"),
        ("horizontal_flip", 1.01, "horizontal_flip must be between 0 and 1, not 1.01"),
        ("similarity", 0.4, "similarity must be between 0.5 and 1, not 0.4"),
        ("seed", -1, "seed must be between 0 and 2147483647, not -1"),
        ("split_seed", 2**31, "split_seed must be between 0 and 2147483647, not 2147483648"),
        ("mean", (0.5, 0.5, 1.5), "mean must be between 0 and 1, not (0.5, 0.5, 1.5)"),
        ("std", (0.2, 0.0, 0.2), "std must be between 0.001 and 1, not (0.2, 0.0, 0.2)"),
        ("fractions", (1.0, 0.0, 0.0), "fractions must be between 0.01 and 0.98, not (1.0, 0.0, 0.0)"),
        ("fractions", (0.5, 0.2, 0.2), "fractions must sum to 1, not 0.9"),
        ("strategy", "patients", "strategy must be one of grouped, random, file, not 'patients'"),
        ("conflicts", "drop", "conflicts must be one of exclude, keep, not 'drop'"),
        ("precision", "float16", "precision must be one of auto, float32, bfloat16, not 'float16'"),
        ("device", "gpu", "device must be auto, cpu, cuda or cuda:N, not 'gpu'"),
    ],
)
def test_values_out_of_range(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config(**{name: value})
    assert str(error.value) == f"{problem}."
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("kind", "name", "value", "problem"),
    [
        (SearchOptions, "trials", 0, "trials must be at least 1, not 0"),
        (SearchOptions, "trials", True, "trials must be a whole number, not True"),
        (SearchOptions, "trials", None, "trials must be a whole number, not None"),
        (SearchOptions, "trial_epochs", 0, "trial_epochs must be at least 1, not 0"),
        (SearchOptions, "keep_trials", 0, "keep_trials must be at least 1, not 0"),
        (SearchOptions, "workers", 0, "workers must be at least 1, not 0"),
        (SearchOptions, "epochs_total", 0, "epochs_total must be at least 1, not 0"),
        (SearchOptions, "confirm", -1, "confirm must be at least 0, not -1"),
        (SearchOptions, "confirm_seeds", 0, "confirm_seeds must be at least 1, not 0"),
        (SearchOptions, "audit_pruned", -1, "audit_pruned must be at least 0, not -1"),
        (SearchOptions, "timeout", 0.0, "timeout must be above 0, not 0.0"),
        (SearchOptions, "timeout", float("nan"), "timeout must be above 0, not nan"),
        (SearchOptions, "timeout", "0s", "timeout must be above 0, not '0s'"),
        (SearchOptions, "timeout", "soon", "timeout must be a span of time like 2h, 30m or 90s, not 'soon'"),
        (SearchOptions, "timeout", "", "timeout must be a span of time like 2h, 30m or 90s, not ''"),
        (SearchOptions, "timeout", "1m2h", "timeout must be a span of time like 2h, 30m or 90s, not '1m2h'"),
        (SearchOptions, "metric", "loss", "metric must be one of val_loss, val_accuracy, val_macro_f1, not 'loss'"),
        (SearchOptions, "pruner", "best", "pruner must be one of stalled, median, hyperband, none, not 'best'"),
        (SearchOptions, "pruner", None, "pruner must be text, not None"),
        (SearchOptions, "space", 3, "space must be a path, not 3"),
        (SearchOptions, "storage", 3, "storage must be text, not 3"),
        (ExportOptions, "max_drop", -0.1, "max_drop must be at least 0 and below 1, not -0.1"),
        (ExportOptions, "max_drop", 1, "max_drop must be at least 0 and below 1, not 1"),
        (ExportOptions, "sensitivity", 0.0, "sensitivity must be above 0 and below 1, not 0.0"),
        (ExportOptions, "sensitivity", 95, "sensitivity must be above 0 and below 1, not 95"),
        (ExportOptions, "int8", 1, "int8 must be true or false, not 1"),
        (ExportOptions, "float16", "yes", "float16 must be true or false, not 'yes'"),
    ],
)
def test_what_a_study_and_an_export_refuse(kind: type[Options], name: str, value: object, problem: str) -> None:
    for source in ("", "my.toml"):
        with pytest.raises(ConfigError) as error:
            kind.from_dict({name: value}, source)
        assert str(error.value) == f"{source}{': ' if source else ''}{problem}."


@pytest.mark.parametrize(
    ("kind", "name", "value", "taken"),
    [
        (SearchOptions, "timeout", 90, 90.0),
        (SearchOptions, "timeout", "2h", 7200.0),
        (SearchOptions, "timeout", "1h30m", 5400.0),
        (SearchOptions, "timeout", "1m1s", 61.0),
        (SearchOptions, "timeout", None, None),
        (SearchOptions, "space", "a/space.toml", Path("a/space.toml")),
        (SearchOptions, "space", None, None),
        (SearchOptions, "epochs_total", 1, 1),
        (SearchOptions, "metric", "val_macro_f1", "val_macro_f1"),
        (SearchOptions, "storage", "postgresql+psycopg://a@b/c", "postgresql+psycopg://a@b/c"),
        (ExportOptions, "max_drop", 0, 0.0),
        (ExportOptions, "sensitivity", 0.95, 0.95),
        (ExportOptions, "int8", True, True),
    ],
)
def test_what_a_study_and_an_export_take(kind: type[Options], name: str, value: object, taken: object) -> None:
    found = getattr(kind.from_dict({name: value}), name)
    assert repr(found) == repr(taken)


def bounded() -> list[tuple[type[Options], Option]]:
    """The options that take numbers."""
    return [(kind, one) for kind in CLASSES for one in kind.options.values() if one.kind in (int, float)]


@pytest.mark.parametrize(("kind", "one"), bounded(), ids=lambda value: getattr(value, "name", None))
def test_a_bound_is_taken_where_it_is_inclusive(kind: type[Options], one: Option) -> None:
    for bound in (one.low, one.high):
        if bound is not None:
            value = one.kind(bound)
            assert getattr(kind.from_dict({one.name: value}), one.name) == value
    for bound in (one.above, one.below):
        if bound is not None:
            with pytest.raises(ConfigError, match=f"{one.name} must be .*(above|below) "):
                kind.from_dict({one.name: bound})


def test_a_study_must_fit_its_configuration() -> None:
    with pytest.raises(ConfigError) as error:
        SearchOptions(trial_epochs=9, workers=2, storage="a", ray="auto").check(Config(epochs=5, device="cuda:1"))
    assert str(error.value) == (
        "The search cannot start: trial_epochs must be between 1 and epochs (5), not 9: give a lower --trial-epochs; "
        "device must be cuda where workers are spread over the GPUs, not cuda:1; "
        "storage and ray exclude each other: on Ray only one driver can run the study."
    )
    SearchOptions(trial_epochs=5).check(Config(epochs=5, device="cuda:1"))


def test_the_epochs_of_a_trial_are_no_more_than_those_of_the_study_unless_they_are_asked_for() -> None:
    assert [SearchOptions().epochs_of_a_trial(Config(epochs=epochs)) for epochs in (2, 20, 80)] == [2, 20, 20]
    assert SearchOptions(trial_epochs=30).epochs_of_a_trial(Config(epochs=40)) == 30
    SearchOptions().check(Config(epochs=2))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device: str) -> None:
    assert Config(device=device).device == device


def test_all_broken_rules_stand_in_one_message() -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_dict({"std": (0.0, 1.0, 1.0), "batch_size": 1, "epochs": 0, "precision": "half"})
    assert str(error.value) == (
        "std must be between 0.001 and 1, not (0.0, 1.0, 1.0); batch_size must be between 2 and 4096, not 1; "
        "epochs must be between 1 and 10000, not 0; precision must be one of auto, float32, bfloat16, not 'half'."
    )


def test_all_keys_that_cannot_be_used_stand_in_one_message() -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_dict({"learning_rte": 0.1, "epochs": "many", "zzz": 1, "class_weights": 1}, "my.toml")
    assert str(error.value) == (
        "my.toml: unknown key 'learning_rte', did you mean 'learning_rate'?; unknown key 'zzz'; "
        "epochs must be a whole number, not 'many'; class_weights must be true or false, not 1."
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lerning_rate", "unknown key 'lerning_rate', did you mean 'learning_rate'?"),
        ("batchsize", "unknown key 'batchsize', did you mean 'batch_size'?"),
        ("epoch", "unknown key 'epoch', did you mean 'epochs'?"),
        ("weight", "unknown key 'weight', did you mean 'weights'?"),
        ("qqqq", "unknown key 'qqqq'"),
    ],
)
def test_an_unknown_key_names_the_nearest(name: str, text: str) -> None:
    assert unknown(name, list(Config.options)) == text
    with pytest.raises(ConfigError) as error:
        Config.from_dict({name: 1}, "config")
    assert str(error.value) == f"config: {text}."


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("learning_rate", 1, 1.0),
        ("horizontal_flip", 0, 0.0),
        ("std", [1, 1, 1], (1.0, 1.0, 1.0)),
        ("fractions", [0.6, 0.2, 0.2], (0.6, 0.2, 0.2)),
        ("mean", (0, 0.5, 1), (0.0, 0.5, 1.0)),
        ("seed", 7, 7),
        ("class_weights", False, False),
    ],
)
def test_values_as_files_hold_them(name: str, given: Any, taken: object) -> None:
    value = getattr(Config.from_dict({name: given}, "config"), name)
    assert value == taken
    assert repr(value) == repr(taken)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("learning_rate", True, "learning_rate must be a number, not True"),
        ("learning_rate", "0.1", "learning_rate must be a number, not '0.1'"),
        ("epochs", True, "epochs must be a whole number, not True"),
        ("epochs", 8.0, "epochs must be a whole number, not 8.0"),
        ("class_weights", 1, "class_weights must be true or false, not 1"),
        ("class_weights", "yes", "class_weights must be true or false, not 'yes'"),
        ("arch", 50, "arch must be text, not 50"),
        ("mean", 0.5, "mean must be three numbers, not 0.5"),
        ("mean", [0.5, 0.5], "mean must be three numbers, not [0.5, 0.5]"),
        ("std", ["1", 1, 1], "std must be three numbers, not ['1', 1, 1]"),
        ("device", None, "device must be text, not None"),
    ],
)
def test_values_of_the_wrong_type(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_dict({name: value}, "config")
    assert str(error.value) == f"config: {problem}."


def test_plain_values_and_back(tiny: Config) -> None:
    plain = tiny.to_dict()
    assert list(plain) == list(Config.options)
    assert plain["fractions"] == [0.7, 0.15, 0.15]
    assert Config.from_dict(plain, "config") == tiny
    assert SearchOptions(space=Path("a.toml")).to_dict()["space"] == "a.toml"


def test_replace_checks_what_it_changes(tiny: Config) -> None:
    assert tiny.replace(epochs=4) == dataclasses.replace(tiny, epochs=4)
    assert tiny.epochs == 3
    with pytest.raises(ConfigError, match=r"^unknown key 'epoch', did you mean 'epochs'\?\.$"):
        tiny.replace(epoch=4)
    with pytest.raises(ConfigError, match="epochs must be between 1 and 10000, not -4"):
        tiny.replace(epochs=-4)


def test_a_toml_file_becomes_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('epochs = 3\nlearning_rate = 1\nmean = [0, 0, 0]\narch = "resnet18"\n')
    config = Config.from_dict(read_toml(path), str(path))
    assert config == Config(epochs=3, learning_rate=1.0, mean=(0.0, 0.0, 0.0), arch="resnet18")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"epochs = ", "Invalid value"),
        (b"epochs 3", "Expected '=' after a key in a key/value pair"),
        (b"epochs = 3\nepochs = 4", "Cannot overwrite a value"),
        (b"arch = '\xff'", "'utf-8' codec can't decode byte 0xff in position 8: invalid start byte"),
    ],
)
def test_a_file_that_is_not_toml(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_toml(path)
    assert str(error.value).startswith(f"{path} is not valid TOML: {reason}")
    assert str(error.value).endswith(".")
    assert isinstance(error.value.__cause__, tomllib.TOMLDecodeError | UnicodeDecodeError)


@pytest.mark.parametrize(("name", "reason"), [("none.toml", "No such file or directory"), ("", "Is a directory")])
def test_a_toml_file_that_cannot_be_read(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    with pytest.raises(FileError) as error:
        read_toml(path)
    assert str(error.value) == f"{path} could not be read: {reason}; fix that and run the same command again."


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {}, []),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1, "b": 2}, {"a": 3, "b": 2}, ["a: 1 -> 3"]),
        ({"b": 2, "a": "x"}, {"a": "y", "b": 1}, ["b: 2 -> 1", "a: 'x' -> 'y'"]),
        ({"a": 1}, {"c": [1]}, ["a: 1 -> None", "c: None -> [1]"]),
    ],
)
def test_differences(old: dict[str, Any], new: dict[str, Any], expected: list[str]) -> None:
    assert differences(old, new) == expected


def test_differences_between_configurations_name_both_values(tiny: Config) -> None:
    assert differences(Config().to_dict(), Config(epochs=3, seed=1).to_dict()) == ["epochs: 80 -> 3", "seed: 0 -> 1"]
    assert differences(tiny.to_dict(), tiny.to_dict()) == []
