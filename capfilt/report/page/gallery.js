// The gallery: pictures with their texts, scores and verdicts, in tabs by kind.

const PAGE_SIZE = 6;
const KINDS = {
  changed: ["Different verdicts", `Texts that only one of the sets keeps; largest difference of ITM from ${MAIN.name} first.`],
  threshold: ["Near the threshold", "Texts whose ITM is closest to the threshold of this set: the hardest cases."],
  random: ["Random", "Pictures in random order."],
  disagree: ["Disagreement", `Texts above the ITM threshold with the lowest ${MAIN.scores.clip ? "CLIP" : "ITC"} scores.`],
  repeated: ["Most repeated", "One picture for each of the most frequent texts."],
};
// Shows the verdicts at the slider's threshold; set once the gallery exists.
let updateVerdicts = () => {};

function gallery() {
  const kinds = Object.keys(KINDS).filter((kind) => REPORT.gallery.kinds[kind]?.length);
  state.kind = kinds[0];
  const note = h("p", { class: "intro", id: "kind-note" });
  const cards = h("ul", { class: DATASETS.length > 1 ? "cards several" : "cards" });
  const pageNumber = h("span", { role: "status" });
  const pageButton = (step, name) => h("button", { type: "button", onclick: () => { state.page += step; show(); } }, name);
  const previous = pageButton(-1, "← Previous"), next = pageButton(1, "Next →");
  const pager = h("nav", { class: "pager", "aria-label": "Pages of the gallery" }, previous, pageNumber, next);
  const panel = h("div", { role: "tabpanel", id: "kind-panel", tabindex: 0 }, note, cards, pager);
  const tabs = kinds.map((kind) => h("button", { type: "button", role: "tab", id: `tab-${kind}`, "aria-controls": "kind-panel", onclick: () => select(kind) }, KINDS[kind][0]));
  const tabList = h("div", { role: "tablist", "aria-label": "Kinds of pictures", onkeydown: (event) => {
    const current = kinds.indexOf(state.kind), last = kinds.length - 1;
    const target = { ArrowRight: current === last ? 0 : current + 1, ArrowLeft: current ? current - 1 : last, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    select(kinds[target]);
    tabs[target].focus();
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
    pageNumber.textContent = `Page ${state.page + 1} of ${pages}`;
    previous.disabled = state.page === 0;
    next.disabled = state.page >= pages - 1;
    updateVerdicts();
  }

  updateVerdicts = () => {
    for (const node of cards.children) {
      const picture = REPORT.gallery.pictures[node.dataset.picture];
      const reasons = reasonsAt(picture.texts, thresholds[state.bin], MAIN);
      node.querySelectorAll(".main-set .text").forEach((text, n) => showVerdict(text, reasons[n]));
    }
  };
  show();
  return [tabList, panel];
}

function card(pick) {
  const picture = REPORT.gallery.pictures[pick.picture];
  const image = picture.image
    ? h("img", { src: picture.image, alt: `Picture ${picture.key}`, decoding: "async" })
    : h("span", {}, `No picture: ${picture.missing}`);
  const times = (text) => (pick.times && text.source === pick.source && text.index === pick.index ? pick.times : null);
  const textsOf = (entry, n) => {
    if (!entry) return h("p", { class: "small soft" }, "This set does not have the picture.");
    return h("ul", { class: "verdicts" }, entry.texts.map((text) => textItem(text, DATASETS[n], n ? null : times(text))),
      entry.more ? h("li", { class: "small soft" }, `and ${plural(entry.more, "more text")}`) : null);
  };
  return h("li", { class: "card", "data-picture": pick.picture }, h("div", { class: "frame" }, image),
    h("p", { class: "where" }, h("span", { class: "key" }, picture.key), picture.host ? h("span", {}, picture.host) : null),
    h("div", { class: "beside" }, [picture, ...(picture.others ?? [])].map((entry, n) =>
      h("div", { class: n ? "other-set" : "main-set" }, DATASETS.length > 1 ? h("p", { class: "set-name" }, DATASETS[n].name) : null, textsOf(entry, n)))));
}

// Set the colour, mark and words of a text to its reason.
function showVerdict(node, reason) {
  const kept = reason === "kept";
  node.className = `text ${kept ? "kept" : "dropped"}`;
  node.dataset.reason = reason;
  node.querySelector(".mark").textContent = kept ? "✓" : "✗";
  node.querySelector(".verdict").textContent = reasonText(reason);
  return node;
}

// Return a text, or its sentences, each underlined in the colour of its score; those that were cut are struck out.
function wordsOf(text) {
  if (!text.sentences) return text.text || "(no text)";
  const parts = [];
  let place = 0;
  for (const { start, end, itm, cut } of text.sentences) {
    const node = h(cut ? "del" : "span", { class: "sentence" }, text.text.slice(start, end));
    node.style.setProperty("--score", itm === null ? 0 : itm);
    parts.push(text.text.slice(place, start), node, h("sub", {}, ` ${itm === null ? "–" : decimals(itm, 2)}${cut ? " cut" : ""}`));
    place = end;
  }
  return [...parts, text.text.slice(place)];
}

function textItem(text, data, times) {
  const scores = Object.keys(data.scores).filter((name) => text[name] !== null);
  return showVerdict(h("li", {}, h("span", { class: "mark", "aria-hidden": "true" }), h("div", {},
    h("p", { class: "words", dir: "auto" }, wordsOf(text), text.cut ? h("span", { class: "soft" }, ` … and ${plural(text.cut, "more character")}`) : null),
    h("p", { class: "facts" }, h("span", { class: "source" }, sourceTitle(text.source)), scores.map((name) => h("span", {}, `${scoreTitle(name)} ${decimals(text[name], 3)}`)),
      times ? h("span", {}, `occurs ${count(times)} times`) : null, h("span", { class: "verdict" })))), text.reason);
}
