"use strict";
// Shows what /events says, once a second. Whatever comes from there is put in as text, never as HTML.

const OLD_MS = 5000;  // a page that shows older news says so
const $ = (id) => document.getElementById(id);

function put(node, text) {  // only what changed is touched: a selection survives
  text = String(text);
  if (node.textContent !== text) node.textContent = text;
  return node;
}

function make(tag, text = "", className = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  return put(node, text);
}

function rows(parent, count, build) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(build());
  return [...parent.children];
}

// --- numbers for people --------------------------------------------------------------------------------------------

const whole = (n) => n.toLocaleString("en");
const many = (n, what) => `${whole(n)} ${what}${n === 1 ? "" : "s"}`;
const unknown = "?";

function seconds(s) {
  if (s === null || s === undefined) return unknown;
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 90) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${(s / 3600).toFixed(1)} h`;
  return `${Math.round(s / 86400)} d`;
}

const clock = (epoch) => `${new Date(epoch * 1000).toISOString().slice(11, 19)}Z`;  // as in the log

// --- the parts -----------------------------------------------------------------------------------------------------

const FINE = ["fresh", "waiting for its part of the room", "budget spent"];
const POOR = ["stale", "slow", "unknown", "overloaded", "breaker half-open", "withdrawn"];
const mark = (health) => (FINE.includes(health) ? "good" : POOR.includes(health) ? "warn" : "bad");

function spark(values, label) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "polyline");
  const top = Math.max(10, ...values);
  line.setAttribute("points", values.map((v, i) => `${(100 * i) / Math.max(1, values.length - 1)},${25 - (24 * v) / top}`).join(" "));
  svg.setAttribute("viewBox", "0 0 100 26");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  svg.append(line);
  return svg;
}

function tiles(s) {
  const age = s.message_age_seconds, master = s.queues.master, dead = s.queues.master_dlq.visible ?? 0;
  const theirs = s.queues.regional_dlq.visible ?? 0;
  const ledger = s.troubles["the ledger"] ? "no answer" : { closed: "answers", open: "no answer", half_open: "on trial" }[s.ledger] ?? s.ledger;
  const rate = (r) => (r === null ? unknown : `${r.toFixed(1)} /s`);
  const minutes = `the last ${Math.max(1, Math.round(s.history.master.length / 60))} min`;
  return [
    ["Dispatched", rate(s.dispatched_per_second), `${whole(s.totals.dispatched)} since start`, "", s.history.dispatched_per_second, `dispatched per second, ${minutes}`],
    ["Master backlog", whole(master.visible ?? 0), s.troubles["the depth of the master queue"] ? "at its last reading; none now" : `${whole(master.in_flight ?? 0)} in flight`, s.troubles["the depth of the master queue"] ? "warn" : "", s.history.master, `messages in the master queue, ${minutes}`],
    ["Age at dispatch", age ? seconds(age.p50) : "–", age ? `95 %: ${seconds(age.p95)}` : `none in ${s.window_seconds} s`],
    ["In flight here", whole(s.in_flight), `of ${whole(s.in_flight_limit)}; ${many(s.dispatchers, "dispatcher")}`],
    ["Duplicates", whole(s.totals.duplicate), "dropped"],
    ["Rejected", whole(s.totals.rejected), many(dead, "dead letter"), dead ? "warn" : ""],
    ["Workers gave up", whole(theirs), "regional dead letters", theirs ? "warn" : ""],
    ["Ledger", ledger, `breaker ${s.ledger.replace("_", "-")}`, { answers: "good", unknown: "" }[ledger] ?? "bad"],
  ];
}

function showTiles(s) {
  const build = () => {
    const tile = make("div");
    tile.append(make("dt"), make("dd"));
    return tile;
  };
  const said = tiles(s);
  rows($("tiles"), said.length, build).forEach((tile, i) => {
    const [name, value, note, level, history, label] = said[i];
    const [term, description] = tile.children;
    put(term, name);
    if (description.dataset.said === `${value} ${note} ${history}`) return;
    description.dataset.said = `${value} ${note} ${history}`;
    description.replaceChildren(make("span", value, level ?? ""), " ", make("small", note));
    if (history && history.length > 1) description.append(spark(history, label));
  });
}

const COLUMNS = ["Depth / threshold", "In flight", "Share", "Expected wait", "Drain", "Reading", "Health"];

function showRegions(regions) {
  const build = () => {
    const row = make("tr");  // roles said out loud: on a phone rows are blocks, and browsers forget what they are
    row.role = "row";
    const name = make("th");
    Object.assign(name, { scope: "row", role: "rowheader" });
    row.append(name, ...COLUMNS.map((column, i) => {
      const cell = make("td", "", i < COLUMNS.length - 1 ? "number" : "");
      cell.dataset.name = column;
      cell.role = "cell";
      cell.append(make("span"));
      if (i === 0 || i === 2) cell.append(make("meter"));
      if (i === COLUMNS.length - 1) cell.append(make("span", "", "why"));
      return cell;
    }));
    return row;
  };
  const names = Object.keys(regions);
  rows($("regions"), names.length, build).forEach((row, i) => {
    const r = regions[names[i]];
    const [name, depth, inFlight, share, wait, drain, reading, health] = row.children;
    row.dataset.region = names[i];
    put(name, names[i]);
    put(depth.children[0], `${r.depth === null ? unknown : whole(r.depth)} / ${whole(r.threshold)}`);
    meter(depth.children[1], r.depth ?? 0, r.threshold, `depth of ${names[i]}`);
    put(inFlight.children[0], r.in_flight === null ? unknown : whole(r.in_flight));
    put(share.children[0], `${(100 * r.share).toFixed(0)} %`);
    meter(share.children[1], r.share, 1, `share of ${names[i]}`);
    put(wait.children[0], seconds(r.projected_wait_seconds));
    put(drain.children[0], r.drain_per_second === null ? unknown : `${r.drain_per_second.toFixed(1)} /s`);
    put(reading.children[0], r.reading_age_seconds === null ? "never" : `${seconds(r.reading_age_seconds)} ago`);
    put(health.children[0], r.health).className = mark(r.health);
    put(health.children[1], r.reason);
  });
}

function meter(node, value, max, label) {
  Object.assign(node, { max: Math.max(max, 1e-9), value });
  node.setAttribute("aria-label", label);
}

function showList(list, items, empty, line) {
  const said = items.length ? items.map(line) : [["", empty]];
  rows(list, said.length, () => {
    const item = make("li");
    item.append(make("time"), " ", make("span"));
    return item;
  }).forEach((item, i) => {
    put(item.children[0], said[i][0]);
    put(item.children[1], said[i][1]);
  });
}

function choice(c) {
  const wait = c.projected_wait_seconds ? `, ${seconds(c.projected_wait_seconds)} expected` : "";
  const priority = c.priority === "normal" ? "" : `, ${c.priority}`;
  return [clock(c.at), `${c.region} · ${c.model_name}${priority} · ${c.policy}${wait}`];
}

const HINTS = { "message.rejected": "“dispatcher dlq list” says why" };
const LONGEST = 160;  // the log has it whole

function warning(w) {
  const what = HINTS[w.event] ?? Object.entries(w.what).map(([name, value]) => `${name}: ${value}`).join(" · ");
  const said = what.length > LONGEST ? `${what.slice(0, LONGEST)}…` : what;
  return [clock(w.last_at), `${w.event}${w.times > 1 ? ` (${whole(w.times)}×)` : ""} · ${said}`];
}

// --- news, and whether there are any ---------------------------------------------------------------------------------

let last = null;      // what was said last
let lastAt = 0;       // and when, on this machine's clock
let connected = false;

function show(s) {
  put($("state"), `${s.state} for ${seconds(s.uptime_seconds)}`).className = `pill ${s.state === "running" ? "good" : "warn"}`;
  const fallback = s.policy_in_force === s.policy ? "" : `, in place of ${s.policy}`;
  put($("policy"), `${s.policy_in_force}${fallback}`);
  put($("version"), `version ${s.version}`);
  showTiles(s);
  showRegions(s.regions);
  showList($("choices"), s.choices, "none yet", choice);
  showList($("warnings"), s.warnings, "none", warning);
}

function judge() {
  const old = Date.now() - lastAt > OLD_MS;
  const news = $("news"), banner = $("banner");
  put(news, connected && !old ? "live" : connected || !last ? "no news" : "not connected");
  news.className = `pill ${connected && !old ? "good" : "bad"}`;
  const starting = last?.state === "starting" && !last.processes?.some((process) => process.state === "running");
  document.body.classList.toggle("old", old && last !== null);
  let said = "", level = "bad";
  if (old && last) {
    const what = connected ? "The dispatcher sends nothing" : "The connection is lost; trying again";
    said = `${what}. What is below was true at ${clock(lastAt / 1000)}.`;
  } else if (!last) {
    said = connected ? "" : "Asking the dispatcher …";
    level = "quiet";
  } else if (last.draining) {
    [said, level] = ["It is draining: what is in flight is finished, nothing new is received.", "warn"];
  } else if (Object.keys(last.troubles).length && (starting || !last.holding)) {
    const failing = Object.entries(last.troubles).map(([what, fault]) => `${what} (${fault.slice(0, 160)})`);
    said = `No answer from ${failing.join("; ")}. What waits there is kept.`;
  } else if (starting) {
    [said, level] = ["It is starting: nothing is received yet.", "quiet"];
  } else if (last.holding) {
    [said, level] = [`Nothing is received now: ${last.holding}. Messages wait in the master queue; none is lost.`, "warn"];
  }
  put(banner, said).className = `banner ${level}`;
  banner.hidden = !said;
}

function listen() {
  const events = new EventSource("events");
  events.onopen = () => { connected = true; judge(); };
  events.onmessage = (event) => {
    const said = JSON.parse(event.data);
    connected = true;
    show(said);
    last = said;  // only now: what could not be shown is no news
    lastAt = Date.now();
    judge();
  };
  events.onerror = () => {
    connected = false;
    judge();
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 2000);  // it was refused: the browser gives up then
  };
}

// --- where is a request? ---------------------------------------------------------------------------------------------

let asked = 0;

async function find(event) {
  event.preventDefault();
  const id = $("request-id").value.trim(), mine = ++asked;
  $("found").replaceChildren();
  if (!id) return;
  const box = make("div");
  try {
    const answer = await fetch(`requests?id=${encodeURIComponent(id)}`);
    const said = await answer.json();
    if (answer.ok) {
      box.append(make("p", `${said.request_id}: ${said.state}`, "good"));
      for (const { at, what } of said.life) {
        const line = make("p");
        line.append(make("time", at), " ", make("span", what));
        box.append(line);
      }
    } else {
      box.append(make("p", `${id}: ${said.error}`, answer.status === 404 ? "warn" : "bad"));
    }
  } catch {
    box.append(make("p", "No answer: the connection is lost.", "bad"));
  }
  if (mine === asked) $("found").replaceChildren(box);  // a slow answer does not replace a later one
}

$("find").addEventListener("submit", find);
setInterval(judge, 1000);
listen();
