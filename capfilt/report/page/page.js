// The remaining sections, and the page itself.

function textSection() {
  return section("texts", "Texts", "Length and variety of the texts, per source, before and after the filter.", columns((data) => {
    const cells = (show) => data.texts.map(show);
    const distinct = (n) => cells((row) => decimals(row.distinct[n - 1], 3));
    const head = ["Measure", ...data.texts.map((row) => `${sourceTitle(row.source)}, ${row.kept ? "kept" : "all"}`)];
    const rows = [
      ["Texts", ...cells((row) => count(row.texts))],
      ["Words per text", ...cells((row) => decimals(row.mean_words, 1))],
      ["Texts that occur more than once", ...cells((row) => percent(row.repeated))],
      ["Vocabulary, words", ...cells((row) => count(row.vocabulary))],
      ["Distinct-1", ...distinct(1)], ["Distinct-2", ...distinct(2)], ["Distinct-3", ...distinct(3)],
      ["Counted on texts", ...cells((row) => count(row.counted_on))],
    ];
    return [
      table({ caption: "Length and variety", hideCaption: true, head, rows }),
      h("p", { class: "small soft" }, "Distinct-n is the number of different n-grams divided by the number of n-grams. It and the vocabulary depend on the number of texts, so all columns are counted on the same number of random texts, if they have that many."),
      h("div", { class: "charts" }, lengthFigure(data.texts.filter((row) => !row.kept))),
    ];
  }));
}

// The histogram of words per text; `rows` are the statistics of all texts of each source.
function lengthFigure(rows) {
  const sources = rows.map((row) => row.source);
  const longest = rows[0].lengths.length - 1;
  const last = Math.max(1, ...rows.flatMap((row) => row.lengths.map((texts, words) => (texts ? words : 0))));
  const counts = rows.map((row) => row.lengths.slice(0, last + 1));
  const edges = counts[0].map((_, words) => words).concat(last + 1);
  const numberRows = counts[0].map((_, words) =>
    [words === longest ? `${words} or more` : String(words), ...counts.map((row) => percent(ratio(row[words], sum(row))))]);
  return h("figure", { class: "card-box" },
    h("figcaption", {}, h("h3", {}, "Words per text"), h("span", { class: "note" }, "all texts, as shares of each source")),
    histogram({ name: "words per text", unit: "words", sources, edges, counts, highest: Math.max(...counts.flatMap(sharesOf)) }),
    legend(sources),
    numbers("Words per text, share of texts", ["Words", ...sources.map(sourceTitle)], numberRows));
}

// A sortable cell with a share and a small bar.
function shareCell(kept, texts) {
  if (!texts) return [-1, "–"];
  const filled = h("i", {});
  filled.style.width = percent(kept / texts);
  return [kept / texts, h("span", {}, percent(kept / texts), h("span", { class: "share", "aria-hidden": "true" }, filled))];
}

function hostSection() {
  return section("hosts", "Hosts", "Hosts of the pictures, and the share of their texts that the filter keeps. Click a heading to sort.", columns((data) => {
    const hosts = data.hosts;
    if (!hosts.count) return h("p", { class: "intro" }, "The tables have no URLs.");
    const rows = hosts.largest.map((row) => [row.host, [row.web, count(row.web)], shareCell(row.web_kept, row.web),
      [row.synthetic, count(row.synthetic)], shareCell(row.synthetic_kept, row.synthetic)]);
    const caption = hosts.count > rows.length ? `The ${rows.length} hosts with the most texts, of ${count(hosts.count)}` : plural(hosts.count, "host");
    return table({ caption, head: ["Host", "web texts", "kept", "synthetic texts", "kept (synthetic)"], rows, sortable: true });
  }));
}

function downloadSection() {
  return section("downloads", "Download", "Download status of the input rows.", columns((data) => {
    const total = sum(Object.values(data.downloads));
    if (!total) return h("p", { class: "intro" }, "The shard set has no tables with a download status.");
    const rows = Object.entries(data.downloads).map(([status, number]) => [status.replaceAll("_", " "), count(number), percent(number / total)]);
    return table({ caption: plural(total, "row"), head: ["Status", "rows", "share"], rows });
  }));
}

function settingsSection() {
  const flatten = (value, name) => {
    if (value && typeof value === "object" && !Array.isArray(value)) {
      return Object.entries(value).flatMap(([key, inner]) => flatten(inner, name ? `${name}.${key}` : key));
    }
    return [[name, Array.isArray(value) ? value.join(", ") : value === null ? "–" : String(value)]];
  };
  return section("settings", "Settings", "Settings and versions, from the manifest of the filtered set.", columns((data) =>
    h("dl", { class: "facts-list" }, flatten(data.made_with, "").map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))));
}

enableThemeButton();
const main = document.getElementById("main");
main.append(overviewSection());
if (DATASETS.length > 1) main.append(comparisonSection());
main.append(scoreSection(), thresholdSection(), labelSection(), textSection(), hostSection(), downloadSection(), settingsSection());
document.getElementById("made-by").textContent = `Written by ${REPORT.created_by}. This file sends no request.`;
