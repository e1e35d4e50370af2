// SPDX-License-Identifier: Apache-2.0
export * from "./errno.ts";
export * from "./library.ts";
