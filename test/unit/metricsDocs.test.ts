// SPDX-License-Identifier: Apache-2.0
// Holds docs/metrics.md, the alert rules and the dashboard to what is rendered.

import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { REASONS, TABLE, VERDICT, ZONES_MAX } from "../../src/abi/layout.gen.ts";
import { DaemonMetrics, renderMetrics } from "../../src/metrics/index.ts";
import { REASONS_FROM_THE_START } from "../../src/metrics/interfaces.ts";
import { callAll, filledTables, type ParsedFamily, parseMetrics } from "../support/metricsTables.ts";

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");

let rendered: Map<string, ParsedFamily>;
/** As they stand before braces in a query. */
let sampleNames: Set<string>;

beforeAll(async () => {
  const daemon = new DaemonMetrics();
  callAll(daemon);
  const text = await renderMetrics({ instance: filledTables().instance, daemon });
  rendered = parseMetrics(text);
  sampleNames = new Set(
    [...rendered].flatMap(([name, { type }]) =>
      type === "histogram" ? [`${name}_bucket`, `${name}_sum`, `${name}_count`] : [name],
    ),
  );
});

describe("docs/metrics.md", () => {
  const text = read("docs/metrics.md");
  const [beforeMetrics = "", ...sections] = text.split(/^## (?!Labels)/m);
  const labelRows = [...beforeMetrics.matchAll(/^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \| (.+) \| (.+) \|$/gm)];
  const documentedLabels = labelRows.flatMap(([, names]) => words(names!));
  const rows = [...sections.join("").matchAll(/^\| `([a-z0-9_]+)` \| (\w+) \| (.*?) ?\| (.+) \|$/gm)].map(
    ([, name, type, labels, meaning]) => ({
      name: name!,
      type: type!,
      labels: words(labels!),
      meaning: meaning!,
    }),
  );

  test("has every metric that is rendered, and no other, each once", () => {
    expect(rows.map(({ name }) => name).sort()).toEqual([...rendered.keys()].sort());
  });

  test("has their types", () => {
    const types = Object.fromEntries(rows.map(({ name, type }) => [name, type]));
    expect(types).toEqual(Object.fromEntries([...rendered].map(([name, { type }]) => [name, type])));
  });

  test("has their labels", () => {
    for (const { name, labels } of rows) {
      const { series, labels: found } = rendered.get(name)!;
      // What Node.js has none of at the moment has no series.
      if (name.startsWith("nodejs_") && series.size === 0) continue;
      expect(series.size, name).toBeGreaterThan(0);
      expect(labels.toSorted(), name).toEqual([...found].filter((label) => label !== "le").sort());
    }
  });

  test("says of each label what bounds it", () => {
    const used = new Set(rows.flatMap(({ labels }) => labels));
    expect(documentedLabels.toSorted()).toEqual([...used].sort());
    for (const [, names, values, most] of labelRows) expect(`${values}${most}`, names).toMatch(/\w/);
  });

  test("has the bounds as they are", () => {
    const most = Object.fromEntries(
      labelRows.flatMap(([, names, , at]) => words(names!).map((name) => [name, at])),
    );
    expect(most).toMatchObject({
      reason: String(REASONS),
      verdict: String(Object.keys(VERDICT).length),
      zone: ZONES_MAX.toLocaleString("en"),
      table: String(rendered.get("lasthop_table_size")!.series.size),
    });
    expect(rendered.get("lasthop_sweep_last_entries")!.series.size).toBe(Object.keys(TABLE).length);
  });

  test("names the reasons that are shown from the start", () => {
    const sentence = /have occurred[^.]*\.([^.]*) have one from the start/.exec(text)![1]!;
    expect(words(sentence)).toEqual([...REASONS_FROM_THE_START]);
  });
});

interface Rule {
  alert: string;
  expr: string;
  labels: { severity: string };
  annotations: { summary: string; description: string; runbook_url: string };
}

const rules = (parse(read("examples/alerts.yaml")) as { groups: { rules: Rule[] }[] }).groups.flatMap(
  (group) => group.rules,
);

describe("examples/alerts.yaml", () => {
  test.each(rules.map((rule) => [rule.alert, rule] as const))("%s", (name, rule) => {
    expect(namesIn(rule.expr).filter((metric) => !sampleNames.has(metric) && metric !== "up")).toEqual([]);
    expect(["critical", "warning", "info"]).toContain(rule.labels.severity);
    expect(rule.annotations.summary).not.toBe("");
    expect(rule.annotations.description).not.toBe("");
    expect(rule.annotations.runbook_url).toBe(`docs/runbook.md#${name.toLowerCase()}`);
  });

  test("each has its section in the runbook", () => {
    const headings = [...read("docs/runbook.md").matchAll(/^#+ (.+)$/gm)].map((match) => anchor(match[1]!));
    for (const { alert } of rules) expect(headings).toContain(alert.toLowerCase());
  });

  test("ask for reasons that are there, most of them before the first packet", () => {
    const asked = rules.flatMap(({ expr }) =>
      [...expr.matchAll(/reason=~?"([a-z_|]+)"/g)].flatMap((match) => match[1]!.split("|")),
    );
    expect(asked.length).toBeGreaterThan(0);
    for (const reason of asked) expect([...REASONS_FROM_THE_START]).toContain(reason);
  });

  test("each is tested with what raises it and with what does not", () => {
    const { tests } = parse(read("examples/alerts.test.yaml")) as {
      tests: { alert_rule_test: { alertname: string; exp_alerts: unknown[] }[] }[];
    };
    const cases = tests.flatMap((one) => one.alert_rule_test);
    for (const { alert } of rules) {
      const own = cases.filter(({ alertname }) => alertname === alert);
      expect(
        own.some(({ exp_alerts }) => exp_alerts.length > 0),
        alert,
      ).toBe(true);
      expect(
        own.some(({ exp_alerts }) => exp_alerts.length === 0),
        alert,
      ).toBe(true);
    }
  });
});

interface Panel {
  id: number;
  type: string;
  title: string;
  datasource?: { type: string; uid: string };
  gridPos: { x: number; y: number; w: number; h: number };
  targets?: { expr: string; datasource: { uid: string } }[];
}

describe("examples/grafana-dashboard.json", () => {
  const dashboard = JSON.parse(read("examples/grafana-dashboard.json")) as {
    panels: Panel[];
    templating: { list: { name: string; type: string; definition?: string }[] };
    annotations: { list: { expr: string }[] };
  };
  const panels = dashboard.panels.filter(({ type }) => type !== "row");
  const queries = [
    ...panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr)),
    ...dashboard.annotations.list.map(({ expr }) => expr),
    ...dashboard.templating.list.flatMap(({ definition }) => definition ?? []),
  ];

  test("names only metrics that exist", () => {
    expect(queries.length).toBeGreaterThan(50);
    for (const query of queries) {
      expect(namesIn(query).length, query).toBeGreaterThan(0);
      for (const name of namesIn(query)) expect(sampleNames, query).toContain(name);
    }
  });

  test("shows every metric of lasthop's", () => {
    const shown = new Set(queries.flatMap(namesIn).map((name) => name.replace(/_(bucket|sum|count)$/, "")));
    expect([...rendered.keys()].filter((name) => name.startsWith("lasthop_") && !shown.has(name))).toEqual(
      [],
    );
  });

  test("asks the data source and the hosts that are chosen", () => {
    expect(dashboard.templating.list.map(({ name, type }) => [name, type])).toEqual([
      ["datasource", "datasource"],
      ["instance", "query"],
    ]);
    for (const { title, datasource, targets = [] } of panels) {
      expect(datasource?.uid, title).toBe(`\${datasource}`);
      expect(targets.length, title).toBeGreaterThan(0);
      for (const { expr, datasource: own } of targets) {
        expect(own.uid, title).toBe(`\${datasource}`);
        expect(expr, title).toContain('instance=~"$instance"');
      }
    }
  });

  test("has panels that neither overlap nor share an id", () => {
    expect(new Set(dashboard.panels.map(({ id }) => id)).size).toBe(dashboard.panels.length);
    const cells = new Set<string>();
    for (const { title, gridPos } of dashboard.panels) {
      expect(gridPos.x + gridPos.w, title).toBeLessThanOrEqual(24);
      for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
        for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
          expect(cells, title).not.toContain(`${x},${y}`);
          cells.add(`${x},${y}`);
        }
      }
    }
  });
});

function words(text: string): string[] {
  return [...text.matchAll(/`([a-z_]+)`/g)].map((match) => match[1]!);
}

/** Metrics in a query: what looks like one, outside of strings and label lists. */
function namesIn(query: string): string[] {
  const bare = query.replace(/"[^"]*"/g, "").replace(/\{[^}]*\}/g, "");
  return [...bare.matchAll(/\b(?:(?:lasthop|process|nodejs)_[a-z0-9_]+|up)\b/g)].map(([name]) => name);
}

/** As GitHub makes it of a heading. */
function anchor(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");
}
