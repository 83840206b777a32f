"""Progress: plain lines now and then in a batch log, a bar on a terminal."""

import pytest

from sft.console.progress import PLAIN_INTERVAL_S, progress


class Clock:
    """A clock that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == "", "progress never mixes with a command's output"
    return captured.err.splitlines()


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_a_log_gets_a_line_at_most_every_interval(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with progress("write", 1000, unit="packs", clock=clock) as advance:
        for second in range(1, 31):
            clock.now_s = 1000 + second * PLAIN_INTERVAL_S / 10
            advance(1, "")
    assert [line.partition("  ")[0] for line in lines(capsys)] == [f"write: {done}/1000 packs" for done in (10, 20, 30)]


@pytest.mark.parametrize(
    ("start", "done", "total", "now_s", "left"),
    [
        (0, 10, 1000, 10.0, "0:16:30"),
        (900, 50, 1000, 100.0, "0:01:40"),
        (0, 1, 86_400, 10.0, "239:59:50"),
        (0, 0, 100, 10.0, "0:16:40"),
    ],
)
def test_a_log_tells_how_long_it_will_still_take(
    start: int, done: int, total: int, now_s: float, left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    with progress("train", total, unit="steps", start=start, clock=clock) as advance:
        clock.now_s += now_s
        advance(done, "loss 2.1")
    assert lines(capsys) == [f"train: {start + done}/{total} steps loss 2.1 · {left} left"]


def test_the_end_is_always_told(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("write", 3, unit="packs", clock=Clock()) as advance:
        advance(2, "")
        advance(1, "last")
    assert lines(capsys) == ["write: 3/3 packs last"]


def test_without_a_known_end_only_the_count_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with progress("build", None, unit="rows", clock=clock) as advance:
        advance(500, "alpaca")
        clock.now_s += 11
        advance(500, "dolly")
    assert lines(capsys) == ["build: 1000 rows dolly"]


def test_a_resumed_count_goes_on_from_its_start(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 100, unit="steps", start=99, clock=Clock()) as advance:
        advance(1, "loss 2.1")
    assert lines(capsys) == ["train: 100/100 steps loss 2.1"]


@pytest.mark.parametrize("total", [3, 0, None])
def test_a_terminal_gets_a_bar_with_the_title_count_and_remark(
    total: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress("write", total, unit="packs", start=1) as advance:
        advance(2, "nearly")
    shown = "\n".join(lines(capsys))
    assert all(word in shown for word in ("write", "3/", "packs", "nearly"))


def test_a_failure_inside_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), progress("write", 3, unit="packs"):
        raise ZeroDivisionError
