"""Output that closes: only what says that nobody reads is taken for that."""

import errno
import io
import os
import sys

import pytest

from halfbyte.cli.outlet import Outlet, output_may_close


class Failing(io.StringIO):
    def __init__(self, number: int, target: int):
        super().__init__()
        self.number, self.target = number, target

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def fileno(self) -> int:
        return self.target


@pytest.fixture
def target():
    """A file descriptor that may be led elsewhere."""
    end = os.open(os.devnull, os.O_WRONLY)
    yield end
    os.close(end)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_a_reader_that_left_is_told_and_no_error(target, number):
    heard = []
    assert Outlet(Failing(number, target), "standard output", heard.append).write("step 1") == 6
    assert heard == [f"standard output is closed ({os.strerror(number)}): the run goes on, output to its log only"]


def test_a_full_disk_is_an_error_still(target):
    """Of a log that output was redirected to."""
    with pytest.raises(OSError, match="No space left"):
        Outlet(Failing(errno.ENOSPC, target), "standard output", pytest.fail).write("step 1")


def test_the_streams_are_put_back():
    before = sys.stdout, sys.stderr
    with pytest.raises(SystemExit), output_may_close(pytest.fail):
        sys.exit(isinstance(sys.stdout, Outlet) and isinstance(sys.stderr, Outlet))
    assert (sys.stdout, sys.stderr) == before
