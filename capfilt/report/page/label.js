// The labelling view: one picture and text at a time, answered with the arrow keys or buttons.
// Scores, verdicts and sources are hidden, so that they do not influence the answers.

const ANSWERS = new Map([
  ["0", { name: "Wrong", key: "ArrowLeft", sign: "←" }],
  ["unsure", { name: "Unsure", key: "ArrowDown", sign: "↓" }],
  ["1", { name: "Right", key: "ArrowRight", sign: "→" }],
]);
const PICTURES_AHEAD = 4;
const PICTURES_BEHIND = 2;
const LONGEST_GAP = 60_000; // milliseconds; a longer one is a pause and does not count for the pace
const GAPS = 20; // answers that the pace is the mean of

function labelSection() {
  const intro = "Does the text describe its picture?";
  if (!REPORT.label) {
    const command = h("code", {}, `capfilt label ${quote(MAIN.path)}`);
    return section("label", "Label", `${intro} The filter learns from a few hundred answers. This command opens the labelling view; \`capfilt report --label 300\` puts it into this page.`,
      h("div", { class: "command" }, command));
  }
  return section("label", "Label", `${intro} Right: every word of it can be true of this picture. Wrong: an object, number, colour, size, place or relation is not so, or the text is about something else.`,
    labeller(REPORT.label));
}

function labeller(label) {
  const { texts } = label;
  const store = label.served ? serverStore(label, () => update()) : browserStore(label, () => update());
  const pictures = new Map(); // number of a text -> { node, state, reason }
  const answered = []; // numbers of the texts answered in this page, the last one last
  const gaps = []; // milliseconds between the last answers
  let lastTime = null, at = 0;

  const frame = h("div", { class: "label-frame" });
  const words = h("p", { class: "label-text", dir: "auto", "aria-live": "polite" });
  const progress = h("progress", { max: texts.length, "aria-label": "Texts labelled" });
  const counter = h("span", { class: "label-count" });
  const pace = h("span", { class: "soft" });
  const last = h("p", { class: "small soft label-last", role: "status" });
  const saved = h("p", { class: "small label-saved", role: "status" });
  const key = (sign) => h("kbd", { "aria-hidden": "true" }, sign);
  const buttons = [...ANSWERS].map(([answer, { name, key: shortcut, sign }]) =>
    h("button", { type: "button", class: `answer-${answer}`, "aria-keyshortcuts": shortcut, onclick: () => give(answer) }, name, key(sign)));
  const undoButton = h("button", { type: "button", class: "quiet", "aria-keyshortcuts": "ArrowUp Backspace", onclick: () => undo() }, "Undo", key("↑"));
  const download = h("button", { type: "button", onclick: () => save() });
  const done = h("div", { class: "label-done" });
  const help = h("p", { class: "small soft label-help" }, "The arrow keys answer; ", key("Backspace"), " undoes too.",
    label.served ? null : h("span", { class: "label-focus" }, " Click here, or move to a button with Tab, to use the keys."));
  const panel = h("div", { class: "labeller", role: "group", "aria-label": "Labelling", tabindex: 0 },
    h("div", { class: "label-progress" }, counter, progress, pace), frame, words,
    h("div", { class: "label-answers" }, buttons, undoButton), help, last, done);
  (label.served ? document : panel).addEventListener("keydown", onKey);
  addEventListener("beforeunload", (event) => { if (store.unsaved) event.preventDefault(); });

  function onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const answer = [...ANSWERS.keys()].find((name) => ANSWERS.get(name).key === event.key);
    if (answer === undefined && event.key !== "ArrowUp" && event.key !== "Backspace") return;
    event.preventDefault();
    if (event.repeat) return; // a key held down answers once
    if (answer === undefined) undo();
    else give(answer);
  }

  // The element of a text's picture, once decoded: it is shown without delay.
  function picture(number) {
    if (pictures.has(number)) return pictures.get(number);
    const text = texts[number], image = { node: h("img", { alt: `Picture ${text.key}` }), state: "loading", reason: null };
    const fail = (reason) => Object.assign(image, { state: "missing", reason });
    const stored = label.pictures?.[`${text.shard}/${text.key}`];
    pictures.set(number, image);
    if (stored?.missing) fail(stored.missing);
    else {
      image.node.src = stored ? stored.image : `picture/${number}`;
      image.node.decode()
        .then(() => { image.state = "ready"; }, async () => fail(stored ? "not readable" : await reasonOf(number)))
        .then(() => { if (number === at) show(); });
    }
    return image;
  }

  async function reasonOf(number) {
    try {
      const response = await fetch(`picture/${number}`);
      return response.ok ? "not readable" : await response.text();
    } catch {
      return "the server does not answer; reload the page when it runs again";
    }
  }

  function preload() {
    for (let number = at - PICTURES_BEHIND; number <= at + PICTURES_AHEAD; number += 1) if (texts[number]) picture(number);
    for (const number of [...pictures.keys()]) {
      if (number < at - PICTURES_BEHIND || number > at + PICTURES_AHEAD) pictures.delete(number);
    }
  }

  // The first text without an answer from `start` on, then from the beginning; the number of texts if there is none.
  function nextOpen(start) {
    const isOpen = (text) => !store.answers.has(text.id);
    const later = texts.findIndex((text, number) => number >= start && isOpen(text));
    if (later >= 0) return later;
    const earlier = texts.findIndex(isOpen);
    return earlier >= 0 ? earlier : texts.length;
  }

  function give(answer) {
    const text = texts[at];
    if (!text) return;
    const { state } = picture(at);
    if (state === "loading") return; // nobody can judge a picture before it is shown
    if (state === "missing" && answer !== "unsure") {
      last.textContent = "Without its picture a text can only be unsure.";
      return;
    }
    const now = performance.now();
    if (lastTime !== null && now - lastTime < LONGEST_GAP) gaps.push(now - lastTime);
    if (gaps.length > GAPS) gaps.shift();
    lastTime = now;
    store.set(text.id, answer);
    answered.push(at);
    at = nextOpen(at + 1);
    last.textContent = `Last answer: ${ANSWERS.get(answer).name.toLowerCase()}.`;
    show();
  }

  function undo() {
    let number = answered.pop();
    if (number === undefined) number = texts.findLastIndex((text, n) => n < at && store.answers.has(text.id));
    if (number < 0) return;
    store.set(texts[number].id, null);
    at = number;
    last.textContent = "The last answer is removed.";
    show();
  }

  function save() {
    const url = URL.createObjectURL(new Blob([labelsFile(texts, store.answers)], { type: "text/csv" }));
    h("a", { href: url, download: label.file }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  // After a change of the answers, perhaps by another tab, which may have answered the text in view.
  function update() {
    at = nextOpen(at);
    show();
  }

  function show() {
    preload();
    const number = texts.filter((text) => store.answers.has(text.id)).length, left = texts.length - number;
    progress.value = number;
    counter.textContent = `${count(number)} of ${count(texts.length)}`;
    const perMinute = gaps.length > 2 ? 60_000 / (sum(gaps) / gaps.length) : 0;
    pace.textContent = perMinute && left ? `${decimals(perMinute, 1)} a minute, about ${plural(Math.ceil(left / perMinute), "minute")} left` : "";
    const text = texts[at];
    buttons.forEach((button) => { button.disabled = !text; });
    undoButton.disabled = number === 0;
    showText(text);
    showSaved(number);
    done.replaceChildren(...(text ? [] : [h("p", {}, "All texts are labelled. This command reads the labels:"), h("div", { class: "command" }, h("code", {}, label.command))]));
  }

  function showText(text) {
    frame.hidden = words.hidden = !text;
    if (!text) return;
    const { node, state, reason } = picture(at);
    const content = state === "ready" ? node : h("span", {}, state === "loading" ? "Loading the picture …" : `No picture: ${reason}`);
    if (frame.firstChild !== content) frame.replaceChildren(content);
    if (words.dataset.id === text.id) return;
    words.dataset.id = text.id;
    words.replaceChildren(text.text, text.cut ? h("span", { class: "soft" }, ` … and ${plural(text.cut, "more character")}`) : "");
  }

  function showSaved(number) {
    saved.className = store.problem ? "notice label-saved" : "small soft label-saved";
    if (store.problem) saved.textContent = label.served ? `${plural(store.unsaved, "answer")} not saved. ${store.problem}` : store.problem;
    else if (label.served) saved.textContent = store.unsaved ? "Saving …" : `Every answer is saved in ${label.file}.`;
    else saved.textContent = "Every answer is kept in this browser.";
    download.textContent = `Download ${label.file} (${plural(number, "label")})`;
    download.disabled = number === 0;
  }

  at = nextOpen(0);
  show();
  return [panel, h("div", { class: "label-file" }, saved, label.served ? null : download)];
}
