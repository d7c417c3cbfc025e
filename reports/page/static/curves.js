"use strict";

// The interactive curves of the page, over what page.js has read and what is shown there.
const swatches = boxes.map((box) => box.parentElement.querySelector("svg"));  // the one place that says how a method looks
const FEW = 460;  // pixels below which lines are named under them, not beside
const MARK = 10;  // pixels
const CROSS = "path://M-1 -.7L-.7 -1L0 -.3L.7 -1L1 -.7L.3 0L1 .7L.7 1L0 .3L-.7 1L-1 .7L-.3 0Z";

function look(method) {
  const marker = swatches[method].querySelector(".marker").getAttribute("d");
  return { colour: getComputedStyle(swatches[method]).color, symbol: `path://${marker}`, competes: data.methods[method].competes };
}

function colour(name) {
  const probe = document.body.appendChild(element("i", { hidden: true }));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Cells of the head that is asked for: each method's own published one, or one by its name. */
const ofHead = (cells, head) => cells.filter((cell) => shown.has(cell.method) && (head ? cell.head === head || cell.n === 0 : cell.published));

/** What no budget binds, as a line across: where it was not run it is as at the budget where it was. */
const across = (points, budgets) => budgets.map(({ x }) => points.find((point) => point.x === x) ?? { ...points[0], x });

const VIEWS = {
  /** Accuracy against the budget: a line per method, an × at the foot where there is no result. */
  memory(section, { measure, head }) {
    const cells = ofHead(section.points, head);
    const lines = new Map();
    for (const cell of cells.filter((cell) => cell.n > 0).sort((a, b) => a.budget - b.budget)) {
      const [mean, low, high] = cell[measure];
      if (!lines.has(cell.method)) lines.set(cell.method, []);
      lines.get(cell.method).push({ x: section.budgets[cell.budget].x, mean, low, high, cell });
    }
    for (const [method, points] of lines) if (!data.methods[method].competes) lines.set(method, across(points, section.budgets));
    return {
      lines,
      absent: cells.filter((cell) => cell.n === 0 && data.methods[cell.method].competes),
      published: section.published.filter((point) => !head && point.measure === measure && shown.has(point.method))
        .map((point) => ({ ...point, low: null, high: null, cell: { method: point.method, runs: [] } })),
      ticks: section.budgets.map((budget) => budget.x),
      names: new Map(section.budgets.map((budget) => [budget.x, budget.tick])),
      label: section.label,
      remark: `${measure === "avg" ? "Mean over all stages of the accuracy on the classes seen" : "Accuracy on all classes after the last task"}.`
        + (section.published.length ? " Open markers: published values." : ""),
    };
  },
  /** Accuracy on the classes seen, after each task, at one budget. */
  classes(section, { budget, head }) {
    const cells = ofHead(section.curves, head).filter((cell) => cell.budget === Number(budget));
    const lines = new Map(cells.map((cell) => [cell.method, cell.seen.map((seen, place) => ({
      x: seen, seen, mean: cell.mean[place], low: cell.low[place], high: cell.high[place], cell,
    }))]));
    const absent = section.points.filter((cell) => cell.budget === Number(budget) && cell.n === 0 && shown.has(cell.method));
    const names = absent.map((cell) => `${data.methods[cell.method].name} (${cell.status})`);
    return {
      lines,
      absent: [],
      published: [],
      ticks: [...new Set(cells.flatMap((cell) => cell.seen))].sort((a, b) => a - b),
      label: "Classes seen",
      remark: `Accuracy on all classes seen, after each task.${names.length ? ` No result: ${names.join(", ")}.` : ""}`,
    };
  },
};

const competing = (lines) => [...lines].filter(([method]) => data.methods[method].competes).flatMap(([, points]) => points);
const ends = (values) => [Math.min(...values), Math.max(...values)];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** Axes around the lines that compete: round accuracies within 0 to 100, a margin beside the first and the last tick.
 * Floors, ceilings and wide intervals widen them by a part of the lines' range at most. */
function limits({ lines, published, ticks }) {
  const drawn = [...competing(lines), ...published];
  const own = drawn.length ? drawn : [...lines.values()].flat();
  const [lowest, highest] = own.length ? ends(own.map((point) => point.mean)) : [0, 100];
  const reach = Math.max(highest - lowest, 2);
  const near = (points, keys, share) => points.flatMap((point) => keys.map((key) => point[key])).filter((value) => value !== null)
    .map((value) => clamp(value, lowest - share * reach, highest + share * reach));
  const others = [...lines].filter(([method]) => !data.methods[method].competes).flatMap(([, points]) => points)
    .filter((point) => point.mean >= lowest - reach / 4 && point.mean <= highest + reach / 4);
  const [least, most] = ends([lowest, highest, ...near(own, ["low", "high"], 0.5), ...near(others, ["mean"], 0.25)]).map((value) => clamp(value, 0, 100));
  const step = [1, 2, 5, 10, 20].find((size) => Math.ceil(most / size) - Math.floor(least / size) <= 7);
  const [low, high] = [step * Math.floor(least / step), step * Math.ceil(most / step)];
  const [first, last] = ends([...ticks, ...published.map((point) => point.x)]);
  const margin = 0.04 * (last - first) || 1;
  return { step, y: [low, Math.max(high, low + step)], x: [first - margin, last + margin] };
}

/** Floors and ceilings that end beyond the axis, in words: `↑ Joint training 97.71 %`. */
function beyond(view) {
  const { y } = limits(view);
  return [...view.lines].filter(([method]) => !data.methods[method].competes).map(([method, points]) => [method, points.at(-1).mean])
    .filter(([, mean]) => mean < y[0] || mean > y[1])
    .map(([method, mean]) => `${mean > y[1] ? "↑" : "↓"} ${data.methods[method].name} ${percent(mean)}`).join(", ");
}

/** The interval of each point, joined to a band that goes a little beyond its ends: one point alone has one, too. */
function band(points, colour) {
  const known = points.filter((point) => point.low !== null);
  const outline = (api, end, dx) => known.map((point, place) => {
    const [x, y] = api.coord([point.x, point[end]]);
    return [x + (place === 0 ? -dx : 0) + (place === known.length - 1 ? dx : 0), y];
  });
  const renderItem = (_, api) => {
    const dx = 4;
    const side = (end) => known.length > 1 ? outline(api, end, dx) : [-dx, dx].map((d) => {
      const [x, y] = api.coord([known[0].x, known[0][end]]);
      return [x + d, y];
    });
    return { type: "polygon", shape: { points: [...side("high"), ...side("low").reverse()] }, style: { fill: colour, opacity: 0.16 } };
  };
  return { type: "custom", silent: true, data: known.length ? [0] : [], renderItem, z: 1, clip: true };
}

function curve(method, points, ink, room, within) {
  const { colour, symbol, competes } = look(method);
  return {
    type: "line", name: data.methods[method].name, z: 3,
    data: points.map((point) => ({ value: [point.x, point.mean], point })),
    symbol: competes ? symbol : "emptyCircle", symbolSize: competes ? MARK : 6, symbolKeepAspect: true, showAllSymbol: true,
    itemStyle: { color: colour }, lineStyle: { color: colour, width: competes ? 2 : 1.5, type: competes ? "solid" : [5, 4] },
    emphasis: { focus: "series", scale: 1.5, lineStyle: { width: 3 } }, blur: { lineStyle: { opacity: 0.25 }, itemStyle: { opacity: 0.25 } },
    endLabel: { show: room > 0 && within(points.at(-1).mean), formatter: "{a}", color: ink, fontSize: 12, lineHeight: 16, distance: 10, width: room - 20, overflow: "truncate" },
    labelLayout: { moveOverlap: "shiftY" },
  };
}

function crosses(cells, section, foot) {
  const beside = new Map();  // several at one budget stand side by side
  return {
    type: "scatter", symbol: CROSS, symbolKeepAspect: true, z: 4, symbolSize: MARK, clip: false,
    data: cells.map((cell) => {
      const place = beside.get(cell.budget) ?? 0;
      beside.set(cell.budget, place + 1);
      const point = { x: section.budgets[cell.budget].x, cell };
      return { value: [point.x, foot], point, symbolOffset: [14 * place, -8], itemStyle: { color: look(cell.method).colour } };
    }),
  };
}

/** Published values: open markers. */
function hollow(points) {
  return {
    type: "scatter", z: 2, symbolSize: MARK,
    data: points.map((point) => {
      const { colour, symbol } = look(point.method);
      return { value: [point.x, point.mean], point, symbol, symbolKeepAspect: true, itemStyle: { color: "transparent", borderColor: colour, borderWidth: 1.5 } };
    }),
  };
}

function option(view, section, width, beside) {
  const [ink, faint, line, edge, card] = ["--text", "--faint", "--line", "--edge", "--card"].map(colour);
  const { x, y, step } = limits(view);
  const longest = Math.max(0, ...[...view.lines.keys()].map((method) => data.methods[method].name.length));
  const room = width >= FEW ? Math.min(24 + 7.2 * longest, 0.27 * width) : 0;  // pixels beside the lines, for their names
  const axis = { type: "value", axisLine: { show: true, lineStyle: { color: edge } }, axisLabel: { color: faint, hideOverlap: true }, nameTextStyle: { color: faint }, nameLocation: "middle" };
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    grid: { left: 46, right: Math.max(room, 14), top: 14, bottom: 46 },
    xAxis: { ...axis, name: view.label, nameGap: 28, min: x[0], max: x[1], splitLine: { show: false },
      axisTick: { customValues: view.ticks, lineStyle: { color: edge } },
      axisLabel: { ...axis.axisLabel, customValues: view.ticks, formatter: (value) => view.names?.get(value) ?? String(Number(value.toPrecision(4))) } },
    yAxis: { ...axis, name: "Top-1 accuracy (%)", nameGap: 32, min: y[0], max: y[1], interval: step, splitLine: { lineStyle: { color: line } } },
    tooltip: { trigger: "item", enterable: true, confine: true, hideDelay: 300, transitionDuration: 0, backgroundColor: card, borderColor: edge, padding: 10,
      formatter: ({ data: { point }, seriesIndex, dataIndex }) => describe(section, point, beside(seriesIndex, dataIndex)) },
    series: [
      ...[...view.lines].map(([method, points]) => band(points, look(method).colour)),
      ...[...view.lines].map(([method, points]) => curve(method, points, ink, room, (mean) => mean >= y[0] && mean <= y[1])),
      hollow(view.published),
      crosses(view.absent, section, y[0]),
    ],
  };
}

class Chart {
  constructor(box) {
    this.box = box;
    this.section = data.sections[Number(box.dataset.section)];
    this.plot = box.querySelector(".plot");
    this.at = -1;  // the point that the keyboard is at
    box.closest("figure").dataset.view = "chart";
    this.engine = echarts.init(this.plot, null, { renderer: "svg" });
    box.querySelector("form").addEventListener("change", () => this.draw());
    this.plot.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => { if (this.plot.clientWidth) { this.engine.resize(); this.draw(); } }).observe(this.plot);
  }

  draw() {
    const choices = Object.fromEntries(all("input:checked", this.box).map((input) => [input.dataset.key, input.value]));
    const view = VIEWS[this.box.dataset.kind](this.section, choices);
    this.at = -1;
    const drawn = option(view, this.section, this.plot.clientWidth, (...place) => this.beside(...place));
    this.points = drawn.series.flatMap((series, seriesIndex) => series.type === "custom" ? []
      : series.data.map(({ point }, dataIndex) => ({ seriesIndex, dataIndex, point })));  // in the order of the arrow keys
    this.engine.setOption(drawn, { notMerge: true });
    const bands = [...view.lines.values()].flat().some((point) => point.low !== null);
    const off = beyond(view);
    this.box.querySelector(".legend").replaceChildren(...(this.plot.clientWidth < FEW ? [...swatches.keys()] : [])
      .filter((method) => view.lines.has(method)).map((method) => element("span", {}, swatches[method].cloneNode(true), data.methods[method].name)));
    const remarks = [view.remark, off && `Beyond the axis: ${off}.`, bands && "Bands: 95 % intervals of the mean.", choices.head ? this.section.differ_by_one_head : this.section.differ];
    this.box.querySelector(".remark").textContent = remarks.filter(Boolean).join(" ");
  }

  /** Other points under the marker of one. */
  beside(seriesIndex, dataIndex) {
    const place = (drawn) => this.engine.convertToPixel({ seriesIndex: drawn.seriesIndex }, [drawn.point.x, drawn.point.mean]);
    const own = this.points.find((drawn) => drawn.seriesIndex === seriesIndex && drawn.dataIndex === dataIndex);
    if (own.point.mean === undefined) return [];  // a cross stands beside the others
    const [x, y] = place(own);
    const distance = (drawn) => Math.hypot(place(drawn)[0] - x, place(drawn)[1] - y);
    return this.points.filter((drawn) => drawn !== own && drawn.point.mean !== undefined && distance(drawn) < MARK / 2).map(({ point }) => point);
  }

  enter(point) {
    showRuns(point.cell.runs, this.plot, headline(point.cell, point));
  }

  key(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const { points } = this;
    if (event.key === "Escape") this.engine.dispatchAction({ type: "hideTip" });
    if (event.key === "Enter" && points[this.at]?.point.cell.runs.length) this.enter(points[this.at].point);
    if (!step || !points.length) return;
    event.preventDefault();
    this.at = (Math.max(this.at, step < 0 ? 0 : -1) + step + points.length) % points.length;
    const { seriesIndex, dataIndex, point } = points[this.at];
    this.engine.dispatchAction({ type: "showTip", seriesIndex, dataIndex });
    const said = facts(this.section, point.cell, point).map(([name, value]) => `${name} ${value}`);
    this.box.querySelector("output").textContent = [data.methods[point.cell.method].name, headline(point.cell, point), ...said].join("; ");
  }
}

for (const box of all(".chart")) charts.push(new Chart(box));
for (const button of all(".swap")) {
  const figure = button.closest("figure");
  const show = (view) => {
    figure.dataset.view = view;
    button.textContent = view === "chart" ? "Static figure" : "Interactive chart";
  };
  button.hidden = false;
  button.addEventListener("click", () => show(figure.dataset.view === "chart" ? "static" : "chart"));
}
addEventListener("beforeprint", () => all("details.more").forEach((details) => { details.open = true; }));
showTheme();
