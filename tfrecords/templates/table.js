"use strict";
// Shows the tables and galleries that stand as JSON in `.list`: sorted, searched, filtered, one page at a time.

const SVG = new DOMParser().parseFromString("<svg>", "text/html").querySelector("svg").namespaceURI;

function make(tag, attributes = {}, ...children) {
  const node = tag === "svg" || tag === "rect" ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function written(value, column) {
  if (value === null) return "–";
  if (!column.number) return String(value);
  const digits = {minimumFractionDigits: column.digits, maximumFractionDigits: column.digits};
  return (column.percent ? 100 * value : value).toLocaleString("en", digits) + (column.percent ? " %" : "");
}

function photo({src, width, height, alt, boxes}) {
  const rects = boxes.flatMap(({sides: [xmin, ymin, xmax, ymax], kind}) =>
    ["under", kind].map((look) => make("rect", {class: look, x: xmin, y: ymin, width: xmax - xmin, height: ymax - ymin})));
  return make("div", {class: "photo", style: `aspect-ratio: ${width} / ${height}; --shape: ${width / height}`},
    make("img", {src, alt, width, height}),
    make("svg", {viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true"}, ...rects));
}

function card({photos, title, lines, badges}) {
  return make("li", {class: photos.length > 1 ? "card wide" : "card"},
    make("div", {class: "photos"}, ...photos.map(photo)),
    make("p", {class: "title"}, title),
    make("p", {class: "badges", hidden: !badges.length}, ...badges.map((text) => make("span", {}, text))),
    ...lines.map((text) => make("p", {class: "line"}, text)));
}

function cell(row, column, number, largest) {
  const text = written(row[number], column);
  if (number === 0) return make("th", {scope: "row"}, text);
  if (!column.bar.length) return make("td", {class: column.number && "number"}, text);
  const bar = make("span", {class: "bar", "aria-hidden": "true"});
  column.bar.forEach((part, look) =>
    bar.append(make("i", {class: `part-${look}`, style: `width: ${100 * (row[part] || 0) / (largest[number] || 1)}%`})));
  return make("td", {class: "with-bar"}, make("div", {}, make("span", {class: "value"}, text), bar));
}

const order = new Intl.Collator("en", {numeric: true, sensitivity: "base"}).compare;

function compare(a, b) {
  if (a === null || b === null) return 0;
  return typeof a === "number" ? a - b : order(a, b);
}

function show(place) {
  const list = JSON.parse(place.querySelector("script").textContent);
  const isTable = Boolean(list.columns);
  const items = isTable ? list.rows : list.cards;
  const facetOf = (item, number) => isTable ? item[list.facets[number].column] : item.facets[number];
  const texts = items.map((item) => (isTable ? item.filter((value) => typeof value === "string")
    : [item.title, ...item.lines, ...item.badges, ...item.photos.map((one) => one.alt)]).join("\n").toLowerCase());
  const largest = isTable ? list.columns.map(({bar}) =>
    items.reduce((most, row) => Math.max(most, bar.reduce((sum, part) => sum + (row[part] || 0), 0)), 0)) : [];
  let {sort = null, descending = false} = list;
  let page = 0, chosen = [];

  const search = make("input", {type: "search", oninput: () => choose(), autocomplete: "off", spellcheck: "false"});
  const selects = list.facets.map(({name}, number) => {
    const values = [...new Set(items.map((item) => facetOf(item, number)))];
    if (values.length > 6) values.sort(order);
    return make("select", {onchange: () => choose()}, make("option", {value: ""}, "all"),
      ...values.map((value) => make("option", {value: `=${value}`}, value)));
  });
  const status = make("p", {role: "status", class: "quiet"});
  const at = make("input", {type: "number", min: 1, onchange: () => turn(at.value - 1), "aria-label": `Page of ${list.label}`});
  const of = make("span");
  const button = (text, hint, where) => make("button",
    {type: "button", title: hint, "aria-label": `${hint} of ${list.label}`, onclick: () => turn(where())}, text);
  const back = [button("«", "First page", () => 0), button("‹", "Previous page", () => page - 1)];
  const on = [button("›", "Next page", () => page + 1), button("»", "Last page", () => Infinity)];
  const pager = make("nav", {class: "pager", "aria-label": `Pages of ${list.label}`},
    ...back, make("span", {class: "place"}, at, of), ...on);
  const headers = isTable ? list.columns.map((column, number) => make("th",
    {scope: "col", class: column.bar.length ? "with-bar" : column.number && "number"},
    make("button", {type: "button", title: column.hint || false, onclick: () => sortBy(number)}, column.name))) : [];
  const body = isTable ? make("tbody") : make("ul", {class: "cards", "aria-label": list.label});
  const view = isTable ? make("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": list.label},
    make("table", {}, make("thead", {}, make("tr", {}, ...headers)), body)) : body;

  const pages = () => Math.max(1, Math.ceil(chosen.length / list.size));

  function choose() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    chosen = items.map((_, number) => number).filter((number) => words.every((word) => texts[number].includes(word))
      && selects.every(({value}, facet) => !value || value === `=${facetOf(items[number], facet)}`));
    if (sort !== null) {
      const key = (number) => items[number][sort];
      // What is absent comes last in both directions.
      chosen.sort((a, b) => (key(a) === null) - (key(b) === null) || (descending ? -1 : 1) * compare(key(a), key(b)));
    }
    turn(0);
  }

  function sortBy(number) {
    // Of numbers the largest are wanted first, of names the first.
    descending = sort === number ? !descending : list.columns[number].number;
    sort = number;
    choose();
  }

  function turn(to) {
    page = Math.min(Math.max(Math.floor(to) || 0, 0), pages() - 1);
    if (to === Infinity) page = pages() - 1;
    const first = page * list.size;
    const shown = chosen.slice(first, first + list.size).map((number) => items[number]);
    body.replaceChildren(...shown.map((item) => !isTable ? card(item) : make("tr", {},
      ...list.columns.map((column, number) => cell(item, column, number, largest)))));
    const all = items.length.toLocaleString("en"), some = chosen.length.toLocaleString("en");
    const range = chosen.length ? `${(first + 1).toLocaleString("en")}–${(first + shown.length).toLocaleString("en")} of ` : "";
    status.textContent = `${range}${some} ${list.noun}` + (chosen.length < items.length ? `, out of ${all}` : "");
    at.value = page + 1;
    at.max = pages();
    of.textContent = ` of ${pages().toLocaleString("en")}`;
    pager.hidden = pages() < 2;
    // Not `disabled`, which would take the keyboard's focus away.
    for (const one of back) one.setAttribute("aria-disabled", page === 0);
    for (const one of on) one.setAttribute("aria-disabled", page === pages() - 1);
    headers.forEach((header, number) => header.setAttribute("aria-sort",
      sort !== number ? "none" : descending ? "descending" : "ascending"));
  }

  const few = items.length <= list.size && !list.facets.length;
  place.replaceChildren(
    make("div", {class: "tools", hidden: few},
      make("label", {class: "search"}, "search", search),
      ...selects.map((select, number) => make("label", {}, list.facets[number].name, select))),
    make("div", {class: "above", hidden: few}, status, pager), view);
  choose();
}

document.querySelectorAll(".list").forEach(show);
