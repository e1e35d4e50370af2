// SPDX-License-Identifier: Apache-2.0

import { expect, it } from "vitest";
import { encode, sizeOf } from "../../src/abi/codec.ts";
import { flowEntries, flowLines, removeFlows } from "../../src/ops/flows.ts";
import { Tables } from "../../src/tables/index.ts";
import { describeTables } from "../support/tableCases.ts";
import { kernelSource } from "../support/tableSource.ts";

describeTables("tables in the kernel", kernelSource);

const FLOWS = 200_000;

it("a list of many flows has each once, and a flush leaves none", () => {
  const source = kernelSource({ flows4: FLOWS * 2 });
  try {
    const tables = new Tables(source);
    const keys = Buffer.alloc(FLOWS * sizeOf("flow4_key"));
    const values = Buffer.alloc(FLOWS * sizeOf("flow"));
    for (let index = 0; index < FLOWS; index++) {
      const key = { remote: index, local: 0x0a000001, remote_port: 1 + (index % 65_535), proto: 6 };
      encode("flow4_key", key, keys, index * sizeOf("flow4_key"));
    }
    source.map("flows4").updateBatch(keys, values, FLOWS);
    const seen = new Uint8Array(FLOWS);
    for (const { remote_address: address } of flowEntries(tables, {})) {
      seen[address.split(".").reduce((number, octet) => number * 256 + Number(octet), 0)]!++;
    }
    expect(seen.every((count) => count === 1)).toBe(true);
    let flows = 0;
    for (const chunk of flowLines(tables, {})) flows += chunk.flows;
    expect(flows).toBe(FLOWS);
    expect(removeFlows(tables, { address: "0.0.0.0/16" })).toBe(65_536);
    expect(removeFlows(tables, {})).toBe(FLOWS - 65_536);
    expect([...flowEntries(tables, {})]).toEqual([]);
  } finally {
    source.close();
  }
});
