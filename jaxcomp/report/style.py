"""The look of the pages, inside them: readable on a phone, in the dark and on paper."""

CSS = """
:root { color-scheme: light dark; --ink: #1a1c20; --soft: #5c6370; --line: #d9dce2;
  --paper: #ffffff; --card: #f5f6f8; --s0: #1f6fb4; --s1: #d1622b; --s2: #3a8f4d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ed; --soft: #9ea6b4; --line: #3a3f49;
  --paper: #15171b; --card: #1f2228; --s0: #6db3f2; --s1: #f2955f; --s2: #7ccf8f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 82rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; }
.note, figcaption { color: var(--soft); font-size: .85rem; }
.cards { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.card { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.card b { display: block; font-size: 1.25rem; line-height: 1.3; }
.card span { color: var(--soft); font-size: .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.wrap { overflow-wrap: anywhere; }
.charts { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
figure { margin: 0; break-inside: avoid; }
svg { display: block; width: 100%; height: auto; }
svg.chart { max-width: 34rem; }
svg.chart text { fill: var(--ink); font: 10.5px system-ui, sans-serif; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 1.8; } .line.s0 { stroke: var(--s0); }
.line.s1 { stroke: var(--s1); } .line.s2 { stroke: var(--s2); }
.dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); }
.bar { fill: var(--s0); } .mean { stroke: var(--s1); stroke-width: 1.5; stroke-dasharray: 4 3; }
.frame { display: grid; gap: .4rem .8rem; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
.frame.wide { grid-template-columns: minmax(0, 1fr); }
.box { fill: none; stroke-width: 1.6; vector-effect: non-scaling-stroke; }
.key svg.swatch { width: 0.9em; height: 0.9em; display: inline-block; }
.tag { font-family: system-ui, sans-serif; font-weight: 600; paint-order: stroke;
  stroke: #000; stroke-width: .22em; stroke-linejoin: round; }
.box.c0 { stroke: #ffd23f; } .box.c1 { stroke: #4ce0ff; } .box.c2 { stroke: #ff6ad5; }
.box.c3 { stroke: #8dff6a; } .box.c4 { stroke: #ff8d4c; } .box.c5 { stroke: #b9a6ff; }
.tag.c0 { fill: #ffd23f; } .tag.c1 { fill: #4ce0ff; } .tag.c2 { fill: #ff6ad5; }
.tag.c3 { fill: #8dff6a; } .tag.c4 { fill: #ff8d4c; } .tag.c5 { fill: #b9a6ff; }
table.maps { width: 100%; max-width: 62rem; table-layout: fixed; }
table.maps th:first-child { width: 6.5rem; }
table.maps .note { display: block; font-weight: 400; }
img.map { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.key { display: flex; flex-wrap: wrap; gap: .3rem 2rem; font-size: .85rem; color: var(--soft); }
.key img.map { display: inline; width: 6rem; height: .7rem; }
pre { background: var(--card); padding: .7rem; border-radius: .4rem; overflow-x: auto;
  font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.alert { border-left: 4px solid var(--s1); padding-left: .7rem; }
a { color: var(--s0); }
.cards { margin-bottom: 1rem; }
@media (max-width: 40rem) { body { padding: .7rem; }
  .facts, .facts tbody { display: block; }
  .facts tr { display: grid; grid-template-columns: 1fr auto; padding: .25rem 0;
    border-bottom: 1px solid var(--line); }
  .facts th, .facts td { border: 0; padding: 0; }
  .facts td.wrap { grid-column: 1 / -1; color: var(--soft); font-size: .85rem; }
  table.maps, table.maps thead, table.maps tbody { display: block; }
  table.maps tr { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0 .4rem; }
  table.maps th, table.maps td { border: 0; padding: .1rem 0; }
  table.maps th:first-child { grid-column: 1 / -1; width: auto; }
  table.maps thead th:first-child { display: none; }
  table.maps .note { display: inline; margin-left: .6rem; } table.maps br { display: none; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb;
  --paper: #fff; --card: #f3f3f3; --s0: #1f6fb4; --s1: #b04a15; --s2: #2c7a3d; }
  body { max-width: none; font-size: 11pt; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .frame { grid-template-columns: repeat(3, minmax(0, 1fr)); break-inside: avoid; }
  .card, img, svg { print-color-adjust: exact; } }
"""
