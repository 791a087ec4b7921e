"""The benchmark suite on a toy: cells, their checks, sittings that go on where the last one stopped, tables and the picture."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
STEPS = ["--device", "cpu", "--shape", "toy", "--rank", "4", "--anchor", "2x64", "--configurations", "2x64", "--warm-up", "5", "--timed", "2", "--repeats", "2"]


@pytest.fixture(scope="module", autouse=True)
def benchmarks_can_be_imported():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def asked():
    from programs import Configuration

    return Configuration("toy", rows=2, tokens=64, rank=4)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory, asked):
    """A folder with the toy's 4-bit base, the adapter's first values and the tokens."""
    from suite_given import write_all

    folder = tmp_path_factory.mktemp("suite")
    write_all(asked, folder, "cpu")
    return folder


@pytest.fixture(scope="module")
def measure(scratch, asked):
    """A function: program's name, changes to it -> the cell as the suite saves it."""
    from programs import PROGRAMS, Steps
    from suite_cell import measure

    def cell(name, **changes):
        found = measure(asked, replace(PROGRAMS[name], **changes), Steps(warm_up=5, timed=2, repeats=2), scratch, "cpu")
        return {**as_cell(asked, name), **json.loads(json.dumps(found)), "wall_seconds": 1.0}

    return cell


@pytest.fixture(scope="module")
def hf(measure):
    return measure("hf")


def as_cell(configuration, program, status="measured", reason=None, sitting="first", **figures):
    from dataclasses import asdict

    return {
        "configuration": {"name": configuration.name, **asdict(configuration)}, "program": program, "about": "", "status": status, "reason": reason,
        "sitting": sitting, "compile_caches": "empty at the start", **figures,
    }  # fmt: skip


def spoiled(build, spoil):
    """The same program, its model changed once it is built."""

    def built(given):
        model = build(given)
        spoil(model)
        return model

    return built


# What a cell measures, and what its checks find


def test_ours_and_hf_train_the_same_on_the_same_bytes(measure, hf):
    from suite_table import MEAN_LOSS_TOLERANCE, faults, loss_differences

    ours = measure("ours")
    assert faults(ours, hf) == faults(hf, hf) == []
    assert ours["weights_sha256"] == hf["weights_sha256"]
    average, largest = loss_differences(ours, hf)
    assert abs(average) < MEAN_LOSS_TOLERANCE  # of 8,188 tokens a step; the toy has 126
    assert largest < 0.0015
    assert (ours["tokens_a_step"], ours["trained"]["matrices"]) == (128, 28)
    assert [len(repeat) for repeat in ours["times_ms"]] == [2, 2]
    assert ours["first_step_seconds"] <= ours["warm_up_seconds"]
    assert ours["gradients"]["smallest_a"] > 0


def test_a_program_with_another_loss_is_a_failure(measure, hf):
    from programs import plain_step
    from suite_table import faults

    def off(model, ids, optimizer):
        loss, norm = plain_step(model, ids, optimizer)
        return loss + 0.1, norm

    assert faults(measure("hf", step=off), hf) == ["losses are +0.1000 away from hf on average", "a step's loss is 0.1000 away from hf"]


@pytest.fixture(scope="module")
def recorded():
    """A function: program's name -> its cell of 4 x 2,048 tokens on an H200."""

    def cell(name):
        return json.loads((BENCHMARKS / "results" / "suite" / f"mistral-7b-4x2048-r16--{name}.json").read_text())

    return cell


def shifted(cell, offset, step=None):
    """The cell with every loss moved, or that of one step."""
    warm, timed = ([loss + offset if step in (None, number) else loss for number, loss in enumerate(cell[key], start)]
                   for key, start in (("warm_up_losses", 0), ("losses", len(cell["warm_up_losses"]))))  # fmt: skip
    return {**cell, "warm_up_losses": warm, "losses": timed}


def test_rounding_of_sound_programs_is_no_failure_and_a_planted_thousandth_is(recorded):
    """hf keeps its residual stream in float32 and ours in bfloat16: a step's losses differ in the third decimal, their average over the steps does not."""
    from suite_table import faults, loss_differences

    ours, hf = recorded("ours"), recorded("hf")
    assert loss_differences(ours, hf) == pytest.approx((0.00003, 0.00286), abs=1e-5)
    assert faults(ours, hf) == []
    assert faults(shifted(ours, 0.01), hf) == ["losses are +0.0100 away from hf on average", "a step's loss is 0.0129 away from hf"]
    assert faults(shifted(ours, 0.001), hf) == ["losses are +0.0010 away from hf on average"]
    assert faults(shifted(ours, -0.001), hf) == ["losses are -0.0010 away from hf on average"]
    assert faults(shifted(ours, 0.02, step=0), hf) == ["a step's loss is 0.0178 away from hf"]
    assert faults(shifted(hf, -0.02, step=69), hf) == ["a step's loss is 0.0200 away from hf"]


def test_losses_are_compared_over_the_steps_that_both_took(recorded):
    from suite_table import loss_differences

    hf = recorded("hf")
    shorter = shifted({**hf, "losses": hf["losses"][:20]}, 0.001)
    assert loss_differences(shorter, hf) == pytest.approx((0.001, 0.001))


def test_a_step_of_fewer_tokens_may_be_rounded_more_and_one_of_more_tokens_not_less(recorded):
    from suite_table import rounding

    hf = recorded("hf")
    for rows, more in ((4, 1.0), (1, 2.0), (16, 1.0)):
        assert rounding({**hf, "configuration": {"rows": rows, "tokens": 2048}}) == more


def test_a_matrix_without_a_gradient_is_a_failure(measure, hf):
    from programs import PROGRAMS
    from suite_table import faults

    def block(model):
        parameter = model.get_parameter("base_model.model.model.layers.1.mlp.up_proj.lora_B.default.weight")
        parameter.register_hook(lambda gradient: gradient * 0)

    found = faults(measure("hf", build=spoiled(PROGRAMS["hf"].build, block)), hf)
    assert "2 gradients are zero, the first of layers.1.mlp.up_proj.B" in found  # B stays zero, and so does the gradient of A
    assert "2 matrices did not move, the first layers.1.mlp.up_proj.A" in found


def test_one_other_byte_in_the_base_is_a_failure(measure, hf):
    from programs import PROGRAMS
    from suite_table import faults

    def flip(model):
        model.get_parameter("base_model.model.model.layers.1.mlp.up_proj.base_layer.weight").data[0] ^= 1

    assert faults(measure("hf", build=spoiled(PROGRAMS["hf"].build, flip)), hf) == ["packed weights are not those of hf"]

    def nudge(model):
        model.get_parameter("base_model.model.model.norm.weight").data[0] *= 1.01

    assert faults(measure("hf", build=spoiled(PROGRAMS["hf"].build, nudge)), hf) == ["other weights are not those of hf"]


def test_fewer_tokens_or_rounded_adapters_are_failures(measure, hf):
    import torch

    from programs import PROGRAMS
    from suite_table import faults

    assert faults({**hf, "tokens_a_step": 127}, hf) == ["127 tokens a step instead of 128"]

    def round_them(model):
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.data = parameter.data.to(torch.bfloat16)

    assert "adapters in torch.bfloat16, torch.float32" in faults(measure("hf", build=spoiled(PROGRAMS["hf"].build, round_them)), hf)


def test_a_program_that_trains_other_matrices_is_stopped(measure):
    from programs import PROGRAMS

    def freeze(model):
        model.get_parameter("base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight").requires_grad_(False)

    with pytest.raises(ValueError, match="1 trained matrices are not those"):
        measure("hf", build=spoiled(PROGRAMS["hf"].build, freeze))


# The fast path, packed rows, and cells that share a process


@pytest.mark.parametrize("name", ["fast", "leanest", "fp8"])
def test_the_fast_path_trains_the_same(measure, hf, name):
    from suite_table import faults

    cell = measure(name)
    assert faults(cell, hf) == []
    assert cell["gradients"]["zero_in_step_3"] == []
    assert (cell["peaks"]["waiting_bytes"] > 0) is (name == "leanest")


def test_a_fast_path_without_gradients_is_a_failure(measure, hf):
    from programs import PROGRAMS
    from suite_table import faults

    def prepare(model):
        PROGRAMS["fast"].prepare(model)
        accumulate = model.fast.accumulate

        def without(*given):
            loss = accumulate(*given)
            model.fast.gradients.flat.zero_()
            return loss

        model.fast.accumulate = without

    assert "28 gradients are zero, the first of layers.0.self_attn.q_proj.B" in faults(measure("fast", prepare=prepare), hf)


@pytest.fixture(scope="module")
def packed(scratch):
    from programs import configuration_of
    from suite_given import write_all

    configuration = configuration_of("toy", "1x256:replies", rank=4)
    write_all(configuration, scratch, "cpu")
    return configuration


def test_packed_rows_are_filled_with_documents_of_the_listed_lengths(packed):
    import numpy as np

    from suite_given import LENGTHS, packed_documents

    assert packed.name == "toy-1x256-replies-r4"
    documents = packed_documents(packed)
    assert (documents == packed_documents(packed)).all()
    assert (documents >= 0).mean(-1).min() > 0.9
    listed = {min(length, 256) for length in json.loads(LENGTHS.read_text())["replies"]["lengths"]}
    assert {int(length) for row in documents[:, 0] for length in np.unique(row[row >= 0], return_counts=True)[1]} <= listed


def test_all_are_given_the_same_packed_rows():
    """Two rows of documents of 3 and 2, and of 4, of 6 places each; as transformers and Unsloth take them, one row of 9."""
    import torch

    from halfbyte.data.batches import IGNORE
    from suite_given import rows_of

    ids = torch.tensor([[11, 12, 13, 14, 15, 0], [21, 22, 23, 24, 0, 0]])
    rows = rows_of(ids, torch.tensor([[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, -1, -1]]))
    assert rows.batch.labels.tolist() == [[IGNORE, 12, 13, IGNORE, 15, IGNORE], [IGNORE, 22, 23, 24, IGNORE, IGNORE]]
    assert rows.batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]
    assert (rows.batch.lengths, rows.tokens, rows.supervised) == ((5, 4), 9, 6)
    assert rows.documents.tolist() == [3, 2, 4]
    assert rows.flat["input_ids"].tolist() == [[11, 12, 13, 14, 15, 21, 22, 23, 24]]
    assert rows.flat["labels"].tolist() == [[IGNORE, 12, 13, IGNORE, 15, IGNORE, 22, 23, 24]]
    assert rows.flat["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]


def test_programs_agree_on_packed_rows_and_one_that_lets_documents_see_each_other_does_not(scratch, packed):
    from programs import PROGRAMS, Steps, plain_step
    from suite_cell import measure
    from suite_table import faults

    def cell(name, **changes):
        found = measure(packed, replace(PROGRAMS[name], **changes), Steps(warm_up=5, timed=1, repeats=1), scratch, "cpu")
        return {**as_cell(packed, name), **found}

    hf = cell("hf")
    assert 0.9 * 256 < hf["tokens_a_step"] <= 256
    for name in ("ours", "fast"):
        assert faults(cell(name), hf) == []

    def leaking(model, rows, optimizer):
        one = {**rows.flat, "position_ids": rows.flat["position_ids"] * 0 + 1}
        return plain_step(model, replace(rows, flat=one), optimizer)

    assert any(fault.startswith("a gradient's norm is") for fault in faults(cell("hf", step=leaking), hf))


def test_falcon_s_matrices_have_the_same_names_everywhere(scratch):
    from programs import PROGRAMS, Steps, configuration_of
    from suite_cell import measure
    from suite_given import write_all
    from suite_table import faults

    falcon = configuration_of("falcon-toy", "2x64", rank=4)
    write_all(falcon, scratch, "cpu")
    names = ("hf", "ours", "fast", "leanest")
    hf, *ours = ({**as_cell(falcon, name), **measure(falcon, PROGRAMS[name], Steps(5, 1, 1), scratch, "cpu")} for name in names)
    assert [faults(cell, hf) for cell in ours] == [[]] * 3
    assert hf["trained"]["matrices"] == 16


def test_cells_that_share_a_process_measure_what_each_alone_does(asked, scratch, measure, tmp_path):
    from dataclasses import asdict

    from suite_cell import measure_all

    steps = {"warm_up": 5, "timed": 2, "repeats": 2}
    tasks = [
        {"program": name, "configuration": asdict(asked), "steps": steps, "budget_bytes": None, "out": str(tmp_path / name)} for name in ("ours-kept", "fast")
    ]
    measure_all(tasks, scratch, "cpu")
    for name in ("ours-kept", "fast"):
        together, alone = json.loads((tmp_path / name).read_text()), measure(name)
        assert together["one_of_several"]
        assert together["warm_up_losses"] + together["losses"] == alone["warm_up_losses"] + alone["losses"]
        assert together["weights_sha256"] == alone["weights_sha256"]


def test_a_cell_that_fails_ends_its_process_and_those_after_it_run_in_another(asked, monkeypatch, tmp_path):
    import argparse

    import suite
    from programs import Steps

    processes = []

    def in_own_process(args, task, name, left, cells=1):
        processes.append([one["program"] for one in task["cells"]])
        for one in task["cells"]:
            if one["program"] == "fast":
                return "torch.OutOfMemoryError: CUDA out of memory."
            Path(one["out"]).write_text(json.dumps({"own_seconds": 1.0}))
        return None

    monkeypatch.setattr(suite, "in_own_process", in_own_process)
    args = argparse.Namespace(scratch=tmp_path, warm_caches=False, together=True)
    jobs = [suite.Job(asked, name, Steps(5, 2, 1)) for name in ("ours-kept", "hf", "fast", "thin", "lean", "unsloth")]
    groups = suite.grouped(jobs)
    assert [[job.program for job in group] for group in groups] == [["ours-kept", "fast", "thin", "lean"], ["hf"], ["unsloth"]]
    found = [(job.program, cell["status"]) for job, cell in suite.run_jobs(args, groups[0], deadline=1e12)]
    assert found == [("ours-kept", "measured"), ("fast", "out of memory"), ("thin", "measured"), ("lean", "measured")]
    assert processes == [["ours-kept", "fast", "thin", "lean"], ["thin", "lean"]]


# Sittings


@pytest.fixture
def sitting(monkeypatch, tmp_path, asked, hf):
    """A function: arguments -> the programs that were run, in order. Nothing is measured: each takes 10 s of a clock that only they move."""
    import suite

    ran = []
    now = [0.0]
    fates = {"liger": "ModuleNotFoundError: No module named 'liger_kernel'", "unsloth-true": "torch.OutOfMemoryError: CUDA out of memory."}

    def run_cell(args, job, left):
        configuration, name, steps = job.configuration, job.program, job.steps
        ran.append(name)
        now[0] += 10.0
        if name in fates:
            return as_cell(configuration, name, suite.how_it_failed(fates[name]), fates[name], wall_seconds=10.0)
        speed = {"tokens_per_second": 1000.0 * len(name), "times_ms": [[10.0] * steps.timed] * steps.repeats, "median_ms": 10.0}
        return {**hf, **as_cell(configuration, name), **speed, "wall_seconds": 10.0}

    monkeypatch.setattr(suite, "run_cell", run_cell)
    monkeypatch.setattr(suite, "in_own_process", lambda *_: None)
    monkeypatch.setattr(suite.time, "monotonic", lambda: now[0])

    def sit(*words):
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["suite.py", *STEPS, "--results", str(tmp_path), "--scratch", str(tmp_path / "scratch"), *words])
        suite.main()
        return list(ran)

    return sit


def test_a_cell_is_not_run_twice_but_the_anchors_are(sitting, tmp_path, capsys):
    assert sitting("--programs", "ours", "hf", "liger", "unsloth-true") == ["ours", "unsloth-off", "hf", "liger", "unsloth-true"]
    before = (tmp_path / "suite" / "toy-2x64-r4--ours.json").read_text()
    capsys.readouterr()
    # What was missing may be there by now; what ran out of memory will again.
    assert sitting("--programs", "ours", "hf", "liger", "unsloth-true", "unsloth") == ["ours", "unsloth-off", "liger", "unsloth"]
    assert (tmp_path / "suite" / "toy-2x64-r4--ours.json").read_text() == before
    sittings = json.loads((tmp_path / "suite" / "sittings.json").read_text())
    assert {one["anchors"]["ours"]["tokens_per_second"] for one in sittings} == {4000.0}
    printed = capsys.readouterr().out
    assert "missing: ModuleNotFoundError: No module named 'liger_kernel'" in printed
    assert "out of memory: torch.OutOfMemoryError: CUDA out of memory." in printed
    assert sitting("--programs", "hf", "--again") == ["ours", "unsloth-off", "hf"]
    assert (tmp_path / "suite" / "toy-2x64-r4--ours.json").read_text() == before
    assert sitting("--programs", "hf", "unsloth", "--again", "--no-anchors") == ["hf", "unsloth"]


def test_no_cell_is_begun_that_the_budget_does_not_hold(sitting, capsys):
    """The first is guessed to take 150 s; each takes 10, and so the next are expected to."""
    assert sitting("--programs", "hf", "unsloth", "--budget-seconds", "100") == []
    assert sitting("--programs", "hf", "unsloth", "--budget-seconds", "190") == ["ours", "unsloth-off", "hf", "unsloth"]
    assert sitting("--programs", "ours-kept", "hf-compile", "--budget-seconds", "40") == ["ours", "unsloth-off", "ours-kept"]
    assert "hf-compile: not begun: it takes about 11 s and 10 s of the budget are left" in capsys.readouterr().out


def test_speeds_of_two_sittings_are_compared_through_their_anchors(asked, hf):
    from suite_table import markdown, ratio

    fast = {**hf, **as_cell(asked, "ours", sitting="cool"), "tokens_per_second": 1000.0}
    slow = {**hf, **as_cell(asked, "hf", sitting="hot"), "tokens_per_second": 900.0}
    sittings = [
        {"sitting": "cool", "anchored_on": asked.name, "anchors": {"ours": {"tokens_per_second": 1000.0}}},
        {"sitting": "hot", "anchored_on": asked.name, "anchors": {"ours": {"tokens_per_second": 800.0}}},
    ]
    assert ratio(slow, "ours", [fast, slow], sittings) == pytest.approx(900 / 800)
    assert ratio(slow, "ours", [fast, slow], sittings[:1]) is None  # nothing says how fast the machine was
    assert "| 900 | 1.12 |" in markdown([fast, slow], sittings)


def test_a_failed_cell_is_crossed_out_and_makes_no_claim(asked, hf, tmp_path, monkeypatch):
    import suite_table

    monkeypatch.setattr(suite_table, "CLAIMED", asked.name)
    wrong = {**shifted(hf, 0.1), "program": "liger", "tokens_per_second": 99999.0}
    table = suite_table.markdown([hf, wrong], [])
    assert "~~99,999~~" in table
    assert "| +0.10000, 0.1000 | **failed**: losses are +0.1000 away from hf on average; a step's loss is 0.1000 away from hf |" in table
    (tmp_path / "claims.json").write_text('[{"claim": "another", "value": 1}, {"claim": "suite-liger", "value": 2}]')
    suite_table.record_claims([{**hf, "sitting": "2026-11-21T20:31:26Z"}, wrong], tmp_path)
    another, claim = json.loads((tmp_path / "claims.json").read_text())
    assert another == {"claim": "another", "value": 1}
    assert (claim["claim"], claim["value"], claim["date"], claim["versions"]) == ("suite-hf", round(hf["tokens_per_second"]), "2026-11-21", hf["versions"])


def test_the_attention_that_ran_is_told_by_the_names_of_kernels():
    from suite_table import attention_of

    assert attention_of(["cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "void elementwise"]) == "cuDNN"
    assert attention_of(["void pytorch_flash::flash_fwd_kernel<...>"]) == "flash"
    assert attention_of(["fmha_cutlassF_bf16_aligned_64x64"]) == "memory-efficient"
    assert attention_of([]) == "none of the fused kernels"


# Processes of their own


@pytest.mark.slow
def test_the_command_runs_cells_in_processes_and_names_what_is_missing(monkeypatch, tmp_path, capsys):
    import suite

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(suite.tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(sys, "argv", ["suite.py", *STEPS, "--programs", "ours", "hf", "--results", str(tmp_path), "--scratch", str(tmp_path / "scratch")])
    suite.main()
    printed = capsys.readouterr().out
    cells = {name: json.loads((tmp_path / "suite" / f"toy-2x64-r4--{name}.json").read_text()) for name in ("ours", "hf", "unsloth-off")}
    assert (cells["ours"]["status"], cells["hf"]["status"]) == ("measured", "measured")
    assert cells["ours"]["weights_sha256"] == cells["hf"]["weights_sha256"]
    assert printed.count("passed |") == 2
    assert (cells["unsloth-off"]["status"], cells["unsloth-off"]["reason"]) == ("missing", "ModuleNotFoundError: No module named 'unsloth'")
    assert not list(temporary.iterdir())


@pytest.fixture
def own_process(monkeypatch, tmp_path):
    """A function: Python code -> what in_own_process says of a process that runs it in place of a cell."""
    import argparse

    import suite

    def run(code, limit=20.0, left=60.0):
        (tmp_path / "task.py").write_text(code)
        monkeypatch.setattr(suite, "__file__", str(tmp_path / "task.py"))
        args = argparse.Namespace(scratch=tmp_path, warm_caches=False, device="cpu", limit_seconds=limit, peers=None)
        return suite.in_own_process(args, {}, "cell", left)

    return run


def test_the_reason_of_a_failure_is_one_line_without_folders(own_process):
    from suite import how_it_failed

    assert own_process("pass") is None
    reason = own_process("raise RuntimeError('no kernel in /usr/lib/there/kernels.so\\nmore of it')")
    assert (reason, how_it_failed(reason)) == ("RuntimeError: no kernel in .../kernels.so", "failed")
    assert own_process("import os; os.abort()") == "ended with code -6"


def test_a_process_is_ended_at_its_limit_and_says_nothing_where_the_budget_ended(own_process):
    from suite import BUDGET_SPENT, how_it_failed

    reason = own_process("import time; time.sleep(60)", limit=0.5)
    assert (reason, how_it_failed(reason)) == ("time limit: not done after 0 s", "timed out")
    assert own_process("import time; time.sleep(60)", left=0.5) == BUDGET_SPENT


# The picture


def test_labels_overlap_no_label_and_no_mark():
    """Nine marks in a heap: harder than any result."""
    from itertools import combinations

    from programs import PROGRAMS
    from suite_chart import MARK, Box, place_labels

    plot = Box(60, 50, 380, 280)
    marks = {name: (200.0 + 4 * (number % 3), 150.0 + 4 * (number // 3)) for number, name in enumerate(PROGRAMS)}
    labels = place_labels(marks, plot)
    assert set(labels) == set(PROGRAMS)
    assert not [pair for pair in combinations(labels.values(), 2) if pair[0].overlaps(pair[1])]
    dots = [Box(x - MARK, y - MARK, 2 * MARK, 2 * MARK) for x, y in marks.values()]
    assert not [label for label in labels.values() if not label.inside(plot) or any(label.overlaps(dot) for dot in dots)]


def test_the_page_and_its_picture_hold_every_program(asked, hf, tmp_path):
    import xml.etree.ElementTree as ElementTree

    from suite_table import BEGIN, END, write_page

    cells = tmp_path / "suite"
    cells.mkdir()
    (cells / "toy--hf.json").write_text(json.dumps(hf))
    (cells / "toy--liger.json").write_text(json.dumps(as_cell(asked, "liger", "failed", "RuntimeError: no such kernel")))
    (tmp_path / "performance.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_page(cells, [], tmp_path)
    page = (tmp_path / "performance.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "| liger | | | | | | | | | failed: RuntimeError: no such kernel |" in page
    assert "- Not run yet on mistral-7b-4x2048-r16: all programs.\n- Not run yet on mistral-7b-1x2048-r16: all programs.\n" in page
    picture = ElementTree.fromstring((tmp_path / "performance.svg").read_text())
    assert "hf" in [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]


def test_the_programs_that_were_not_run_are_named(recorded):
    from programs import PROGRAMS
    from suite_table import not_run

    cells = [{**recorded("hf"), "program": name} for name in PROGRAMS]
    assert not_run(cells) == "\n- Not run yet on mistral-7b-1x2048-r16: all programs."
    assert not_run(cells[2:]).startswith("\n- Not run yet on mistral-7b-4x2048-r16: ours, ours-kept.\n")


def test_the_page_shows_the_cells_that_are_recorded(tmp_path):
    """`python benchmarks/suite.py --tables` was run after the last sitting."""
    from suite import load_sittings
    from suite_table import write_page

    docs, cells = BENCHMARKS.parent / "docs", BENCHMARKS / "results" / "suite"
    (tmp_path / "performance.md").write_text((docs / "performance.md").read_text(encoding="utf-8"), encoding="utf-8")
    write_page(cells, load_sittings(cells), tmp_path)
    for name in ("performance.md", "performance.svg"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (docs / name).read_text(encoding="utf-8")


def test_single_cells_may_be_asked_for_with_a_limit():
    import suite
    from programs import configuration_of

    assert suite.asked_cell("4x2048--lean-thin=7.5", "toy", 16) == (configuration_of("toy", "4x2048", 16), "lean-thin", 7_500_000_000)
    assert suite.asked_cell("1x8192:alpaca--unsloth-off", "toy", 4) == (configuration_of("toy", "1x8192:alpaca", 4), "unsloth-off", None)
    for wrong in ("4x2048--nobody", "4x2048", "2048--fast", "4x2048--fast=much"):
        with pytest.raises(ValueError, match=f"--cells {wrong}: a cell is"):
            suite.asked_cell(wrong, "toy", 16)
