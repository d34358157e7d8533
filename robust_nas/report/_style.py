"""The page's style sheet.

It is dark where the reader's system is, and light on paper. On paper, settings are unfolded where the browser can do
that without a script (`::details-content`): a number is worth little without them, and paper cannot be opened.
"""

from robust_nas.core.palette import DARK, LIGHT, declared

_COLOURS = f"""
:root {{ color-scheme: light; {declared(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ color-scheme: dark; {declared(DARK)} }}
}}
"""

_RULES = """
* { box-sizing: border-box; }
html { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: var(--ink); background: var(--paper); -webkit-text-size-adjust: 100%; }
body { max-width: 1140px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1, h2, h3, h4, figcaption, .legend { overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .35rem; font-weight: 650; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 3.2rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid var(--rule); font-weight: 640; }
h3 { font-size: 1rem; margin: 0 0 .2rem; font-weight: 620; }
h4 { font-size: .92rem; margin: 0 0 .25rem; font-weight: 600; }
.group { margin: 1.4rem 0 .7rem; }
.group small { font-weight: 400; font-size: .87rem; }
.later { margin-top: 1.8rem; }
p { margin: 0 0 .9rem; max-width: 46rem; }
a { color: var(--accent); text-underline-offset: .15em; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .82rem; }
code { overflow-wrap: anywhere; }
.facts, .note, figcaption, caption, small { color: var(--muted); }
.facts { font-size: .9rem; margin-bottom: 1.4rem; overflow-wrap: anywhere; }
.lead { font-size: 1.08rem; }
.note, figcaption { font-size: .87rem; line-height: 1.5; }
.note { max-width: 46rem; }
.findings { margin: 0 0 .9rem; padding-left: 1.2rem; max-width: 46rem; }
.findings li { margin-bottom: .3rem; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; margin: 1.4rem 0 0; padding: 0;
  font-size: .9rem; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
.missing { border-left: 3px solid var(--edge); background: var(--warn); padding: .7rem 1rem; margin: 1.2rem 0;
  max-width: 46rem; overflow-wrap: anywhere; }
.missing + .missing { margin-top: -.5rem; }
.scroll { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
.wide { width: 100%; }
caption { text-align: left; caption-side: bottom; padding-top: .6rem;
  max-width: min(46rem, 100vw - 3rem); font-size: .87rem; line-height: 1.5; }
th, td { text-align: right; padding: .42rem .5rem; border-bottom: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap; }
th:first-child, td:first-child, .left { text-align: left; }
th { font-weight: 600; }
thead th { vertical-align: bottom; border-bottom: 1px solid var(--line); line-height: 1.3; }
thead tr + tr th:first-child { text-align: right; }
thead tr:first-child th[colspan] { border-bottom: 1px solid var(--rule); text-align: center; }
th small, td small { display: block; font-weight: 400; font-size: .74rem; line-height: 1.35; }
tbody th { background: var(--paper); position: sticky; left: 0; }
tbody tr.joined th, tbody tr.joined td { background: var(--faint); }
.wide thead th, .named thead th { white-space: normal; }
.wide tbody th, .named tbody th { white-space: normal; min-width: 6.5rem; overflow-wrap: break-word; }
.clean { color: var(--clean); } .attacked { color: var(--attacked); } .certified { color: var(--certified); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 1.6rem 1.8rem; }
.broad { grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); }
.grid > *, figure { margin: 0; min-width: 0; }
figure h3 small { display: inline; font-weight: 400; font-size: .87rem; }
svg { display: block; width: 100%; height: auto; max-width: calc(var(--natural) * 1.3); overflow: visible; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif !important; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.3rem; list-style: none; margin: 0 0 1rem; padding: 0;
  font-size: .87rem; }
.legend li { display: flex; align-items: center; gap: .45rem; }
.legend svg { width: auto; height: 12px; flex: none; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; margin: .5rem 0 0;
  font-size: .9rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
dl.limits { grid-template-columns: 9rem minmax(0, 1fr); gap: .8rem 1rem; max-width: 54rem; font-size: 1rem; }
dl.limits dt { color: var(--ink); font-weight: 600; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 315px), 1fr));
  gap: 1.3rem 1.8rem; }
.triple { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; }
.triple img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; border: 1px solid var(--rule); display: block; }
.triple span { font-size: .8rem; line-height: 1.35; color: var(--muted); display: block; margin-top: .25rem; }
.bar { display: inline-block; height: .7rem; background: var(--accent); vertical-align: baseline; min-width: 1px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
td.bars { width: 30%; min-width: 4rem; text-align: left; }
pre { background: var(--faint); padding: 1rem 1.1rem; border-radius: 4px; line-height: 1.5; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0 0 1rem; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 1.6rem 2.4rem; }
.two > * { min-width: 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.grid + details, .grid + .scroll { margin-top: 1.2rem; }
details > .scroll, details > .two, details > ul { margin-top: 1rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--muted);
  font-size: .85rem; }
@media (max-width: 640px) {
  body { padding: 1.4rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  dl.limits { grid-template-columns: minmax(0, 1fr); gap: .1rem; }
  dl.limits dd { margin-bottom: .8rem; }
  .wide, .named { font-size: .82rem; }
  .wide th, .wide td, .named th, .named td { padding: .4rem .3rem; }
  .wide th small, .wide td small, .named th small, .named td small { font-size: .68rem; }
  .wide tbody th, .named tbody th { min-width: 5.2rem; max-width: 7.5rem; }
  .wide td small { white-space: normal; }
}
@media print {
  @page { margin: 16mm; }
  @page broadest { size: landscape; margin: 12mm; }
  html { font-size: 10.5pt; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  h2 { margin-top: 1.6rem; }
  h1, h2, h3, h4, .group, .lead, .note, .legend, summary { break-after: avoid; }
  p, li, dd, pre { orphans: 3; widows: 3; }
  /* A table on one page where it fits; else no row is split, and the heads come again. */
  table, tr, figure, .note, .missing, dd { break-inside: avoid; }
  /* Boxes in lines, since a heading is not kept with the first row of a grid. */
  .grid, .examples { display: block; }
  .grid > *, .examples > * { display: inline-block; vertical-align: top; width: 47%; margin: 0 2% 1rem 0; }
  .broad > div, .grid > :only-child { width: 100%; }
  pre { font-size: 7.5pt; padding: 0; line-height: 1.35; }
  .two { display: block; }
  .setup pre { columns: 2; }
  footer { break-before: avoid; margin-top: 1.5rem; }
  thead { display: table-header-group; }
  caption { break-before: avoid; max-width: 46rem; }
  .scroll { overflow: visible; }
  .scroll:has(.broadest) { page: broadest; }
  th, td { padding: .25rem .3rem; white-space: normal; }
  tbody th, .broadest th, .broadest td, table code { overflow-wrap: anywhere; }
  tbody th { position: static; }
  .wide { font-size: 7.5pt; line-height: 1.3; }
  .wide td, .wide tbody th { padding: .15rem .3rem; }
  .wide small { line-height: 1.2; }
  .wide tbody th, .named tbody th { min-width: 5rem; }
  summary { list-style: none; }
  .setup::details-content { content-visibility: visible; display: block; height: auto; }
}
"""

STYLE = f"{_COLOURS}{_RULES}"
