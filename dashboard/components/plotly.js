// Plotly, fetched once for the whole page, whoever asks first.
const SOURCE = "./app/static/plotly-basic.min.js";

function plotly() {
  window.n2nPlotly ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = SOURCE;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => { window.n2nPlotly = undefined; reject(new Error(`cannot load ${SOURCE}`)); };
    document.head.append(script);
  });
  return window.n2nPlotly;
}
