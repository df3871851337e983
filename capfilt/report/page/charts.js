// Charts: plots that follow the width of the page, histograms, legends.

const charts = new Map();
const resized = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) if (contentRect.width) charts.get(target)(contentRect.width);
});

// A plot is drawn again for each width, so that its letters keep their size.
function plot(label, draw) {
  const box = h("div", { class: "plot", role: "img", "aria-label": label });
  charts.set(box, (width) => box.replaceChildren(draw(Math.max(240, width))));
  resized.observe(box);
  return box;
}

// The series number of each source: 0 for the web, a filled shape, and 1 to 3 in turn for captioners, lines.
function seriesOf(sources) {
  let line = 0;
  return sources.map((source) => (isWeb(source) ? 0 : 1 + (line++ % 3)));
}

function swatch(series, asLine) {
  const mark = series === 0 && !asLine
    ? s("rect", { class: "s0", x: 0, y: 1, width: 22, height: 10, rx: 2 })
    : s("path", { class: `line s${series}`, d: "M0 6H22" });
  return s("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, mark);
}

function legend(sources, details, asLine) {
  const series = seriesOf(sources);
  return h("ul", { class: "legend" }, sources.map((source, n) =>
    h("li", {}, swatch(series[n], asLine), h("span", {}, sourceTitle(source), details ? h("span", { class: "soft" }, ` ${details[n]}`) : null))));
}

function ticks(from, to) {
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20].find((size) => (to - from) / size <= 8) ?? 50;
  const values = [];
  for (let n = Math.ceil(from / step - 1e-9); n * step <= to + 1e-9; n++) values.push(Math.round(n * step * 100) / 100);
  return values;
}

function sharesOf(counts) {
  const total = sum(counts) || 1;
  return counts.map((number) => number / total);
}

// Shares of each source's texts over bins of equal width; `edges` has one more entry than each row of `counts`.
function histogram({ name, unit, sources, edges, counts, limit, highest }) {
  const series = seriesOf(sources);
  const shares = counts.map(sharesOf);
  const top = Math.max(0.01, highest) * 1.08;
  const [from, to] = [edges[0], edges[edges.length - 1]];
  const height = 210, left = 40, bottom = 24, above = 18;
  return plot(`Histogram of ${name}`, (width) => {
    const x = (value) => left + ((value - from) / (to - from)) * (width - left - 8);
    const y = (share) => above + (1 - share / top) * (height - above - bottom);
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5].find((size) => top / size <= 5) ?? 0.5;
    const svg = s("svg", { height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (let share = 0; share <= top; share += step) {
      svg.append(s("path", { class: "axis", d: `M${left} ${y(share)}H${width - 8}` }),
        s("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share, 0)));
    }
    const shown = ticks(from, to).filter((_, n, all) => width > 420 || all.length < 6 || n % 2 === 0);
    for (const tick of shown) svg.append(s("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, String(tick)));
    shares.forEach((row, n) => {
      if (series[n] === 0) {
        svg.append(...row.map((share, bin) => {
          const [start, end] = [x(edges[bin]), x(edges[bin + 1])];
          return s("rect", { class: "s0", x: start + 0.5, y: y(share), width: Math.max(1, end - start - 1), height: Math.max(0, y(0) - y(share)) });
        }));
      } else {
        const path = row.map((share, bin) => `${bin ? "L" : "M"}${x(edges[bin])} ${y(share)}H${x(edges[bin + 1])}`).join("");
        svg.append(s("path", { class: `line s${series[n]}`, d: path }));
      }
    });
    if (limit !== null && limit !== undefined && limit >= from && limit <= to) {
      const atEnd = x(limit) > width - 90;
      svg.append(s("path", { class: "cut", d: `M${x(limit)} ${above - 4}V${height - bottom}` }),
        s("text", { class: "cut-name", x: x(limit) + (atEnd ? -6 : 6), y: above - 6, "text-anchor": atEnd ? "end" : "start" }, `${unit} ≥ ${limit}`));
    }
    return svg;
  });
}

// The numbers of a chart, folded away.
function numbers(caption, head, rows) {
  return h("details", {}, h("summary", {}, "Numbers"), table({ caption, head, rows }));
}

// Sum bins into wider ones; returns [edges, ...counts].
function regroup(bins, counts, width, from, to) {
  const number = Math.round((to - from) / width);
  const edges = Array.from({ length: number + 1 }, (_, n) => Math.round((from + n * width) * 1000) / 1000);
  const grouped = counts.map((row) => {
    const sums = new Array(number).fill(0);
    row.forEach((texts, bin) => { sums[Math.min(number - 1, Math.max(0, Math.floor((bins[bin] - from) / width + 1e-6)))] += texts; });
    return sums;
  });
  return [edges, ...grouped];
}

// Cosine bins go from -1 to 1; show the occupied range in at most 60 bars.
function crop(bins, counts) {
  const occupied = bins.map((_, bin) => bin).filter((bin) => counts.some((row) => row[bin]));
  const [first, last] = [occupied[0], occupied[occupied.length - 1] + 1];
  const width = 0.01 * Math.ceil((last - first) / 60);
  const from = bins[first];
  return regroup(bins, counts, width, from, from + width * Math.max(2, Math.ceil((last - first) / Math.round(width * 100))));
}

function median(bins, counts) {
  let remaining = sum(counts) / 2;
  if (!remaining) return null;
  return bins[counts.findIndex((number) => (remaining -= number) <= 0)];
}
