// The slider: recounts kept texts at another threshold and writes the command that applies it.

const thresholds = MAIN.thresholds;
const currentBin = thresholds.indexOf(MAIN.limits[MAIN.score]);
const state = { bin: currentBin, kind: null, page: 0 };

function thresholdSection() {
  const slider = h("input", { type: "range", id: "threshold", min: 0, max: thresholds.length - 1, step: 1, value: currentBin, oninput: () => move(Number(slider.value)) });
  const value = h("span", { class: "at", "aria-hidden": "true" });
  const output = h("output", { for: "threshold" });
  const reset = h("button", { type: "button", class: "reset", onclick: () => { slider.value = currentBin; move(currentBin); } }, `Reset to ${thresholds[currentBin]}`);
  const counts = h("div", { id: "kept-table" });
  const code = h("code", { id: "command" });
  const copy = h("button", { type: "button", onclick: () => copyText(code, copy) }, "Copy");
  const sources = MAIN.sources.map((source) => source.name);
  const [curve, setMarker] = keptCurve();

  function move(bin) {
    state.bin = bin;
    const threshold = thresholds[bin], kept = allKeptAt(MAIN, bin), { texts } = totals(MAIN);
    slider.setAttribute("aria-valuetext", `${threshold}, keeps ${percent(ratio(kept, texts))} of the texts`);
    value.textContent = `≥ ${threshold}`;
    const shares = groups(MAIN).map(([name, members]) => {
      const keptOfGroup = sum(members.map((source) => keptAt(MAIN, MAIN.sources.indexOf(source), bin)));
      return ` · ${name.toLowerCase()} ${percent(ratio(keptOfGroup, sum(members.map((source) => source.texts))))}`;
    });
    output.replaceChildren("keeps ", h("strong", {}, `${count(kept)} of ${count(texts)} texts (${percent(ratio(kept, texts))})`), ...shares);
    counts.replaceChildren(keptTable(bin));
    code.textContent = [...MAIN.filter_command.map(quote), "--name", quote(`${MAIN.name}-${MAIN.score}${threshold}`), "--threshold", threshold].join(" ");
    reset.disabled = bin === currentBin;
    setMarker(bin);
    updateVerdicts();
  }

  const several = DATASETS.length > 1;
  const strata = MAIN.has_strata ? " This set has a limit per kind of text; the slider applies one limit to all." : "";
  const control = h("div", { class: "control", role: "group", "aria-label": "Threshold" },
    h("div", { class: "row" }, h("label", { for: "threshold" }, `${scoreTitle(MAIN.score)} threshold`), value, slider, reset, output));
  const pictures = Object.values(REPORT.gallery.kinds).some((picks) => picks.length) ? gallery() : [];
  const scope = several ? ` The slider applies to ${MAIN.name}, whose pictures are shown; verdicts of the other sets do not change.` : "";
  const part = section("gallery", pictures.length ? "Threshold and gallery" : "Threshold",
    `Move the slider to recount the kept texts and to update the verdicts of the pictures below. The page changes no file: run the command to apply a threshold. It reuses the scores.${scope}${strata}`,
    control, h("div", { class: several ? "pair even" : "pair" },
      h("figure", { class: "card-box" }, h("figcaption", {}, h("h3", {}, "Share kept"), h("span", { class: "note" }, "of each source's texts, by threshold")), curve, legend(sources, null, true)),
      h("div", {}, counts, h("div", { class: "command" }, code, copy))),
    ...pictures);
  move(currentBin);
  return part;
}

function keptTable(bin) {
  const row = (data, name, kept, source) => {
    const change = kept - source.kept;
    return [DATASETS.length > 1 ? `${data.name} · ${name}` : name, count(kept), percent(ratio(kept, source.texts)),
      change ? `${change > 0 ? "+" : "−"}${count(Math.abs(change))}` : "same"];
  };
  const rows = DATASETS.flatMap((data) => [
    ...data.sources.map((source, n) => row(data, sourceTitle(source.name), keptAt(data, n, bin), source)),
    row(data, "All", allKeptAt(data, bin), totals(data))]);
  return table({ caption: `Kept at ${scoreTitle(MAIN.score)} ≥ ${thresholds[bin]}`, head: ["Source", "kept", "share", "change"], rows });
}

// The share kept per source by threshold; returns the plot and a function that moves its marker to a bin.
function keptCurve() {
  const series = seriesOf(MAIN.sources.map((source) => source.name));
  const height = 210, left = 44, right = 10, bottom = 24, above = 10;
  let markedBin = currentBin, marker = null, x = () => 0;
  const shares = MAIN.sources.map((source, n) => thresholds.map((_, bin) => ratio(keptAt(MAIN, n, bin), source.texts) ?? 0));
  const box = plot("Share of texts kept, by threshold; the table beside it has the numbers", (width) => {
    x = (bin) => left + (bin / (thresholds.length - 1)) * (width - left - right);
    const y = (share) => above + (1 - share) * (height - above - bottom);
    const svg = s("svg", { height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(s("path", { class: "axis", d: `M${left} ${y(share)}H${width - right}` }),
        s("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share, 0)));
    }
    for (const threshold of width > 460 ? [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999] : [0, 0.25, 0.5, 0.75, 0.999]) {
      svg.append(s("text", { x: x(thresholds.indexOf(threshold)), y: height - 6, "text-anchor": "middle" }, String(threshold)));
    }
    shares.forEach((row, n) => {
      const path = row.map((share, bin) => `${bin ? "L" : "M"}${x(bin)} ${y(share)}`).join("");
      svg.append(s("path", { class: `line s${series[n]}`, d: path }));
    });
    marker = s("path", { class: "cut", d: `M0 ${above}V${height - bottom}`, transform: `translate(${x(markedBin)})` });
    svg.append(marker);
    return svg;
  });
  const setMarker = (bin) => {
    markedBin = bin;
    marker?.setAttribute("transform", `translate(${x(bin)})`);
  };
  return [box, setMarker];
}

async function copyText(code, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    // An old browser, or no permission for the clipboard: select the text for the user to copy.
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}
