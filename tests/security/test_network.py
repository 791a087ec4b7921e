"""SECURITY 3.1 and 3.4: a run opens no connection, starts no program and loads no pickle; watched by an audit hook in a process of its own.

The same run holds canaries in its environment: none may be in a file that it writes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toys import make_base

WATCHED = """
import json, os, sys
seen, watching = [], [False]
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind", "urllib.Request", "http.client.connect",
           "ftplib.connect", "smtplib.connect")
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "webbrowser.open")

def hook(event, given):
    if not watching[0]:
        return
    if event in NETWORK + PROGRAMS or event == "pickle.find_class":
        seen.append([event, repr(given)[:200]])
    elif event == "open" and isinstance(given[0], str) and isinstance(given[1], str) and set(given[1]) & set("wax+"):
        seen.append(["write", os.path.realpath(given[0])])

sys.addaudithook(hook)
from pathlib import Path
from halfbyte import api
from halfbyte.recipe.load import load_recipe
import torch, transformers, peft, bitsandbytes, datasets  # what these look at when they are imported is not the run's
watching[0] = True
run = api.train(load_recipe(Path("toy.yaml")), Path("runs"))
api.evaluate(run.path)
watching[0] = False
json.dump(seen, open("seen.json", "w"))
"""
SECRETS = {"HF_TOKEN": "hf_canaryCANARY0123456789", "WANDB_API_KEY": "c0ffee01canary9876543210", "AWS_SECRET_ACCESS_KEY": "canary/AWS/9s8d7f6g5h4j3k"}
# What bitsandbytes and torch ask the machine for, once: what it is, and which compiler or card it has.
LOOKS = ("uname", "nvidia-smi", "ldconfig", "lscpu", "gcc", "cc", "clang", "c++", "g++", "rocminfo", "file", "lsb_release")


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The folder of a run, and what it did."""
    work = tmp_path_factory.mktemp("work")
    make_base(work / "base")
    (work / "talk.csv").write_text("prompt,response\n" + "".join(f"who is number {i},the keeper {i}\n" for i in range(16)))
    (work / "toy.yaml").write_text(
        "base: base\ndata:\n  path: talk.csv\n  max_length: 64\ntrain:\n  max_steps: 2\nevaluate:\n  max_new_tokens: 2\n  max_answers: 2\n"
    )
    environment = {
        **os.environ,
        **SECRETS,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HALFBYTE_CACHE": str(work / "cache"),
        "HOME": str(work),
        "TMPDIR": str(work / "tmp"),
    }
    (work / "tmp").mkdir()
    environment.pop("HF_HUB_OFFLINE", None)  # nothing but the program itself keeps it from asking
    done = subprocess.run([sys.executable, "-c", WATCHED], cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return work, json.loads((work / "seen.json").read_text()), done.stdout + done.stderr


def test_no_connection_is_opened(watched):
    assert not [event for event in watched[1] if event[0].startswith(("socket", "urllib", "http", "ftplib", "smtplib"))]


def test_no_program_is_started_and_no_pickle_loaded(watched):
    odd = [given for event, given in watched[1] if event.startswith(("subprocess", "os.", "pty", "webbrowser", "pickle"))]
    assert not [given for given in odd if not any(look in given for look in LOOKS)]


def test_files_are_written_in_the_run_and_the_cache_alone(watched):
    work, seen, _ = watched
    written = [Path(given) for event, given in seen if event == "write"]
    assert any(path.name == "events.jsonl" for path in written)
    own = (work / "runs", work / "cache", work / "tmp", Path("/dev/null"))
    assert not [str(path) for path in written if not any(path.is_relative_to(place) for place in own)]


def test_no_canary_is_in_what_it_wrote_or_said(watched):
    work, _, said = watched
    files = [file for file in work.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert not [str(file) for file in files for secret in SECRETS.values() if secret.encode() in file.read_bytes()]
    assert not [secret for secret in SECRETS.values() if secret in said]


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket().connect(('127.0.0.1', 9))",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import subprocess; subprocess.run(['true'])",
        "import pickle, collections; pickle.loads(pickle.dumps(collections.OrderedDict))",
        "open('elsewhere', 'w')",
    ],
)
def test_the_look_out_sees(tmp_path, code):
    """Guards against a hook that hears nothing."""
    start = WATCHED.split("from pathlib import Path")[0]
    body = f"{start}\nwatching[0] = True\ntry:\n    exec({code!r})\nexcept OSError:\n    pass\nwatching[0] = False\nprint(len(seen))"
    done = subprocess.run([sys.executable, "-c", body], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) >= 1
