"use strict";
// A record holds text from a caller, such as the model's name: it is set as text, never as HTML.

const MAX_RECORDS = 200;
const NAMES = ["Time", "Route", "Model", "Status", "First token", "Took", "Tokens in / out", "Bytes out / in", "Nonce", "Support id", ""];
const entries = new Map(); // id → {record, row, details}
const at = (id) => document.getElementById(id);
const unknown = "–";

const milliseconds = (seconds) =>
  seconds === null ? unknown : seconds < 10 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
const bytes = (size) =>
  size < 1000 ? `${size} B` : size < 1e6 ? `${(size / 1000).toFixed(1)} kB` : `${(size / 1e6).toFixed(1)} MB`;
const count = (tokens) => (tokens === null ? unknown : tokens.toLocaleString("en"));

function status(record) {
  const code = record.status === null ? "" : ` ${record.status}`;
  if (record.state === "running") return record.time_to_first_token === null ? "waiting" : `streaming${code}`;
  if (record.state === "disconnected") return `disconnected${code}`;
  return record.state === "failed" ? `failed${code} ${record.error ?? ""}`.trim() : `done${code}`;
}

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function show(record) {
  let entry = entries.get(record.id);
  if (entry) entry.record = record;
  else {
    entry = newEntry(record);
    at("rows").prepend(entry.row, entry.details);
    entries.set(record.id, entry);
    for (const [id, old] of entries) {
      if (entries.size <= MAX_RECORDS) break;
      old.row.remove();
      old.details.remove();
      entries.delete(id);
    }
  }
  fill(entry);
}

function newEntry(record) {
  const row = element("tr");
  for (const name of NAMES) row.append(element("td"));
  NAMES.forEach((name, i) => (row.cells[i].dataset.name = name));
  row.cells[0].className = "time";
  for (const i of [4, 5, 6, 7]) row.cells[i].className = "n";
  row.cells[9].className = "id";
  const details = element("tr", undefined, "details");
  details.hidden = true;
  details.id = `details-${record.id}`;
  details.append(Object.assign(element("td"), { colSpan: NAMES.length }));
  const button = element("button", "Gateway’s view");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-controls", details.id);
  button.addEventListener("click", () => {
    details.hidden = !details.hidden;
    button.setAttribute("aria-expanded", String(!details.hidden));
  });
  row.cells[10].append(button);
  return { record, row, details };
}

function fill({ record, row, details }) {
  const cells = row.cells;
  cells[0].textContent = new Date(record.started_at * 1000).toLocaleTimeString();
  cells[1].textContent = record.route;
  cells[2].textContent = record.model ?? unknown;
  cells[3].textContent = status(record);
  cells[3].className = record.state;
  cells[4].textContent = milliseconds(record.time_to_first_token);
  cells[5].textContent = milliseconds(record.duration);
  cells[6].textContent = `${count(record.prompt_tokens)} / ${count(record.completion_tokens)}`;
  cells[7].textContent = `${bytes(record.gateway_request.size)} / ${bytes(record.gateway_response.size)}`;
  cells[8].textContent = record.protection?.reply_nonce ?? unknown;
  cells[8].className = { own: "own", "request's": "shared" }[record.protection?.reply_nonce] ?? "";
  cells[9].textContent = record.support_id ?? unknown;
  const view = details.cells[0];
  view.replaceChildren(
    element("h2", "What the gateway saw"),
    element("p", "The gateway sees the API key, these sizes and times, and the bytes below. The model, messages, tools and response are inside the ciphertext."),
    ...protection(record).map((text) => element("p", text)),
    element("h2", `Sent, ${bytes(record.gateway_request.size)}${record.attempts > 1 ? `, the last of ${record.attempts} requests` : ""}`),
    element("pre", preview(record.gateway_request)),
    element("h2", `Received, ${bytes(record.gateway_response.size)}`),
    element("pre", preview(record.gateway_response)),
  );
}

const NONCES = {
  own: "The response has a nonce of its own: the gateway cannot work out the response or the request from the ciphertexts.",
  "request's": "The response is sealed under the nonce of its request: the gateway can read it, put another one in its place and, by sending the request again, read the request.",
};

function protection({ protection }) {
  if (!protection) return ["No response has been opened."];
  const { key_fingerprint, key_source, attested, key_bound, reply_nonce } = protection;
  const key = `The request is sealed to the key ${key_fingerprint ?? "of the encryption keys"} (${key_source}).`;
  const proof = !attested
    ? "It is not attested: nothing proves that only an enclave has its private key."
    : key_bound
      ? "A genuine machine's attestation commits to it."
      : "A genuine machine answered through this gateway. That it has the private key of this key is not proven.";
  return [NONCES[reply_nonce], `${key} ${proof}`];
}

const preview = (body) => (body.head ? body.head + (body.size > body.head.length ? " …" : "") : "no sealed bytes");

function sum() {
  const all = [...entries.values()].map((entry) => entry.record);
  at("total").textContent = all.length >= MAX_RECORDS ? `last ${MAX_RECORDS}` : String(all.length);
  at("running").textContent = String(all.filter((each) => each.state === "running").length);
  at("failed").textContent = String(all.filter((each) => each.state === "failed").length);
  at("tokens").textContent = count(all.reduce((n, each) => n + (each.prompt_tokens ?? 0) + (each.completion_tokens ?? 0), 0));
  const key = all.findLast((each) => each.protection?.key_fingerprint)?.protection;
  at("key").textContent = key ? `${key.key_fingerprint.slice(0, 8)}, ${key.key_source}${key.attested ? (key.key_bound ? ", attested" : ", not bound by attestation") : ", not attested"}` : unknown;
  at("empty").hidden = all.length > 0;
  at("table").hidden = all.length === 0;
}

at("base").textContent = `${location.origin}/v1`;
const source = new EventSource("requests");
source.addEventListener("open", () => (at("link").textContent = "live"));
source.addEventListener("error", () => (at("link").textContent = "reconnecting"));
source.addEventListener("latest", (event) => {
  entries.clear();
  at("rows").replaceChildren();
  JSON.parse(event.data).reverse().forEach(show);
  sum();
});
source.addEventListener("message", (event) => {
  const record = JSON.parse(event.data);
  if (!record.id) return; // the error event of a proxy that stops
  show(record);
  sum();
});
