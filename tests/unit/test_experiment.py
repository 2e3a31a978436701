"""Experiment files: what they become, and the words for what they must not be."""

from __future__ import annotations

import collections
import pathlib

import msgspec
import pytest

from hwrx.control.messages import Setting
from hwrx.errors import UsageError
from hwrx.runs import estimate, experiment, planning

TEXT = """
# Which path is faster?
# And by how much?
paths = ["udp", "tcp", "rdma-write"]
sizes = [64, 70000]
patterns = ["pingpong", "stream"]
seed = 7
repeats = 4

[setting]
messages = 500

[pattern.stream]
messages = 2000

[size.70000]
warmup = 3

[path.rdma-write.pingpong]
wait = "poll"
"""


def nothing_refused(setting: Setting) -> None:
    pass


def datagrams_are_small(setting: Setting) -> None:
    if setting.path == "udp" and setting.size > 65507:
        raise UsageError("a UDP datagram holds at most 65507 bytes")


def parse(text: str) -> experiment.Experiment:
    return experiment.parse_experiment(text, source="file.toml", name="file")


def test_question_is_the_comment_at_the_top() -> None:
    assert parse(TEXT).question == "Which path is faster?\nAnd by how much?"


def test_each_repeat_holds_every_setting_once_in_another_order() -> None:
    plan = planning.plan_run(parse(TEXT), datagrams_are_small)
    blocks = collections.defaultdict(list)
    for trial in plan.trials:
        blocks[trial.repeat].append(trial.setting)
    assert [trial.number for trial in plan.trials] == list(range(40))
    assert [trial.repeat for trial in plan.trials] == sorted(trial.repeat for trial in plan.trials)
    assert len(blocks) == 4
    assert all(len(block) == 10 and set(block) == set(blocks[0]) for block in blocks.values())
    assert len({tuple(block) for block in blocks.values()}) == 4


def test_order_comes_from_the_seed_alone() -> None:
    one, two = (planning.trials_of(parse(TEXT), nothing_refused) for _ in range(2))
    other = planning.trials_of(parse(TEXT.replace("seed = 7", "seed = 8")), nothing_refused)
    assert one == two
    assert [t.setting for t in one] != [t.setting for t in other]


def test_order_of_a_stored_seed_never_changes() -> None:
    labels = [trial.label for trial in planning.trials_of(parse(TEXT), nothing_refused)][:3]
    assert labels == ["rdma-write 64 B pingpong poll", "tcp 64 B stream event", "rdma-write 64 B stream event"]


def test_trials_of_a_path_that_takes_the_nic_follow_each_other_in_the_order_drawn() -> None:
    asked = 'paths = ["udp", "nic-ring", "tcp"]\nsizes = [64, 512, 1400]\nrepeats = 5\nseed = 3'
    plan = planning.plan_run(parse(asked), nothing_refused)
    orders = set()
    for repeat in range(5):
        trials = [trial.setting for trial in plan.trials if trial.repeat == repeat]
        places = [place for place, setting in enumerate(trials) if setting.path == "nic-ring"]
        assert places == list(range(places[0], places[0] + 3))
        assert set(trials) == set(plan.settings)
        orders.add((places[0], *(trials[place].size for place in places)))
    assert len(orders) > 1, "both where they stand and their own order are drawn"


def test_the_more_special_table_wins() -> None:
    by_label = {trial.label: trial.setting for trial in planning.trials_of(parse(TEXT), nothing_refused)}
    assert by_label["udp 64 B pingpong event"].messages == 500
    assert by_label["udp 64 B stream event"].messages == 2000
    assert by_label["udp 64 B pingpong event"].warmup == 100
    assert by_label["udp 70000 B pingpong event"].warmup == 3
    assert "rdma-write 64 B pingpong poll" in by_label
    assert "rdma-write 64 B stream event" in by_label


def test_a_table_of_one_size_wins_over_that_of_its_pattern() -> None:
    asked = parse(
        """paths = ["udp", "tcp"]\nsizes = [64, 1400]\npatterns = ["pingpong", "stream"]
[pattern.stream]\nmessages = 2000\n[pattern.stream.1400]\nmessages = 500\nwarmup = 7
[path.tcp.stream]\nmessages = 6000\n[path.tcp.stream.64]\nmessages = 30000"""
    )
    found = {trial.label: trial.setting for trial in planning.trials_of(asked, nothing_refused)}
    assert {label: setting.messages for label, setting in found.items() if "stream" in label} == {
        "udp 64 B stream event": 2000,
        "udp 1400 B stream event": 500,
        "tcp 64 B stream event": 30000,
        "tcp 1400 B stream event": 6000,
    }
    assert found["tcp 1400 B stream event"].warmup == 7
    assert found["udp 1400 B pingpong event"].messages == 1000
    assert experiment.parse_experiment(experiment.dump_experiment(asked), source="again") == asked


def test_a_field_that_a_size_gives_is_read_by_its_path_or_refused() -> None:
    with pytest.raises(UsageError, match="udp does not read signal_every"):
        planning.plan_run(parse('paths = ["udp"]\npatterns = ["stream"]\n[path.udp.stream.64]\nsignal_every = 3'))


def test_what_a_path_cannot_do_is_listed_with_the_reason() -> None:
    plan = planning.plan_run(parse(TEXT), datagrams_are_small)
    assert [skip.label for skip in plan.skipped] == ["udp 70000 B pingpong event", "udp 70000 B stream event"]
    assert plan.skipped[0].reason == "a UDP datagram holds at most 65507 bytes"


def test_nothing_left_to_do_is_an_error_with_the_reasons() -> None:
    with pytest.raises(UsageError, match=r"no trial that its paths can do: udp 70000 B .* 65507"):
        planning.plan_run(parse('paths = ["udp"]\nsizes = [70000]'), datagrams_are_small)


def test_two_combinations_that_an_override_makes_one_run_once() -> None:
    text = 'paths = ["rdma-write"]\nwaits = ["poll", "event"]\nrepeats = 1\n[path.rdma-write]\nwait = "poll"'
    assert [t.setting.wait for t in planning.trials_of(parse(text), nothing_refused)] == ["poll"]


def test_a_path_may_have_lists_of_its_own() -> None:
    text = """paths = ["udp", "rdma-ud"]\nsizes = [64, 4096]\nrepeats = 1
[path.rdma-ud]\nsizes = [64, 1024]\npatterns = ["stream"]\nwaits = ["poll"]"""
    assert {trial.label for trial in planning.trials_of(parse(text), nothing_refused)} == {
        "udp 64 B pingpong event",
        "udp 4096 B pingpong event",
        "rdma-ud 64 B stream poll",
        "rdma-ud 1024 B stream poll",
    }
    assert experiment.parse_experiment(experiment.dump_experiment(parse(text)), source="again") == parse(text)


LOAD = 'paths = ["udp", "tcp"]\npatterns = ["paced", "stream"]\nload = [0.5, 1.2]\nrepeats = 1\n'


def test_load_asks_for_capacities_and_makes_rates_of_them() -> None:
    plan = planning.plan_run(parse(LOAD), nothing_refused)
    wanted = planning.uncalibrated_settings(plan)
    assert [planning.capacity_key(setting, plan.experiment) for setting in wanted] == [
        "udp 64 B event",
        "tcp 64 B event",
    ]
    assert {setting.rate for setting in wanted} == {1e9}
    known = parse(LOAD + '[capacity]\n"udp 64 B event" = 1000.0\n"tcp 64 B event" = 500')
    plan = planning.plan_run(known, nothing_refused)
    assert planning.uncalibrated_settings(plan) == []
    rates = sorted((t.setting.path, t.setting.rate) for t in plan.trials if t.setting.pattern == "paced")
    assert rates == [("tcp", 250.0), ("tcp", 600.0), ("udp", 500.0), ("udp", 1200.0)]
    assert {t.setting.rate for t in plan.trials if t.setting.pattern == "stream"} == {None}
    assert experiment.parse_experiment(experiment.dump_experiment(known), source="again") == known


def test_flows_and_swept_values_have_capacities_of_their_own() -> None:
    text = 'paths = ["udp"]\npatterns = ["paced"]\nload = [0.5]\nrepeats = 1\n'
    hosts = 'topology = "hosts"\n'
    for rest, keys in (
        (hosts + 'clients = ["a"]\nservers = ["c"]\n', ["udp 64 B event"]),
        (hosts + 'clients = ["a", "b"]\nservers = ["c"]\n', ["udp 64 B event a,b>c"]),
        (hosts + 'clients = ["a", "b"]\nservers = ["c"]\ntraffic = "pairs"\n', [f"udp 64 B event {h}>c" for h in "ab"]),
        (
            'topology = "pair"\n[sweep]\nnetem = ["", "loss 1%"]\n',
            [f"udp 64 B event netem={w}" for w in ("", "loss 1%")],
        ),
        (hosts + '[sweep]\nflows = ["a>c", "b>c"]\n', ["udp 64 B event flows=a>c", "udp 64 B event flows=b>c"]),
    ):
        plan = planning.plan_run(parse(text + rest), nothing_refused)
        wanted = planning.uncalibrated_settings(plan)
        assert [planning.capacity_key(setting, plan.experiment) for setting in wanted] == keys
        known = msgspec.structs.replace(plan.experiment, capacity={key: 1000.0 * 2**n for n, key in enumerate(keys)})
        found = planning.plan_run(known, nothing_refused)
        assert planning.uncalibrated_settings(found) == []
        assert [setting.rate for setting in found.settings] == [500.0 * 2**n for n in range(len(keys))]
        # an older run had one for all, which its rates are shares of
        older = msgspec.structs.replace(known, capacity={"udp 64 B event": 1000.0})
        assert {planning.used_capacity(setting, older) for setting in found.settings} == {1000.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[setting]\nrate = 5.0", r"load: it sets the rate .* 'rate' cannot be given beside it"),
        ("[sweep]\nrate = [5.0]", r"'rate' cannot be given beside it"),
    ],
)
def test_load_and_rate_exclude_each_other(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(LOAD + text)
    with pytest.raises(UsageError, match="load: it needs the pattern 'paced'"):
        parse('paths = ["udp"]\nload = [0.5]')


def test_sweep_multiplies_and_stands_in_the_label() -> None:
    text = 'paths = ["udp"]\nrepeats = 1\npatterns = ["stream"]\n[sweep]\nwindow = [1, 8]\nbatch = [1, 4]'
    labels = {trial.label for trial in planning.trials_of(parse(text), nothing_refused)}
    assert labels == {f"udp 64 B stream event window={w} batch={b}" for w in (1, 8) for b in (1, 4)}


def test_file_as_run_reads_back_to_the_same() -> None:
    original = experiment.with_seed(parse(TEXT + '\n[sweep]\nwindow = [1, 2]\n[path."udp"]\nhuge_pages = true'))
    assert experiment.parse_experiment(experiment.dump_experiment(original), source="again", name="other") == original


def test_strings_that_toml_would_choke_on_survive() -> None:
    original = msgspec.structs.replace(parse(TEXT), question='quo"te \\ back\nline\x7f µ \x01')
    assert experiment.parse_experiment(experiment.dump_experiment(original), source="again") == original


def test_a_seed_is_drawn_where_none_is_given_and_kept_where_one_is() -> None:
    drawn = experiment.with_seed(parse('paths = ["udp"]'))
    assert drawn.seed is not None
    assert experiment.with_seed(drawn) is drawn


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('paths = ["udp"]\nrepeat = 3', r"unknown key 'repeat'.*\n.*did you mean 'repeats'\?"),
        ("sizes = [64]", r"'paths' is missing.*\n.*udp, tcp"),
        ('paths = ["upd"]', r"paths\[0\]: there is no 'upd'.*\n.*did you mean 'udp'\?"),
        ("paths = []", r"paths: \[\] is not allowed"),
        ('paths = ["udp"]\nsizes = [64, 4]', r"sizes\[1\]: 4 is not allowed.*\n.*a whole number from 8 to 1073741824"),
        ('paths = ["udp"]\nsizes = 64', r"sizes: 64 is not allowed.*\n.*a list of a whole number from 8"),
        ('paths = ["udp"]\nanatomy = true', r"anatomy: it is of an emulated guest that counts.*\n.*clock = \"icount\""),
        ('paths = ["udp"]\nanatomy = true\nclock = "icount"\npatterns = ["stream"]', r"anatomy: it takes ping-pongs"),
        ('paths = ["udp"]\nclock = "sun"', r'clock: "sun" is not allowed.*\n.*"icount" or "wall"'),
        ('paths = ["udp"]\ntrace = 1', r"trace: 1 is not allowed.*\n.*true or false"),
        ('paths = ["udp"]\nname = "a b/c"', r"name: .*\n.*no blank"),
        ('paths = ["udp"]\nname = "../../x"', r"name: "),
        ('paths = ["udp"]\nrepeats = 0', r"repeats: 0 is not allowed.*\n.*from 1 to 10000"),
        ('paths = ["udp"]\n[setting]\nmesages = 3', r"unknown key 'setting.mesages'.*\n.*did you mean 'messages'\?"),
        ('paths = ["udp"]\n[setting]\nmessages = "3"', r'setting.messages: "3" is not allowed.*\n.*number from 1'),
        (
            'paths = ["udp"]\n[setting]\nrate = -1.0',
            r"setting.rate: -1.0 is not allowed.*\n.*number from 0.001 to 1e\+09",
        ),
        ('paths = ["udp"]\n[setting]\nsize = 64', r"setting.size: 'size' is given by the list 'sizes'"),
        ('paths = ["udp"]\n[setting]\nmix = "64:1,80:1"', r"setting.mix: 'mix' is given by the list 'sizes'"),
        (
            'paths = ["udp"]\n[sweep]\nmix = ["64:1"]',
            r"sweep.mix: several values of 'mix' belong into the list 'sizes'",
        ),
        ('paths = ["udp"]\n[path.udp]\nmix = "64:1"', r"unknown key 'path.udp.mix'"),
        ('paths = ["udp"]\n[sweep]\nsize = [64]', r"sweep.size: several values of 'size' belong into the list 'sizes'"),
        ('paths = ["udp"]\n[sweep]\nwindo = [64]', r"unknown key 'sweep.windo'.*\n.*did you mean 'window'\?"),
        ('paths = ["udp"]\n[sweep]\nwindow = []', r"sweep.window: the list is empty"),
        ('paths = ["udp"]\n[sweep]\nwindow = [1, 0]', r"sweep.window\[1\]: 0 is not allowed"),
        ('paths = ["udp"]\n[sweep]\nwindow = 3', r"sweep.*: 3 is not allowed|sweep: .* is not allowed"),
        ('paths = ["udp"]\n[path.ucp]\nwindow = 3', r"path.ucp: there is no 'ucp'"),
        ('paths = ["udp"]\n[path.udp]\nstreem = 3', r"unknown key 'path.udp.streem'.*\n.*did you mean 'stream'\?"),
        ('paths = ["udp"]\n[path.udp.stream]\nbatch = 0', r"path.udp.stream.batch: 0 is not allowed"),
        ('paths = ["udp"]\n[path.udp]\nstream = 3', r"path.udp.stream: 3 is not allowed.*\n.*a table"),
        ('paths = ["udp"]\n[pattern.paced]\nmtu = 1500', r"pattern.paced.mtu: 1500 is not .*\n.*256 or 512 or 1024"),
        ('paths = ["udp"]\n[pattern.burst]\nmtu = 1500', r"pattern.burst: there is no 'burst'"),
        ('paths = ["udp"]\n[path.udp]\nsizes = [4]', r"path.udp.sizes\[0\]: 4 is not allowed"),
        ('paths = ["udp"]\n[path.udp]\nsizes = 64', r"path.udp.sizes: 64 is not allowed"),
        ('paths = ["udp"]\n[size.big]\nmtu = 1500', r"'big' is not a number of bytes"),
        ('paths = ["udp"]\n[path.udp.stream.big]\nwindow = 8', r"path.udp.stream.big.*'big' is not a number of bytes"),
        ('paths = ["udp"]\n[pattern.stream.64]\nbatch = 0', r"pattern.stream.64.batch: 0 is not allowed"),
        ('paths = ["udp"]\n[path.udp.stream.64]\nwindo = 3', r"unknown key 'path.udp.stream.64.windo'"),
        ("paths = [", r"not valid TOML: .*line 1|not valid TOML: .*end of document"),
    ],
)
def test_bad_input_gets_words(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse(text)
    assert str(caught.value).startswith("file.toml: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="no experiment file"):
        experiment.load_experiment(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="is a directory"):
        experiment.load_experiment(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xff")
    with pytest.raises(UsageError, match="cannot be read"):
        experiment.load_experiment(tmp_path / "latin.toml")


def test_options_become_an_experiment() -> None:
    built = experiment.from_options(paths=("udp", "tcp"), sizes=(64,), messages=10, window=None, repeats=2, seed=1)
    assert built.paths == ("udp", "tcp")
    assert built.setting == {"messages": 10}
    with pytest.raises(UsageError, match=r"the options: sizes\[0\]: 2 is not allowed"):
        experiment.from_options(paths=("udp",), sizes=(2,))


def test_options_go_over_a_file() -> None:
    changed = experiment.override_experiment(parse(TEXT), repeats=9, messages=20, sizes=(128,))
    assert (changed.repeats, changed.sizes, changed.setting) == (9, (128,), {"messages": 20})
    assert changed.pattern == {}  # the file's [pattern.stream] messages: an option wins over it


def test_estimate_grows_with_the_work_and_names_its_basis() -> None:
    small = estimate.estimate_run(planning.plan_run(parse(TEXT), nothing_refused))
    large = estimate.estimate_run(
        planning.plan_run(experiment.override_experiment(parse(TEXT), repeats=8), nothing_refused)
    )
    assert large.trials == 2 * small.trials
    assert large.samples == 2 * small.samples
    assert large.seconds > small.seconds
    assert large.disk > small.disk
    assert "namespaces" in small.basis


def test_a_plan_beyond_its_budget_is_refused_in_words() -> None:
    tight = experiment.override_experiment(parse(TEXT), budget=2.0)
    with pytest.raises(UsageError, match=r"would take about \d+ s \(48 trials .* budget is 2 s.*\n.*raise 'budget'"):
        estimate.check_budget(planning.plan_run(tight, nothing_refused))
    estimate.check_budget(planning.plan_run(experiment.override_experiment(parse(TEXT), budget=1e6), nothing_refused))


def test_many_connections_have_as_many_messages_before_and_behind_the_measured_ones() -> None:
    lengths = {
        setting.connections: (setting.warmup, setting.cooldown)
        for setting in planning.plan_run(parse('paths = ["udp"]\n[sweep]\nconnections = [1, 1000]')).settings
    }
    assert lengths == {1: (100, 16), 1000: (1000, 1000)}
    (own, *_) = planning.plan_run(parse('paths = ["udp"]\n[setting]\nconnections = 50\ncooldown = 0')).settings
    assert (own.warmup, own.cooldown) == (100, 0)
