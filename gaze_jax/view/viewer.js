
"use strict";
// Layers, heads and regions are numbered from 0, as on the command line;
// frames from 1, as people count them.
(async () => {
  const VEIL = 0.62; // how far a region that no head reads is darkened
  const HEAT = 0.85;
  const WIDE = 1000; // the drawing's width; its height keeps the aspect
  const PAUSE = 1100; // milliseconds that a word is shown
  const LISTED = 12; // regions in the table
  const SVG = "http://www.w3.org/2000/svg";

  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const {layers, heads, regions} = data.shape;
  const state = {word: 0, layer: "all", head: "all", view: 0};

  function element(name, properties = {}, ...children) {
    const node = document.createElement(name);
    Object.assign(node, properties);
    node.append(...children);
    return node;
  }

  function shape(name, attributes) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) {
      node.setAttribute(key, value);
    }
    return node;
  }

  const percent = (x) => {
    const digits = x > 0 && x < 0.0995 ? 1 : 0;
    return fixed(x, digits);
  };
  const fixed = (x, digits) => `${(100 * x).toFixed(digits)}\u00a0%`;

  // ---- what every answer has: the budget and the accounting

  function bar(fraction) {
    const fill = element("i");
    fill.style.width = `${100 * Math.min(Math.max(fraction, 0), 1)}%`;
    const out = element("div", {className: "bar"}, fill);
    out.setAttribute("aria-hidden", "true");
    return out;
  }

  function showBudget() {
    const {top_k, regions: count, visual_kv, unique} = data.budget;
    const k = Number.isInteger(top_k) ? top_k : top_k.toFixed(1);
    const rows = [
      ["Regions a query head reads", `${k} of ${count}`, count && top_k / count],
      ["Visual KV read per query head", fixed(visual_kv, 1), visual_kv],
      ["Unique visual KV per KV head", fixed(unique, 1), unique],
    ];
    for (const [name, value, fraction] of rows) {
      $("budget").append(
        element(
          "div", {},
          element("dt", {textContent: name}),
          element("dd", {textContent: value}),
          bar(fraction)
        )
      );
    }
    for (const [name, value] of data.accounting) {
      $("accounting").append(
        element(
          "tr", {},
          element("th", {scope: "row", textContent: name}),
          element("td", {textContent: value})
        )
      );
    }
  }

  // ---- the arrays [words, layers, heads, regions]

  async function unpack(packed, values) {
    if (!packed) return null;
    const deflated = Uint8Array.from(atob(packed.bytes), (c) => c.charCodeAt(0));
    const stream = new Blob([deflated])
      .stream()
      .pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    return {bytes, layers: packed.layers, heads: packed.heads, values};
  }

  const table = (f) => Float64Array.from({length: 256}, (_, i) => f(i));

  // Those that a picker leaves; one that stands for all where they were
  // averaged when the page was made.
  const picked = (choice, kept) =>
    choice === "all" || kept === 1
      ? Array.from({length: kept}, (_, i) => i)
      : [Number(choice)];

  // Mean over the picked layers and heads, for each region; NaN counts not.
  function mean(array) {
    const total = new Float64Array(regions);
    const count = new Float64Array(regions);
    for (const n of picked(state.layer, array.layers)) {
      for (const q of picked(state.head, array.heads)) {
        const row = (state.word * array.layers + n) * array.heads + q;
        for (let r = 0; r < regions; r++) {
          const value = array.values[array.bytes[row * regions + r]];
          if (Number.isNaN(value)) continue;
          total[r] += value;
          count[r] += 1;
        }
      }
    }
    return total.map((t, r) => (count[r] ? t / count[r] : NaN));
  }

  // ---- names

  const home = new Map(); // region: its view and the name of its place
  data.views.forEach((view, number) => {
    for (const [region, left, top, right, bottom] of view.boxes) {
      const third = (low, high, all) =>
        Math.min(2, Math.floor((1.5 * (low + high)) / all));
      const y = ["top", "", "bottom"][third(top, bottom, view.rows)];
      const x = ["left", "", "right"][third(left, right, view.columns)];
      const place = [y, x].filter(Boolean).join(" ") || "middle";
      const several = data.views.length > 1;
      const name = several ? `${data.noun} ${number + 1}, ${place}` : place;
      home.set(region, {view: number, place, name});
    }
  });

  const where = (r) => home.get(r)?.name ?? "not shown";

  function list(items) {
    if (items.length < 2) return items.join("");
    return `${items.slice(0, -1).join(", ")} and ${items.at(-1)}`;
  }

  function scope() {
    const layer = state.layer === "all" ? "all layers" : `layer ${state.layer}`;
    const head = state.head === "all" ? "all heads" : `head ${state.head}`;
    return `${layer}, ${head}`;
  }

  const byShare = (share) =>
    [...share.keys()]
      .filter((r) => share[r] > 0)
      .sort((a, b) => share[b] - share[a] || a - b);

  function describe(share) {
    const word = `“${data.words[state.word]}”`;
    const read = byShare(share);
    if (!read.length) return `${word} read no region in ${scope()}.`;
    const one = read.every((r) => share[r] === 1);
    const named = read.slice(0, 4).map((r, i) => {
      const of = i ? "" : " of heads";
      return `${r} (${where(r)}${one ? "" : `, ${percent(share[r])}${of}`})`;
    });
    const noun = named.length === 1 ? "region" : "regions";
    const all = `${read.length} of ${data.budget.regions}`;
    return read.length === named.length
      ? `${word} read ${noun} ${list(named)} in ${scope()}: ${all}.`
      : `${word} read ${all} regions in ${scope()}, ` +
        `most of all ${list(named)}.`;
  }

  // ---- pictures

  // Draws a view's regions into an svg; gives a function that lights them.
  function drawing(svg, number, kind, stroke) {
    const view = data.views[number];
    const high = (WIDE * view.height) / view.width;
    svg.setAttribute("viewBox", `0 0 ${WIDE} ${high}`);
    const place = ([left, top, right, bottom]) => {
      const x = (left / view.columns) * WIDE;
      const y = (top / view.rows) * high;
      const width = (right / view.columns) * WIDE - x;
      const height = (bottom / view.rows) * high - y;
      return {x, y, width, height};
    };
    // What belongs to no region is as dark as what none reads.
    const bare = view.bare.map((box) =>
      shape("rect", {class: "veil", "fill-opacity": VEIL, ...place(box)})
    );
    const groups = view.boxes.map(([region, ...box]) => {
      const {x, y, width, height} = place(box);
      const group = shape("g", {"data-region": region});
      const title = shape("title", {});
      const fill = kind === "gaze" ? "veil" : "heat";
      group.append(title, shape("rect", {class: fill, x, y, width, height}));
      if (kind === "gaze") {
        const inset = {
          x: x + stroke / 2,
          y: y + stroke / 2,
          width: Math.max(1, width - stroke),
          height: Math.max(1, height - stroke),
        };
        const line = {class: "frame", "stroke-width": stroke};
        group.append(shape("rect", {...inset, ...line}));
      }
      return {group, title, region};
    });
    svg.replaceChildren(
      ...(kind === "gaze" ? bare : []), ...groups.map((g) => g.group)
    );
    return (values, top) => {
      for (const {group, title, region} of groups) {
        const value = values[region] || 0;
        const level = top > 0 ? value / top : 0;
        group.dataset.value = value.toFixed(4);
        group.dataset.lit = String(value > 0);
        title.textContent = `region ${region}, ${where(region)}: ` +
          percent(value);
        const [fill, frame] = group.querySelectorAll("rect");
        const opacity = frame ? VEIL * (1 - level) : HEAT * level;
        fill.setAttribute("fill-opacity", opacity.toFixed(3));
        frame?.setAttribute("stroke-opacity", level.toFixed(3));
      }
    };
  }

  const highest = (values) => values.reduce((a, b) => (b > a ? b : a), 0);

  class Panel {
    constructor(kind) {
      this.kind = kind;
      this.root = $(kind);
      this.view = -1;
    }

    show(values, note, unit) {
      const find = (selector) => this.root.querySelector(selector);
      const svg = find("svg");
      if (this.view !== state.view) {
        const view = data.views[state.view];
        find("img").src = view.picture;
        find("img").width = view.width;
        find("img").height = view.height;
        find(".picture").style.setProperty(
          "--aspect", view.width / view.height
        );
        this.light = drawing(svg, state.view, this.kind, 8);
        this.view = state.view;
      }
      const top = values ? highest(values) : 0;
      this.light(values ?? [], top);
      find(".legend").hidden = !values;
      find(".top").textContent = `${percent(top)} ${unit}`;
      find(".note").textContent = note;
      const lit = values ? byShare(values).filter(
        (r) => home.get(r)?.view === state.view
      ) : [];
      const several = data.views.length > 1;
      const place = several ? ` on ${data.noun} ${state.view + 1}` : "";
      svg.setAttribute(
        "aria-label",
        `${this.kind}${place}: ` + (lit.slice(0, 6).map(
          (r) => `region ${r} ${percent(values[r])}`
        ).join(", ") || "no region")
      );
    }
  }

  // ---- the strip of frames

  class Strip {
    constructor(choose) {
      const several = data.views.length > 1;
      $("strip").hidden = $("following").hidden = !several;
      if (!several) return;
      $("strip").setAttribute(
        "aria-label", `The ${data.noun}s, with how much was read of each`
      );
      this.items = data.views.map((view, number) => {
        const image = element("img", {src: view.picture, alt: ""});
        image.width = view.width;
        image.height = view.height;
        const svg = shape("svg", {"aria-hidden": "true"});
        const share = element("span");
        const gauge = bar(0);
        const name = element(
          "span", {className: "name"},
          element("span", {textContent: number + 1}), share
        );
        const button = element(
          "button", {type: "button"},
          element("div", {className: "picture"}, image, svg), gauge, name
        );
        button.addEventListener("click", () => choose(number));
        $("strip").append(element("li", {}, button));
        return {button, share, gauge, light: drawing(svg, number, "gaze", 24)};
      });
      arrows($("strip"), () => state.view, choose);
    }

    show(share, parts) {
      if (!this.items) return;
      const top = highest(share);
      const most = highest(parts);
      this.items.forEach((item, number) => {
        const {button} = item;
        const current = number === state.view;
        item.light(share, top);
        item.share.textContent = percent(parts[number]);
        item.gauge.firstChild.style.width =
          `${most ? (100 * parts[number]) / most : 0}%`;
        button.setAttribute("aria-pressed", current);
        button.tabIndex = current ? 0 : -1;
        button.setAttribute(
          "aria-label",
          `${data.noun} ${number + 1}: ${percent(parts[number])} of what was read`
        );
        if (current) bring($("strip"), button);
      });
    }
  }

  // Scrolls a list sideways, and nothing else, until a child is in sight.
  function bring(box, child) {
    const left = child.offsetLeft - box.offsetLeft;
    const outside =
      left < box.scrollLeft ||
      left + child.offsetWidth > box.scrollLeft + box.clientWidth;
    if (!outside) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    box.scrollTo({
      left: left - (box.clientWidth - child.offsetWidth) / 2,
      behavior: calm ? "auto" : "smooth",
    });
  }

  // Arrow keys, Home and End move among a list's buttons.
  function arrows(box, current, choose) {
    box.addEventListener("keydown", (event) => {
      const buttons = box.querySelectorAll("button");
      const last = buttons.length - 1;
      const right = getComputedStyle(box).direction === "rtl" ? -1 : 1;
      const to = {
        ArrowRight: current() + right,
        ArrowLeft: current() - right,
        Home: 0,
        End: last,
      }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) {
        return;
      }
      event.preventDefault();
      const number = Math.min(Math.max(to, 0), last);
      choose(number);
      buttons[number].focus();
    });
  }

  // ---- the page

  showBudget();
  const problem = (text) => {
    $("problem").textContent = text;
    $("problem").hidden = false;
  };
  if (!data.words.length) {
    problem("The model said nothing.");
    return;
  }
  const buttons = data.words.map((text) =>
    element("button", {type: "button", textContent: text, dir: "auto"})
  );
  $("words").append(...buttons.map((b) => element("li", {}, b)));
  if (!data.views.length || !regions) {
    problem(`${data.answer ? "The question is about no image: " : ""}` +
      "no region was there to be read.");
    for (const button of buttons) button.disabled = true;
    return;
  }
  if (typeof DecompressionStream === "undefined") {
    problem("This browser is too old for the page; one of 2023 or later will do.");
    return;
  }
  const [chosen, dense, scores] = await Promise.all([
    unpack(data.chosen, table((i) => i / 255)),
    unpack(data.dense, table((i) => (i / 255) ** 2)),
    unpack(
      data.scores,
      table((i) => (i === 255 ? NaN : data.scores?.low + i * data.scores?.step))
    ),
  ]);
  $("stage").hidden = false;

  function options(select, count, kept, key) {
    select.append(new Option("all", "all"));
    for (let i = 0; i < count && kept > 1; i++) select.append(new Option(i, i));
    select.disabled = kept === 1 && count > 1;
    select.value = "all"; // a reload would bring back an older choice
    select.addEventListener("change", () => {
      state[key] = select.value;
      show();
    });
  }
  options($("layer"), layers, chosen.layers, "layer");
  options($("head"), heads, chosen.heads, "head");

  const means = [
    ["regions read", chosen], ["dense attention", dense], ["scores", scores],
  ].filter(([, array]) => array && array.heads < heads);
  $("limit").hidden = !means.length;
  $("limit").textContent = "To keep this page small it holds means over heads" +
    ` of ${list(means.map(([name]) => name))}` +
    (means.some(([, a]) => a.layers < layers) ? ", of some over layers too." : ".");

  const panels = {gaze: new Panel("gaze"), dense: new Panel("dense")};
  const strip = new Strip((number) => {
    $("follow").checked = false;
    state.view = number;
    show();
  });
  $("follow").checked = true;
  $("follow").addEventListener("change", show);

  function denseNote(mass) {
    if (!mass) return "Dense attention was not recorded.";
    const total = mass.reduce((a, b) => a + b, 0);
    return `${percent(total)} of the attention is on ` +
      `${data.views.length > 1 ? `the ${data.noun}s` : "the image"}, the rest ` +
      `on text and context tokens.`;
  }

  function gazeNote(share) {
    const each = share.reduce((a, b) => a + b, 0);
    const k = Math.abs(each - Math.round(each)) < 0.05
      ? Math.round(each) : each.toFixed(1);
    const single = state.layer !== "all" && state.head !== "all";
    const all = byShare(share).length;
    return `${single ? "This" : "A"} head read ${k} of ` +
      `${data.budget.regions} regions${single ? "" : `, all together ${all}`}.`;
  }

  function fillTable(share, mass, score) {
    const rest = mass ? [...mass.keys()].sort((a, b) => mass[b] - mass[a]) : [];
    const rows = [...new Set([...byShare(share), ...rest])].slice(0, LISTED);
    $("figures").replaceChildren(
      ...rows.map((r) => {
        const cells = [
          where(r),
          percent(share[r]),
          mass ? percent(mass[r]) : "–",
          score && Number.isFinite(score[r]) ? score[r].toFixed(2) : "–",
        ];
        return element(
          "tr", {},
          element("th", {scope: "row", textContent: r}),
          ...cells.map((text) => element("td", {textContent: text}))
        );
      })
    );
  }

  function show() {
    const share = mean(chosen);
    const mass = dense && mean(dense);
    const parts = data.views.map(() => 0);
    let all = 0;
    share.forEach((value, r) => {
      if (!home.has(r)) return;
      parts[home.get(r).view] += value;
      all += value;
    });
    if ($("follow").checked) state.view = parts.indexOf(highest(parts));
    buttons.forEach((button, number) => {
      button.setAttribute("aria-pressed", number === state.word);
      button.tabIndex = number === state.word ? 0 : -1;
    });
    panels.gaze.show(share, gazeNote(share), "of heads");
    panels.dense.show(mass, denseNote(mass), "of attention");
    strip.show(share, parts.map((p) => (all ? p / all : 0)));
    fillTable(share, mass, scores && mean(scores));
    $("said").textContent = describe(share);
  }

  function choose(number) {
    state.word = number;
    show();
  }

  let timer = 0;
  function play(on) {
    clearInterval(timer);
    timer = 0;
    $("play").textContent = on ? "Pause" : "Play";
    // A screen reader that is read one word could not keep up.
    $("said").setAttribute("aria-live", on ? "off" : "polite");
    if (!on) return;
    if (state.word === buttons.length - 1) choose(0);
    timer = setInterval(() => {
      if (state.word === buttons.length - 1) play(false);
      else choose(state.word + 1);
    }, PAUSE);
  }
  $("play").disabled = buttons.length < 2;
  $("play").addEventListener("click", () => play(!timer));
  buttons.forEach((button, number) =>
    button.addEventListener("click", () => {
      play(false);
      choose(number);
    })
  );
  arrows($("words"), () => state.word, (number) => {
    play(false);
    choose(number);
  });
  show();
})();
