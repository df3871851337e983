// The section with a histogram per score.

function scoreSection() {
  const names = [...new Set([...Object.keys(SCORES), ...DATASETS.flatMap((data) => Object.keys(data.scores))])]
    .filter((name) => DATASETS.some((data) => sum(data.scores[name]?.counts.flat() ?? [])));
  return section("scores", "Scores", "Distribution of each score, as shares of each source's texts.", columns((data) => {
    const figures = names.filter((name) => data.scores[name]).map((name) => scoreFigure(data, name));
    return h("div", { class: DATASETS.length > 1 ? "charts" : `charts of-${figures.length}` }, figures);
  }));
}

function scoreFigure(data, name) {
  const { bins, counts } = data.scores[name];
  const sources = data.sources.map((source) => source.name);
  // The axes cover the counts of all data sets, so that their charts can be compared.
  const allCounts = [...DATASETS.flatMap((other) => other.scores[name]?.counts ?? []), ...counts];
  const [edges, ...rows] = ["itm", "mix", "itm_min", "itm_mean", "vqa"].includes(name) ? regroup(bins, allCounts, 0.05, 0, 1) : crop(bins, allCounts);
  const shown = rows.slice(rows.length - counts.length);
  const [label, description] = SCORES[name] ?? [name.toUpperCase(), SCORES.clip[1]];
  const binRows = edges.slice(0, -1).map((edge, bin) =>
    [`${edge.toFixed(2)} to ${edges[bin + 1].toFixed(2)}`, ...shown.map((row) => percent(ratio(row[bin], sum(row))))]);
  return h("figure", { class: "card-box" }, h("figcaption", {}, h("h3", {}, label), h("span", { class: "note" }, description)),
    histogram({ name: label, unit: label, sources, edges, counts: shown, limit: data.limits[name], highest: Math.max(...rows.flatMap(sharesOf)) }),
    legend(sources, counts.map((row) => `median ${decimals(median(bins, row), 2)}`)),
    numbers(`${label}, share of texts`, [label, ...sources.map(sourceTitle)], binRows));
}
