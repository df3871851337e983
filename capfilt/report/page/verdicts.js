// Verdicts: reasons in words, reasons at another threshold, and counts of kept texts.

// True for a reason such as "itm<0.5": the filter rejected the text by a score.
const rejectedByScore = (reason) => reason.includes("<") && !reason.startsWith("undecodable");

function reasonText(reason) {
  if (reason === "kept") return "kept";
  const below = rejectedByScore(reason) && reason.match(/^(\w+)<(.*)$/);
  if (below) return `dropped: ${scoreTitle(below[1])} below ${below[2]}`;
  if (reason.startsWith("undecodable: ")) return `dropped: picture cannot be decoded (${reason.slice(13)})`;
  return { duplicate: "dropped: repeats an earlier text", no_text: "dropped: no words",
    not_best: "dropped: not among the best" }[reason] ?? `dropped: ${reason}`;
}

// The reasons of texts at another threshold, as `capfilt filter` gives them. The ranking of a picture's texts does not
// depend on the threshold: `decided_by_score` has its result. Strata have limits of their own, which no slider moves.
function reasonsAt(texts, threshold, data) {
  return texts.map((text) => {
    if (data.has_strata && threshold === data.limits[data.score]) return text.reason;
    if (["duplicate", "no_text"].includes(text.reason) || /^(undecodable|unjudged): /.test(text.reason)) return text.reason;
    const limits = { ...data.limits, [data.score]: threshold };
    const failed = Object.entries(limits).find(([name, limit]) => !(text[name] >= limit && text[name] !== null));
    return failed ? `${failed[0]}<${failed[1]}` : text.decided_by_score ? "kept" : "not_best";
  });
}

const limitsText = (data) => Object.entries(data.limits).map(([name, limit]) => `${scoreTitle(name)} ≥ ${limit}`).join(", ");

const bestText = ({ number, score, across_sources }) =>
  number ? ` · best ${number} per ${across_sources ? "picture" : "picture and source"} by ${scoreTitle(score)}` : "";

// Texts that the threshold at the lower edge of `bin` keeps, of one source or of all: the tail of the histogram.
const keptAt = (data, source, bin) => sum(data.decided_by_score[source].slice(bin));
const allKeptAt = (data, bin) => sum(data.sources.map((_, source) => keptAt(data, source, bin)));

function totals(data) {
  const [texts, kept] = ["texts", "kept"].map((name) => sum(data.sources.map((source) => source[name])));
  return { texts, kept };
}

// The paper's noise ratio: the share of scored texts that the filter rejects.
function noiseRatio(sources) {
  const rejected = sum(sources.flatMap((source) =>
    Object.entries(source.dropped).filter(([reason]) => rejectedByScore(reason)).map(([, number]) => number)));
  return ratio(rejected, rejected + sum(sources.map((source) => source.kept)));
}

// The sources in two groups: web and synthetic.
function groups(data) {
  const web = data.sources.filter((source) => isWeb(source.name));
  const synthetic = data.sources.filter((source) => !isWeb(source.name));
  return [["Web texts", web], ["Synthetic texts", synthetic]].filter(([, sources]) => sources.length);
}
