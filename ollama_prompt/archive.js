// The list of conversations: search, and rows that are made when somebody scrolls to them.
// Text goes into the page as text only: a title must not become an element.
"use strict";
{
  const AT_ONCE = 100;
  const fold = (text) => text.normalize("NFKD").replace(/\p{Mn}/gu, "").toLowerCase();
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

  // The words that were searched, marked; not where folding changes the length, and places in the text with it.
  function mark(parent, text) {
    const folded = fold(text);
    const places = folded.length === text.length ? words : [];
    let done = 0;
    while (done < text.length) {
      let at = -1, length = 0;
      for (const word of places) {
        const next = folded.indexOf(word, done);
        if (next >= 0 && (at < 0 || next < at || (next === at && word.length > length))) {
          at = next;
          length = word.length;
        }
      }
      if (at < 0) break;
      parent.append(text.slice(done, at));
      parent.appendChild(document.createElement("mark")).textContent = text.slice(at, at + length);
      done = at + length;
    }
    parent.append(text.slice(done));
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
