"""The pairs of `halfbyte rate` as one offline page: a person votes in a browser and saves the votes as a JSON file for `--votes`.

The page holds A and B and the seed that they were drawn with, and nothing that tells which is which. Prompts and answers come from data and from
a model: all are escaped, and the page may run one script, its own, known by its hash.
"""

import base64
import hashlib
import html

from halfbyte.evaluate.rate import Pair
from halfbyte.runs.words import visible

CSS = """
:root{color-scheme:light dark;--paper:#fcfcfb;--ink:#1b2226;--quiet:#5c676d;--rule:#d9dedf;--chosen:#0b6b63}
@media (prefers-color-scheme:dark){:root{--paper:#14191b;--ink:#e3e8e8;--quiet:#98a4a8;--rule:#2d3639;--chosen:#5cc4b4}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,sans-serif}
main{max-width:64rem;margin:0 auto;padding:1.6rem 1.2rem 5rem}h1{font-size:1.5rem;margin:0 0 .3rem}
.quiet{color:var(--quiet);margin:0}.text{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
fieldset{border:0;border-top:1px solid var(--rule);margin:1.4rem 0 0;padding:1rem 0 0;min-width:0}
.asked{font-weight:600;margin:0 0 .7rem}.answers{display:grid;grid-template-columns:1fr 1fr;gap:.8rem 1.6rem}
.votes{display:flex;flex-wrap:wrap;gap:.4rem 1.6rem;margin:.9rem 0 0}label{cursor:pointer}input{accent-color:var(--chosen)}
footer{position:fixed;inset:auto 0 0;background:var(--paper);border-top:1px solid var(--rule);padding:.7rem 1.2rem;text-align:center}
button{font:inherit;padding:.35rem 1rem;margin-left:1rem}
@media (max-width:640px){.answers{grid-template-columns:minmax(0,1fr)}}"""

SCRIPT = """
const form = document.querySelector("form"), told = document.querySelector("output");
let unsaved = false;
const votes = () => Object.fromEntries(new FormData(form));
form.addEventListener("change", () => {
  unsaved = true;
  told.textContent = Object.keys(votes()).length + " of " + form.dataset.pairs + " voted";
});
form.addEventListener("submit", event => {
  event.preventDefault();
  const kept = {run: form.dataset.run, adapter: form.dataset.adapter, seed: Number(form.dataset.seed), votes: votes()};
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(kept, null, 1) + "\\n"], {type: "application/json"}));
  link.download = "votes-" + form.dataset.run + ".json";
  link.click();
  unsaved = false;
});
addEventListener("beforeunload", event => { if (unsaved) event.preventDefault(); });
"""


def page(name: str, adapter: str, seed: int, pairs: list[Pair]) -> str:
    """`pairs` as they are to be shown; a pair without a choice is no vote."""
    known = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{known}'"
    questions = "\n".join(_question(place, len(pairs), pair) for place, pair in enumerate(pairs, 1))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{shown(name)} – which answer is better?</title><style>{CSS}</style></head>
<body><main><h1>Which answer is better?</h1>
<p class="quiet">One of A and B is the model before training, the other the model after it, drawn anew for each pair. Leave out what you cannot judge.
Votes are in this window only until you save them.</p>
<form id="ballot" data-run="{shown(name)}" data-adapter="{shown(adapter)}" data-seed="{seed}" data-pairs="{len(pairs)}" autocomplete="off">
{questions}
</form></main><footer><output form="ballot">0 of {len(pairs)} voted</output><button form="ballot">Save the votes</button></footer>
<script>{SCRIPT}</script></body></html>
"""


def _question(place: int, of: int, pair: Pair) -> str:
    answers = "".join(
        f'<div><p class="quiet">{letter}</p><p class="text" dir="auto">{shown(pair.answers[side].strip()) or "(empty)"}</p></div>'
        for letter, side in (("A", pair.a), ("B", pair.b))
    )
    choices = "".join(
        f'<label><input type="radio" name="{shown(pair.name)}" value="{vote}"> {words}</label>'
        for vote, words in (("a", "A is better"), ("b", "B is better"), ("tie", "equally good"))
    )
    return (
        f'<fieldset><legend class="quiet">{place} of {of}</legend><p class="asked text" dir="auto">{shown(pair.prompt)}</p>'
        f'<div class="answers">{answers}</div><div class="votes">{choices}</div></fieldset>'
    )


def shown(text: str) -> str:
    return html.escape(visible(text))
