// SPDX-License-Identifier: Apache-2.0
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { LasthopError } from "../../src/errors.ts";

beforeEach(() => {
  vi.resetModules();
});

afterEach(() => {
  vi.doUnmock("node:module");
  vi.unstubAllEnvs();
});

/** A `require` that does not find these modules. */
function hideModules(...hidden: string[]): void {
  vi.doMock("node:module", async (original) => {
    const { createRequire } = await original<typeof import("node:module")>();
    return {
      createRequire: (from: string) => (name: string) => {
        if (hidden.includes(name)) throw new Error(`Cannot find module '${name}'`);
        return createRequire(from)(name);
      },
    };
  });
}

async function failure(action: () => unknown): Promise<LasthopError> {
  try {
    await action();
  } catch (error) {
    return error as LasthopError;
  }
  return expect.unreachable("nothing was thrown");
}

it("says which package brings a missing libbpf", async () => {
  const { loadFfi } = await import("../../src/ffi/index.ts");
  const { libbpfVersion } = await import("../../src/libbpf/index.ts");
  const ffi = loadFfi();
  const open = ffi.open.bind(ffi);
  vi.spyOn(ffi, "open").mockImplementation((name) => open(name.replace("libbpf", "libbpf-not-here")));
  const error = await failure(() => libbpfVersion());
  expect(error.code).toBe("E_LIBBPF_MISSING");
  expect(error.message).toContain("libbpf.so.1");
  expect(error.hint).toContain("apt install libbpf1");
});

it("says how to install the optional backend", async () => {
  hideModules("ffi-napi");
  vi.stubEnv("LASTHOP_FFI", "ffi-napi");
  const { loadFfi } = await import("../../src/ffi/index.ts");
  const error = await failure(() => loadFfi());
  expect(error.code).toBe("E_FFI");
  expect(error.hint).toContain("make ffi-napi");
});

it("says what to do about a missing default backend", async () => {
  hideModules("koffi");
  vi.stubEnv("LASTHOP_FFI", "");
  const { loadFfi } = await import("../../src/ffi/index.ts");
  const error = await failure(() => loadFfi());
  expect(error.code).toBe("E_FFI");
  expect(error.hint).toContain("npm ci");
});

it("refuses an unknown backend", async () => {
  vi.stubEnv("LASTHOP_FFI", "dlopen");
  const { loadFfi } = await import("../../src/ffi/index.ts");
  const error = await failure(() => loadFfi());
  expect(error.code).toBe("E_FFI");
  expect(error.message).toContain("dlopen");
  expect(error.hint).toContain("koffi, ffi-napi");
});
