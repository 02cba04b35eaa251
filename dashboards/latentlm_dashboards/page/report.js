/* Draws the report's charts when they come near the screen; no network, no storage. */
(() => {
  "use strict";
  const root = document.documentElement;
  const read = (id) => document.getElementById(id).textContent;

  const unpacked = async (base64) => {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(plain).text();
  };

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  const narrow = () => window.innerWidth < 620;

  const themed = (layout) => {
    const ink = colour("--ink");
    const grid = colour("--grid");
    const axis = (own) => ({
      gridcolor: grid, zerolinecolor: grid, linecolor: colour("--soft"), tickfont: { size: 12 },
      automargin: true, ...own, title: { standoff: 8, font: { size: 12 }, ...own.title },
    });
    return {
      autosize: true, margin: { l: 52, r: 12, t: 8, b: 40 }, hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: 13 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 },
        itemwidth: 30 },
      hoverlabel: { bgcolor: colour("--panel"), font: { color: ink }, bordercolor: colour("--line") },
      ...layout,
      dragmode: narrow() ? false : "zoom",
      xaxis: axis(layout.xaxis || {}), yaxis: axis(layout.yaxis || {}),
    };
  };

  const config = {
    responsive: true, displaylogo: false, doubleClick: "reset", displayModeBar: false,
  };
  let charts = [];
  let drawnFirst = false;

  const draw = async (figure) => {
    const chart = charts[Number(figure.dataset.chart)];
    const place = figure.querySelector(".plot");
    await Plotly.newPlot(place, chart.data, themed(chart.layout), config);
    figure.dataset.drawn = "yes";
    if (!drawnFirst) {
      drawnFirst = true;
      performance.mark("first-chart");
    }
  };

  const drawNear = () => {
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        near.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "400px" });
    const watched = new Set();
    const watch = () => {
      for (const figure of document.querySelectorAll("figure[data-chart]")) {
        if (!watched.has(figure)) {
          watched.add(figure);
          near.observe(figure);
        }
      }
    };
    watch();
    document.addEventListener("DOMContentLoaded", watch);
    document.addEventListener("toggle", watch, true);
    window.addEventListener("beforeprint", () => watched.forEach((figure) => draw(figure)));
  };

  const start = async () => {
    if (!document.querySelector("figure[data-chart]")) return;
    charts = JSON.parse(read("charts"));
    if (typeof DecompressionStream === "undefined") {
      for (const place of document.querySelectorAll(".plot")) {
        place.textContent = "This browser is too old for the charts; the tables hold their values.";
      }
      return;
    }
    const library = document.createElement("script");
    library.textContent = await unpacked(read("plotly"));
    document.head.append(library);
    drawNear();
  };

  const repaint = () => {
    for (const figure of document.querySelectorAll("figure[data-drawn]")) {
      const chart = charts[Number(figure.dataset.chart)];
      Plotly.react(figure.querySelector(".plot"), chart.data, themed(chart.layout), config);
    }
  };

  const isDark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;

  const addThemeButton = () => {
    const button = document.querySelector(".theme");
    const say = () => { button.textContent = isDark() ? "Light" : "Dark"; };
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      say();
      repaint();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      say();
      repaint();
    });
    say();
  };

  const addPictureView = () => {
    const dialog = document.querySelector("dialog");
    const shots = () => [...document.querySelectorAll(".shot button")].filter((b) => b.offsetParent);
    let at = null;
    const show = (button) => {
      at = button;
      const small = button.querySelector("img");
      const large = dialog.querySelector("img");
      large.src = small.dataset.same ? document.getElementById(small.dataset.same).src : small.src;
      large.alt = small.alt;
      dialog.querySelector("p").textContent = button.closest(".shot").innerText.trim();
      if (!dialog.open) dialog.showModal();
    };
    const move = (by) => {
      const all = shots();
      show(all[(all.indexOf(at) + by + all.length) % all.length]);
    };
    document.addEventListener("click", (event) => {
      const button = event.target.closest(".shot button");
      if (button) show(button);
      if (event.target === dialog) dialog.close();
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") move(1);
      if (event.key === "ArrowLeft") move(-1);
    });
    dialog.addEventListener("close", () => at && at.focus());
    dialog.querySelector("[data-by='-1']").addEventListener("click", () => move(-1));
    dialog.querySelector("[data-by='1']").addEventListener("click", () => move(1));
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  };

  const addTilePickers = () => {
    for (const pick of document.querySelectorAll("select[data-gallery]")) {
      const gallery = document.getElementById(pick.dataset.gallery);
      pick.disabled = false;
      pick.addEventListener("change", () => {
        gallery.classList.toggle("one-tile", pick.value !== "all");
        gallery.style.setProperty("--tile-column", pick.value);
      });
    }
  };

  const copyPictures = () => {
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        near.unobserve(entry.target);
        entry.target.src = document.getElementById(entry.target.dataset.same).src;
      }
    }, { rootMargin: "600px" });
    for (const picture of document.querySelectorAll("img[data-same]")) near.observe(picture);
  };

  start();
  document.addEventListener("DOMContentLoaded", () => {
    copyPictures();
    addThemeButton();
    addPictureView();
    addTilePickers();
  });
})();
