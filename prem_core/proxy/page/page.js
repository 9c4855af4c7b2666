"use strict";
// Everything here comes from the proxy's own record, and a model's name in it from a caller: it is set as text, never as HTML.

const KEPT = 200;
const NAMES = ["Time", "Route", "Model", "Status", "First token", "Took", "Tokens in / out", "Bytes out / in", "Support id", ""];
const exchanges = new Map(); // id → {exchange, row, seen}
const at = (id) => document.getElementById(id);
const unknown = "–";

const milliseconds = (seconds) =>
  seconds === null ? unknown : seconds < 10 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
const bytes = (size) =>
  size < 1000 ? `${size} B` : size < 1e6 ? `${(size / 1000).toFixed(1)} kB` : `${(size / 1e6).toFixed(1)} MB`;
const count = (tokens) => (tokens === null ? unknown : tokens.toLocaleString("en"));

function status(exchange) {
  const code = exchange.status === null ? "" : ` ${exchange.status}`;
  if (exchange.state === "running") return exchange.first_token === null ? "waiting" : `streaming${code}`;
  if (exchange.state === "left") return `caller left${code}`;
  return exchange.state === "failed" ? `failed${code} ${exchange.error ?? ""}`.trim() : `done${code}`;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function show(exchange) {
  let kept = exchanges.get(exchange.id);
  if (kept) kept.exchange = exchange;
  else {
    kept = made(exchange);
    at("rows").prepend(kept.row, kept.seen);
    exchanges.set(exchange.id, kept);
    for (const [id, old] of exchanges) {
      if (exchanges.size <= KEPT) break;
      old.row.remove();
      old.seen.remove();
      exchanges.delete(id);
    }
  }
  fill(kept);
}

function made(exchange) {
  const row = element("tr");
  for (const name of NAMES) row.append(element("td"));
  NAMES.forEach((name, i) => (row.cells[i].dataset.name = name));
  row.cells[0].className = "time";
  for (const i of [4, 5, 6, 7]) row.cells[i].className = "n";
  row.cells[8].className = "id";
  const seen = element("tr", undefined, "seen");
  seen.hidden = true;
  seen.id = `seen-${exchange.id}`;
  seen.append(Object.assign(element("td"), { colSpan: NAMES.length }));
  const button = element("button", "Gateway’s view");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-controls", seen.id);
  button.addEventListener("click", () => {
    seen.hidden = !seen.hidden;
    button.setAttribute("aria-expanded", String(!seen.hidden));
  });
  row.cells[9].append(button);
  return { exchange, row, seen };
}

function fill({ exchange, row, seen }) {
  const cells = row.cells;
  cells[0].textContent = new Date(exchange.began * 1000).toLocaleTimeString();
  cells[1].textContent = exchange.route;
  cells[2].textContent = exchange.model ?? unknown;
  cells[3].textContent = status(exchange);
  cells[3].className = exchange.state;
  cells[4].textContent = milliseconds(exchange.first_token);
  cells[5].textContent = milliseconds(exchange.seconds);
  cells[6].textContent = `${count(exchange.prompt_tokens)} / ${count(exchange.completion_tokens)}`;
  cells[7].textContent = `${bytes(exchange.gateway_request.size)} / ${bytes(exchange.gateway_reply.size)}`;
  cells[8].textContent = exchange.support_id ?? unknown;
  const view = seen.cells[0];
  view.replaceChildren(
    element("h2", "As the gateway saw it"),
    element("p", "Who asked and when, these sizes and times, and the bytes below. Model, messages, tools and answer are inside the ciphertext."),
    element("h2", `Sent, ${bytes(exchange.gateway_request.size)}${exchange.attempts > 1 ? `, in ${exchange.attempts} tries` : ""}`),
    element("pre", peek(exchange.gateway_request)),
    element("h2", `Came back, ${bytes(exchange.gateway_reply.size)}`),
    element("pre", peek(exchange.gateway_reply)),
  );
}

const peek = (wire) => (wire.head ? wire.head + (wire.size > wire.head.length ? " …" : "") : "nothing that is sealed");

function sum() {
  const all = [...exchanges.values()].map((kept) => kept.exchange);
  at("total").textContent = all.length >= KEPT ? `last ${KEPT}` : String(all.length);
  at("running").textContent = String(all.filter((each) => each.state === "running").length);
  at("failed").textContent = String(all.filter((each) => each.state === "failed").length);
  at("tokens").textContent = count(all.reduce((n, each) => n + (each.prompt_tokens ?? 0) + (each.completion_tokens ?? 0), 0));
  at("empty").hidden = all.length > 0;
  at("table").hidden = all.length === 0;
}

at("base").textContent = `${location.origin}/v1`;
const source = new EventSource("exchanges");
source.addEventListener("open", () => (at("link").textContent = "live"));
source.addEventListener("error", () => (at("link").textContent = "reconnecting"));
source.addEventListener("latest", (event) => {
  exchanges.clear();
  at("rows").replaceChildren();
  JSON.parse(event.data).reverse().forEach(show);
  sum();
});
source.addEventListener("message", (event) => {
  const exchange = JSON.parse(event.data);
  if (!exchange.id) return; // the proxy's word that it stops
  show(exchange);
  sum();
});
