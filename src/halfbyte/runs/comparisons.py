"""Before and after: every comparison with its 95 % interval, drawn beside its numbers. To the right is better, whatever the metric."""

from typing import Any

from halfbyte.runs.markup import folded, shown, table
from halfbyte.runs.verdict import GROUPS, SIGNS, sample, sentence_of, span, word_of
from halfbyte.runs.words import DASH, chance, count, decimals_of, figure, fixed, interval, number, percent_change

WIDTH, HEIGHT = 200, 26
LEGEND = (
    "The dot is the change from base to tuned, the line its 95 % interval, the shaded band what is too small for this test to show. "
    "An interval that reaches across the middle is no evidence of a difference."
)


def comparison_table(comparisons: list[dict[str, Any]]) -> str:
    """A row a comparison, group by group; on a narrow screen each row folds to a card."""
    if not comparisons:
        return ""
    body, group = "", None
    for one in comparisons:
        if one["group"] != group:
            group = one["group"]
            body += f'<tr class="group"><th colspan="6" scope="rowgroup">{shown(GROUPS.get(group, group))}<span>{shown(sample(one))}</span></th></tr>'
        body += row(one)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("metric", "base", "tuned", "change"))
    head += '<th scope="col" class="ends"><span>worse</span><span>better</span></th><th scope="col">verdict</th>'
    told = "".join(f"<li>{shown(sentence_of(one))}</li>" for one in comparisons)
    main = f'<div class="scroll"><table class="compared"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f'{main}<p class="quiet small">{LEGEND}</p>{folded("Each comparison in a sentence", f"<ul>{told}</ul>")}'


def row(one: dict[str, Any]) -> str:
    decimals, word = decimals_of(one), word_of(one)
    ends = interval(one.get("interval"))

    def score(name: str) -> str:
        around = interval(one.get(f"{name}_interval"))
        return f'<td data-name="{name}">{fixed(one.get(name), decimals)}{under(span(around, decimals) if around else "")}</td>'

    change = f'<td data-name="change">{fixed(one.get("difference"), decimals, sign=True)}{under(span(ends, decimals, sign=True) if ends else "")}</td>'
    better = "higher is better" if one.get("higher_is_better") else "lower is better"
    name = f'<td class="metric">{shown(one["metric"])}{under(better)}</td>'
    chances = under(chance(one.get("p_value")) if number(one.get("p_value")) is not None else "")
    verdict = f'<td class="word {word.replace(" ", "-")}"><b>{SIGNS.get(word, DASH)} {word}</b>{chances}</td>'
    return f'<tr>{name}{score("base")}{score("tuned")}{change}<td class="plot">{bar(one)}</td>{verdict}</tr>'


def under(text: str) -> str:
    return f'<span class="under">{text}</span>' if text else ""


def bar(one: dict[str, Any]) -> str:
    """The change and its interval about zero, better to the right. Every row has a scale of its own, for units differ."""
    change, ends, smallest = number(one.get("difference")), interval(one.get("interval")), number(one.get("smallest_effect"))
    if change is None:
        return ""
    reach = max(abs(value) for value in (change, *(ends or ()), smallest or 0.0)) * 1.1 or 1.0
    way = 1 if one.get("higher_is_better") else -1

    def at(value: float) -> float:
        return WIDTH / 2 + way * value / reach * (WIDTH / 2 - 4)

    middle = HEIGHT / 2
    parts = [f'<line class="axis" x1="0" y1="{middle}" x2="{WIDTH}" y2="{middle}"/>']
    if smallest:
        wide = abs(at(smallest) - at(0))
        parts.append(f'<rect class="band" x="{WIDTH / 2 - wide:.1f}" y="3" width="{2 * wide:.1f}" height="{HEIGHT - 6}"/>')
    parts.append(f'<line class="zero" x1="{WIDTH / 2}" y1="0" x2="{WIDTH / 2}" y2="{HEIGHT}"/>')
    if ends:
        left, right = sorted((at(ends[0]), at(ends[1])))
        parts.append(f'<path class="whisker" d="M{left:.1f} {middle}H{right:.1f}M{left:.1f} {middle - 4}v8M{right:.1f} {middle - 4}v8"/>')
    parts.append(f'<circle cx="{at(change):.1f}" cy="{middle}" r="4"/>')
    decimals = decimals_of(one)
    told = f"change {fixed(change, decimals, sign=True)}" + (f", 95 % interval {span(ends, decimals, sign=True)}" if ends else "")
    kind = word_of(one).replace(" ", "-")
    return f'<svg class="bar {kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{told}; better is to the right">{"".join(parts)}</svg>'


def perplexity_table(base: dict[str, Any], tuned: dict[str, Any]) -> str:
    """What runs of early versions have in place of comparisons."""
    if base == tuned:  # all null
        return ""
    losses, tokens = [base["loss"], tuned["loss"]], [base["tokens"], tuned["tokens"]]
    change = DASH if None in losses else fixed(tuned["loss"] - base["loss"], 3, sign=True)
    same = DASH if None in tokens else "same" if tokens[0] == tokens[1] else "differ"
    rows = [
        ["loss per token", *(fixed(loss, 3) for loss in losses), change],
        ["perplexity", figure(base["perplexity"]), figure(tuned["perplexity"]), percent_change(base["perplexity"], tuned["perplexity"])],
        ["tokens", *map(count, tokens), same],
    ]
    return table(["held-out test rows", "base", "tuned", "change"], rows, "numbers")
