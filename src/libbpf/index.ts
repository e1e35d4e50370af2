// SPDX-License-Identifier: Apache-2.0
/** libbpf-ts: typed bindings to the system's libbpf.so.1. */
export * from "./attach.ts";
export { BpfError, isErrno } from "./error.ts";
export * from "./link.ts";
export * from "./map.ts";
export { libbpfVersion, possibleCpus } from "./native.ts";
export * from "./object.ts";
export * from "./program.ts";
export * from "./ringBuffer.ts";
