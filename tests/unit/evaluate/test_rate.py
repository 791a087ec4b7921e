"""Blind pairs: A and B are drawn and say nothing, votes are kept as they are given, and the sign test counts each pair once."""

import json
from collections import Counter

import pytest

from halfbyte.errors import DataError, IntegrityError
from halfbyte.evaluate.rate import open_ballot, rate, rate_votes, read_pairs, take_votes
from halfbyte.runs.folder import RunFolder
from toy_evaluations import ACCURACY, answer, make_run, shares

PAIRS = 12


def make_answered(path, answers):
    return make_run(path, [("labels", ACCURACY, shares([0] * len(answers)), shares([1] * len(answers)))], answers)


@pytest.fixture
def run(tmp_path):
    """Twelve pairs to choose from, and one whose answers are equal."""
    answers = [answer(number, f"no {number}", f"yes {number}") for number in range(PAIRS)]
    return make_answered(tmp_path / "r", [*answers, answer(99, "same ", "same")])


def votes_of(run) -> list[dict]:
    file = run / "evaluation" / "votes.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def told(run, kind) -> list[dict]:
    return [event for line in (run / "events.jsonl").read_text().splitlines() if (event := json.loads(line))["event"] == kind]


def for_tuned(pair, place, of):
    """Someone who knows; a rater does not."""
    return "a" if pair.a == "tuned" else "b"


# Blind and shuffled


def test_the_same_seed_gives_the_same_order_and_sides_and_another_seed_others(run):
    first, again, other = (read_pairs(RunFolder(run), seed) for seed in (1, 1, 2))
    assert first == again
    assert [pair.name for pair in first] != [pair.name for pair in other]
    assert sorted(pair.name for pair in first) == sorted(pair.name for pair in other)
    assert [pair.prompt for pair in first] != sorted(pair.prompt for pair in first)


def test_sides_are_drawn_like_a_coin(tmp_path):
    """400 fair draws lie within 4.5 standard deviations, 45, of the half."""
    run = RunFolder(make_answered(tmp_path / "r", [answer(number) for number in range(400)]))
    sides = Counter(pair.a for pair in read_pairs(run, 0))
    assert abs(sides["base"] - 200) < 45
    first_half = Counter(pair.a for pair in read_pairs(run, 0)[:200])
    assert abs(first_half["base"] - 100) < 32


def test_each_pair_is_asked_once_and_equal_answers_are_not_shown(run):
    seen = []
    rate(run, lambda pair, place, of: seen.append((pair.prompt, place, of)) or "a")
    assert sorted(prompt for prompt, _, _ in seen) == sorted(f"question {number}" for number in range(PAIRS))
    assert [(place, of) for _, place, of in seen] == [(place, PAIRS) for place in range(1, PAIRS + 1)]


def test_prompts_of_the_report_are_asked_too_and_none_twice(run):
    rows = [{"prompt": "question 0", "base": "no 0", "tuned": "yes 0"}, {"prompt": "of the recipe", "base": "x", "tuned": "y"}]
    (run / "report.json").write_text(json.dumps({"generations": rows}))
    assert Counter(pair.prompt for pair in read_pairs(RunFolder(run), 0)) == Counter([*(f"question {n}" for n in (*range(PAIRS), 99)), "of the recipe"])


# Votes


def test_votes_are_kept_with_what_was_a_and_counted(run):
    rating = rate(run, for_tuned)
    assert (rating.wins, rating.losses, rating.ties, rating.equal, rating.verdict) == (PAIRS, 0, 1, 1, "better")
    assert rating.p_value == pytest.approx(2 * 0.5**PAIRS)
    for vote in votes_of(run):
        assert vote["winner"] == "tuned" == vote[vote["vote"]]
        assert {vote["a"], vote["b"]} == {"base", "tuned"}
        assert vote["adapter"] == (run / "adapter.sha256").read_text().strip()


def test_always_a_is_no_preference_for_either_model(tmp_path):
    """What stands first is chosen: with sides drawn, that is chance."""
    run = make_answered(tmp_path / "r", [answer(number) for number in range(400)])
    rating = rate(run, lambda pair, place, of: "a")
    assert rating.wins + rating.losses == 400
    assert rating.p_value > 0.001


def test_the_rating_goes_into_the_log_and_the_report(run):
    rating = rate(run, for_tuned)
    (event,) = told(run, "rating")
    assert (event["wins"], event["losses"], event["ties"], event["verdict"], event["sentence"]) == (12, 0, 1, "better", rating.sentence)
    assert event["p_value"] == rating.p_value
    assert (run / "report.html").is_file()


def test_ties_and_skips(run):
    said = iter(["tie", "skip", *["a"] * 4, "quit"])
    rating = rate(run, lambda pair, place, of: next(said))
    assert rating.wins + rating.losses == 4
    assert (rating.ties, len(votes_of(run))) == (2, 5)


def test_a_stopped_rating_goes_on_where_it_was(run):
    said = iter(["a", "b", "quit"])
    rate(run, lambda pair, place, of: next(said))
    before = (run / "evaluation" / "votes.jsonl").read_bytes()
    asked = []
    rating = rate(run, lambda pair, place, of: asked.append(pair.name) or for_tuned(pair, place, of), seed=5)
    assert len(asked) == PAIRS - 2
    assert not {vote["pair"] for vote in votes_of(run)[:2]} & set(asked)
    assert rating.wins + rating.losses == PAIRS
    assert (run / "evaluation" / "votes.jsonl").read_bytes().startswith(before)


def test_no_vote_leaves_no_trace(run):
    before = (run / "events.jsonl").read_bytes()
    rating = rate(run, lambda pair, place, of: "quit")
    assert rating.wins == rating.losses == 0
    assert rating.p_value == 1.0
    assert (run / "events.jsonl").read_bytes() == before
    assert not (run / "evaluation" / "votes.jsonl").exists()


def test_an_error_in_the_middle_keeps_the_votes_before_it(run):
    def ask(pair, place, of):
        if place == 3:
            raise DataError("line 3: 'x' is no vote")
        return "a"

    with pytest.raises(DataError, match="line 3"):
        rate(run, ask)
    assert len(votes_of(run)) == 2
    assert told(run, "rating")[0]["wins"] + told(run, "rating")[0]["losses"] == 2


def test_votes_on_another_adapter_and_a_torn_line_do_not_count(run):
    rate(run, for_tuned)
    file = run / "evaluation" / "votes.jsonl"
    lines = file.read_text().splitlines()
    lines[0] = lines[0].replace((run / "adapter.sha256").read_text().strip(), "0" * 64)
    file.write_text("\n".join([*lines[:-1], lines[-1][:30]]))
    asked = []
    rate(run, lambda pair, place, of: asked.append(pair.name) or "tie")
    assert len(asked) == 2
    assert len(file.read_text().splitlines()) == PAIRS + 2  # the torn line stays, on a line of its own


def test_while_a_person_votes_nobody_else_writes(run):
    def ask(pair, place, of):
        with pytest.raises(DataError, match="is being written"):
            rate(run, for_tuned)
        return "quit"

    rate(run, ask)


# The sum


@pytest.mark.parametrize(("wins", "losses", "verdict"), [(5, 0, "no evidence"), (6, 0, "better"), (0, 6, "worse"), (9, 2, "no evidence"), (15, 4, "better")])
def test_the_verdict_is_that_of_an_exact_sign_test(wins, losses, verdict):
    rating = rate_votes(["tuned"] * wins + ["base"] * losses + ["tie"] * 3, equal=2)
    assert (rating.wins, rating.losses, rating.ties, rating.verdict) == (wins, losses, 5, verdict)
    assert verdict in rating.sentence


def test_too_few_votes_are_told_so():
    assert "fewer than 6 cannot show one" in rate_votes(["tuned"] * 5, 0).sentence
    assert "fewer" not in rate_votes(["tuned", "base"] * 5, 0).sentence


# Votes of a page


def saved(run, tmp_path, votes, **changes):
    adapter = (run / "adapter.sha256").read_text().strip()
    file = tmp_path / "votes.json"
    file.write_text(json.dumps({"run": "r", "adapter": adapter, "seed": 3, "votes": votes, **changes}))
    return file


def test_votes_of_a_page_are_read_with_the_seed_that_it_was_drawn_with(run, tmp_path):
    pairs = [pair for pair in read_pairs(RunFolder(run), 3) if not pair.equal]
    rating, taken, before = take_votes(run, saved(run, tmp_path, {pair.name: for_tuned(pair, 0, 0) for pair in pairs}))
    assert (rating.wins, rating.losses, taken, before) == (PAIRS, 0, PAIRS, 0)


def test_a_vote_that_was_given_stays(run, tmp_path):
    pairs = [pair for pair in read_pairs(RunFolder(run), 3) if not pair.equal]
    rate(run, for_tuned)
    rating, taken, before = take_votes(run, saved(run, tmp_path, {pair.name: "tie" for pair in pairs}))
    assert (rating.wins, taken, before) == (PAIRS, 0, PAIRS)
    assert len(votes_of(run)) == PAIRS


@pytest.mark.parametrize(("votes", "changes", "message"), [
    ({"0123456789abcdef": "a"}, {}, "is no vote on a pair"),
    ({"": "c"}, {}, "is no vote on a pair"),
    ({}, {"adapter": "0" * 64}, "another adapter"),
    ({}, {"seed": "3"}, "holds no votes"),
    ([], {}, "holds no votes"),
])  # fmt: skip
def test_votes_that_do_not_fit_are_refused_and_none_is_kept(run, tmp_path, votes, changes, message):
    good = read_pairs(RunFolder(run), 3)[0].name
    votes = {good: "a", **votes} if isinstance(votes, dict) else votes
    with pytest.raises(DataError, match=message):
        take_votes(run, saved(run, tmp_path, votes, **changes))
    assert votes_of(run) == []


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe"])
def test_a_file_that_holds_no_votes_is_told(run, tmp_path, content):
    file = tmp_path / "votes.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"votes\.json"):
        take_votes(run, file)


# Nothing to choose


@pytest.mark.parametrize(("answers", "message"), [
    ([answer(number, "", " ") for number in range(3)], "empty answers to all 3 prompts"),
    ([answer(number, "x", "x") for number in range(3)], "equal answers to all 3 prompts"),
    ([], "no answers of base and tuned to rate"),
])  # fmt: skip
def test_nothing_to_choose_is_told(tmp_path, answers, message):
    with pytest.raises(DataError, match=message):
        rate(make_answered(tmp_path / "r", answers), for_tuned)


def test_a_run_without_adapter_or_evaluation_is_told(run, tmp_path):
    with pytest.raises(DataError, match="no evaluation yet"):
        rate(make_run(tmp_path / "bare"), for_tuned)
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match="no adapter yet"):
        rate(run, for_tuned)


def test_a_damaged_report_is_told(run):
    (run / "report.json").write_text('{"generations": [7]}')
    with pytest.raises(IntegrityError, match=r"report\.json is damaged"):
        open_ballot(RunFolder(run))
