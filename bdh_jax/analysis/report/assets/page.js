(() => {
  "use strict";
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const parts = Array.from(document.querySelectorAll(".live"));
  const MANY = 4000; // marks, beyond which pixels are drawn instead of one element each

  // How many panels stand side by side: as many as the data or the specification says, if there is room for them.
  const side = (spec, channel) => new Set(spec.data.values.map((row) => row[channel.field])).size || 1;
  const columns = (width, wanted) => Math.max(1, Math.min(wanted, Math.floor(width / 240)));

  // `beside` is what stands beside a panel: axis, header, half a label.
  function fitted(spec, width, beside) {
    const panel = (one, room) => ({ width: Math.max(60, Math.floor(room) - beside), ...one });
    const result = { ...spec };
    for (const name of ["hconcat", "concat", "vconcat"]) {
      if (!result[name]) continue;
      const count = name === "vconcat" ? 1 : columns(width, result.columns || result[name].length);
      const inner = result[name].map((part) => panel(part, width / count));
      delete result[name];
      return { ...result, concat: inner, columns: count };
    }
    if (result.spec) {
      const count = columns(width, result.columns || 3);
      return { ...result, columns: count, spec: panel(result.spec, width / count) };
    }
    let encoding = result.encoding || {};
    if (encoding.column && !encoding.row && side(spec, encoding.column) > columns(width, side(spec, encoding.column))) {
      const { column, ...others } = encoding; // no room side by side: wrap
      encoding = { ...others, facet: column };
    }
    if (encoding.facet) {
      const count = columns(width, encoding.facet.columns || side(spec, encoding.facet));
      result.encoding = { ...encoding, facet: { ...encoding.facet, columns: count } };
      return panel(result, width / count);
    }
    if (encoding.column) return panel(result, width / side(spec, encoding.column));
    if (encoding.row) return panel(result, width);
    // Vega-Lite fits no width where a height is given by steps: count them.
    const y = encoding.y || (result.layer && result.layer[0].encoding && result.layer[0].encoding.y);
    if (result.height && result.height.step && y && y.field) result.height = result.height.step * side(spec, y);
    return { width: width, autosize: { type: "fit-x", contains: "padding" }, ...result };
  }

  async function draw(part, beside = 112) {
    const spec = JSON.parse(document.getElementById(part.dataset.spec).textContent);
    const width = Math.floor(part.clientWidth);
    if (width === 0) return;
    const config = structuredClone(dark.matches ? themes.dark : themes.light);
    if (width < 480) config.legend.columns = 2;
    part.dataset.width = width;
    const count = spec.data.values.length;
    await vegaEmbed(part, fitted(spec, width, beside), {
      actions: false,
      logLevel: 1, // errors; a warning is for whoever wrote the specification
      config: config,
      renderer: count > MANY ? "canvas" : "svg",
      tooltip: { theme: dark.matches ? "dark" : "light" },
    });
    const over = part.scrollWidth - part.clientWidth;
    if (over > 1 && beside < 300) await draw(part, beside + over);
    part.parentElement.classList.add("drawn"); // until then, and where it fails, the still picture stands there
  }

  async function all() {
    for (const part of parts) {
      try {
        await draw(part);
      } catch (error) {
        console.error(part.dataset.spec, error);
      }
    }
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  }

  const contents = document.querySelector("nav details");
  if (window.innerWidth < 1024) contents.open = false;
  dark.addEventListener("change", all);
  let waiting;
  new ResizeObserver(() => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      for (const part of parts) if (Math.abs(part.clientWidth - part.dataset.width) > 1) draw(part);
    }, 150);
  }).observe(document.querySelector("main"));
  all();
})();
