"""How the page looks: one style sheet for light, dark and paper, from 320 px to a wide screen. Nothing is fetched, so fonts are the reader's own."""

COLOURS = """
:root{color-scheme:light dark;--paper:#fcfcfb;--ink:#1b2226;--quiet:#5c676d;--rule:#d9dedf;--tint:#f1f4f3;
--tuned:#0b6b63;--base:#5f6480;--held:#b0500f;--good:#18794e;--bad:#b3261e;--mid:#855800}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14191b;--ink:#e3e8e8;--quiet:#98a4a8;--rule:#2d3639;--tint:#1d2527;
--tuned:#5cc4b4;--base:#a6abc6;--held:#eb9a5b;--good:#5fc992;--bad:#ff8a80;--mid:#e3b341}}"""

PAGE = """
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,sans-serif}
main{max-width:72rem;margin:0 auto;padding:2.2rem 1.4rem 3rem}
h1,h2,.verdict .title,.verdict .sentence{font-family:"Iowan Old Style",Charter,"Palatino Linotype",Palatino,Georgia,serif;font-weight:600;margin:0}
h1{font-size:1.15rem;line-height:1.3;overflow-wrap:anywhere}h2{font-size:1.02rem;text-wrap:balance}
h3{font-size:.85rem;margin:1.6rem 0 .5rem}h3:first-child{margin-top:0}
.status{font:600 .8rem/1 system-ui,sans-serif;white-space:nowrap;margin-left:.6rem}
.status::before{content:"";display:inline-block;width:.6em;height:.6em;border-radius:50%;background:currentColor;margin-right:.4em}
.unfinished{color:var(--quiet)}.finished,.better{color:var(--good)}.failed,.worse{color:var(--bad)}.interrupted,.no-evidence{color:var(--mid)}
.not-tested,.not-compared{color:var(--quiet)}
.verdict .title{font-size:2.3rem;line-height:1.15;margin:1.1rem 0 0}.verdict .title span{font-size:.75em;margin-right:.35em}
.verdict .sentence{font-size:1.3rem;font-weight:400;line-height:1.4;max-width:46rem;margin:.5rem 0 0;overflow-wrap:anywhere}
.verdict dl{margin:1.2rem 0 0;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}.notice,.others{margin:.8rem 0 0;overflow-wrap:anywhere}
section{display:grid;grid-template-columns:8.5rem minmax(0,1fr);gap:.5rem 1.6rem;border-top:1px solid var(--rule);padding:1.2rem 0 1.6rem}
header{padding-bottom:1.8rem}p{margin:0 0 .5rem;max-width:46rem;overflow-wrap:anywhere}.first{margin:0 0 .8rem}.small{font-size:.8rem;margin:.6rem 0 0}
.beside{display:flex;flex-wrap:wrap;gap:1rem 4rem;align-items:flex-start}.scroll{overflow-x:auto;max-width:100%}p.small+.scroll{margin-top:1rem}
.quiet{color:var(--quiet)}summary{cursor:pointer;color:var(--quiet)}details{margin:.8rem 0 0}details>*+*{margin-top:.8rem}
pre{margin:.5rem 0 0;padding:.7rem .9rem;background:var(--tint);overflow-x:auto;font:13px/1.5 ui-monospace,Menlo,Consolas,monospace}
ul{margin:.6rem 0 0;padding-left:1.1rem;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.7rem 1.6rem;margin:0}dl+dl{margin-top:.7rem}
dl.wide{grid-template-columns:minmax(0,1fr)}dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1.6rem 1.4rem;align-items:start}figure{margin:0}
.charts .told{align-self:center}"""

TABLES = """
table{border-collapse:collapse;font-variant-numeric:tabular-nums}table.wide{width:100%}tr:last-child td{border-bottom:0}
th,td{text-align:left;vertical-align:baseline;padding:.3rem 1.2rem .3rem 0;border-bottom:1px solid var(--rule)}
th,dt,.label{font-size:.8rem;font-weight:600;color:var(--quiet)}dt{font-weight:400}td{overflow-wrap:break-word}
table.wide td:last-child{overflow-wrap:anywhere;min-width:12rem}@media (min-width:901px){table.wide td:first-child{white-space:nowrap}}
.numbers :is(th,td):not(:first-child){text-align:right;padding:.3rem 0 .3rem 1.8rem;white-space:nowrap}
.compared{width:100%}@media (min-width:901px),print{.compared :is(th,td):nth-child(n+2):nth-child(-n+4){text-align:right;white-space:nowrap;
padding:.45rem 0 .45rem 1.4rem}}
.compared :is(.metric,.word){padding-top:.45rem;padding-bottom:.45rem}.compared .metric{padding-right:0}
.compared .group th{padding:1.1rem 0 .3rem;text-align:left;font-size:.85rem;color:var(--ink);overflow-wrap:anywhere}
.group span{font-weight:400;color:var(--quiet);margin-left:.7em}
.compared tbody tr.group:first-child th{padding-top:.6rem}
.under{display:block;font-size:.8rem;color:var(--quiet);font-weight:400}.word{white-space:nowrap;width:1%}.compared .word{padding-right:0}
.word b{font-weight:600}
.ends{width:14.5rem}.ends span{display:inline-block;width:50%}.ends span+span{text-align:right}.compared :is(.ends,.plot){padding:0 1.4rem 0 1.8rem}
.plot{vertical-align:middle}.bar{display:block;width:100%;min-width:6.5rem;max-width:17rem;height:26px;color:var(--quiet)}.bar.better{color:var(--good)}
.bar.worse{color:var(--bad)}
.bar.no-evidence{color:var(--mid)}.bar .axis{stroke:var(--rule)}.bar .zero{stroke:var(--quiet)}.bar .band{fill:var(--rule);opacity:.7}
.bar .whisker{stroke:currentColor;stroke-width:2;fill:none}.bar circle{fill:currentColor}
.heats{display:flex;flex-wrap:wrap;gap:1.2rem 2rem;margin:1rem 0 0}
.heat caption{text-align:left;font-size:.8rem;font-weight:600;padding-bottom:.3rem}caption.base{color:var(--base)}caption.tuned{color:var(--tuned)}
.heat.base{--tone:var(--base)}.heat.tuned{--tone:var(--tuned)}.heat :is(th,td){border:0;padding:0}
.heat thead th{vertical-align:bottom;padding:.2rem 0 .4rem;font-weight:400}
.heat thead span{writing-mode:vertical-rl;transform:rotate(180deg);display:inline-block;
max-height:9rem;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}.heat thead th{text-align:center}
.heat tbody th{font-weight:400;text-align:right;padding:0 .5rem 0 0;max-width:9.4rem;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;
vertical-align:middle}
.heat tbody td{min-width:1.8rem;height:1.8rem;text-align:center;vertical-align:middle;font-size:.75rem;border:2px solid var(--paper);
background:color-mix(in srgb,var(--tone) var(--share),var(--tint));print-color-adjust:exact;-webkit-print-color-adjust:exact}
.heat .right{outline:1px solid currentColor;outline-offset:-3px}.heat .deep{color:var(--paper);font-weight:600}.heat .none{color:var(--quiet)}"""

ANSWERS = """
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.5rem 1.6rem;padding:0 0 1.3rem;margin:0 0 1.3rem;border-bottom:1px solid var(--rule)}
.pair:last-child{border:0;margin:0;padding:0}.prompt,.reference{grid-column:1/-1}.prompt .text{font-style:italic}
.text{margin:0;max-width:none;white-space:pre-wrap;overflow-wrap:anywhere}.label.base,.base>.label{color:var(--base)}.tuned>.label{color:var(--tuned)}
.tag{border:1px solid currentColor;border-radius:.7em;padding:0 .5em;margin-left:.6em;font-weight:400;white-space:nowrap}
.cut{font-size:.8rem;color:var(--mid);margin:.3rem 0 0}
mark{color:inherit;background:none;border-radius:2px;print-color-adjust:exact;-webkit-print-color-adjust:exact;text-underline-offset:3px;
text-decoration-thickness:2px}
mark.base{text-decoration:underline dotted var(--base);background:color-mix(in srgb,var(--base) 13%,transparent)}
mark.tuned{text-decoration:underline solid var(--tuned);background:color-mix(in srgb,var(--tuned) 13%,transparent)}
.votes{display:flex;height:1.7rem;max-width:30rem;margin:.5rem 0 .8rem;font-size:.8rem;gap:2px}
.votes span{flex:var(--share) 0 0;min-width:max-content;padding:.2rem .5rem;overflow:hidden;white-space:nowrap;border:1px solid currentColor}
.votes .tuned{color:var(--tuned)}.votes .base{color:var(--base)}.votes .tie{color:var(--quiet)}"""

NARROW = """
@media print{:root{color-scheme:light;--paper:#fff}body{font-size:10pt}tr,figure,.pair,.heat,dl div{break-inside:avoid}:is(h2,h3,tr.group){break-after:avoid}
.compared .metric{width:15%}.compared .under{font-size:.7rem}.compared :is(.ends,.plot){width:9rem;padding:0 .8rem}
.compared :is(th,td):nth-child(n+2):nth-child(-n+4){padding-left:.7rem}
section{display:block}h2{margin-bottom:.5rem}details::details-content{content-visibility:visible;height:auto}}
@media (max-width:900px){main{padding:1.4rem 1rem 2rem}section{grid-template-columns:minmax(0,1fr)}
.verdict .title{font-size:1.7rem}.verdict .sentence{font-size:1.12rem}.numbers :is(th,td):not(:first-child){padding-left:1rem}th,td{padding-right:.7rem}
dl{grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr))}.beside{gap:1rem 2rem}}
@media screen and (max-width:900px){.compared,.compared tbody{display:block}
.compared thead{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
.compared tr{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:.35rem .5rem;padding:.8rem 0;border-bottom:1px solid var(--rule)}
.compared tr.group{display:block;border:0;padding:0}.compared .group th{display:block;border:0}
.compared tr td:is(.metric,.word,.plot,[data-name]){border:0;padding:0;text-align:left;white-space:normal}.compared .metric{grid-column:span 2}
.compared tr td.word{text-align:right;width:max-content;justify-self:end;grid-column:3;grid-row:1}
.compared .plot{grid-column:1/-1;grid-row:3}
.compared .plot::before{content:"worse ← → better";display:block;text-align:center;font-size:.75rem;color:var(--quiet)}
.compared .bar{max-width:none;height:34px}.compared .word b{white-space:nowrap}.compared .under{font-size:.72rem}
.verdict dl{gap:.3rem}.verdict dl div{display:grid;grid-template-columns:7.5rem minmax(0,1fr);gap:.8rem;align-items:baseline}
.compared [data-name]::before{content:attr(data-name);display:block;font-size:.75rem;color:var(--quiet)}
.compared [data-name]{grid-row:2}}
@media (max-width:560px){.pair{grid-template-columns:minmax(0,1fr);gap:.8rem}.stack{display:block}}"""

CSS = COLOURS + PAGE + TABLES + ANSWERS + NARROW
