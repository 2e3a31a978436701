"""Numbers and words of files and options: one gate, before anything starts, and what passes it can be planned."""

from __future__ import annotations

import math
import pathlib
import tomllib
from collections.abc import Iterator
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwrx.claims import instruments, model
from hwrx.claims.ranges import RANGES
from hwrx.cli import COMMANDS, cli
from hwrx.control.messages import Setting
from hwrx.errors import HwrxError, UsageError
from hwrx.host import toml_text
from hwrx.host.outside import clean_text
from hwrx.paths import PATHS
from hwrx.runs import estimate, experiment, planning

FIELDS = [field.name for field in msgspec.structs.fields(experiment.Experiment)]
SETTING = [field.name for field in msgspec.structs.fields(Setting)]
ODD: list[Any] = [
    *(-1, 0, 2**31, 2**31 - 1, 2**32, 2**63, 2**64, 10**400, 10**5000),
    *(1e308, math.inf, -math.inf, math.nan, 5e-324, -0.5),
    *("", True, [], [1], [math.inf], ["\x1b[2J"], {"a": 1}, 'esc \x1b[31m \n " \\ \u202e \x00', "x" * 5_000, "--help"),
]  # fmt: skip
odd_values = st.integers() | st.floats() | st.text(st.characters(codec="utf-8"))


def judge(content: dict[str, Any]) -> None:
    """A valid plan, which can be written down and read again, or an HwrxError in words that may be shown."""
    try:
        built = experiment.build_experiment(content, source="file.toml")
        plan = planning.plan_run(built)
    except HwrxError as error:
        said = str(error)
        assert clean_text(said, most=10_000) == said
        assert len(said) < 4000
        assert error.args[0]
        return
    guess = estimate.estimate_run(plan)
    assert math.isfinite(guess.seconds)
    assert experiment.parse_experiment(experiment.dump_experiment(plan.experiment), source="again") == plan.experiment
    for trial in plan.trials:
        numbers = [value for value in msgspec.structs.astuple(trial.setting) if isinstance(value, int | float)]
        assert all(math.isfinite(value) and abs(value) < 1 << 40 for value in numbers)


def base(path: str, pattern: str, key: str) -> dict[str, Any]:
    """An experiment in which this field of a setting is read, as far as any path reads it."""
    clock = "icount" if key in ("rest", "settle", "copies_priced") else "wall"
    content: dict[str, Any] = {"name": "odd", "paths": [path], "patterns": [pattern], "clock": clock, "repeats": 1}
    content["setting"] = {"rate": 10.0} if pattern == "paced" else {}
    return {**content, "topology": "pair" if PATHS[path].needs == "verbs" else "netns"}


@pytest.mark.parametrize("key", FIELDS)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])  # other load
@given(value=odd_values)
def test_any_value_of_any_key_is_refused_in_words_or_makes_a_plan(key: str, value: Any) -> None:
    judge({"name": "odd", "paths": ["udp"], "repeats": 1, key: value})


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20] if value != 10**5000 else "10**5000")
@pytest.mark.parametrize("key", FIELDS)
def test_each_odd_value_of_each_key(key: str, value: Any) -> None:
    judge({"name": "odd", "paths": ["udp"], "repeats": 1, key: value})


@pytest.mark.parametrize("key", SETTING)
@pytest.mark.parametrize(("path", "pattern"), [("udp", "paced"), ("tcp", "stream"), ("rdma-send", "pingpong")])
def test_each_odd_value_of_each_field_of_a_setting(key: str, path: str, pattern: str) -> None:
    for value in ODD:
        content = base(path, pattern, key)
        judge({**content, "setting": {**content["setting"], key: value}})
        judge({**content, "sweep": {key: [value]}})
        judge({**content, "path": {path: {pattern: {key: value}}}})


@pytest.mark.parametrize("key", ["limit", "patience", "rate"])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e308", "5e-324", "0", "-1"])
def test_a_file_whose_number_no_machine_can_hold_is_told_its_key_and_the_range(key: str, value: str) -> None:
    text = f'paths = ["udp"]\npatterns = ["paced"]\n[setting]\n{key} = {value}\n'
    with pytest.raises(UsageError, match=rf"file\.toml: setting\.{key}: .* is not allowed\n.*from 0\.001 to") as caught:
        experiment.parse_experiment(text, source="file.toml")
    assert str(tomllib.loads(text)["setting"][key]) in str(caught.value)


def test_a_budget_is_a_number_of_seconds() -> None:
    for value in (math.inf, math.nan, 0.0, -1.0):
        with pytest.raises(UsageError, match=r"budget: .* is not allowed\n  remedy: allowed: a number from 0\.001"):
            experiment.from_options(paths=["udp"], budget=value)


def test_a_plan_without_end_is_refused_before_it_fills_the_memory() -> None:
    many = {key: list(range(1, 1001)) for key in ("messages", "warmup", "check_every")}
    with pytest.raises(UsageError, match="more than 1000000 trials"):
        planning.plan_run(experiment.build_experiment({"name": "a", "paths": ["udp"], "sweep": many}, source="file"))


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 5000 + "]" * 5000, "a = \x00", "a = 1\na = 2"])
def test_what_is_no_toml_is_named_so(text: str) -> None:
    with pytest.raises(UsageError, match=r"file: not valid TOML: "):
        toml_text.parse_toml(text, "file")


def test_a_byte_order_mark_does_no_harm(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "windows.toml"
    file.write_bytes(b'\xef\xbb\xbfpaths = ["udp"]\r\n')
    assert experiment.load_experiment(file).paths == ("udp",)
    file.write_bytes(b'paths = ["\xff"]')
    with pytest.raises(UsageError, match=r"windows\.toml cannot be read: .*byte 0xff in position 10"):
        experiment.load_experiment(file)


# --- options ---------------------------------------------------------------------------------------------------------


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", each) for inner, each in commands(command, context))
        else:
            yield name, command


EXPERIMENTS = ("compare", "lab run", "matrix", "bisect")  # commands that take an experiment's options


def numbers() -> list[tuple[str, click.Parameter]]:
    """Every option and argument that is a number and not of an experiment, which has its own gate."""
    found = []
    gated = {*FIELDS, *SETTING}
    for name, command in commands(cli, click.Context(cli)):
        for parameter in command.params:
            of_numbers = (click.types.IntParamType, click.types.FloatParamType)
            own = name not in EXPERIMENTS or parameter.name not in gated
            if isinstance(parameter.type, of_numbers) and own:
                found.append((name, parameter))
    return found


def test_every_number_among_the_options_has_a_range() -> None:
    assert len(numbers()) > 15
    for name, parameter in numbers():
        kind = parameter.type
        assert isinstance(kind, click.IntRange | click.FloatRange), f"{name} {parameter.opts}"
        assert kind.min is not None, f"{name} {parameter.opts}"
        assert kind.max is not None, f"{name} {parameter.opts}"
        assert math.isfinite(kind.max)


def test_no_option_takes_a_number_that_is_none() -> None:
    assert COMMANDS
    for name, parameter in numbers():
        for value in ("nan", "inf", "-inf", "1e999", "9" * 5000, "-1", str(2**64), "", "\x1b"):
            if isinstance(parameter, click.Option):
                done = CliRunner().invoke(cli, [*name.split(), f"{parameter.opts[-1]}={value}"])
                assert done.exit_code == 2, (name, parameter.opts, value, done.output)


def test_every_number_of_an_experiment_behind_a_claim_has_a_range() -> None:
    for name in instruments.instrument_names():
        for key, default in instruments.parameters_of(name).items():
            first = default[0] if isinstance(default, list) and default else default
            if isinstance(first, int | float) and not isinstance(first, bool):
                assert key in RANGES, f"{name}: {key}"
    for claim in model.every_claim().values():
        instruments.check_claim(claim)


@pytest.mark.parametrize(
    "text", ["-1", "0.5", "inf", "nan", "-inf", "1e400", str(2**63), "9" * 400, "9" * 5000, "", "x"]
)
@pytest.mark.parametrize("claim", model.every_claim())
def test_no_odd_number_reaches_an_experiment_behind_a_claim(claim: str, text: str) -> None:
    chosen = model.every_claim()[claim]
    known = instruments.parameters_of(chosen.instrument)
    for key in known.keys() & RANGES.keys():
        try:
            model.with_parameters(chosen, [f"{key}={text}"], known)
        except UsageError as error:
            assert error.args[0] and len(str(error)) < 6_000
            continue
        assert text == "0.5" and RANGES[key][0] <= 0.5, f"{key}={text}"


def test_a_range_holds_for_a_claims_file_and_an_option_and_is_named() -> None:
    chosen = model.every_claim()["skb-is-a-copy"]
    known = instruments.parameters_of(chosen.instrument)
    assert model.with_parameters(chosen, ["sizes=16,65_507".replace("_", "")], known).parameters["sizes"] == [16, 65507]
    for wrong in ("sizes=64,70000", "sizes=", "messages=0"):
        with pytest.raises(UsageError) as caught:
            model.with_parameters(chosen, [wrong], known)
        assert " is from " in caught.value.remedy
    done = CliRunner().invoke(cli, ["claims", "run", "skb-is-a-copy", "--set", "messages=0"])
    assert isinstance(done.exception, UsageError) and "from 1 to 10,000,000" in done.exception.remedy
    changed = msgspec.structs.replace(chosen, parameters={"sizes": [64, 2**31]})
    with pytest.raises(UsageError, match="sizes is 2147483648"):
        instruments.check_claim(changed)
