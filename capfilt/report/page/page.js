"use strict";
// Draws the report from the JSON in this page. Texts of the data set are written as text nodes, never as markup.

const REPORT = JSON.parse(document.getElementById("data").textContent);
const DATASETS = REPORT.datasets;
const MAIN = DATASETS[0];
const PAGE_SIZE = 6;
const SCORE = {
  itm: ["ITM", "probability that picture and text match; the filter's verdict"],
  itc: ["ITC", "cosine of BLIP's picture and text features"],
  clip: ["CLIP", "cosine of CLIP's picture and text features"],
};
const KINDS = {
  changed: ["Judged otherwise", `Texts that ${MAIN.name} keeps and another data set drops, or the other way round; those first whose ITM moved most.`],
  threshold: ["At the threshold", "Texts whose ITM lies closest to the threshold that this data set was filtered with: the hardest calls."],
  random: ["At random", "Pictures drawn at random."],
  disagree: ["Most disagreeing", `Texts that ITM keeps and ${MAIN.scores.clip ? "CLIP" : "ITC"} likes least.`],
  repeated: ["Most repeated", "An example of each of the texts that occur most often."],
};

// ---------------------------------------------------------------------------------------------------- small helpers

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const count = (number) => number.toLocaleString("en-US");
const percent = (share, digits = 1) => (share === null || Number.isNaN(share) ? "–" : `${(100 * share).toFixed(digits)}%`);
const ratio = (part, whole) => (whole ? part / whole : null);
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const plural = (number, thing) => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;
const decimals = (value, digits) => (value === null ? "–" : value.toFixed(digits));
const isWeb = (name) => name === "web";
const title = (name) => (isWeb(name) ? "Web" : name);

function cutNames(data) {
  return Object.entries(data.limits).map(([name, least]) => `${SCORE[name]?.[0] ?? name} ≥ ${least}`).join(", ");
}

// ---------------------------------------------------------------------------------------------------- verdicts

const rejectedBy = (reason) => reason.includes("<") && !reason.startsWith("undecodable");

function inWords(reason) {
  if (reason === "kept") return "kept";
  const cut = rejectedBy(reason) && reason.match(/^(\w+)<(.*)$/);
  if (cut) return `dropped: ${SCORE[cut[1]]?.[0] ?? cut[1]} below ${cut[2]}`;
  if (reason.startsWith("undecodable: ")) return `dropped: picture unreadable (${reason.slice(13)})`;
  return { duplicate: "dropped: repeats an earlier text", no_text: "dropped: no words",
    not_best: "dropped: not among the best" }[reason] ?? `dropped: ${reason}`;
}

// The reasons of texts at another ITM threshold, as `capfilt filter` would give them; which texts are among the best of
// their picture does not depend on it, and the tables have told.
function verdicts(texts, threshold, data) {
  return texts.map((text) => {
    if (["duplicate", "no_text"].includes(text.reason) || text.reason.startsWith("undecodable: ")) return text.reason;
    const limits = { ...data.limits, itm: threshold };
    const failed = Object.entries(limits).find(([name, least]) => !(text[name] >= least && text[name] !== null));
    return failed ? `${failed[0]}<${failed[1]}` : text.hangs_on_itm ? "kept" : "not_best";
  });
}

const bestName = ({ number, by, across }) =>
  number ? ` · best ${number} of a ${across ? "picture" : "source"} by ${SCORE[by]?.[0] ?? by}` : "";

// Texts of source n that the threshold at `place` keeps: the tail of its histogram.
const keptAt = (data, n, place) => sum(data.hangs_on_itm[n].slice(place));

// ---------------------------------------------------------------------------------------------------- charts

const charts = new Map();
const resized = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) if (contentRect.width) charts.get(target)(contentRect.width);
});

// A plot that is drawn again for every width, so that its letters keep their size.
function plot(label, draw) {
  const box = h("div", { class: "plot", role: "img", "aria-label": label });
  charts.set(box, (width) => box.replaceChildren(draw(Math.max(240, width))));
  resized.observe(box);
  return box;
}

function swatch(n, line) {
  const mark = n === 0 && !line ? s("rect", { class: "s0", x: 0, y: 1, width: 22, height: 10, rx: 2 }) : s("path", { class: `line s${n}`, d: "M0 6H22" });
  return s("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, mark);
}

// The web is a filled shape and always series 0; captioners are lines, by their order.
function seriesOf(names) {
  let line = 0;
  return names.map((name) => (isWeb(name) ? 0 : 1 + (line++ % 3)));
}

const legend = (names, details, line) => {
  const series = seriesOf(names);
  return h("ul", { class: "legend" }, names.map((name, n) =>
    h("li", {}, swatch(series[n], line), h("span", {}, title(name), details ? h("span", { class: "soft" }, ` ${details[n]}`) : null))));
};

function ticks(from, to) {
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20].find((size) => (to - from) / size <= 8) ?? 50;
  const found = [];
  for (let n = Math.ceil(from / step - 1e-9); n * step <= to + 1e-9; n++) found.push(Math.round(n * step * 100) / 100);
  return found;
}

function sharesOf(row) {
  const all = sum(row) || 1;
  return row.map((number) => number / all);
}

// Shares of each source's texts over bins of equal width; `edges` has one more entry than `counts[n]`.
function histogram({ name, unit, names, edges, counts, cut, highest }) {
  const series = seriesOf(names);
  const shares = counts.map(sharesOf);
  const top = Math.max(0.01, highest) * 1.08;
  const [from, to] = [edges[0], edges[edges.length - 1]];
  const height = 210, left = 40, bottom = 24, above = 18;
  return plot(`Histogram of ${name}`, (width) => {
    const x = (value) => left + ((value - from) / (to - from)) * (width - left - 8);
    const y = (share) => above + (1 - share / top) * (height - above - bottom);
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5].find((size) => top / size <= 5) ?? 0.5;
    const picture = s("svg", { height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (let share = 0; share <= top; share += step) {
      picture.append(s("path", { class: "axis", d: `M${left} ${y(share)}H${width - 8}` }),
        s("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share, 0)));
    }
    const shown = ticks(from, to).filter((_, n, all) => width > 420 || all.length < 6 || n % 2 === 0);
    for (const tick of shown) picture.append(s("text", { x: x(tick), y: height - 6, "text-anchor": "middle" }, String(tick)));
    shares.forEach((row, n) => {
      if (series[n] === 0) {
        picture.append(...row.map((share, bin) => {
          const [start, end] = [x(edges[bin]), x(edges[bin + 1])];
          return s("rect", { class: "s0", x: start + 0.5, y: y(share), width: Math.max(1, end - start - 1), height: Math.max(0, y(0) - y(share)) });
        }));
      } else {
        const path = row.map((share, bin) => `${bin ? "L" : "M"}${x(edges[bin])} ${y(share)}H${x(edges[bin + 1])}`).join("");
        picture.append(s("path", { class: `line s${series[n]}`, d: path }));
      }
    });
    if (cut !== null && cut !== undefined && cut >= from && cut <= to) {
      const end = x(cut) > width - 90;
      picture.append(s("path", { class: "cut", d: `M${x(cut)} ${above - 4}V${height - bottom}` }),
        s("text", { class: "cut-name", x: x(cut) + (end ? -6 : 6), y: above - 6, "text-anchor": end ? "end" : "start" }, `least ${unit} ${cut}`));
    }
    return picture;
  });
}

function numbers(caption, head, rows) {
  return h("details", {}, h("summary", {}, "Numbers"), table({ caption, head, rows }));
}

function table({ caption, head, rows, sortable, hideCaption }) {
  const body = h("tbody", {});
  const headers = head.map((name) => h("th", { scope: "col" }, name));
  const show = (order) => body.replaceChildren(...order.map((row) =>
    h("tr", {}, row.map((cell, n) => h(n ? "td" : "th", n ? {} : { scope: "row" }, cell instanceof Array ? cell[1] : cell)))));
  if (sortable) {
    headers.forEach((cell, n) => {
      const sort = () => {
        const down = cell.getAttribute("aria-sort") ? cell.getAttribute("aria-sort") !== "descending" : n > 0;
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => (row[n] instanceof Array ? row[n][0] : row[n]);
        const sign = down ? -1 : 1;
        show([...rows].sort((a, b) => sign * (n ? value(a) - value(b) : String(value(a)).localeCompare(value(b)))));
      };
      cell.replaceChildren(h("button", { type: "button", onclick: sort }, head[n]));
    });
  }
  show(rows);
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: hideCaption ? "hidden" : null }, caption), h("thead", {}, h("tr", {}, headers)), body));
}

// ---------------------------------------------------------------------------------------------------- sections

function section(id, name, intro, ...content) {
  document.getElementById("toc").append(h("li", {}, h("a", { href: `#${id}` }, name)));
  return h("section", { id, "aria-labelledby": `${id}-h` }, h(id === "overview" ? "h1" : "h2", { id: `${id}-h` }, id === "overview" ? DATASETS.map((data) => data.name).join(" and ") : name),
    intro ? h("p", { class: "intro" }, intro) : null, ...content);
}

// One column a data set, each under its name where there are several.
function columns(draw, heading = "h3") {
  const several = DATASETS.length > 1;
  return h("div", { class: several ? "columns several" : "columns" }, DATASETS.map((data) => {
    const column = h("div", {}, several ? h(heading, { class: "of" }, data.name) : null, draw(data));
    if (several) column.querySelectorAll("[role=region]").forEach((region) => { region.ariaLabel = `${data.name}: ${region.ariaLabel}`; });
    return column;
  }));
}

function totals(data) {
  const [texts, kept] = ["texts", "kept"].map((name) => sum(data.sources.map((source) => source[name])));
  return { texts, kept };
}

// The paper's noise ratio: of the texts that were judged, the share that the filter rejects.
function noise(sources) {
  const rejected = sum(sources.flatMap((source) => Object.entries(source.dropped).filter(([reason]) => rejectedBy(reason)).map(([, number]) => number)));
  return ratio(rejected, rejected + sum(sources.map((source) => source.kept)));
}

function sides(data) {
  const web = data.sources.filter((source) => isWeb(source.name)), synthetic = data.sources.filter((source) => !isWeb(source.name));
  return [["Web texts", web], ["Synthetic texts", synthetic]].filter(([, sources]) => sources.length);
}

function overview() {
  const lead = (data) => {
    const { texts, kept } = totals(data);
    return h("p", { class: "lead" }, h("strong", {}, plural(texts, "text")), ` of ${plural(data.pictures, "picture")} went in, `,
      h("strong", {}, `${count(kept)} (${percent(ratio(kept, texts))}) stay`), `, ${count(texts - kept)} are dropped.`);
  };
  return section("overview", "Overview", null, columns((data) => [
    lead(data),
    h("p", { class: "path" }, `${data.path} · ${cutNames(data)}${bestName(data.best)}`),
    data.complete ? null : h("p", { class: "notice" }, "This data set is not finished: the counts are those of the shards that are there."),
    h("dl", { class: "tiles" }, sides(data).map(([name, sources]) => {
      const [kept, texts] = ["kept", "texts"].map((field) => sum(sources.map((source) => source[field])));
      return tile(`${name} kept`, percent(ratio(kept, texts)), `${count(kept)} of ${count(texts)}; noise ratio ${percent(noise(sources))}`);
    }), tile("Pictures with a text left", percent(ratio(data.pictures_kept, data.pictures)), `${count(data.pictures_kept)} of ${count(data.pictures)}`),
    tile("Noise ratio", percent(noise(data.sources)), "share of judged texts that the filter rejects")),
    h("div", { class: "bars" }, data.sources.map(bar)),
    reasonTable(data),
  ], "h2"));
}

const tile = (name, figure, detail) =>
  h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, h("span", { class: "figure" }, figure), h("span", { class: "detail" }, detail)));

function bar(source) {
  const parts = [["k", "kept", source.kept], ...Object.entries(source.dropped).map(([reason, number]) => [rejectedBy(reason) ? "d" : "o", inWords(reason), number])];
  return h("div", { class: "bar-row" }, h("span", { class: "name" }, title(source.name)),
    h("div", { class: "bar", role: "img", "aria-label": parts.map(([, name, number]) => `${name} ${percent(ratio(number, source.texts))}`).join(", ") },
      parts.filter(([, , number]) => number).map(([look, name, number]) => {
        const share = number / source.texts;
        const part = h("span", { class: look, title: `${name}: ${count(number)} (${percent(share)})` },
          share > 0.12 ? h("b", {}, `${look === "k" ? "✓" : "✗"} ${percent(share, 0)}`, share > 0.3 ? ` ${look === "k" ? "kept" : "dropped"}` : null) : null);
        part.style.flex = `${share} 1 0`;
        return part;
      })));
}

function reasonTable(data) {
  const reasons = [...new Set(data.sources.flatMap((source) => Object.keys(source.dropped)))];
  const all = { name: "All", ...totals(data), dropped: {} };
  for (const reason of reasons) all.dropped[reason] = sum(data.sources.map((source) => source.dropped[reason] ?? 0));
  const rows = (data.sources.length > 1 ? [...data.sources, all] : data.sources).map((source) => [title(source.name), count(source.texts), count(source.kept),
    percent(ratio(source.kept, source.texts)), ...reasons.map((reason) => count(source.dropped[reason] ?? 0))]);
  return table({ caption: "In = kept + dropped by reason", head: ["Texts", "in", "kept", "share kept", ...reasons.map((reason) => inWords(reason).replace("dropped: ", ""))], rows });
}

function comparison() {
  const metric = (name, value, show) => {
    const values = DATASETS.map(value);
    return [name, ...values.map((found, n) => h("span", {}, show(found), " ", n && found !== null && values[0] !== null
      ? h("span", { class: "delta" }, difference(found - values[0], show)) : null))];
  };
  const difference = (by, show) => (show(Math.abs(by)) === show(0) ? "same" : `${by > 0 ? "+" : "−"}${show(Math.abs(by)).replace("%", " pt")}`);
  const side = (data, number) => sides(data).find(([name]) => name === (number ? "Synthetic texts" : "Web texts"))?.[1] ?? [];
  const kept = (number) => (data) => ratio(sum(side(data, number).map((source) => source.kept)), sum(side(data, number).map((source) => source.texts)));
  const texts = (web, field) => (data) => {
    const found = data.texts.filter((row) => row.kept && isWeb(row.source) === web && row.texts);
    return found.length ? sum(found.map((row) => field(row) * row.texts)) / sum(found.map((row) => row.texts)) : null;
  };
  const whole = (number) => (number === null ? "–" : count(Math.round(number)));
  const share = (value) => percent(value), two = (value) => decimals(value, 2);
  return section("compare", "Compared", `The difference from ${MAIN.name} stands behind each number; pt are percentage points.`, table({
    caption: "Data sets side by side", hideCaption: true, head: ["Measure", ...DATASETS.map((data) => data.name)], rows: [
      ["Filtered with", ...DATASETS.map(cutNames)],
      metric("Texts", (data) => totals(data).texts, whole), metric("Texts kept", (data) => totals(data).kept, whole),
      metric("Web texts kept", kept(0), share), metric("Synthetic texts kept", kept(1), share),
      metric("Noise ratio, web", (data) => noise(side(data, 0)), share), metric("Noise ratio, synthetic", (data) => noise(side(data, 1)), share),
      metric("Pictures with a text left", (data) => ratio(data.pictures_kept, data.pictures), share),
      metric("Words in a kept web text", texts(true, (row) => row.mean_words), two), metric("Words in a kept synthetic text", texts(false, (row) => row.mean_words), two),
      metric("Kept web texts that repeat", texts(true, (row) => row.repeated), share), metric("Kept synthetic texts that repeat", texts(false, (row) => row.repeated), share),
    ] }));
}

function scoreSection() {
  const scores = [...new Set([...Object.keys(SCORE), ...DATASETS.flatMap((data) => Object.keys(data.scores))])].filter((name) => DATASETS.some((data) => sum(data.scores[name]?.counts.flat() ?? [])));
  return section("scores", "Scores", "How each source's texts are spread over the scores, as shares of its texts.", columns((data) => {
    const names = data.sources.map((source) => source.name);
    const drawn = scores.filter((name) => data.scores[name]).map((name) => {
      const { bins, counts } = data.scores[name];
      // the same axes for every data set, so that they compare
      const everywhere = DATASETS.flatMap((other) => other.scores[name]?.counts ?? []);
      const [edges, ...rows] = name === "itm" ? regrouped(bins, [...everywhere, ...counts], 0.05, 0, 1) : cropped(bins, [...everywhere, ...counts]);
      const shown = rows.slice(everywhere.length);
      const [label, note] = SCORE[name] ?? [name.toUpperCase(), SCORE.clip[1]];  // clip2: another CLIP
      return h("figure", { class: "card-box" }, h("figcaption", {}, h("h3", {}, label), h("span", { class: "note" }, note)),
        histogram({ name: label, unit: label, names, edges, counts: shown, cut: data.limits[name], highest: Math.max(...rows.flatMap(sharesOf)) }),
        legend(names, counts.map((row) => `median ${decimals(median(bins, row), 2)}`)),
        numbers(`${label}, share of texts`, [label, ...names.map(title)], edges.slice(0, -1).map((edge, bin) =>
          [`${edge.toFixed(2)} to ${edges[bin + 1].toFixed(2)}`, ...shown.map((row) => percent(ratio(row[bin], sum(row))))])));
    });
    return h("div", { class: DATASETS.length > 1 ? "charts" : `charts of-${drawn.length}` }, drawn);
  }));
}

function regrouped(bins, counts, width, from, to) {
  const number = Math.round((to - from) / width);
  const edges = Array.from({ length: number + 1 }, (_, n) => Math.round((from + n * width) * 1000) / 1000);
  const grouped = counts.map((row) => {
    const into = new Array(number).fill(0);
    row.forEach((found, bin) => { into[Math.min(number - 1, Math.max(0, Math.floor((bins[bin] - from) / width + 1e-6)))] += found; });
    return into;
  });
  return [edges, ...grouped];
}

// Cosines are counted from -1 to 1; shown is what is there, in at most 60 bars.
function cropped(bins, counts) {
  const used = bins.map((_, bin) => bin).filter((bin) => counts.some((row) => row[bin]));
  const [first, last] = [used[0], used[used.length - 1] + 1];
  const width = 0.01 * Math.ceil((last - first) / 60);
  const from = bins[first];
  return regrouped(bins, counts, width, from, from + width * Math.max(2, Math.ceil((last - first) / Math.round(width * 100))));
}

function median(bins, row) {
  let left = sum(row) / 2;
  if (!left) return null;
  return bins[row.findIndex((number) => (left -= number) <= 0)];
}

// ---------------------------------------------------------------------------------------------------- threshold

const places = MAIN.scores.itm.bins;
const used = places.indexOf(MAIN.limits.itm);
const state = { place: used, kind: null, page: 0 };

function thresholdSection() {
  const slider = h("input", { type: "range", id: "threshold", min: 0, max: places.length - 1, step: 1, value: used, oninput: () => move(Number(slider.value)) });
  const at = h("span", { class: "at", "aria-hidden": "true" });
  const output = h("output", { for: "threshold" });
  const reset = h("button", { type: "button", class: "reset", onclick: () => { slider.value = used; move(used); } }, `Back to ${places[used]}`);
  const counts = h("div", { id: "kept-table" });
  const code = h("code", { id: "command" });
  const copy = h("button", { type: "button", onclick: () => copyText(code, copy) }, "Copy");
  let marker = () => {};

  function move(place) {
    state.place = place;
    const kept = keptAll(MAIN, place), { texts } = totals(MAIN);
    slider.setAttribute("aria-valuetext", `${places[place]}, keeps ${percent(ratio(kept, texts))} of the texts`);
    at.textContent = `≥ ${places[place]}`;
    output.replaceChildren("keeps ", h("strong", {}, `${count(kept)} of ${count(texts)} texts (${percent(ratio(kept, texts))})`), ...sides(MAIN).map(([name, sources]) => {
      const numbers = sources.map((source) => MAIN.sources.indexOf(source));
      return ` · ${name.toLowerCase()} ${percent(ratio(sum(numbers.map((n) => keptAt(MAIN, n, place))), sum(sources.map((source) => source.texts))))}`;
    }));
    counts.replaceChildren(keptTable(place));
    code.textContent = [...MAIN.refilter.map(quoted), "--name", quoted(`${MAIN.name}-itm${places[place]}`), "--threshold", places[place]].join(" ");
    reset.disabled = place === used;
    marker(place);
    recolour();
  }

  const names = MAIN.sources.map((source) => source.name);
  const [curve, setMarker] = keepCurve(names);
  marker = setMarker;
  const control = h("div", { class: "control", role: "group", "aria-label": "Threshold" },
    h("div", { class: "row" }, h("label", { for: "threshold" }, "Least ITM"), at, slider, reset, output));
  const galleryPart = Object.values(REPORT.gallery.kinds).some((picks) => picks.length) ? gallery() : [];
  const whose = DATASETS.length > 1 ? ` The pictures are those of ${MAIN.name}; the texts of the others stay as they were judged there.` : "";
  const part = section("gallery", galleryPart.length ? "Threshold and gallery" : "Threshold",
    `Move the threshold: the shares are recounted from all texts, and the pictures below change colour. Nothing is written; the command does that, from the tables alone.${whose}`,
    control, h("div", { class: DATASETS.length > 1 ? "pair even" : "pair" },
      h("figure", { class: "card-box" }, h("figcaption", {}, h("h3", {}, "Share kept"), h("span", { class: "note" }, "of each source's texts, by threshold")), curve, legend(names, null, true)),
      h("div", {}, counts, h("div", { class: "command" }, code, copy))),
    ...galleryPart);
  move(used);
  return part;
}

const keptAll = (data, place) => sum(data.sources.map((_, n) => keptAt(data, n, place)));
const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${String(word).replaceAll("'", "'\\''")}'`);

function keptTable(place) {
  const rows = DATASETS.flatMap((data) => [...data.sources.map((source, n) => [n, source]), [null, { name: "All", ...totals(data) }]].map(([n, source]) => {
    const kept = n === null ? keptAll(data, place) : keptAt(data, n, place);
    const change = kept - source.kept;
    return [DATASETS.length > 1 ? `${data.name} · ${title(source.name)}` : title(source.name), count(kept), percent(ratio(kept, source.texts)), change ? `${change > 0 ? "+" : "−"}${count(Math.abs(change))}` : "same"];
  }));
  return table({ caption: `Kept at ITM ≥ ${places[place]}`, head: ["Texts", "kept", "share", "against now"], rows });
}

function keepCurve(names) {
  const series = seriesOf(names), height = 210, left = 44, right = 10, bottom = 24, above = 10;
  let place = used, mark = null, scale = () => 0;
  const shares = MAIN.sources.map((source, n) => places.map((_, at) => ratio(keptAt(MAIN, n, at), source.texts) ?? 0));
  const box = plot("Share of texts kept, by threshold; the numbers are in the table beside it", (width) => {
    scale = (at) => left + (at / (places.length - 1)) * (width - left - right);
    const y = (share) => above + (1 - share) * (height - above - bottom);
    const picture = s("svg", { height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      picture.append(s("path", { class: "axis", d: `M${left} ${y(share)}H${width - right}` }), s("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share, 0)));
    }
    for (const value of width > 460 ? [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999] : [0, 0.25, 0.5, 0.75, 0.999]) {
      picture.append(s("text", { x: scale(places.indexOf(value)), y: height - 6, "text-anchor": "middle" }, String(value)));
    }
    shares.forEach((row, n) => picture.append(s("path", { class: `line s${series[n]}`, d: row.map((share, at) => `${at ? "L" : "M"}${scale(at)} ${y(share)}`).join("") })));
    mark = s("path", { class: "cut", d: `M0 ${above}V${height - bottom}`, transform: `translate(${scale(place)})` });
    picture.append(mark);
    return picture;
  });
  return [box, (at) => { place = at; mark?.setAttribute("transform", `translate(${scale(at)})`); }];
}

async function copyText(code, button) {
  const told = button.textContent;
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code); // an old browser, or no right to the clipboard
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = told; }, 1500);
}

// ---------------------------------------------------------------------------------------------------- gallery

let recolour = () => {};

function gallery() {
  const kinds = Object.keys(KINDS).filter((kind) => REPORT.gallery.kinds[kind]?.length);
  state.kind = kinds[0];
  const note = h("p", { class: "intro", id: "kind-note" });
  const cards = h("ul", { class: DATASETS.length > 1 ? "cards several" : "cards" });
  const where = h("span", { role: "status" });
  const step = (by, name) => h("button", { type: "button", onclick: () => { state.page += by; show(); } }, name);
  const [back, on] = [step(-1, "← Earlier"), step(1, "Later →")];
  const panel = h("div", { role: "tabpanel", id: "kind-panel", tabindex: 0 }, note, cards, h("nav", { class: "pager", "aria-label": "Pages of the gallery" }, back, where, on));
  const tabs = kinds.map((kind) => h("button", { type: "button", role: "tab", id: `tab-${kind}`, "aria-controls": "kind-panel", onclick: () => select(kind) }, KINDS[kind][0]));
  const list = h("div", { role: "tablist", "aria-label": "Which pictures", onkeydown: (event) => {
    const at = kinds.indexOf(state.kind), last = kinds.length - 1;
    const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at ? at - 1 : last, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    select(kinds[to]);
    tabs[to].focus();
  } }, tabs);

  function select(kind) {
    state.kind = kind;
    state.page = 0;
    show();
  }

  function show() {
    const picks = REPORT.gallery.kinds[state.kind], pages = Math.ceil(picks.length / PAGE_SIZE);
    tabs.forEach((tab, n) => {
      tab.setAttribute("aria-selected", kinds[n] === state.kind);
      tab.tabIndex = kinds[n] === state.kind ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", `tab-${state.kind}`);
    note.textContent = KINDS[state.kind][1];
    cards.replaceChildren(...picks.slice(state.page * PAGE_SIZE, (state.page + 1) * PAGE_SIZE).map(card));
    where.textContent = `Page ${state.page + 1} of ${pages}`;
    back.disabled = state.page === 0;
    on.disabled = state.page >= pages - 1;
    recolour();
  }

  recolour = () => {
    for (const node of cards.children) {
      const picture = REPORT.gallery.pictures[node.dataset.picture];
      const reasons = verdicts(picture.texts, places[state.place], MAIN);
      node.querySelectorAll(".mine .text").forEach((text, n) => judge(text, reasons[n]));
    }
  };
  show();
  return [list, panel];
}

function card(pick) {
  const picture = REPORT.gallery.pictures[pick.picture];
  const image = picture.image
    ? h("img", { src: picture.image, alt: `Picture ${picture.key}`, decoding: "async" })
    : h("span", {}, `No picture: ${picture.missing}`);
  const mine = (text) => pick.times && text.source === pick.source && text.index === pick.index;
  return h("li", { class: "card", "data-picture": pick.picture }, h("div", { class: "frame" }, image),
    h("p", { class: "where" }, h("span", { class: "key" }, picture.key), picture.host ? h("span", {}, picture.host) : null),
    h("div", { class: "beside" }, [picture, ...(picture.others ?? [])].map((about, n) => {
      const texts = (about?.texts ?? []).map((text) => textOf(text, DATASETS[n], !n && mine(text) ? pick.times : null));
      return h("div", { class: n ? "theirs" : "mine" }, DATASETS.length > 1 ? h("p", { class: "of" }, DATASETS[n].name) : null,
        about ? h("ul", { class: "verdicts" }, texts, about.more ? h("li", { class: "small soft" }, `and ${plural(about.more, "more text")}`) : null)
          : h("p", { class: "small soft" }, "Does not have this picture."));
    })));
}

// A text's colour, mark and words for a reason.
function judge(node, reason) {
  const kept = reason === "kept";
  node.className = `text ${kept ? "kept" : "dropped"}`;
  node.dataset.reason = reason;
  node.querySelector(".mark").textContent = kept ? "✓" : "✗";
  node.querySelector(".verdict").textContent = inWords(reason);
  return node;
}

function textOf(text, data, times) {
  const scores = Object.keys(data.scores).filter((name) => text[name] !== null);
  return judge(h("li", {}, h("span", { class: "mark", "aria-hidden": "true" }), h("div", {},
    h("p", { class: "words", dir: "auto" }, text.text || "(no text)", text.cut ? h("span", { class: "soft" }, ` … and ${plural(text.cut, "more letter")}`) : null),
    h("p", { class: "facts" }, h("span", { class: "source" }, title(text.source)), scores.map((name) => h("span", {}, `${SCORE[name]?.[0] ?? name} ${decimals(text[name], 3)}`)),
      times ? h("span", {}, `occurs ${count(times)} times`) : null, h("span", { class: "verdict" })))), text.reason);
}

// ---------------------------------------------------------------------------------------------------- the rest

function textSection() {
  return section("texts", "Texts", "What the texts are like, web against synthetic, before the filter and after it.", columns((data) => {
    const all = data.texts.filter((row) => !row.kept);
    const cells = (show) => data.texts.map(show);
    const head = ["Measure", ...data.texts.map((row) => `${title(row.source)}, ${row.kept ? "kept" : "all"}`)];
    const distinct = (n) => cells((row) => decimals(row.distinct[n], 3));
    const rows = [
      ["Texts", ...cells((row) => count(row.texts))],
      ["Words in a text", ...cells((row) => decimals(row.mean_words, 1))],
      ["Texts that repeat another", ...cells((row) => percent(row.repeated))],
      ["Vocabulary, words", ...cells((row) => count(row.vocabulary))],
      ["Distinct-1", ...distinct(0)], ["Distinct-2", ...distinct(1)], ["Distinct-3", ...distinct(2)],
      ["… counted on texts", ...cells((row) => count(row.counted_on))],
    ];
    const names = all.map((row) => row.source), last = Math.max(1, ...all.flatMap((row) => row.lengths.map((number, words) => (number ? words : 0))));
    const lengths = all.map((row) => row.lengths.slice(0, last + 1));
    return [
      table({ caption: "Length and variety", hideCaption: true, head, rows }),
      h("p", { class: "small soft" }, "Distinct-n: different runs of n words / all runs of n words. Vocabulary and distinct-n fall or rise with the number of texts, so each column is counted on the same number of texts, drawn at random, where it has as many."),
      h("div", { class: "charts" }, h("figure", { class: "card-box" },
        h("figcaption", {}, h("h3", {}, "Words in a text"), h("span", { class: "note" }, "all texts, share of each source")),
        histogram({ name: "words in a text", unit: "words", names, edges: lengths[0].map((_, n) => n).concat(last + 1), counts: lengths, highest: Math.max(...lengths.flatMap(sharesOf)) }),
        legend(names),
        numbers("Words in a text, share of texts", ["Words", ...names.map(title)], lengths[0].map((_, words) => [words === data.texts[0].lengths.length - 1 ? `${words} or more` : String(words), ...lengths.map((row) => percent(ratio(row[words], sum(row))))])))),
    ];
  }));
}

function share(kept, texts) {
  if (!texts) return [-1, "–"];
  const inner = h("i", {});
  inner.style.width = percent(kept / texts);
  return [kept / texts, h("span", {}, percent(kept / texts), h("span", { class: "share", "aria-hidden": "true" }, inner))];
}

function domainSection() {
  return section("domains", "Domains", "Where the pictures come from, and how much of each host's text the filter keeps. Press a heading to sort.", columns((data) => {
    const { number, most } = data.domains;
    if (!number) return h("p", { class: "intro" }, "The tables hold no addresses.");
    const rows = most.map((row) => [row.host, [row.web, count(row.web)], share(row.web_kept, row.web), [row.synthetic, count(row.synthetic)], share(row.synthetic_kept, row.synthetic)]);
    const caption = number > most.length ? `The ${most.length} with the most texts, of ${count(number)} hosts` : plural(number, "host");
    return table({ caption, head: ["Host", "web texts", "kept", "synthetic texts", "kept (synthetic)"], rows, sortable: true });
  }));
}

function downloadSection() {
  return section("downloads", "Download", "What became of each row of the input.", columns((data) => {
    const rows = sum(Object.values(data.downloads));
    if (!rows) return h("p", { class: "intro" }, "The shard set has no tables that tell.");
    return table({ caption: `${count(rows)} rows`, head: ["Outcome", "rows", "share"], rows: Object.entries(data.downloads).map(([name, number]) => [name.replaceAll("_", " "), count(number), percent(number / rows)]) });
  }));
}

function madeSection() {
  const flat = (value, name) => (value && typeof value === "object" && !Array.isArray(value)
    ? Object.entries(value).flatMap(([key, inner]) => flat(inner, name ? `${name}.${key}` : key))
    : [[name, Array.isArray(value) ? value.join(", ") : value === null ? "–" : String(value)]]);
  return section("made", "How it was made", "From the manifest beside the tables.", columns((data) =>
    h("dl", { class: "facts-list" }, flat(data.made_with, "").map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))));
}

function themeButton() {
  const button = document.getElementById("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; name(); });
  dark.addEventListener("change", name);
  name();
}

themeButton();
const main = document.getElementById("main");
main.append(overview());
if (DATASETS.length > 1) main.append(comparison());
main.append(scoreSection(), thresholdSection(), textSection(), domainSection(), downloadSection(), madeSection());
document.getElementById("made-by").textContent = `Written by ${REPORT.created_by}. One file, no network.`;
