"""Toys for the tests: a tokenizer trained on a paragraph and tiny models with random weights. Nothing is fetched."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest

DATA = Path(os.environ.get("HALFBYTE_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """Prepared data go into a folder of the tests, for the processes that they start too: never into the user's cache."""
    os.environ["HALFBYTE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard() -> None:
    """A shell starts what it puts into the background with SIGINT ignored, and what is ignored stays so in processes that a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data. Without it a test skips and says so; in CI that is a failure."""
    if not DATA.is_dir():
        message = f"no real data in {DATA}: set HALFBYTE_DATA"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return DATA


@pytest.fixture(scope="session")
def toy_tokenizer():
    from toys import make_tokenizer

    return make_tokenizer()


@pytest.fixture
def toy_base(tmp_path_factory):
    """A function: architecture -> folder with a tiny random model and the toy tokenizer."""
    from toys import make_base

    return lambda kind="mistral", **changes: make_base(tmp_path_factory.mktemp(kind), kind, **changes)
