"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("tests");
  if (table === null) return;

  const unpacked = {};
  // The text of a compressed script element; each is unpacked once, when it is first needed.
  const unpack = (id) => {
    unpacked[id] ??= (async () => {
      const bytes = Uint8Array.from(atob(byId(id).textContent), (char) => char.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      return new Response(stream).text();
    })();
    return unpacked[id];
  };

  let details;
  const loadDetails = () => (details ??= unpack("details").then(JSON.parse));

  let library;
  const loadLibrary = () => {
    library ??= unpack("library").then((text) => {
      const script = document.createElement("script");
      script.textContent = text;
      document.head.append(script);
    });
    return library;
  };

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // --- charts ---

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const LEGEND = { orientation: "h", x: 0, yanchor: "top", traceorder: "normal", itemclick: false, itemdoubleclick: false };

  const layout = (more) => ({
    autosize: true,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("text") },
    margin: { l: 56, r: 12, t: 8, b: 40 },
    legend: { ...LEGEND, y: -0.16 },
    dragmode: false,
    hovermode: "x",
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { color: colour("text") } },
    bargap: 0,
    ...more,
  });

  const axis = (more) => ({
    fixedrange: true,
    automargin: true,
    gridcolor: colour("line"),
    linecolor: colour("line"),
    zeroline: false,
    ...more,
  });

  const nanoseconds = (value) => {
    const [scale, unit] = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]].find(([size]) => value >= size);
    return `${value / scale} ${unit}`;
  };

  const distribution = (what) => ({ bars, marks, limits }) => {
    const most = Math.max(...bars.map(([, , count]) => count));
    // A line through all counts; x is the time. The y axis begins below 1, so that 1 is visible.
    const line = (name, [label, value, text], style) => ({
      type: "scatter",
      mode: "lines",
      name: `${name}${label} ${text}`,
      x: [value, value],
      y: [0.6, most * 1.4],
      line: style,
      hoverinfo: "name",
      hoverlabel: { namelength: -1 },
    });
    const values = [...bars.flatMap(([low, high]) => [low, high]), ...[...marks, ...limits].map((mark) => mark[1])];
    const from = Math.max(0, Math.log10(Math.min(...values)) - 0.15); // nothing is below 1 ns
    const to = Math.log10(Math.max(...values)) + 0.15;
    const ticks = [];
    for (let power = Math.floor(from); power <= to; power++) {
      for (const step of to - from < 2.5 ? [1, 2, 5] : [1]) ticks.push(step * 10 ** power);
    }
    const dashes = ["solid", "dash", "dot"];
    return {
      traces: [
        {
          type: "bar",
          name: what,
          showlegend: false,
          x: bars.map(([low, high]) => (low + high) / 2),
          width: bars.map(([low, high]) => high - low),
          y: bars.map(([, , count]) => count),
          customdata: bars.map(([, , , range]) => range),
          hovertemplate: `%{customdata}: %{y:,} ${what}<extra></extra>`,
          marker: { color: colour("productive"), line: { color: colour("back"), width: 1 } },
        },
        ...marks.map((mark, i) => line("", mark, { color: colour("text"), width: 1.5, dash: dashes[i % 3] })),
        ...limits.map((limit) => line("", limit, { color: colour("bad"), width: 2.5, dash: "longdash" })),
      ],
      layout: layout({
        xaxis: axis({
          type: "log",
          range: [from, to],
          tickvals: ticks,
          ticktext: ticks.map(nanoseconds),
        }),
        yaxis: axis({
          type: "log",
          title: { text: what, standoff: 6 },
          range: [Math.log10(0.6), Math.log10(most * 1.6)],
          dtick: most > 100 ? 1 : "D2",
          tickformat: ",d",
        }),
        hovermode: "closest",
      }),
    };
  };

  const NAMES = {
    eventful_polls: "polls with events",
    empty_polls: "non-blocking, no event",
    timeout_polls: "ended by a timer",
    break_polls: "woken by the runtime itself",
    threads_running: "threads running",
    ps_running: "Ps running Go",
    spinning: "threads looking for work",
    runq_max: "goroutines waiting",
    delay: "ms waiting",
    throttled: "ms stopped",
    poll_delay: "poll delay",
    wake_to_run: "wake-to-run",
    unparked: "before the read",
  };
  const COLOURS = {
    eventful_polls: "polls",
    empty_polls: "empty",
    timeout_polls: "timers",
    break_polls: "breaks",
    threads_running: "threads",
    ps_running: "threads",
    spinning: "timers",
    runq_max: "threads",
    delay: "delay",
    throttled: "delay",
    poll_delay: "timers",
    wake_to_run: "productive",
    unparked: "other",
    handling: "breaks",
    answers: "polls",
  };
  const PANELS = [
    { title: "wakeups", fields: ["productive", "spurious", "other"], legend: true },
    { title: "polls", fields: ["eventful_polls", "empty_polls", "timeout_polls", "break_polls"], legend: true },
    { title: "ms from the data's arrival to the answer, on average", fields: ["poll_delay", "wake_to_run", "unparked", "handling"], legend: true },
    { title: "answers", fields: ["answers"] },
    { title: "threads running, or ready to", fields: ["threads_running"] },
    { title: "Ps running Go, and threads looking for work", fields: ["ps_running", "spinning"] },
    { title: "longest run queue", fields: ["runq_max"] },
    { title: "ms waiting for a CPU, over all threads", fields: ["delay"] },
    { title: "ms stopped by a CPU quota, over all CPUs", fields: ["throttled"] },
  ];

  // Not in the legend if there are none.
  const OPTIONAL = new Set(["other", "empty_polls", "timeout_polls", "break_polls", "poll_delay", "wake_to_run", "unparked", "handling"]);

  // In ms.
  const average = (sums, counts) => sums.map((ns, i) => (counts[i] ? ns / counts[i] / 1e6 : 0));

  // Adds numbers that the chart shows but the record does not contain.
  const completed = (line) => ({
    ...line,
    other: line.wakeups.map((all, i) => Math.max(0, all - line.productive[i] - line.spurious[i])),
    eventful_polls: line.polls.map((all, i) =>
      Math.max(0, all - line.empty_polls[i] - line.timeout_polls[i] - line.break_polls[i]),
    ),
    delay: line.run_delay_ns.map((ns) => ns / 1e6),
    throttled: line.throttled_ns.map((ns) => ns / 1e6),
    poll_delay: average(line.poll_delay_ns, line.reads),
    wake_to_run: average(line.wake_to_run_ns, line.reads),
    unparked: average(
      line.queue_delay_ns.map((all, i) => Math.max(0, all - line.poll_delay_ns[i] - line.wake_to_run_ns[i])),
      line.reads,
    ),
    handling: average(line.handling_ns, line.answers),
    starts_ms: [0, ...line.ends_ms.slice(0, -1)],
  });

  const timeline = (given) => {
    const line = completed(given);
    const shown = (field) => line[field].some((value) => value > 0);
    const panels = PANELS.filter(({ fields }) => fields.some(shown));
    // Pixels: a panel and the title above it, and what is above and below the panels.
    const [PANEL, TITLE, MARGINS] = [72, 24, 20 + 40 + 50];
    const tall = Math.max(340, panels.length * (PANEL + TITLE) + MARGINS);
    const gap = TITLE / (tall - MARGINS);
    const height = (1 - gap * (panels.length - 1)) / panels.length;
    const width = line.ends_ms.map((end, i) => (end - line.starts_ms[i]) / 1000);
    const seconds = line.ends_ms.map((end, i) => (end + line.starts_ms[i]) / 2000);
    const traces = [];
    const axes = {};
    const titles = [];
    panels.forEach(({ title, fields, legend = false }, i) => {
      const suffix = i === 0 ? "" : i + 1;
      const top = 1 - i * (height + gap);
      axes[`yaxis${suffix}`] = axis({
        domain: [Math.max(0, top - height), top],
        rangemode: "tozero",
        nticks: 4,
      });
      // Above its panel, because there isn't always room beside it.
      titles.push({ text: title, x: 0, xref: "paper", y: top, yref: "paper", yanchor: "bottom", showarrow: false });
      for (const field of fields) {
        if (OPTIONAL.has(field) && !shown(field)) continue;
        traces.push({
          type: "bar",
          name: NAMES[field] ?? field,
          showlegend: legend,
          x: seconds,
          width,
          y: line[field],
          yaxis: `y${suffix}`,
          hovertemplate: "%{y:,}",
          marker: {
            color: colour(COLOURS[field] ?? field),
            line: { width: 0 },
            pattern: field === "spurious" ? { shape: "/", size: 6, fillmode: "overlay", fgcolor: colour("back") } : {},
          },
        });
      }
    });
    return {
      traces,
      tall,
      layout: layout({
        ...axes,
        annotations: titles,
        margin: { l: 56, r: 12, t: 20, b: 90 },
        legend: { ...LEGEND, y: -30 / (tall - MARGINS) },
        barmode: "stack",
        hovermode: "x unified",
        xaxis: axis({
          anchor: `y${panels.length === 1 ? "" : panels.length}`,
          ticksuffix: " s",
          range: [0, line.ends_ms.at(-1) / 1000],
          hoverformat: ".2f",
        }),
      }),
    };
  };

  const spread = (name, caption, what) => ({
    caption: () => caption,
    describe: ({ marks, limits }) => [...marks, ...limits].map(([name, , text]) => `${name} ${text}`).join(", "),
    build: distribution(what),
    figures: ({ bars }) => [[name, what], ...bars.map(([, , count, range]) => [range, count])],
  });

  const CHARTS = {
    response: spread("response", "Response: from the data's arrival to the answer", "answers"),
    queue_delay: spread("queue delay", "Queue delay: from the data's arrival to the read", "reads"),
    poll_delay: spread("poll delay", "Poll delay: from the data's arrival to the poll's return", "wakeups"),
    latency: spread("latency", "Latency: from the poll's return to the goroutine's I/O", "wakeups"),
    handling: spread("handling", "Handling: from the read to the answer", "answers"),
    timeline: {
      caption: ({ step_ms }) => `Wakeups and polls in every ${step_ms} ms`,
      describe: (line) => {
        const sum = (field) => line[field].reduce((all, value) => all + value, 0);
        const seconds = line.ends_ms.at(-1) / 1000;
        return `${sum("productive")} productive and ${sum("spurious")} spurious wakeups, ${sum("polls")} polls in ${seconds} s`;
      },
      build: timeline,
      figures: (line) => {
        const fields = Object.keys(line).filter((field) => Array.isArray(line[field]));
        return [fields, ...line.ends_ms.map((_, i) => fields.map((field) => line[field][i]))];
      },
    },
  };

  const flame = ({ names, places, parents, counts }) => ({
    traces: [
      {
        type: "icicle",
        ids: names.map((_, i) => `${i}`),
        // Plotly interprets some HTML.
        labels: names.map((name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;")),
        parents: parents.map((parent) => (parent < 0 ? "" : `${parent}`)),
        values: counts,
        customdata: places.map((place) => place.replaceAll("&", "&amp;").replaceAll("<", "&lt;")),
        branchvalues: "total",
        tiling: { orientation: "v" },
        pathbar: { visible: false },
        textposition: "middle left",
        hovertemplate: "%{label}<br>%{customdata}<br>%{percentRoot:.1%}<extra></extra>",
        marker: { line: { color: colour("back"), width: 1 } },
      },
    ],
    layout: layout({ margin: { l: 0, r: 0, t: 8, b: 8 }, hovermode: "closest" }),
  });
  CHARTS.flame = {
    caption: ({ title }) => `Flame graph: ${title}`,
    describe: ({ names }) => `${names.length - 1} functions, each below its caller`,
    build: flame,
    figures: ({ names, places, counts }) => [
      ["function", "line", "share"],
      ...names.slice(1).map((name, i) => [name, places[i + 1], `${((100 * counts[i + 1]) / counts[0]).toFixed(1)} %`]),
    ],
  };

  const drawn = new Map(); // place of a chart -> what to draw there
  const draw = (place, more = {}) => {
    const { kind, data } = drawn.get(place);
    const { traces, layout, tall } = CHARTS[kind].build(data);
    if (tall !== undefined) {
      place.style.height = `${tall}px`;
      if (more.height !== undefined) more = { ...more, height: tall };
    }
    return Plotly.react(place, traces, { ...layout, ...more }, { displayModeBar: false, responsive: true });
  };

  // Only visible charts are drawn, because a thousand tests may be open.
  const waiting = new Map();
  const drawFirst = async (place) => {
    drawn.set(place, waiting.get(place));
    waiting.delete(place);
    sight.unobserve(place);
    await loadLibrary();
    await draw(place);
    place.dataset.drawn = "";
  };
  const sight = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) if (isIntersecting && waiting.has(target)) drawFirst(target);
    },
    { rootMargin: "300px" },
  );

  const figure = (kind, data) => {
    const { caption, describe, figures } = CHARTS[kind];
    const place = element("div", { class: "chart", role: "img", "aria-label": describe(data) });
    const numbers = element("details", {}, element("summary", {}, "as a table"));
    numbers.addEventListener(
      "toggle",
      () => {
        const [head, ...rows] = figures(data);
        const line = (cell, values) => element("tr", {}, ...values.map((value) => element(cell, {}, `${value}`)));
        const made = element("table", {}, line("th", head), ...rows.map((row) => line("td", row)));
        numbers.append(element("div", { class: "figures", tabindex: 0 }, made));
      },
      { once: true },
    );
    waiting.set(place, { kind, data });
    sight.observe(place);
    return element("figure", {}, element("figcaption", {}, caption(data)), place, numbers);
  };

  const redraw = (more) => drawn.forEach((_, place) => window.Plotly && draw(place, more));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.print = "";
    for (const [place, what] of window.Plotly ? waiting : []) drawn.set(place, what);
    redraw({ autosize: false, width: 660, height: 300 });
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.print;
    redraw({ width: undefined, height: undefined });
  });

  // --- the table ---

  const tests = [...table.tBodies].map((body) => ({
    body,
    button: body.querySelector("button"),
    // If there are several toolchains, the name is shown without them.
    name: body.dataset.nodeid ?? body.querySelector(".folder").textContent + body.querySelector(".name").textContent,
    text: `${body.querySelector(".test").textContent} ${body.dataset.toolchain ?? ""}`.toLowerCase(),
    number: Number(body.dataset.number),
  }));

  const setOpen = async (test, open) => {
    test.button.setAttribute("aria-expanded", open);
    let row = test.body.rows[1];
    if (row === undefined && open) {
      const { html, charts } = (await loadDetails())[test.number];
      if (test.body.rows[1] !== undefined) return; // opened twice while unpacking
      const cell = element("td", { colspan: table.tHead.rows[0].cells.length });
      cell.innerHTML = html;
      for (const place of cell.querySelectorAll(".charts")) {
        const data = charts[place.dataset.service];
        for (const kind of Object.keys(CHARTS)) if (data[kind] != null) place.append(figure(kind, data[kind]));
      }
      for (const place of cell.querySelectorAll(".flame")) {
        const { service, flame: offence } = place.dataset;
        const open = () => place.append(figure("flame", charts[service].flames[offence]));
        place.addEventListener("toggle", open, { once: true });
      }
      row = element("tr", { class: "detail", id: `test-${test.number}` }, cell);
      test.body.append(row);
      test.button.setAttribute("aria-controls", row.id);
    }
    if (row !== undefined) row.hidden = test.button.getAttribute("aria-expanded") !== "true";
  };

  // A test by its link, which is shown even if a filter hides it.
  const openLinked = async () => {
    // Typed by hand, or by us.
    const written = location.hash.slice(1);
    const linked = tests.find(({ name }) => [name, encodeURIComponent(name)].includes(written));
    if (linked === undefined) return;
    if (linked.body.hidden) showAll();
    await setOpen(linked, true);
    linked.body.scrollIntoView();
  };
  addEventListener("hashchange", openLinked);

  table.addEventListener("click", (event) => {
    const test = tests.find(({ body }) => body.rows[0].contains(event.target));
    if (test === undefined || getSelection().toString()) return;
    const open = test.button.getAttribute("aria-expanded") !== "true";
    setOpen(test, open);
    history.replaceState(null, "", `#${open ? encodeURIComponent(test.name) : ""}`);
  });

  const search = byId("search");
  const boxes = [...document.querySelectorAll("#tools [type=checkbox]")];
  const filter = () => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const refused = boxes.filter((box) => !box.checked);
    let shown = 0;
    for (const { body, text } of tests) {
      const fits =
        wanted.every((word) => text.includes(word)) && !refused.some(({ name, value }) => body.dataset[name] === value);
      body.hidden = !fits;
      shown += fits;
    }
    const [some, all] = [shown, tests.length].map((count) => count.toLocaleString("en"));
    byId("shown").textContent = `${shown < tests.length ? `${some} of ` : ""}${all} test${tests.length === 1 ? "" : "s"}`;
    byId("none").hidden = shown > 0;
    byId("open").textContent = shown > MOST_OPENED ? `Open the first ${MOST_OPENED}` : "Open all";
  };
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("tools").addEventListener("input", filter);
  const showAll = () => {
    search.value = "";
    for (const box of boxes) box.checked = true;
    filter();
  };
  byId("reset").addEventListener("click", () => {
    showAll();
    search.focus();
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input") || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    search.focus();
  });

  // What a column sorts by; with several services the largest number counts.
  const key = (heading, by) => {
    if (by === "outcome") return ({ number }) => number;
    if (by === "name") return ({ name }) => name;
    return ({ body }) => {
      const cell = body.rows[0].cells[heading.cellIndex];
      const values = [...cell.querySelectorAll("[data-value]")].map((span) => span.dataset.value).filter(Boolean);
      return values.length ? Math.max(...values.map(Number)) : null;
    };
  };
  table.tHead.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button === null) return;
    const heading = button.closest("th");
    const before = heading.getAttribute("aria-sort");
    // For numbers, the large ones come first.
    const first = heading.classList.contains("number") ? "descending" : "ascending";
    const order = before === null ? first : before === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const of = key(heading, button.dataset.sort);
    const sign = order === "ascending" ? 1 : -1;
    const sorted = tests
      .map((test) => [of(test), test])
      .sort(([a, one], [b, two]) => {
        // Unmeasured values are last in either order.
        if (a === null || b === null) return (a === null) - (b === null) || one.number - two.number;
        return sign * (typeof a === "string" ? a.localeCompare(b) : a - b) || one.number - two.number;
      });
    tests.splice(0, tests.length, ...sorted.map(([, test]) => test));
    table.append(...tests.map(({ body }) => body));
  });

  // More at once would keep the browser busy for minutes.
  const MOST_OPENED = 100;
  byId("open").addEventListener("click", () => {
    for (const test of tests.filter(({ body }) => !body.hidden).slice(0, MOST_OPENED)) setOpen(test, true);
  });
  byId("close").addEventListener("click", () => {
    for (const test of tests) setOpen(test, false);
  });

  filter(); // a browser that goes back fills the form as it was
  // Tests that need attention are open, unless a link opens a particular one.
  const MOST_OPEN_AT_FIRST = 5;
  const bad = ({ body }) => ["failed", "unmeasured", "would fail"].includes(body.dataset.outcome);
  if (location.hash.length > 1) openLinked();
  else for (const test of tests.filter(bad).slice(0, MOST_OPEN_AT_FIRST)) setOpen(test, true);
})();
