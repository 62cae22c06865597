"use strict";
/* Figures as people read them, elements, and questions to the API. */
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const make = (tag, text = "", attributes = {}) => {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const number = (value, digits) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const time = (ns) => {
  if (ns === null || ns === undefined) return "–";
  const size = Math.abs(ns);
  if (size < 1e6) return `${number(ns / 1e3, 1)} µs`;
  return size < 1e10 ? `${number(ns / 1e6, size >= 1e8 ? 1 : 2)} ms` : `${number(ns / 1e9, 1)} s`;
};
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const isDark = (hex) => {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return 0.3 * r + 0.59 * g + 0.11 * b < 140;
};

/* On a narrow screen a row is no row: each cell stands under the name of its column. */
const nameCells = (within) => {
  for (const table of within.querySelectorAll(".scroll table")) {
    const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
    for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, i) => cell.setAttribute("data-head", heads[i] ?? ""));
  }
};

const root = document.documentElement.dataset.root;
const keyField = () => document.querySelector("[name=key]");

async function ask(path, options = {}) {
  const key = keyField()?.value;
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(`${root}v1/taxbreak/${path}`, { ...options, headers, cache: "no-store" });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail || answer.statusText);
  return body;
}
