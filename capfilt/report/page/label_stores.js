// Where the labelling view keeps its answers: in the browser, or on the disk of the server of `capfilt label`.
// A store has `answers` (id of a text -> "1", "0" or "unsure"), `set(id, answer)`, where null removes an answer,
// `problem` (a sentence, or null) and `unsaved`, the number of answers that a closed page would lose.

const isAnswer = (value) => value === "1" || value === "0" || value === "unsure";

// Other pages with the same key, such as a second tab, are merged: an answer changes its own entry only.
function browserStore(label, changed) {
  const name = `capfilt-labels ${label.set} ${label.seed}`;
  const store = { answers: new Map(), problem: null, get unsaved() { return store.problem ? store.answers.size : 0; } };
  const read = () => {
    const text = localStorage.getItem(name);
    try {
      return new Map(Object.entries(JSON.parse(text ?? "{}")).filter(([, answer]) => isAnswer(answer)));
    } catch {
      localStorage.setItem(`${name} damaged`, text);
      return new Map();
    }
  };
  const use = (work) => {
    try {
      work();
      store.problem = null;
    } catch {
      store.problem = "This browser keeps no data of this page: download the labels before you close it.";
    }
  };
  const apply = (answers, id, answer) => (answer === null ? answers.delete(id) : answers.set(id, answer));
  store.set = (id, answer) => {
    apply(store.answers, id, answer);
    use(() => {
      const answers = read();
      apply(answers, id, answer);
      localStorage.setItem(name, JSON.stringify(Object.fromEntries(answers)));
      store.answers = answers;
    });
  };
  use(() => { store.answers = read(); });
  addEventListener("storage", (event) => {
    if (event.key !== name && event.key !== null) return;
    use(() => { store.answers = read(); });
    changed();
  });
  return store;
}

// Answers are sent one after the other; those that could not be saved wait in the page and are sent again.
function serverStore(label, changed) {
  const waiting = new Map();
  const store = { answers: new Map(Object.entries(label.answers)), problem: null, get unsaved() { return waiting.size; } };
  let isSending = false;
  const post = async (id, answer) => {
    let response;
    try {
      response = await fetch("answer", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ id, answer }) });
    } catch {
      return "The server does not answer. Start the same `capfilt label` command again; until then answers wait in this page.";
    }
    return response.ok ? null : response.text();
  };
  const send = async () => {
    if (isSending) return;
    isSending = true;
    while (waiting.size) {
      const [id, answer] = waiting.entries().next().value;
      store.problem = await post(id, answer);
      if (store.problem === null && waiting.get(id) === answer) waiting.delete(id);
      changed();
      if (store.problem !== null) await new Promise((resolve) => { setTimeout(resolve, 1000); });
    }
    isSending = false;
  };
  store.set = (id, answer) => {
    if (answer === null) store.answers.delete(id);
    else store.answers.set(id, answer);
    waiting.set(id, answer);
    send();
  };
  return store;
}

// The labels file that `capfilt filter --labels` and `capfilt finetune retrieval --labels` read.
function labelsFile(texts, answers) {
  // A spreadsheet would run a text that starts like a formula.
  const plain = (text) => text.slice(0, 1000).replace(/[\u0000-\u0020\u007f\u0085\u00a0\u2028\u2029]+/g, " ").trim().replace(/^[=+\-@]/, "'$&");
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const rows = texts.filter((text) => answers.has(text.id)).map((text) =>
    [text.shard, text.key, text.source, String(text.index), answers.get(text.id), text.drawn, plain(text.text)]);
  return [["shard", "key", "source", "index", "match", "drawn", "text"], ...rows].map((row) => `${row.map(cell).join(",")}\n`).join("");
}
