// SPDX-License-Identifier: Apache-2.0
import { describe } from "vitest";
import { contract } from "./contract.ts";

// Read when the first native call loads the backend.
process.env.LASTHOP_FFI = "koffi";

describe("koffi", () => contract("koffi", { calls: 1_000_000 }));
