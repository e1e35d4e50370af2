// SPDX-License-Identifier: Apache-2.0
import { describe } from "vitest";
import { contract } from "./contract.ts";

// Read when the first native call loads the backend. An ffi-napi that cannot be loaded fails every test here.
process.env.LASTHOP_FFI = "ffi-napi";

describe("ffi-napi", () => contract("ffi-napi", { calls: 1_000_000 }));
