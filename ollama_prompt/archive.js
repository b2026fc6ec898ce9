// The list of conversations: search, and rows that are made when somebody scrolls to them.
// Text goes into the page as text only: a title must not become an element.
"use strict";
{
  const AT_ONCE = 100;

  // Text without case and accents, each character by itself, as `folding.py` does it.
  const FOLDED = new Map(Object.entries({
    "ø": "o", "Ø": "o", "ł": "l", "Ł": "l", "đ": "d", "Đ": "d", "ħ": "h", "Ħ": "h", "\u0131": "i", "æ": "ae", "Æ": "ae",
    "œ": "oe", "Œ": "oe", "ð": "d", "Ð": "d", "þ": "th", "Þ": "th", "\u00ad": "", "\u200b": "", "\ufe0e": "", "\ufe0f": "",
  }));
  // A mark goes before another one that belongs closer to the letter; U+0345 belongs least close of all.
  const isMark = (char) => char === "\u0345" || `\u0345${char}`.normalize("NFD") !== `\u0345${char}`;
  const caseless = (char) => char.toLowerCase().toUpperCase().toLowerCase(); // ẞ → ß → SS → ss, ς → Σ → σ
  function folded(char) {
    if (/[\u3040-\u30ff\uac00-\ud7a3]/.test(char)) return char; // taken apart they would be others
    const letters = [...char.normalize("NFKD")].filter((part) => !isMark(part));
    const made = letters.map(caseless).join("").normalize("NFC");
    return /^\s+$/.test(made) && !/^\s$/.test(char) ? char : made; // an accent by itself
  }
  function foldedOnce(char) {
    if (!FOLDED.has(char)) FOLDED.set(char, folded(char));
    return FOLDED.get(char);
  }
  const fold = (text) => text.normalize("NFC").replace(/[^\x00-\x7f]/gu, foldedOnce).toLowerCase();

  const byId = (id) => document.getElementById(id);
  const rows = JSON.parse(byId("data").textContent);
  const field = byId("search"), list = byId("list"), status = byId("status"), end = byId("end");
  let words = [], found = rows, shown = 0;

  // What is searched: title, model, time, first words. An id only by its beginning: any number is in some of them.
  const haystack = (row) => (row.folded ??= fold([row[1], row[2], row[3], row[5]].join("\n")));
  const has = (row, word) => haystack(row).includes(word) || (word.length > 7 && row[0].startsWith(word));

  function add(parent, name, className, text) {
    const made = parent.appendChild(document.createElement(name));
    if (className) made.className = className;
    if (text) mark(made, text);
    return made;
  }

  // The words that were searched, marked. Folding changes lengths: where each folded character comes from is kept.
  function mark(parent, given) {
    const text = given.normalize("NFC"), starts = [], ends = [];
    let at = 0;
    for (const char of words.length ? text : "") {
      for (let length = fold(char).length; length > 0; length -= 1) {
        starts.push(at);
        ends.push(at + char.length);
      }
      at += char.length;
    }
    let done = 0;
    for (const [first, last] of places(fold(text))) {
      if (starts[first] < done) continue; // a second half of ß
      parent.append(text.slice(done, starts[first]));
      done = ends[last];
      parent.appendChild(document.createElement("mark")).textContent = text.slice(starts[first], done);
    }
    parent.append(text.slice(done));
  }

  // Where the words are: the first and the last character of each, the earliest before the others, then the longest.
  function* places(text) {
    let done = 0;
    while (done < text.length) {
      let at = -1, length = 0;
      for (const word of words) {
        const next = text.indexOf(word, done);
        if (next >= 0 && (at < 0 || next < at || (next === at && word.length > length))) {
          at = next;
          length = word.length;
        }
      }
      if (at < 0) return;
      yield [at, at + length - 1];
      done = at + length;
    }
  }

  function monthOf(row) {
    const time = new Date(row[3]);
    if (isNaN(time)) return "";
    return time.toLocaleDateString("en", { month: "long", year: "numeric", timeZone: "UTC" });
  }

  function addRow([id, title, model, time, count, words]) {
    const item = add(list, "li");
    const link = add(item, "a", "", title);
    link.href = `sessions/${id}.html`;
    link.dir = "auto";
    const facts = add(item, "p", "facts");
    if (time) add(facts, "span", "", `${time.slice(0, 10)} ${time.slice(11, 16)}`);
    if (model) add(facts, "span", "", model);
    add(facts, "span", "", count === 1 ? "1 message" : `${count} messages`);
    if (words) add(item, "p", "words", words).dir = "auto";
  }

  function more() {
    for (const row of found.slice(shown, shown + AT_ONCE)) {
      const month = monthOf(row);
      if (month && (!shown || month !== monthOf(found[shown - 1]))) add(list, "li", "month").textContent = month;
      addRow(row);
      shown += 1;
    }
    end.hidden = shown >= found.length;
  }

  function show() {
    const all = rows.length === 1 ? "1 conversation" : `${rows.length.toLocaleString("en")} conversations`;
    status.textContent = words.length ? `${found.length.toLocaleString("en")} of ${all}` : all;
    list.replaceChildren();
    shown = 0;
    more();
  }

  function search() {
    words = fold(field.value).split(/\s+/).filter(Boolean);
    found = rows.filter((row) => words.every((word) => has(row, word)));
    show();
  }

  // The search is a part of the address: it is still there when somebody comes back from a conversation.
  function take() {
    try {
      field.value = decodeURIComponent(location.hash.slice(1));
    } catch {
      field.value = "";
    }
    search();
  }

  field.addEventListener("input", () => {
    history.replaceState(null, "", `#${encodeURIComponent(field.value)}`);
    search();
  });
  addEventListener("hashchange", take);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && event.target !== field) {
      event.preventDefault();
      field.focus();
    }
  });
  end.addEventListener("click", more);
  new IntersectionObserver(([seen]) => seen.isIntersecting && more(), { rootMargin: "600px" }).observe(end);
  field.hidden = false;
  take();
}
