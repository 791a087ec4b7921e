"""A person's judgement: blind, shuffled pairs of answers of base and tuned, votes kept as they are given, and an exact sign test.

Which answer is A follows from the seed and the pair alone, so a stopped rating goes on where it was, and a page of pairs holds nothing that tells them apart.
Where both answers read the same there is nothing to choose: such a pair is not shown and counts as a tie. Ties decide nothing in a sign test.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from halfbyte.errors import DataError, IntegrityError
from halfbyte.evaluate.runs import folder_of, open_evaluated, read_answers
from halfbyte.evaluate.uncertainty import FEWEST_UNITS, LEVEL, sign_test
from halfbyte.runs.events import EventLog
from halfbyte.runs.folder import RunFolder
from halfbyte.runs.report import write_report

Side = Literal["base", "tuned"]
Vote = Literal["a", "b", "tie"]
VOTES: tuple[Vote, ...] = ("a", "b", "tie")


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, as A and B."""

    name: str
    """Hash of prompt and answers: the same pair has the same name in every run of `rate`."""
    prompt: str
    answers: dict[Side, str]
    a: Side

    @property
    def b(self) -> Side:
        return "tuned" if self.a == "base" else "base"

    @property
    def equal(self) -> bool:
        return self.answers["base"].strip() == self.answers["tuned"].strip()

    def winner(self, vote: Vote) -> str:
        return "tie" if vote == "tie" else self.a if vote == "a" else self.b


@dataclass(frozen=True)
class Rating:
    """What the votes say of the tuned model."""

    wins: int
    losses: int
    ties: int
    """With the pairs whose answers are equal."""
    equal: int
    p_value: float
    verdict: str
    """better, no evidence or worse"""

    @property
    def sentence(self) -> str:
        decided = self.wins + self.losses
        ties = f"{self.ties} tie{'s' * (self.ties != 1)}" + (f", {self.equal} of them of equal answers" if self.equal else "")
        said = f"A person preferred the tuned answer in {self.wins} of {decided} blind pairs that were decided ({ties}; sign test p = {self.p_value:.2g})"
        if self.verdict != "no evidence":
            return f"{said}: {self.verdict}."
        few = f", and fewer than {FEWEST_UNITS} cannot show one" if decided < FEWEST_UNITS else ""
        return f"{said}: no evidence of a difference{few}."

    def as_event(self) -> dict[str, Any]:
        return {
            "event": "rating", "wins": self.wins, "losses": self.losses, "ties": self.ties, "equal": self.equal, "p_value": self.p_value,
            "verdict": self.verdict, "sentence": self.sentence,
        }  # fmt: skip


class Ballot:
    """The pairs of one run and the votes on them; every vote is in votes.jsonl as soon as it is given. Made and used while the run is locked."""

    def __init__(self, run: RunFolder, seed: int) -> None:
        self.run = run
        self.adapter = run.adapter_hash.read_text(encoding="utf-8").strip()
        self.pairs = read_pairs(run, seed)
        self.seed = seed
        self.file = folder_of(run) / "votes.jsonl"
        self.winners = _read_votes(self.file, self.adapter, self.pairs)
        self.given = 0
        """Votes of this sitting."""

    @property
    def open_pairs(self) -> list[Pair]:
        """What is still to be voted on."""
        return [pair for pair in self.pairs if not pair.equal and pair.name not in self.winners]

    def keep(self, pair: Pair, vote: Vote) -> None:
        self.winners[pair.name] = pair.winner(vote)
        self.given += 1
        EventLog(self.file).append({
            "event": "vote", "pair": pair.name, "a": pair.a, "b": pair.b, "vote": vote, "winner": pair.winner(vote), "adapter": self.adapter,
        })  # fmt: skip

    def close(self) -> Rating:
        """The sum of all votes so far; what this sitting added goes into the report."""
        rating = rate_votes(self.winners.values(), sum(pair.equal for pair in self.pairs))
        if self.given:
            EventLog(self.run.events).append(rating.as_event())
            write_report(self.run.path)
        return rating


def open_ballot(run: RunFolder, seed: int = 0) -> Ballot:
    """Raises DataError where no pair of answers can be told apart."""
    ballot = Ballot(run, seed)
    if not ballot.pairs:
        raise DataError(f"{run.path} has no answers of base and tuned to rate", hint="name prompts in the recipe (evaluate.prompts) and run halfbyte evaluate")
    if all(pair.equal for pair in ballot.pairs):
        what = "empty" if not any(text.strip() for pair in ballot.pairs for text in pair.answers.values()) else "equal"
        raise DataError(
            f"{run.path}: base and tuned gave {what} answers to all {len(ballot.pairs)} prompts, so there is nothing to choose",
            hint="look at them in its report",
        )
    return ballot


def rate_votes(winners: Iterable[str], equal: int) -> Rating:
    won = list(winners)
    wins, losses = won.count("tuned"), won.count("base")
    p_value = sign_test(wins, losses)
    verdict = "no evidence" if p_value > LEVEL else "better" if wins > losses else "worse"
    return Rating(wins, losses, won.count("tie") + equal, equal, p_value, verdict)


def rate(path: Path, ask: Callable[[Pair, int, int], Vote | Literal["skip", "quit"]], seed: int = 0) -> Rating:
    """Asks for each pair that has no vote yet (`ask` gets the pair, its place and how many there are) until all are voted on, or it answers quit."""
    run = open_evaluated(path)
    with run.locked():
        ballot = open_ballot(run, seed)
        asked = ballot.open_pairs
        try:
            for place, pair in enumerate(asked, 1):
                said = ask(pair, place, len(asked))
                if said == "quit":
                    break
                if said != "skip":
                    ballot.keep(pair, said)
        finally:  # a wrong line of a pipe ends the asking; the votes before it count
            rating = ballot.close()
    return rating


def take_votes(path: Path, file: Path) -> tuple[Rating, int, int]:
    """Votes that the page saved: the rating, how many were taken, how many pairs had one before, which stays. All are looked at before one is kept."""
    run = open_evaluated(path)
    saved = _read_saved(file)
    with run.locked():
        ballot = open_ballot(run, saved["seed"])
        if saved["adapter"] != ballot.adapter:
            raise DataError(f"{file}: votes on another adapter than that of {path}", hint="give the run that the page was written for")
        pairs = {pair.name: pair for pair in ballot.pairs}
        for name, vote in saved["votes"].items():
            if name not in pairs or vote not in VOTES:
                raise DataError(
                    f"{file}: {name!r}: {vote!r} is no vote on a pair of {path}", hint=f"write the page anew: the answers of {path} may have changed"
                )
        for pair in ballot.open_pairs:
            if pair.name in saved["votes"]:
                ballot.keep(pair, saved["votes"][pair.name])
        return ballot.close(), ballot.given, len(saved["votes"]) - ballot.given


def read_pairs(run: RunFolder, seed: int) -> list[Pair]:
    """Of the test rows and of the prompts of the report, each once, shuffled; A and B drawn for each."""
    answers = [(one.prompt, one.base, one.tuned) for one in read_answers(run)]
    report = run.path / "report.json"
    return _drawn([*answers, *_read_generations(report)], seed)


def _drawn(answers: Iterable[tuple[str, str, str]], seed: int) -> list[Pair]:
    pairs = {}
    for prompt, base, tuned in answers:
        name = hashlib.sha256(json.dumps([prompt, base, tuned]).encode()).hexdigest()[:16]
        pairs[name] = Pair(name, prompt, {"base": base, "tuned": tuned}, "base" if _chance(seed, name, "side")[0] % 2 else "tuned")
    return sorted(pairs.values(), key=lambda pair: _chance(seed, pair.name, "order"))


def _chance(seed: int, name: str, what: str) -> bytes:
    return hashlib.sha256(f"{seed} {name} {what}".encode()).digest()


def _read_generations(file: Path) -> list[tuple[str, str, str]]:
    """Prompt, base and tuned of the report's side-by-side answers."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["generations"]
        return [(row["prompt"], row["base"], row["tuned"]) for row in rows if all(isinstance(row[key], str) for key in ("prompt", "base", "tuned"))]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{file} is damaged: {error}", hint=f"halfbyte evaluate {file.parent} writes it again") from error


def _read_votes(file: Path, adapter: str, pairs: list[Pair]) -> dict[str, str]:
    """Winner of each pair that was voted on. Votes on other answers (of an adapter before) and lines torn by a crash do not count."""
    if not file.is_file():
        return {}
    names = {pair.name for pair in pairs}
    winners: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            vote = json.loads(line)
        except ValueError:
            continue
        if isinstance(vote, dict) and vote.get("adapter") == adapter and vote.get("pair") in names and vote.get("winner") in ("base", "tuned", "tie"):
            winners.setdefault(vote["pair"], vote["winner"])
    return winners


def _read_saved(file: Path) -> dict[str, Any]:
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "is no JSON"
        raise DataError(f"{file}: {what}", hint="give the file that the page of `halfbyte rate --page` saved") from error
    if not (isinstance(saved, dict) and isinstance(saved.get("votes"), dict) and isinstance(saved.get("adapter"), str) and type(saved.get("seed")) is int):
        raise DataError(
            f"{file}: holds no votes (expected the keys adapter, seed and votes)", hint="give the file that the page of `halfbyte rate --page` saved"
        )
    return saved
