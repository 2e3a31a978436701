"""The scheduler's features that go by history: off for `batch` in a guest, on for everything else, untouched here."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwrx.machine import scheduling

KERNEL_6_1 = "GENTLE_FAIR_SLEEPERS START_DEBIT NO_NEXT_BUDDY LAST_BUDDY WAKEUP_PREEMPTION NO_HRTICK"
KERNEL_6_12 = "PLACE_LAG RUN_TO_PARITY DELAY_DEQUEUE DELAY_ZERO WAKEUP_PREEMPTION NO_HRTICK"


class Kernel:
    """A features file that does with a word what the kernel does."""

    def __init__(self, words: str) -> None:
        self.words = words.split()

    def read_text(self, encoding: str = "utf-8") -> str:
        return " ".join(self.words) + "\n"

    def write_text(self, word: str, encoding: str = "utf-8") -> None:
        name = word.removeprefix("NO_")
        assert name in self.words or f"NO_{name}" in self.words, "the kernel would answer EINVAL"
        self.words = [word if known in (name, f"NO_{name}") else known for known in self.words]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWRX_IN_GUEST", "1")


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("words", "off"),
    [
        (KERNEL_6_1, ["WAKEUP_PREEMPTION"]),
        (KERNEL_6_12, list(scheduling.BY_HISTORY)),
        ("START_DEBIT", []),
    ],
)
def test_batch_switches_off_what_the_kernel_has_of_them_and_the_first_end_switches_it_on_again(
    words: str, off: list[str]
) -> None:
    kernel = Kernel(words)
    server = scheduling.settle_features("batch", kernel)  # type: ignore[arg-type]
    client = scheduling.settle_features("batch", kernel)  # type: ignore[arg-type]
    assert (server, client) == (off, [])
    assert scheduling.features_off(kernel) == off  # type: ignore[arg-type]
    scheduling.switch_features_on(client, kernel)  # type: ignore[arg-type]
    assert scheduling.features_off(kernel) == off  # type: ignore[arg-type]
    scheduling.switch_features_on(server, kernel)  # type: ignore[arg-type]
    assert kernel.read_text().split() == words.split()


@pytest.mark.usefixtures("inside")
def test_normal_switches_on_what_an_agent_that_was_killed_had_switched_off() -> None:
    kernel = Kernel(KERNEL_6_12)
    scheduling.settle_features("batch", kernel)  # type: ignore[arg-type]
    assert scheduling.settle_features("normal", kernel) == []  # type: ignore[arg-type]
    assert kernel.read_text().split() == KERNEL_6_12.split()


def test_a_machine_that_is_not_the_labs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HWRX_IN_GUEST", raising=False)
    file = tmp_path / "features"
    file.write_text(KERNEL_6_12)
    assert scheduling.settle_features("batch", file) == []
    assert scheduling.settle_features("normal", file) == []
    assert file.read_text() == KERNEL_6_12


def test_a_kernel_that_does_not_tell_has_none_off(tmp_path: Path) -> None:
    assert scheduling.features_off(tmp_path / "nothing") == []
