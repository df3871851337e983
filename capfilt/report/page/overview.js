// The sections that count texts: overview and comparison of data sets.

function overviewSection() {
  const lead = (data) => {
    const { texts, kept } = totals(data);
    return h("p", { class: "lead" }, h("strong", {}, plural(texts, "text")), ` of ${plural(data.pictures, "picture")}: `,
      h("strong", {}, `${count(kept)} (${percent(ratio(kept, texts))}) kept`), `, ${count(texts - kept)} dropped.`);
  };
  const groupTile = ([name, sources]) => {
    const [kept, texts] = ["kept", "texts"].map((field) => sum(sources.map((source) => source[field])));
    return tile(`${name} kept`, percent(ratio(kept, texts)), `${count(kept)} of ${count(texts)}; noise ratio ${percent(noiseRatio(sources))}`);
  };
  return section("overview", "Overview", null, columns((data) => [
    lead(data),
    h("p", { class: "path" }, `${data.path} · ${limitsText(data)}${bestText(data.best)}`),
    data.complete ? null : h("p", { class: "notice" }, "This data set is not finished: shards without a table are not counted."),
    h("dl", { class: "tiles" }, groups(data).map(groupTile),
      tile("Pictures with a kept text", percent(ratio(data.pictures_kept, data.pictures)), `${count(data.pictures_kept)} of ${count(data.pictures)}`),
      tile("Noise ratio", percent(noiseRatio(data.sources)), "share of scored texts that the filter rejects")),
    h("div", { class: "bars" }, data.sources.map(bar)),
    reasonTable(data),
    strataTable(data),
  ], "h2"));
}

// What the threshold does to each kind of text; null for a set whose threshold was not chosen on its scores.
function strataTable({ strata }) {
  if (!strata.length) return null;
  const measure = (row, name) => (row[name] ? `${percent(row[name].share)} (${row[name].interval.map((bound) => percent(bound, 0)).join(" to ")})` : "–");
  const labelled = ["precision", "recall"].filter((name) => strata.some((row) => row[name]));
  const rows = strata.map((row) => [row.stratum, `≥ ${row.limit}`, count(row.texts), count(row.kept), percent(row.share), ...labelled.map((name) => measure(row, name))]);
  return table({ caption: "Texts kept, by source and length", head: ["Texts", "limit", "texts", "kept", "share kept", ...labelled], rows });
}

const tile = (name, figure, detail) =>
  h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, h("span", { class: "figure" }, figure), h("span", { class: "detail" }, detail)));

function bar(source) {
  const dropped = Object.entries(source.dropped).map(([reason, number]) => [rejectedByScore(reason) ? "d" : "o", reasonText(reason), number]);
  const parts = [["k", "kept", source.kept], ...dropped];
  const label = parts.map(([, name, number]) => `${name} ${percent(ratio(number, source.texts))}`).join(", ");
  return h("div", { class: "bar-row" }, h("span", { class: "name" }, sourceTitle(source.name)),
    h("div", { class: "bar", role: "img", "aria-label": label },
      parts.filter(([, , number]) => number).map(([look, name, number]) => {
        const share = number / source.texts, isKept = look === "k";
        const part = h("span", { class: look, title: `${name}: ${count(number)} (${percent(share)})` },
          share > 0.12 ? h("b", {}, `${isKept ? "✓" : "✗"} ${percent(share, 0)}`, share > 0.3 ? ` ${isKept ? "kept" : "dropped"}` : null) : null);
        part.style.flex = `${share} 1 0`;
        return part;
      })));
}

function reasonTable(data) {
  const reasons = [...new Set(data.sources.flatMap((source) => Object.keys(source.dropped)))];
  const all = { name: "All", ...totals(data), dropped: {} };
  for (const reason of reasons) all.dropped[reason] = sum(data.sources.map((source) => source.dropped[reason] ?? 0));
  const rows = (data.sources.length > 1 ? [...data.sources, all] : data.sources).map((source) => [
    sourceTitle(source.name), count(source.texts), count(source.kept), percent(ratio(source.kept, source.texts)),
    ...reasons.map((reason) => count(source.dropped[reason] ?? 0))]);
  const head = ["Source", "texts", "kept", "share kept", ...reasons.map((reason) => reasonText(reason).replace("dropped: ", ""))];
  return table({ caption: "Texts kept, and dropped by reason", head, rows });
}

function comparisonSection() {
  const difference = (by, show) => (show(Math.abs(by)) === show(0) ? "same" : `${by > 0 ? "+" : "−"}${show(Math.abs(by)).replace("%", " pt")}`);
  const metric = (name, value, show) => {
    const values = DATASETS.map(value);
    return [name, ...values.map((number, n) => h("span", {}, show(number), " ", n && number !== null && values[0] !== null
      ? h("span", { class: "delta" }, difference(number - values[0], show)) : null))];
  };
  const group = (data, name) => groups(data).find(([other]) => other === name)?.[1] ?? [];
  const web = (data) => group(data, "Web texts"), synthetic = (data) => group(data, "Synthetic texts");
  const keptShare = (select) => (data) => ratio(sum(select(data).map((source) => source.kept)), sum(select(data).map((source) => source.texts)));
  // the mean of a field over the kept texts of a group
  const mean = (ofWeb, field) => (data) => {
    const rows = data.texts.filter((row) => row.kept && isWeb(row.source) === ofWeb && row.texts);
    return rows.length ? sum(rows.map((row) => field(row) * row.texts)) / sum(rows.map((row) => row.texts)) : null;
  };
  const integer = (number) => (number === null ? "–" : count(Math.round(number)));
  const asPercent = (value) => percent(value), twoDecimals = (value) => decimals(value, 2);
  const rows = [
    ["Limits", ...DATASETS.map(limitsText)],
    metric("Texts", (data) => totals(data).texts, integer),
    metric("Texts kept", (data) => totals(data).kept, integer),
    metric("Web texts kept", keptShare(web), asPercent),
    metric("Synthetic texts kept", keptShare(synthetic), asPercent),
    metric("Noise ratio, web", (data) => noiseRatio(web(data)), asPercent),
    metric("Noise ratio, synthetic", (data) => noiseRatio(synthetic(data)), asPercent),
    metric("Pictures with a kept text", (data) => ratio(data.pictures_kept, data.pictures), asPercent),
    metric("Words per kept web text", mean(true, (row) => row.mean_words), twoDecimals),
    metric("Words per kept synthetic text", mean(false, (row) => row.mean_words), twoDecimals),
    metric("Kept web texts that occur more than once", mean(true, (row) => row.repeated), asPercent),
    metric("Kept synthetic texts that occur more than once", mean(false, (row) => row.repeated), asPercent),
  ];
  return section("compare", "Comparison", `Each number is followed by its difference from ${MAIN.name}; pt means percentage points.`,
    table({ caption: "Comparison of data sets", hideCaption: true, head: ["Measure", ...DATASETS.map((data) => data.name)], rows }));
}
