/* The list of a store's sequences, a page at a time. */

const PAGE_SIZE = 50;

async function showList(place, store, page, go) {
  const answer = await source.sequences(store, page * PAGE_SIZE, PAGE_SIZE);
  const pages = Math.max(1, Math.ceil(answer.total / PAGE_SIZE));
  const last = answer.start + answer.sequences.length;
  const range = answer.sequences.length
    ? `${number(answer.start)} to ${number(last - 1)} of ${number(answer.total)}`
    : "none committed yet";
  place.replaceChildren(
    element("h2", {}, "Sequences"),
    element(
      "nav",
      { class: "bar", "aria-label": "Pages" },
      pageButton("First", page > 0, () => go({ store, page: 0 })),
      pageButton("Previous", page > 0, () => go({ store, page: page - 1 })),
      element("span", { class: "grow", id: "range" }, range),
      jumpForm(answer.total, (index) => go({ store, sequence: index })),
      pageButton("Next", page + 1 < pages, () => go({ store, page: page + 1 })),
      pageButton("Last", page + 1 < pages, () => go({ store, page: pages - 1 })),
    ),
    sequenceTable(answer.sequences, store),
  );
  return { pages };
}

function pageButton(label, enabled, action) {
  const button = element("button", { type: "button", on: { click: action } }, label);
  button.disabled = !enabled;
  return button;
}

function jumpForm(total, jump) {
  const input = element("input", {
    type: "number", id: "jump", min: "0", max: String(Math.max(0, total - 1)), inputmode: "numeric",
    "aria-label": "Number of a sequence to open", placeholder: "number",
  });
  const open = () => {
    const index = Number.parseInt(input.value, 10);
    if (input.value !== "" && index >= 0 && index < total) jump(index);
    else input.select();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") open();
  });
  return element("span", { class: "jump" }, input, element("button", { type: "button", on: { click: open } }, "Go"));
}

function sequenceTable(sequences, store) {
  const body = element("tbody");
  for (const one of sequences) {
    const target = `#store=${store}&sequence=${one.index}`;
    const name = one.sample_index ? `${one.record_id} · sample ${one.sample_index}` : one.record_id;
    body.append(
      element(
        "tr",
        {},
        element("td", { class: "right" }, number(one.index)),
        element("td", { class: "record" }, element("a", { href: target }, name)),
        element("td", { class: "right" }, number(one.num_tokens)),
        element("td", { class: "right" }, number(one.num_rows)),
        element("td", {}, [one.finish_reason, ...one.flags].join(", ")),
        element("td", { class: "preview", dir: "auto" }, one.preview.replace(/\s+/g, " ")),
      ),
    );
  }
  const heads = ["#", "record", "tokens", "rows", "end", "text"].map((text) => element("th", { scope: "col" }, text));
  return element("div", { class: "scroll" }, element("table", { class: "sequences" }, element("thead", {}, element("tr", {}, ...heads)), body));
}
