"""What a run makes of signals: one Ctrl-C or SIGTERM saves and stops, a second one leaves at once, a closed terminal stops nothing.

Python runs the handler of a signal when the main thread comes back to Python, which can take minutes: a backward pass does not. So the main
thread is only asked (after a step) or told (KeyboardInterrupt, elsewhere), and a thread of its own hears the signals at once, through the file
descriptor to which Python writes their numbers (signal.set_wakeup_fd). It answers, and leaves at the second.

Programs such as `timeout` send a signal twice, to the process and to its group, and a terminal's Ctrl-C may be sent on by whoever started us:
what comes within TWICE_SECONDS of the first is the first.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TWICE_SECONDS = 0.3
LEFT = 130
"""Exit code of a process that left at the second signal: the shell's own for Ctrl-C."""
LAST_WORDS_SECONDS = 1.0
"""So long the log has to take the last line; a disk that hangs does not keep us."""
STOPS = ("SIGINT", "SIGTERM")
HANG_UP = "SIGHUP"


@dataclass
class Signals:
    """What a run has heard, and what it answers."""

    on_leave: Callable[[], str] = field(default=lambda: "")
    """Called at the second signal; returns what is said last, such as the checkpoint that is left."""
    on_hang_up: Callable[[], None] = field(default=lambda: None)
    asked: threading.Event = field(default_factory=threading.Event)
    in_steps: bool = False
    """A stop waits for the step in hand."""
    first_at: float | None = None

    def hear(self, name: str) -> None:
        """In the thread that listens, or in the handler where there is none."""
        if name == HANG_UP:
            self.on_hang_up()
        elif self.first_at is None:
            self.first_at = time.monotonic()
            waiting = "stopping after this step" if self.in_steps else "stopping"
            say(f"{waiting} ({name}); once more leaves at once")
        elif time.monotonic() - self.first_at > TWICE_SECONDS:
            say("left at once")
            last_words = threading.Thread(target=lambda: say(self.on_leave()), daemon=True)
            last_words.start()
            last_words.join(LAST_WORDS_SECONDS)
            os._exit(LEFT)

    def handle(self, number: int, frame: object) -> None:
        """In the main thread, when it comes to it."""
        if signal.Signals(number).name == HANG_UP or self.asked.is_set():
            return
        self.asked.set()
        if not self.in_steps:
            raise KeyboardInterrupt


@contextmanager
def heard_signals(on_leave: Callable[[], str], on_hang_up: Callable[[], None]) -> Iterator[Signals]:
    """Inside, Ctrl-C and SIGTERM raise KeyboardInterrupt once; within `stop_on_signal` they only ask. What was ignored before, as by nohup, still is.

    Signals belong to the main thread: in another one nothing is heard.
    """
    signals = Signals(on_leave, on_hang_up)
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    known = {name: signal.Signals[name] for name in (*STOPS, HANG_UP) if name in signal.Signals.__members__}  # Windows has no SIGHUP
    wanted = {name: number for name, number in known.items() if signal.getsignal(number) != signal.SIG_IGN}
    if HANG_UP in wanted and signal.getsignal(wanted[HANG_UP]) != signal.SIG_DFL:
        del wanted[HANG_UP]  # whoever called us hears it
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    before: dict[int, Any] = {}
    earlier = -1
    try:
        for number in map(int, wanted.values()):  # one by one: a signal that comes meanwhile finds those put back that were exchanged
            before[number] = signal.getsignal(number)
            signal.signal(number, signals.handle)
        earlier = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        listener = threading.Thread(target=_listen, args=(ears, signals, set(wanted.values()), earlier), name="signals", daemon=True)
        listener.start()
        yield signals
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that was not set from Python cannot be put back from it
                signal.signal(number, handler)
        signal.set_wakeup_fd(earlier)
        os.close(mouth)  # ends the listener


@contextmanager
def stop_on_signal(signals: Signals) -> Iterator[Callable[[], bool]]:
    """Inside, a stop waits for the step in hand: the loop asks after each. One that came too late for the last step is raised at the end."""
    signals.in_steps = True
    try:
        yield signals.asked.is_set
    finally:
        signals.in_steps = False
    if signals.asked.is_set():
        raise KeyboardInterrupt


def say(words: str) -> None:
    """On standard error, past all buffers; nobody may be there to read it."""
    if words:
        try:
            os.write(2, f"\n{words}\n".encode())
        except OSError:
            return


def _listen(ears: int, signals: Signals, ours: set[int], earlier: int) -> None:
    names = {int(number): number.name for number in signal.Signals}
    while heard := os.read(ears, 64):
        for number in heard:
            if number in ours:
                signals.hear(names[number])
        if earlier != -1:
            _pass_on(earlier, heard)
    os.close(ears)


def _pass_on(earlier: int, heard: bytes) -> None:
    """Another event loop, a notebook's, listened before us."""
    try:
        os.write(earlier, heard)
    except OSError:
        return
