"""Proofs about rows and labels: each id is one that the model knows, and a label stands where the row says, and nowhere else."""

from halfbyte.checks.proof import Claim, Refuted
from halfbyte.checks.talks import PREPARE, where
from halfbyte.checks.trial import Trial, expected_labels
from halfbyte.data.batches import IGNORE, row_lengths
from halfbyte.data.tokens import Tokens

# Lengths and ids


def ids_and_lengths(trial: Trial) -> str:
    subject = trial.subject
    known, unknown = trial.vocabulary, len(subject.tokenizer) - trial.vocabulary
    asked = [] if subject.encode_prompt is None else subject.encode_prompt(({"role": "user", "content": "who is it?"},))
    marks = (("padding", [subject.pad_id]), ("an end mark", subject.end_ids), ("the begin mark", subject.begin_ids), ("a prompt", asked))
    for what, ids in marks:
        if any(not 0 <= token < known for token in ids):
            raise Refuted(f"{what} has id {max(ids)}, the model knows {known:,}", "the id is of no token of this model", "use an id that the model knows")
    if not len(subject.rows):
        raise Refuted("there are no rows", "every row was left out", "look at halfbyte prepare")
    highest, longest = -1, min(subject.context, subject.max_length)
    for row in trial.looked_at:
        if len(row.ids) != len(row.trained) or len(row.ids) < 2:
            raise Refuted(
                f"{where(row)}: {len(row.ids)} ids, {len(row.trained)} of them told apart", "rows were put together wrongly", "prepare the data again"
            )
        if min(row.ids) < 0 or max(row.ids) >= known:
            raise Refuted(
                f"{where(row)}: id {max(row.ids) if max(row.ids) >= known else min(row.ids)}, the model knows 0 to {known - 1:,}",
                "the rows were made by another tokenizer", "prepare the data again with the base's own tokenizer",
            )  # fmt: skip
        highest = max(highest, max(row.ids))
    most = int(row_lengths(subject.rows).max())
    if most > longest:
        limit = "data.max_length" if subject.max_length < subject.context else "the base's context"
        raise Refuted(
            f"the longest row has {most:,} tokens, {limit} is {longest:,}", "rows are not cut to the length", "lower data.max_length and prepare again"
        )
    # Gemma 3 has one for pictures, which its models of text alone do not know.
    beyond = f"; of the tokenizer's tokens the model does not know {unknown:,}, which no row has" if unknown > 0 else ""
    return f"{len(subject.rows):,} rows of at most {most:,} of {longest:,} tokens; highest id {highest:,} of {known:,}{beyond}"


# Labels


def labels(trial: Trial) -> str:
    """Also of rows in which padding and end mark are trained: a label goes by place, never by id."""
    subject = trial.subject
    marks = [subject.pad_id, *subject.end_ids, *subject.begin_ids]
    some = trial.looked_at[0]
    odd = Tokens([*some.ids[:1], *marks, *marks[::-1]], [False, *[place % 3 != 1 for place in range(2 * len(marks))]], some.file, some.line)
    whole = Tokens([*some.ids[:1], *marks], [True] * (1 + len(marks)), some.file, some.line)
    longest = subject.rows[int(row_lengths(subject.rows).argmax())]
    by_length = sorted(trial.looked_at, key=lambda row: len(row.ids))
    counted = 0
    for rows in ([odd, whole], [*by_length[:3], odd], [longest, by_length[0]], [by_length[len(by_length) // 2]]):
        batch = subject.collate(rows)
        width = max(len(row.ids) for row in rows)
        if tuple(batch.ids.shape) != (len(rows), width) or tuple(batch.labels.shape) != (len(rows), width):
            raise Refuted(
                f"{len(rows)} rows of at most {width} tokens became a batch of {tuple(batch.ids.shape)}", "the collator cuts or drops rows",
                "batch whole rows, padded to the longest",
            )  # fmt: skip
        if tuple(batch.lengths) != tuple(len(row.ids) for row in rows):
            raise Refuted(
                f"rows of {[len(row.ids) for row in rows]} tokens are counted as {list(batch.lengths)}", "padding is counted", "count without padding"
            )
        for row, ids, made in zip(rows, batch.ids.tolist(), batch.labels.tolist(), strict=True):
            size = len(row.ids)
            if ids[:size] != row.ids:
                raise Refuted(
                    f"{where(row)}: other ids in the batch than in the row", "the collator moves or replaces tokens", "pad on the right, ids as they are"
                )
            wanted = [*expected_labels(row), *[IGNORE] * (width - size)]
            if made != wanted:
                place = next(index for index, (one, other) in enumerate(zip(made, wanted, strict=True)) if one != other)
                raise Refuted(*_wrong_label(trial, made[place], wanted[place], place, size, ids[place]))
            if not all(0 <= token < trial.vocabulary for token in ids[size:]):
                raise Refuted(f"padding has id {ids[size]}", "the model knows no such id", "pad with an id of the model")
            counted += sum(label != IGNORE for label in made)
    return f"{counted:,} labels stand at their tokens and nowhere else, those of end mark and padding id among them"


def _wrong_label(trial: Trial, made: int, wanted: int, place: int, size: int, token: int) -> tuple[str, str, str]:
    told = f"place {place} of a row of {size} tokens (id {token}) has label {made}, by the row it is {wanted}"
    if place >= size:
        return told, "padding is trained", "give padding the label -100"
    if made == IGNORE:
        is_mark = token in (trial.subject.pad_id, *trial.subject.end_ids)
        likely = "labels are left out by id, so that an end mark that shares the padding's id is never learned" if is_mark else "answers are masked"
        return told, likely, "leave labels out by place: where the row is not trained, and in padding"
    if wanted == IGNORE:
        return told, "what must not be trained has a label: a prompt, or the first token of a document", "take labels from what is trained of each row"
    return told, "labels are shifted, or stand for other tokens", "a label is the id of its own place; the loss compares it with the place before"


NO_ROWS = "the rows, or what makes and batches them"
OF_ROWS = [
    Claim("ids and lengths", ids_and_lengths, NO_ROWS, PREPARE),
    Claim("labels", labels, "the collator", PREPARE),
]
