"use strict";

// What runs in the explorer's page; explorer.py writes the page around it. There is no library and no network.
//
// The JSON in #table has the operations, the columns (their numbers packed, see `unpack`) and one cell per class, the
// architecture that was trained. A cell is a string of one character per edge, the place of the edge's operation
// counted from "0"; for NAS-Bench-201's operations that is the digits form. A class whose architecture is no cell has
// null there, and its text in `unreadable`. "Place" always means a class's place in the table.

(async () => {
  const element = (id) => document.getElementById(id);
  const table = JSON.parse(element("table").textContent);
  const { operations, columns } = table;
  const MOST_STRINGS = 100000; // spaces of more strings are not enumerated

  // Cells -------------------------------------------------------------------------------------------------------------

  const operationAt = (cell, edge) => operations[cell.charCodeAt(edge) - 48];
  const nodesOf = (cell) => (1 + Math.sqrt(1 + 8 * cell.length)) / 2;
  const textOf = (entry) => (entry.cell === null ? table.unreadable[entry.place] : formOf(entry.cell));
  const shortOf = (entry) => (entry.cell !== null && table.digits ? entry.cell : textOf(entry));

  /** The edges of a cell of n nodes, [source, target], in the order of the string form. */
  function edgesOf(nodes) {
    const edges = [];
    for (let target = 1; target < nodes; target++)
      for (let source = 0; source < target; source++) edges.push([source, target]);
    return edges;
  }

  function formOf(cell) {
    const parts = [];
    for (const [edge, [source, target]] of edgesOf(nodesOf(cell)).entries())
      parts[target - 1] = `${parts[target - 1] ?? "|"}${operationAt(cell, edge)}~${source}|`;
    return parts.join("+");
  }

  /** `Architecture.canonical`: equal for the strings that NAS-Bench-201 counts as one architecture. */
  function canonicalOf(cell) {
    const nodes = ["0"];
    for (let edge = 0; edge < cell.length;) {
      const terms = [];
      for (let source = 0, target = nodes.length; source < target; source++, edge++) {
        const operation = operationAt(cell, edge);
        if (operation === "none" || nodes[source] === "#") terms.push("#");
        else terms.push(operation === "skip_connect" ? nodes[source] : `(${nodes[source]})@${operation}`);
      }
      nodes.push(terms.sort().join("+"));
    }
    return nodes[nodes.length - 1];
  }

  /** Whether each edge carries the cell's input to its output. */
  function liveEdges(cell) {
    const edges = edgesOf(nodesOf(cell));
    const used = edges.map((_, edge) => operationAt(cell, edge) !== "none");
    const reached = new Set([0]);
    edges.forEach(([source, target], edge) => used[edge] && reached.has(source) && reached.add(target));
    const useful = new Set([nodesOf(cell) - 1]);
    for (let edge = edges.length - 1; edge >= 0; edge--)
      if (used[edge] && useful.has(edges[edge][1])) useful.add(edges[edge][0]);
    return edges.map(([source, target], edge) => used[edge] && reached.has(source) && useful.has(target));
  }

  const sizes = [...new Set(table.cells.filter((cell) => cell !== null).map(nodesOf))].sort((a, b) => a - b);
  const mostEdges = edgesOf(sizes[sizes.length - 1] ?? 0);
  const classes = table.cells.map((cell, place) => ({ cell, place }));
  const placeOf = new Map();
  for (const { cell, place } of classes) if (cell !== null) placeOf.set(canonicalOf(cell), place);
  const numbering = table.numbering ? table.numbering.split(" ") : [];
  const numberOf = new Map(numbering.map((cell, number) => [cell, number]));

  /** Every string whose class is in the table, or null if there are too many to list; computed when first needed. */
  let listed;
  function allStrings() {
    if (listed !== undefined) return listed;
    const total = sizes.reduce((sum, nodes) => sum + operations.length ** edgesOf(nodes).length, 0);
    if (total > MOST_STRINGS) return (listed = null);
    listed = classes.filter(({ cell }) => cell === null);
    for (const nodes of sizes) {
      let cells = [""];
      for (const _ of edgesOf(nodes))
        cells = cells.flatMap((start) => operations.map((_, digit) => start + String.fromCharCode(48 + digit)));
      for (const cell of cells) {
        const place = placeOf.get(canonicalOf(cell));
        if (place !== undefined) listed.push({ cell, place });
      }
    }
    return listed;
  }

  // Columns -----------------------------------------------------------------------------------------------------------

  /** One number per class: packed as one for all (null if it is not known), or as base64 of gzip of float64. */
  async function unpack(packed) {
    if (typeof packed !== "string") return new Float64Array(classes.length).fill(packed ?? NaN);
    const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Float64Array(await new Response(stream).arrayBuffer());
  }

  for (const column of columns) {
    for (const fact of ["mean", "std", "seeds"]) column[fact] = await unpack(column[fact]);
    column.sorted = column.mean.filter((value) => !Number.isNaN(value)).sort();
  }

  /** 1 for the most accurate class of a column, or the cheapest; equal numbers share the better rank. */
  function rankIn(column, place) {
    if (column.cost) return 1 + column.sorted.filter((value) => value < column.mean[place]).length;
    let low = 0;
    let high = column.sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (column.sorted[middle] > column.mean[place]) high = middle;
      else low = middle + 1;
    }
    return column.sorted.length - low + 1;
  }

  // Accuracies are fractions in the table and percent on the page; costs are in millions, and the fewer the better.
  const scaleOf = (column) => (column.cost ? 1 : 100);
  const unitOf = (column) => (column.cost ? "M" : "%");
  const signOf = (column) => (column.cost ? -1 : 1);
  const digitsOf = (column) => (column.cost === "params" ? 3 : 2);
  const written = (column, value) =>
    Number.isNaN(value) ? "–" : (scaleOf(column) * value).toFixed(digitsOf(column));
  const headOf = (column) => `${column.name}, ${unitOf(column)}`;
  const UNITS_SAID = "flops are millions of multiply-adds, params millions of parameters (M)";
  const grouped = (count) => count.toLocaleString("en");

  // What is shown: kept in the address, so that a view can be shared --------------------------------------------------

  const edgeName = ([source, target]) => `edge ${source}-${target}`;
  const state = {};

  const bestIn = ({ cost, mean, sorted }) => classes[mean.indexOf(sorted[cost ? 0 : sorted.length - 1])];

  /** The columns of the axes: two, or one that is on both. */
  const axes = () => [...new Set([state.x, state.y])].map((place) => columns[place]);
  const isOnAxes = (place) => !Number.isNaN(columns[state.x].mean[place] + columns[state.y].mean[place]);

  /** Take the state from the address; what this table does not have is left out, and said. */
  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const problems = [];
    const leftOut = (what) => problems.push(`The address asks for ${what}, which this table does not have.`);
    const columnNamed = (name, otherwise) => {
      if (name === null) return otherwise;
      const place = columns.findIndex((column) => column.name === name);
      if (place < 0) leftOut(`the column '${name}'`);
      return place < 0 ? otherwise : place;
    };
    const edgeNamed = (name) => mostEdges.findIndex((edge) => edgeName(edge) === name);
    state.x = columnNamed(given.get("x"), table.x);
    state.y = columnNamed(given.get("y"), table.y);
    const colour = given.get("colour");
    state.colour = colour === null ? mostEdges.length - 1 : edgeNamed(colour);
    if (state.colour < 0 && colour !== null && colour !== "nothing") leftOut(`the colour of '${colour}'`);
    state.strings = given.get("strings") === "all" && allStrings() !== null;
    const view = (given.get("view") ?? "").split(" ").map(Number);
    state.view = view.length === 4 && view[1] - view[0] > 1e-6 && view[3] - view[2] > 1e-6 ? view : null;
    state.where = [];
    for (const text of given.getAll("where")) {
      const split = text.lastIndexOf("=");
      const [name, value] = [text.slice(0, split), text.slice(split + 1)];
      if (edgeNamed(name) >= 0) {
        if (operations.includes(value)) state.where.push({ edge: edgeNamed(name), operation: value });
        else leftOut(`the operation '${value}'`);
      } else {
        const column = columnNamed(name, -1);
        const [low, high] = value.split("..");
        if (column >= 0) state.where.push({ column, low: low ?? "", high: high ?? "" });
      }
    }
    const found = given.has("cell") ? find(given.get("cell")) : bestIn(columns[state.y]);
    if (found.problem) problems.push(found.problem);
    state.chosen = found.problem ? bestIn(columns[state.y]) : found;
    const kept = given.has("kept") ? find(given.get("kept")) : null;
    if (kept?.problem) problems.push(kept.problem);
    state.kept = kept && !kept.problem ? kept : null;
    const [by, way] = [(given.get("sort") ?? "").slice(0, -1), (given.get("sort") ?? "").slice(-1)];
    state.sort = "+-".includes(way) && way && by ? { by, down: way === "-" } : null;
    element("problem").textContent = problems.join(" ");
  }

  function writeAddress() {
    const given = new URLSearchParams({ x: columns[state.x].name, y: columns[state.y].name });
    given.set("colour", state.colour < 0 ? "nothing" : edgeName(mostEdges[state.colour]));
    if (state.strings) given.set("strings", "all");
    if (state.view) given.set("view", state.view.join(" "));
    for (const condition of state.where)
      if (condition.edge !== undefined)
        given.append("where", `${edgeName(mostEdges[condition.edge])}=${condition.operation}`);
      else given.append("where", `${columns[condition.column].name}=${condition.low}..${condition.high}`);
    given.set("cell", textOf(state.chosen));
    if (state.kept) given.set("kept", textOf(state.kept));
    if (state.sort) given.set("sort", `${state.sort.by}${state.sort.down ? "-" : "+"}`);
    const address = `#${given}`;
    if (address !== location.hash) history.replaceState(null, "", address);
  }

  // Looking up --------------------------------------------------------------------------------------------------------

  const problem = (...sentences) => ({ problem: sentences.join(" ") });

  /** Return the entry that a text stands for, or {problem: one sentence}. */
  function find(text) {
    text = text.trim();
    const unreadable = Object.entries(table.unreadable).find(([, other]) => other === text);
    if (unreadable) return classes[unreadable[0]];
    if (text === "") return problem(`Write ${accepted()}, but got nothing.`);
    if (!/^\d+$/.test(text)) return findForm(text);
    if (!numbering.length || text.length >= numbering[0].length) return findDigits(text);
    if (Number(text) < numbering.length) return entryOf(numbering[Number(text)]);
    return problem(`The table ${table.name} numbers architectures from 0 to ${numbering.length - 1}, but got ${text}.`);
  }

  function findDigits(text) {
    if (!table.digits)
      return problem(`This table's operations have no digits, but got '${text}'; write the string form.`);
    const wrong = [...text].find((digit) => Number(digit) >= operations.length);
    const meanings = operations.map((name, digit) => `${digit} ${name}`).join(", ");
    if (wrong !== undefined)
      return problem(`The architecture '${text}' has the digit ${wrong}, but the operations are ${meanings}.`);
    if (!Number.isInteger(nodesOf(text)))
      return problem(`A cell of n nodes has n (n - 1) / 2 edges (1, 3, 6, ...), but got ${text.length} operations.`);
    return entryOf(text);
  }

  function findForm(text) {
    let cell = "";
    for (const [place, node] of text.split("+").entries()) {
      const target = place + 1;
      if (!/^\|.*\|$/s.test(node.trim()))
        return problem(
          `The architecture '${text}' is malformed at '${node}':`,
          "a node is written |operation~source|...|, and nodes are joined by '+'.",
        );
      const parts = node.trim().slice(1, -1).split("|");
      for (let source = 0; source < Math.max(parts.length, target); source++) {
        const [, operation, from] = /^(\w+)~(\d+)$/.exec(parts[source] ?? "") ?? [];
        if (Number(from) !== source || source >= target) {
          const wanted = source < target ? `edge ${source}-${target}` : `only ${target} edges into node ${target}`;
          return problem(
            `The architecture '${text}' must have ${wanted}, but got '${parts[source] || "nothing"}' there.`,
          );
        }
        if (!operations.includes(operation))
          return problem(
            `The architecture '${text}' has the unknown operation '${operation}' on edge ${source}-${target}.`,
            `Available: ${operations.join(", ")}.`,
          );
        cell += String.fromCharCode(48 + operations.indexOf(operation));
      }
    }
    return entryOf(cell);
  }

  function accepted() {
    const forms = [
      "a string form",
      ...(table.digits ? ["a digits form"] : []),
      ...(numbering.length ? ["a published index"] : []),
    ];
    return forms.join(", ").replace(/, ([^,]*)$/, " or $1");
  }

  /** Return a cell's entry, or {problem} if its class was not measured. */
  function entryOf(cell) {
    const place = placeOf.get(canonicalOf(cell));
    if (place !== undefined) return { cell, place };
    const distance = (other) => [...cell].filter((digit, edge) => digit !== other[edge]).length;
    const nearest = table.cells
      .filter((other) => other?.length === cell.length)
      .sort((a, b) => distance(a) - distance(b))[0];
    return problem(
      `The table ${table.name} has neither ${formOf(cell)} nor an equivalent architecture.`,
      ...(nearest ? [`Nearest: ${formOf(nearest)} (${distance(nearest)} other operations).`] : []),
    );
  }

  function choose(found) {
    element("sentence").textContent = found.problem ?? "";
    if (found.problem) return;
    state.chosen = found;
    showChosen();
    mark();
    writeAddress();
  }

  // Matches and the front ---------------------------------------------------------------------------------------------

  let entries = classes; // one point each
  let matches = []; // those of them that fit the conditions
  let drawn = []; // one of the matches for each class: the others would lie exactly below it
  let front = []; // places of classes, the most accurate in x first

  function fits({ cell, place }) {
    return state.where.every((condition) => {
      if (condition.edge !== undefined)
        return (
          cell !== null && condition.edge < cell.length && operationAt(cell, condition.edge) === condition.operation
        );
      // In fractions: 100 times a fraction need not be the percentage that was typed.
      const value = columns[condition.column].mean[place];
      const scale = scaleOf(columns[condition.column]);
      const { low, high } = condition;
      return !Number.isNaN(value) && (low === "" || value >= low / scale) && (high === "" || value <= high / scale);
    });
  }

  /** The classes that no other one is at least as good as in both columns and better than in one. */
  function paretoFront(places) {
    const [xs, ys] = [columns[state.x], columns[state.y]].map((column) => column.mean.map((v) => signOf(column) * v));
    const known = places.filter(isOnAxes);
    known.sort((a, b) => xs[b] - xs[a] || ys[b] - ys[a] || a - b);
    const kept = [];
    let highest = -Infinity; // among those further right
    for (let start = 0, end; start < known.length; start = end) {
      const top = ys[known[start]];
      for (end = start; end < known.length && xs[known[end]] === xs[known[start]]; end++)
        if (ys[known[end]] === top && top > highest) kept.push(known[end]);
      highest = Math.max(highest, top);
    }
    return kept;
  }

  // The plot ----------------------------------------------------------------------------------------------------------

  const plot = element("plot");
  const canvases = [element("points"), element("marks")];
  const [points, marks] = canvases.map((canvas) => canvas.getContext("2d"));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colours = () => table.colours[dark.matches ? "dark" : "light"];
  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
  const REACH = 12; // how far from a point the pointer may be, in pixels
  const box = { left: 46, top: 8, right: 0, bottom: 0 }; // where the points are, in pixels
  let view = [0, 100, 0, 100]; // x from, x to, y from, y to, in the axes' units
  let radius = 2.5;

  const across = (value) => box.left + ((value - view[0]) / (view[1] - view[0])) * (box.right - box.left);
  const down = (value) => box.bottom - ((value - view[2]) / (view[3] - view[2])) * (box.bottom - box.top);
  const inside = (x, y) => x >= box.left && x <= box.right && y >= box.top && y <= box.bottom;
  const onAxis = (column, place) => scaleOf(column) * column.mean[place];
  const screen = ({ place }) => [across(onAxis(columns[state.x], place)), down(onAxis(columns[state.y], place))];

  /** The range of a column with a margin, in its unit. */
  function rangeOf(column) {
    const { sorted } = column;
    const ends = sorted.length ? [sorted[0], sorted[sorted.length - 1]] : [0, 100 / scaleOf(column)];
    const [low, high] = ends.map((value) => scaleOf(column) * value);
    const margin = high - low > 1e-6 ? (high - low) * 0.04 : 1;
    return [low - margin, high + margin];
  }

  /** A disc of one colour, drawn once and stamped for each point: much quicker than a path per point. */
  function stampOf(colour, scale) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = Math.ceil(2 * (radius + 1) * scale);
    const context = canvas.getContext("2d");
    context.fillStyle = colour;
    context.arc(canvas.width / 2, canvas.width / 2, radius * scale, 0, 2 * Math.PI);
    context.fill();
    return canvas;
  }

  /** Round steps of a range, about one per `space` pixels. */
  function ticksOf(from, to, pixels, space) {
    const rough = ((to - from) * space) / pixels;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const ticks = [];
    for (let count = Math.ceil(from / step); count * step <= to; count++)
      ticks.push([count * step, (count * step).toFixed(digits)]);
    return ticks;
  }

  // The points on the screen, in squares of REACH pixels: a square's last point, and for each point the one before it.
  let wide = 0;
  let lastIn = new Int32Array(0);
  let before = new Int32Array(0);

  function draw() {
    const scale = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = plot;
    for (const canvas of canvases)
      if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
        canvas.width = Math.round(width * scale);
        canvas.height = Math.round(height * scale);
      }
    box.right = width - 8;
    box.bottom = height - 40;
    view = state.view ?? [...rangeOf(columns[state.x]), ...rangeOf(columns[state.y])];
    radius = classes.length > 2000 ? 2.5 : classes.length > 200 ? 3.5 : 5;
    points.setTransform(scale, 0, 0, scale, 0, 0);
    points.clearRect(0, 0, width, height);
    drawAxes();
    wide = Math.ceil(width / REACH) + 1;
    lastIn = new Int32Array(wide * (Math.ceil(height / REACH) + 1)).fill(-1);
    before = new Int32Array(drawn.length);
    const stamps = colours().map((colour) => stampOf(colour, scale));
    const plain = stampOf(variable("--accent"), scale);
    const faint = stampOf(variable("--rule"), scale);
    // On whole pixels of the screen, which is much quicker than between them.
    const stamp = (image, x, y) =>
      points.drawImage(image, Math.round(x * scale - image.width / 2), Math.round(y * scale - image.width / 2));
    points.setTransform(1, 0, 0, 1, 0, 0);
    if (drawn.length < classes.length)
      for (const entry of classes) {
        const [x, y] = screen(entry);
        if (inside(x, y)) stamp(faint, x, y);
      }
    points.globalAlpha = 0.85;
    for (let index = 0; index < drawn.length; index++) {
      const { cell } = drawn[index];
      const [x, y] = screen(drawn[index]);
      if (!inside(x, y)) continue; // NaN is not inside either
      if (state.colour < 0) stamp(plain, x, y);
      else if (cell === null || state.colour >= cell.length) stamp(faint, x, y);
      else stamp(stamps[cell.charCodeAt(state.colour) - 48], x, y);
      const square = Math.floor(y / REACH) * wide + Math.floor(x / REACH);
      before[index] = lastIn[square];
      lastIn[square] = index;
    }
    points.globalAlpha = 1;
    mark();
  }

  function drawAxes() {
    const { left, top, right, bottom } = box;
    points.font = FONT;
    points.lineWidth = 1;
    points.strokeStyle = variable("--rule");
    points.fillStyle = variable("--muted");
    points.textAlign = "center";
    points.textBaseline = "top";
    points.beginPath();
    for (const [value, text] of ticksOf(view[0], view[1], right - left, 70)) {
      const x = Math.round(across(value)) + 0.5;
      points.moveTo(x, top);
      points.lineTo(x, bottom);
      points.fillText(text, x, bottom + 6);
    }
    points.textAlign = "right";
    points.textBaseline = "middle";
    for (const [value, text] of ticksOf(view[2], view[3], bottom - top, 50)) {
      const y = Math.round(down(value)) + 0.5;
      points.moveTo(left, y);
      points.lineTo(right, y);
      points.fillText(text, left - 6, y);
    }
    points.stroke();
    points.textAlign = "center";
    points.fillStyle = variable("--ink");
    points.fillText(headOf(columns[state.x]), (left + right) / 2, bottom + 30, right - left);
    points.save();
    points.translate(9, (top + bottom) / 2);
    points.rotate(-Math.PI / 2);
    points.fillText(headOf(columns[state.y]), 0, 0, bottom - top);
    points.restore();
  }

  let hovered = null; // an entry
  let drag = null; // {x, y} where it began and {toX, toY} where it is, in pixels; {view} if it moves the view

  /** Draw what lies on the points: the front, the chosen class, the one under the pointer, the box to zoom to. */
  function mark() {
    const scale = devicePixelRatio || 1;
    const { left, top, right, bottom } = box;
    const ring = (entry, size, colour, thick) => {
      const [x, y] = screen(entry);
      if (!inside(x, y)) return;
      marks.strokeStyle = colour;
      marks.lineWidth = thick;
      marks.beginPath();
      marks.arc(x, y, size, 0, 2 * Math.PI);
      marks.stroke();
    };
    const ink = variable("--ink");
    marks.setTransform(scale, 0, 0, scale, 0, 0);
    marks.clearRect(0, 0, plot.clientWidth, plot.clientHeight);
    marks.save();
    marks.beginPath();
    marks.rect(left, top, right - left, bottom - top);
    marks.clip();
    marks.strokeStyle = ink;
    marks.lineWidth = 1.2;
    marks.beginPath();
    front.forEach((place, index) => {
      const [x, y] = screen({ place });
      if (index) marks.lineTo(x, screen({ place: front[index - 1] })[1]);
      marks.lineTo(x, y);
    });
    marks.stroke();
    for (const place of front) ring({ place }, radius + 1.2, ink, 1.5);
    const accent = variable("--accent");
    const [x, y] = screen(state.chosen);
    marks.strokeStyle = accent;
    marks.lineWidth = 1;
    marks.beginPath();
    for (const [dx, dy] of [
      [1, 0],
      [-1, 0],
      [0, 1],
      [0, -1],
    ]) {
      marks.moveTo(x + 9 * dx, y + 9 * dy);
      marks.lineTo(x + 2000 * dx, y + 2000 * dy);
    }
    marks.globalAlpha = 0.45;
    marks.stroke();
    marks.globalAlpha = 1;
    ring(state.chosen, 9, accent, 2.5);
    if (state.kept) {
      marks.setLineDash([4, 3]);
      ring(state.kept, 9, ink, 2);
      marks.setLineDash([]);
    }
    if (hovered) ring(hovered, 6, ink, 2);
    marks.restore();
    if (drag?.toX !== undefined && !drag.view) {
      marks.fillStyle = `${accent}22`;
      marks.strokeStyle = accent;
      marks.lineWidth = 1;
      marks.fillRect(drag.x, drag.y, drag.toX - drag.x, drag.toY - drag.y);
      marks.strokeRect(drag.x, drag.y, drag.toX - drag.x, drag.toY - drag.y);
    }
  }

  /** Return the match nearest to a place of the plot, at most REACH pixels away, or null. */
  function nearest(x, y) {
    let found = null;
    let distance = REACH ** 2;
    const [column, row] = [Math.floor(x / REACH), Math.floor(y / REACH)];
    for (let i = row - 1; i <= row + 1; i++)
      for (let j = Math.max(0, column - 1); j <= column + 1; j++)
        for (let index = lastIn[i * wide + j] ?? -1; index >= 0; index = before[index]) {
          const [px, py] = screen(drawn[index]);
          const own = (px - x) ** 2 + (py - y) ** 2;
          if (own < distance) [found, distance] = [drawn[index], own];
        }
    return found;
  }

  function showTip(x, y) {
    const tip = element("tip");
    tip.hidden = !hovered;
    if (!hovered) return;
    const lines = [shortOf(hovered)];
    for (const column of axes())
      lines.push(`${column.name}: ${written(column, column.mean[hovered.place])} ${unitOf(column)}`);
    const { cell } = hovered;
    if (state.colour >= 0 && cell !== null && state.colour < cell.length)
      lines.push(`${edgeName(mostEdges[state.colour])}: ${operationAt(cell, state.colour)}`);
    tip.textContent = lines.join("\n");
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    tip.style.left = `${Math.max(0, x + 14 + width > plot.clientWidth ? x - 14 - width : x + 14)}px`;
    tip.style.top = `${Math.max(0, y + 14 + height > plot.clientHeight ? y - 14 - height : y + 14)}px`;
  }

  function hover(x, y) {
    const found = drag ? null : nearest(x, y);
    if (found !== hovered || drag) {
      hovered = found;
      mark();
    }
    showTip(x, y);
  }

  function show(next) {
    state.view = next && next.map((value) => Number(value.toFixed(6)));
    draw();
    writeAddress();
  }

  /** Make the view `factor` times as wide and high, with a place of the plot staying where it is. */
  function zoom(factor, x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2) {
    const [h, v] = [(x - box.left) / (box.right - box.left), (box.bottom - y) / (box.bottom - box.top)];
    const [width, height] = [(view[1] - view[0]) * factor, (view[3] - view[2]) * factor];
    if (Math.min(width, height) < 0.001 || Math.max(width, height) > 1000) return;
    const [fixedX, fixedY] = [view[0] + h * (view[1] - view[0]), view[2] + v * (view[3] - view[2])];
    show([fixedX - h * width, fixedX + (1 - h) * width, fixedY - v * height, fixedY + (1 - v) * height]);
  }

  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drag = { x: event.offsetX, y: event.offsetY, view: event.shiftKey ? view : null };
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointermove", (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    if (drag && (drag.toX !== undefined || Math.hypot(x - drag.x, y - drag.y) > 5)) {
      [drag.toX, drag.toY] = [x, y];
      if (drag.view) {
        const right = ((drag.x - x) * (view[1] - view[0])) / (box.right - box.left);
        const up = ((y - drag.y) * (view[3] - view[2])) / (box.bottom - box.top);
        show([drag.view[0] + right, drag.view[1] + right, drag.view[2] + up, drag.view[3] + up]);
      }
    }
    hover(x, y);
  });
  plot.addEventListener("pointerup", (event) => {
    const ended = drag;
    drag = null;
    if (!ended) return;
    if (ended.toX === undefined) {
      const found = nearest(event.offsetX, event.offsetY);
      if (found) choose(found);
    } else if (!ended.view) {
      const atX = (x) => view[0] + ((x - box.left) / (box.right - box.left)) * (view[1] - view[0]);
      const atY = (y) => view[2] + ((box.bottom - y) / (box.bottom - box.top)) * (view[3] - view[2]);
      const [x0, x1] = [ended.x, ended.toX].sort((a, b) => a - b).map(atX);
      const [y0, y1] = [ended.y, ended.toY].sort((a, b) => b - a).map(atY);
      if (x1 - x0 > 0.001 && y1 - y0 > 0.001) show([x0, x1, y0, y1]);
      else mark();
    }
  });
  for (const kind of ["pointerleave", "pointercancel"])
    plot.addEventListener(kind, () => {
      drag = hovered = null;
      mark();
      showTip();
    });
  plot.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return; // the page scrolls; two fingers on a touchpad come with ctrlKey
      event.preventDefault();
      zoom(Math.exp(event.deltaY / 200), event.offsetX, event.offsetY);
    },
    { passive: false },
  );
  plot.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = {
      ArrowRight: [state.x, 1],
      ArrowLeft: [state.x, -1],
      ArrowUp: [state.y, 1],
      ArrowDown: [state.y, -1],
    }[event.key];
    if (step) {
      const { mean } = columns[step[0]];
      const inOrder = drawn.filter(({ place }) => isOnAxes(place));
      inOrder.sort((a, b) => mean[a.place] - mean[b.place]);
      const own = inOrder.findIndex(({ place }) => place === state.chosen.place);
      const next = own < 0 ? inOrder.length - 1 : Math.min(inOrder.length - 1, Math.max(0, own + step[1]));
      if (inOrder.length) choose(inOrder[next]);
    } else if (event.key === "+" || event.key === "=") zoom(0.7);
    else if (event.key === "-") zoom(1 / 0.7);
    else if (event.key === "0") show(null);
    else return;
    event.preventDefault();
  });
  element("in").addEventListener("click", () => zoom(0.7));
  element("out").addEventListener("click", () => zoom(1 / 0.7));
  element("reset").addEventListener("click", () => show(null));
  new ResizeObserver(() => draw()).observe(plot);
  dark.addEventListener("change", () => refresh());

  // The page around it ------------------------------------------------------------------------------------------------

  /** Return an element; `content` is text or elements, never markup. */
  function make(tag, attributes = {}, ...content) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...content);
    return made;
  }

  const option = (value, text) => make("option", { value }, text);

  /** The columns as options, a group for each data set. */
  function columnOptions() {
    const groups = new Map();
    columns.forEach((column, place) => {
      if (!groups.has(column.dataset)) groups.set(column.dataset, make("optgroup", { label: column.dataset }));
      groups.get(column.dataset).append(option(place, column.name));
    });
    return [...groups.values()];
  }

  /** Count and draw everything anew: the axes, conditions or colours are others. */
  function refresh() {
    hovered = null;
    numShown = STEP;
    entries = state.strings ? allStrings() : classes;
    matches = state.where.length ? entries.filter(fits) : entries;
    drawn = [...new Map(matches.map((entry) => [entry.place, entry])).values()];
    front = paretoFront(drawn.map(({ place }) => place));
    element("x").value = state.x;
    element("y").value = state.y;
    element("colour").value = state.colour;
    element("strings").checked = state.strings;
    showLegend();
    showCount();
    showFront();
    showList();
    showChosen();
    draw();
    writeAddress();
  }

  function showLegend() {
    const swatch = (colour) => {
      const made = make("i");
      made.style.background = colour;
      return made;
    };
    const items = [];
    if (state.colour >= 0) {
      const counts = new Array(operations.length).fill(0);
      for (const { cell } of matches)
        if (cell !== null && state.colour < cell.length) counts[cell.charCodeAt(state.colour) - 48]++;
      operations.forEach((name, place) =>
        items.push(make("li", {}, swatch(colours()[place]), `${name} (${grouped(counts[place])})`)),
      );
      const others = matches.length - counts.reduce((a, b) => a + b, 0);
      if (others) items.push(make("li", {}, swatch(variable("--rule")), `no such edge (${grouped(others)})`));
    }
    items.push(make("li", {}, make("i", { class: "path" }), "Pareto front"));
    element("legend").replaceChildren(...items);
  }

  function showCount() {
    const kind = state.strings ? "strings" : "classes";
    const unseen = matches.filter(({ place }) => !isOnAxes(place)).length;
    const sentences = [`${grouped(matches.length)} of ${grouped(entries.length)} ${kind} match.`];
    if (unseen) sentences.push(`${grouped(unseen)} of them lack a number in the plot's columns and are not drawn.`);
    if (state.strings)
      sentences.push(
        "The strings of one class have the same numbers: their points lie on one another, the last on top.",
      );
    else if (state.where.some(({ edge }) => edge !== undefined))
      sentences.push("An edge's operation is that of the string that was trained, not of its equivalents.");
    element("count").textContent = sentences.join(" ");
  }

  function showFront() {
    const rows = front.map((place) => {
      const button = make("button", { type: "button" }, shortOf(classes[place]));
      button.addEventListener("click", () => choose(classes[place]));
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, button),
        ...axes().map((column) => make("td", {}, written(column, column.mean[place]))),
      );
    });
    const heads = ["Architecture", ...axes().map(headOf)].map((text) =>
      make("th", { scope: "col" }, text),
    );
    element("front").replaceChildren(
      make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)),
    );
  }

  function showChosen() {
    const { cell, place } = state.chosen;
    const trained = classes[place];
    const facts = [];
    const fact = (name, text) => facts.push(make("dt", {}, name), make("dd", {}, text));
    fact("String", make("code", {}, textOf(state.chosen)));
    if (cell !== null) {
      if (table.digits) fact("Digits", make("code", {}, cell));
      if (numberOf.has(cell)) fact("Published index", String(numberOf.get(cell)));
      if (cell !== trained.cell) {
        const number = numberOf.has(trained.cell) ? `, index ${numberOf.get(trained.cell)}` : "";
        fact("Its class", `was trained as ${shortOf(trained)}${number}; the numbers are of that network`);
      }
      const strings = allStrings();
      fact(
        "Equivalent strings",
        strings ? grouped(strings.filter((entry) => entry.place === place).length) : "not counted",
      );
    }
    const accuracies = axes().map(
      (column) => `${column.name} ${written(column, column.mean[place])} ${unitOf(column)}`,
    );
    element("summary").textContent = [shortOf(state.chosen), ...accuracies].join(" \u00b7 ");
    const figure =
      cell === null
        ? make("p", { class: "note" }, "This architecture is no cell, so it is not drawn.")
        : make("figure", {}, drawCell(cell));
    element("chosen").replaceChildren(figure, make("dl", {}, ...facts), numbersOf(place));
    const edges = cell ?? table.cells.find((other) => other !== null);
    if (edges) showEdges(edges);
    showBeside();
  }

  // Two cells side by side --------------------------------------------------------------------------------------------

  /** The cell that was kept beside the one that is chosen, with their numbers and the differences. */
  function showBeside() {
    const { kept, chosen } = state;
    const isPair = kept !== null && textOf(kept) !== textOf(chosen);
    element("beside-note").textContent = isPair
      ? `Differences are the second minus the first.${table.costs ? ` ${UNITS_SAID}.` : ""}`
      : kept
        ? "Choose another architecture: in the plot, the lists or by its operations."
        : "Keep an architecture, or write one here, then choose another: both are shown side by side.";
    element("swap").disabled = !isPair;
    element("let-go").disabled = kept === null;
    if (kept) element("other").value = shortOf(kept);
    if (!kept) return element("beside-cells").replaceChildren();
    const pair = isPair ? [kept, chosen] : [kept];
    const drawings = pair.map((entry, place) =>
      make(
        "figure",
        {},
        make("figcaption", {}, `${["First", "Second"][place]}: `, make("code", {}, shortOf(entry))),
        entry.cell === null ? make("p", { class: "note" }, "This architecture is no cell.") : drawCell(entry.cell),
      ),
    );
    element("beside-cells").replaceChildren(
      make("div", { class: "pair" }, ...drawings),
      ...(isPair ? [differencesOf(kept, chosen)] : []),
    );
  }

  /** The operations and numbers of two entries, a row each, with what differs in bold type. */
  function differencesOf(first, second) {
    const row = (name, ...cells) =>
      make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((text) => make("td", {}, text)));
    const group = (text) => make("tr", { class: "group" }, make("th", { colspan: 4, scope: "rowgroup" }, text));
    const rows = [];
    if (first.cell !== null && second.cell?.length === first.cell.length) {
      rows.push(group("Operations"));
      edgesOf(nodesOf(first.cell)).forEach((edge, place) => {
        const [one, other] = [operationAt(first.cell, place), operationAt(second.cell, place)];
        rows.push(row(edgeName(edge), one, other, one === other ? "same" : make("b", {}, "differs")));
      });
    }
    for (const dataset of new Set(columns.map((column) => column.dataset))) {
      rows.push(group(dataset));
      for (const column of columns.filter((other) => other.dataset === dataset)) {
        const [one, other] = [column.mean[first.place], column.mean[second.place]];
        const difference = other - one;
        const sign = difference > 0 ? "+" : "";
        const isNoise = column.floor && Math.abs(difference) < 2 * Math.SQRT2 * column.floor.std;
        const text = Number.isNaN(difference) ? "–" : `${sign}${written(column, difference)}`;
        const name = `${column.name.slice(dataset.length + 1)}, ${unitOf(column)}`;
        rows.push(row(name, written(column, one), written(column, other), isNoise ? `${text} ≈` : text));
      }
    }
    const caption = "≈: less than twice what two such numbers differ by chance (the noise of the table above).";
    const heads = ["", shortOf(first), shortOf(second), "Difference"].map((text) => make("th", { scope: "col" }, text));
    return make(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Numbers of both architectures" },
      make(
        "table",
        {},
        ...(columns.some(({ floor }) => floor) ? [make("caption", {}, caption)] : []),
        make("thead", {}, make("tr", {}, ...heads)),
        make("tbody", {}, ...rows),
      ),
    );
  }

  function keep(entry) {
    state.kept = entry;
    showBeside();
    mark();
    writeAddress();
  }

  element("keep").addEventListener("click", () => keep(state.chosen));
  element("let-go").addEventListener("click", () => {
    element("other").value = "";
    keep(null);
  });
  element("swap").addEventListener("click", () => {
    [state.kept, state.chosen] = [state.chosen, state.kept];
    showChosen();
    mark();
    writeAddress();
  });
  element("beside-find").addEventListener("submit", (event) => {
    event.preventDefault();
    const found = find(element("other").value);
    element("beside-sentence").textContent = found.problem ?? "";
    if (!found.problem) keep(found);
  });

  // The list of matches -----------------------------------------------------------------------------------------------

  const STEP = 50; // rows more at a time
  let numShown = STEP;

  /** The columns of the list, by what `sort` says in the address: a value to sort by, and a text. */
  function listColumns() {
    const dataset = columns[state.y].dataset;
    const costs = columns.filter((column) => column.cost && column.dataset === dataset && !axes().includes(column));
    return [
      { by: "architecture", head: "Architecture", value: textOf, text: shortOf },
      ...(numbering.length
        ? [
            {
              by: "number",
              head: "Index",
              value: ({ cell }) => numberOf.get(cell) ?? NaN,
              text: ({ cell }) => String(numberOf.get(cell) ?? "–"),
            },
          ]
        : []),
      ...[...axes(), ...costs].map((column) => ({
        by: column.name,
        head: headOf(column),
        value: ({ place }) => column.mean[place],
        text: ({ place }) => written(column, column.mean[place]),
        down: !column.cost,
      })),
    ];
  }

  /** A table of the matches; a head sorts by its column, and the other way round when it is pressed again. */
  function showList(focused) {
    const heads = listColumns();
    const first = heads.find(({ by }) => by === columns[state.y].name);
    const chosen = heads.find(({ by }) => by === state.sort?.by);
    const sorted = chosen ?? first;
    const down = chosen ? state.sort.down : Boolean(first.down);
    const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    const keyed = matches.map((entry) => [sorted.value(entry), entry]);
    const [known, unknown] = [keyed.filter(([key]) => key === key), keyed.filter(([key]) => key !== key)];
    known.sort(([a], [b]) => (down ? order(b, a) : order(a, b)));
    const rows = [...known, ...unknown].slice(0, numShown).map(([, entry]) => {
      const button = make("button", { type: "button" }, shortOf(entry));
      button.addEventListener("click", () => choose(entry));
      const [, ...others] = heads;
      const cells = others.map(({ text }) => make("td", {}, text(entry)));
      return make("tr", {}, make("th", { scope: "row" }, button), ...cells);
    });
    const cells = heads.map((head) => {
      const button = make("button", { type: "button", class: "sort" }, head.head);
      const isSorted = head === sorted;
      if (isSorted) button.append(down ? " ▼" : " ▲");
      button.addEventListener("click", () => {
        state.sort = { by: head.by, down: isSorted ? !down : Boolean(head.down) };
        showList(head.by);
        writeAddress();
      });
      if (head.by === focused) setTimeout(() => button.focus());
      return make("th", { scope: "col", "aria-sort": isSorted ? (down ? "descending" : "ascending") : "none" }, button);
    });
    element("list").replaceChildren(
      make("table", {}, make("thead", {}, make("tr", {}, ...cells)), make("tbody", {}, ...rows)),
    );
    const left = matches.length - rows.length;
    element("more").hidden = left <= 0;
    element("more").textContent = `Show ${grouped(Math.min(STEP, left))} more of ${grouped(left)}`;
  }

  element("more").addEventListener("click", () => {
    numShown += STEP;
    showList();
  });

  /** A class's numbers in every column, as a table. */
  function numbersOf(place) {
    const hasStd = columns.some(({ std }) => !Number.isNaN(std[place]));
    const numRanked = new Set(columns.map(({ sorted }) => sorted.length));
    const among = numRanked.size === 1 ? ` of ${grouped([...numRanked][0])} classes` : "";
    const unit = table.costs ? "% or M" : "%";
    const heads = ["Column", unit, ...(hasStd ? ["Std"] : []), "Rank", "Percentile", "Seeds", "Noise"];
    const methods = new Set();
    const rows = [];
    const addRow = (column) => {
      const { mean, std, seeds, sorted, floor } = column;
      const known = !Number.isNaN(mean[place]);
      const rank = known ? rankIn(column, place) : NaN;
      if (known && floor) methods.add(floor.method);
      const cells = [
        written(column, mean[place]),
        ...(hasStd ? [written(column, std[place])] : []),
        known ? (among ? grouped(rank) : `${grouped(rank)} / ${grouped(sorted.length)}`) : "–",
        known ? ((100 * (sorted.length - rank + 1)) / sorted.length).toFixed(2) : "–",
        known && !Number.isNaN(seeds[place]) ? String(seeds[place]) : "–",
        known && floor ? `±${written(column, floor.std)}` : "–",
      ];
      const name = column.name.slice(column.dataset.length + 1);
      rows.push(
        make(
          "tr",
          axes().includes(column) ? { class: "axis" } : {},
          make("th", { scope: "row" }, name),
          ...cells.map((text) => make("td", {}, text)),
        ),
      );
    };
    for (const dataset of new Set(columns.map((column) => column.dataset))) {
      rows.push(make("tr", { class: "group" }, make("th", { colspan: heads.length, scope: "rowgroup" }, dataset)));
      columns.filter((column) => column.dataset === dataset).forEach(addRow);
    }
    const caption = [`Accuracy in %; rank 1 is the most accurate${among}.`];
    if (table.costs) caption.push(`${UNITS_SAID}, and rank 1 has the fewest.`);
    if (methods.size)
      caption.push(
        "Noise is the standard deviation, in points, by which such a number differs by chance",
        `(measured from ${[...methods].join(" and ")}).`,
      );
    caption.push("\u2013 is what the table does not have.");
    return make(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Numbers in every column" },
      make(
        "table",
        {},
        make("caption", {}, caption.join(" ")),
        make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)))),
        make("tbody", {}, ...rows),
      ),
    );
  }

  /** A cell as SVG, as the report draws it: nodes on a line, edges that carry nothing to the output in grey. */
  function drawCell(cell) {
    const STEP = 145;
    const SIZE = 17; // of a node
    const svg = (tag, attributes, ...content) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      made.append(...content);
      return made;
    };
    const nodes = nodesOf(cell);
    const edges = edgesOf(nodes);
    const live = liveEdges(cell);
    // Short edges are straight, longer ones bend further: from even nodes above the line, from odd ones below it.
    const bends = edges.map(([source, target]) => {
      const span = target - source;
      return span === 1 ? 0 : STEP * (0.28 * (span - 1) + 0.06 * (span - 2)) * (source % 2 ? 1 : -1);
    });
    const [low, high] = [Math.min(...bends, -SIZE) - 14, Math.max(...bends, SIZE) + 14];
    const words = edges.map(
      ([source, target], edge) => `${operationAt(cell, edge)} from node ${source} to node ${target}`,
    );
    const drawing = svg("svg", {
      viewBox: `${-SIZE - 3} ${low} ${(nodes - 1) * STEP + 2 * SIZE + 6} ${high - low}`,
      role: "img",
      "aria-label": `Cell of ${nodes} nodes: ${words.join(", ")}.`,
    });
    const names = [];
    edges.forEach(([source, target], edge) => {
      const operation = operationAt(cell, edge);
      const isNone = operation === "none";
      const colour = live[edge] ? colours()[cell.charCodeAt(edge) - 48] : variable("--line");
      const [from, to, middle] = [source * STEP, target * STEP, ((source + target) * STEP) / 2];
      // A quadratic curve's control point is twice as far from the line as its middle.
      const length = Math.hypot(to - middle, 2 * bends[edge]);
      const [dx, dy] = [(to - middle) / length, (-2 * bends[edge]) / length];
      const [tipX, tipY] = [to - dx * (SIZE + 2), -dy * (SIZE + 2)];
      const [neckX, neckY] = [tipX - 9 * dx, tipY - 9 * dy];
      const dashes = isNone ? { "stroke-dasharray": "1 4", "stroke-width": 1.2 } : { "stroke-width": 2 };
      drawing.append(
        svg("path", {
          d: `M${from} 0Q${middle} ${2 * bends[edge]} ${neckX} ${neckY}`,
          fill: "none",
          stroke: colour,
          ...dashes,
        }),
        svg("path", {
          d: `M${tipX} ${tipY}L${neckX - 4 * dy} ${neckY + 4 * dx}L${neckX + 4 * dy} ${neckY - 4 * dx}Z`,
          fill: colour,
        }),
      );
      if (isNone) return;
      const style = {
        fill: variable(live[edge] ? "--ink" : "--muted"),
        stroke: variable("--paper"),
        "stroke-width": 9,
        "paint-order": "stroke",
      };
      names.push(
        svg("text", { x: middle, y: bends[edge] ? bends[edge] + 4 : -9, "text-anchor": "middle", ...style }, operation),
      );
    });
    drawing.append(...names);
    for (let node = 0; node < nodes; node++) {
      const label = node === 0 ? "in" : node === nodes - 1 ? "out" : String(node);
      drawing.append(
        svg("circle", {
          cx: node * STEP,
          cy: 0,
          r: SIZE,
          fill: variable("--paper"),
          stroke: variable("--ink"),
          "stroke-width": 1.3,
        }),
        svg("text", { x: node * STEP, y: 4, "text-anchor": "middle", fill: variable("--ink") }, label),
      );
    }
    return drawing;
  }

  /** Selects for the operations of a cell, and for its size where the table has several. */
  function showEdges(cell) {
    const shown = element("edges");
    const edges = edgesOf(nodesOf(cell));
    if (shown.querySelectorAll(".edge").length !== edges.length) {
      const selects = edges.map(([source, target]) => {
        const select = make("select", { class: "edge", id: `edge-${source}-${target}` });
        select.append(...operations.map((name, place) => option(String.fromCharCode(48 + place), name)));
        select.addEventListener("change", () =>
          choose(entryOf([...shown.querySelectorAll(".edge")].map(({ value }) => value).join(""))),
        );
        return make("label", {}, `Edge ${source}-${target} `, select);
      });
      if (sizes.length > 1) {
        const nodes = make("select", { id: "nodes" }, ...sizes.map((size) => option(size, size)));
        nodes.addEventListener("change", () =>
          choose(classes.find(({ cell }) => cell !== null && nodesOf(cell) === Number(nodes.value))),
        );
        selects.unshift(make("label", {}, "Nodes ", nodes));
      }
      shown.replaceChildren(...selects);
    }
    if (sizes.length > 1) element("nodes").value = nodesOf(cell);
    shown.querySelectorAll(".edge").forEach((select, edge) => (select.value = cell[edge]));
  }

  function showConditions() {
    const rows = state.where.map((condition, index) => {
      const what = make("select", { id: `where-${index}` }, ...columnOptions());
      const onEdges = make("optgroup", { label: "operation on" });
      mostEdges.forEach((edge, place) => onEdges.append(option(`edge ${place}`, edgeName(edge))));
      what.append(onEdges);
      what.value = condition.edge === undefined ? condition.column : `edge ${condition.edge}`;
      what.addEventListener("change", () => {
        const [, edge] = what.value.split("edge ");
        state.where[index] =
          edge === undefined
            ? { column: Number(what.value), low: "", high: "" }
            : { edge: Number(edge), operation: operations[0] };
        showConditions();
        refresh();
        element(`where-${index}`).focus();
      });
      const row = make(
        "div",
        { class: "where", role: "group", "aria-label": `Condition ${index + 1}` },
        make("label", {}, "Condition on", what),
      );
      if (condition.edge === undefined)
        for (const [key, name] of [
          ["low", `at least, ${unitOf(columns[condition.column])}`],
          ["high", `at most, ${unitOf(columns[condition.column])}`],
        ]) {
          const input = make("input", { type: "number", step: "any", id: `${key}-${index}`, value: condition[key] });
          input.addEventListener("input", () => {
            condition[key] = input.value;
            refresh();
          });
          row.append(make("label", {}, name, input));
        }
      else {
        const select = make("select", { id: `operation-${index}` }, ...operations.map((name) => option(name, name)));
        select.value = condition.operation;
        select.addEventListener("change", () => {
          condition.operation = select.value;
          refresh();
        });
        row.append(make("label", {}, "is", select));
      }
      const remove = make("button", { type: "button", "aria-label": `Remove condition ${index + 1}` }, "Remove");
      remove.addEventListener("click", () => {
        state.where.splice(index, 1);
        showConditions();
        refresh();
        element("add").focus();
      });
      row.append(remove);
      return row;
    });
    element("where").replaceChildren(...rows);
  }

  // Downloads: accuracies as the table has them, fractions ------------------------------------------------------------

  /** The matches as records. */
  function records() {
    return matches.map((entry) => ({
      architecture: textOf(entry),
      digits: table.digits ? entry.cell : null,
      published_index: numberOf.get(entry.cell) ?? null,
      trained_as: textOf(classes[entry.place]),
      ...Object.fromEntries(
        columns.map(({ name, mean }) => [name, Number.isNaN(mean[entry.place]) ? null : mean[entry.place]]),
      ),
    }));
  }

  function download(suffix, type, text) {
    const link = make("a", {
      href: URL.createObjectURL(new Blob([text], { type })),
      download: `${table.name}-selection.${suffix}`,
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  element("csv").addEventListener("click", () => {
    const quoted = (value) =>
      /[",\n\r]/.test(value ?? "") ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? "");
    const heads = ["architecture", "digits", "published_index", "trained_as", ...columns.map(({ name }) => name)];
    const lines = records().map((record) => heads.map((head) => quoted(record[head])).join(","));
    download("csv", "text/csv", `${[heads.map(quoted).join(","), ...lines].join("\n")}\n`);
  });
  element("json").addEventListener("click", () => {
    const facts = columns.map(({ mean, std, seeds, sorted, ...column }) => column);
    const content = {
      table: table.name,
      caveats: table.caveats,
      view: location.href.split("#")[1],
      columns: facts,
      rows: records(),
    };
    download("json", "application/json", `${JSON.stringify(content, null, 1)}\n`);
  });

  // Beginning ---------------------------------------------------------------------------------------------------------

  element("x").append(...columnOptions());
  element("y").append(...columnOptions());
  element("colour").append(option(-1, "nothing"), ...mostEdges.map((edge, place) => option(place, edgeName(edge))));
  element("accepts").textContent = accepted().replace(/^a/, "A");
  for (const axis of ["x", "y", "colour"])
    element(axis).addEventListener("change", () => {
      state[axis] = Number(element(axis).value);
      if (axis !== "colour") state.view = null;
      refresh();
    });
  element("strings").addEventListener("change", () => {
    state.strings = element("strings").checked;
    refresh();
  });
  element("find").addEventListener("submit", (event) => {
    event.preventDefault();
    choose(find(element("text").value));
  });
  element("add").addEventListener("click", () => {
    state.where.push({ column: state.y, low: "", high: "" });
    showConditions();
    refresh();
    element(`where-${state.where.length - 1}`).focus();
  });
  addEventListener("hashchange", () => {
    readAddress();
    showConditions();
    refresh();
  });
  element("strings").disabled = allStrings() === null;
  readAddress();
  showConditions();
  refresh();
  element("waiting").remove();
  window.explorer = { draw, nearest, screen, shown: () => ({ entries, matches, front }) }; // for tests, and the curious
})();
