// Draws the zones of the text, and adds what is drawn to it. The text is what counts: it can be typed, too.
const form = document.querySelector(".zones");
const text = form.elements.content;
const svg = form.querySelector("svg");
const done = form.querySelector("[data-done]");
let drawn = null; // { kind, points } while somebody draws

form.addEventListener("submit", (event) => event.preventDefault());
text.addEventListener("input", show);
for (const button of form.querySelectorAll("[data-draw]")) {
  button.addEventListener("click", () => begin(button.dataset.draw));
}
done.addEventListener("click", finish);
svg.addEventListener("click", (event) => {
  if (!drawn) return;
  const { left, top, width, height } = svg.getBoundingClientRect();
  const share = (value) => Math.round(10000 * Math.min(1, Math.max(0, value))) / 10000;
  drawn.points.push([share((event.clientX - left) / width), share((event.clientY - top) / height)]);
  if (drawn.kind === "line" && drawn.points.length === 2) return finish();
  show();
});

function begin(kind) {
  drawn = drawn?.kind === kind ? null : { kind, points: [] };
  show();
}

function finish() {
  const known = read();
  if (known) {
    const names = new Set(known.map((each) => each.name));
    const base = form.elements.name.value.trim() || drawn.kind;
    let name = base;
    for (let number = 2; names.has(name); number++) name = `${base} ${number}`;
    known.push({ name, [drawn.kind]: drawn.points, anchor: "BOTTOM_CENTER" });
    text.value = `[\n${known.map((each) => JSON.stringify(each)).join(",\n")}\n]`;
    form.elements.name.value = "";
  }
  drawn = null;
  show();
}

function read() {
  try {
    const found = JSON.parse(text.value);
    return found.every((each) => (each.polygon ?? each.line).every(([x, y]) => Number.isFinite(x + y))) ? found : null;
  } catch {
    return null;
  }
}

function show() {
  const zones = read();
  form.querySelector("[data-wrong]").hidden = zones !== null;
  for (const button of form.querySelectorAll("[data-draw]")) {
    button.setAttribute("aria-pressed", drawn?.kind === button.dataset.draw);
  }
  svg.classList.toggle("drawing", drawn !== null);
  done.hidden = !(drawn?.kind === "polygon" && drawn.points.length >= 3);
  svg.replaceChildren();
  for (const zone of [...(zones ?? []), ...(drawn ? [{ [drawn.kind]: drawn.points }] : [])]) {
    const points = zone.polygon ?? zone.line;
    add(zone.polygon && zone.name ? "polygon" : "polyline", { points: points.join(" ") });
    if (zone.line?.length === 2) inwards(...zone.line);
    for (const [cx, cy] of drawn && !zone.name ? points : []) add("ellipse", { cx, cy, rx: 0.006, ry: 0.01 });
  }
  const link = form.querySelector("[data-save]");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([text.value], { type: "application/json" }));
}

// A short stroke from the middle of a line to its left, in pixels at a right angle.
function inwards([x1, y1], [x2, y2]) {
  const { clientWidth: width, clientHeight: height } = svg.parentElement;
  const [dx, dy] = [(x2 - x1) * width, (y2 - y1) * height];
  const length = Math.hypot(dx, dy) || 1;
  const [x, y] = [(x1 + x2) / 2, (y1 + y2) / 2];
  add("polyline", { points: `${x},${y} ${x + (18 * dy) / length / width},${y - (18 * dx) / length / height}` });
}

function add(kind, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  svg.append(element);
}

new ResizeObserver(show).observe(svg.parentElement);
show();
