// SPDX-License-Identifier: Apache-2.0
import { type ErrorCode, LasthopError } from "../errors.ts";
import { capabilities } from "../libc/capabilities.ts";
import { ERRNO, type ErrnoName, errnoName, errnoText } from "../libc/index.ts";
import { messages } from "./messages.ts";

/** libbpf's own numbers from 4000 on (enum libbpf_errno). */
const LIBBPF_ERRORS: Record<number, readonly [name: string, text: string]> = {
  4000: ["LIBBPF_ERRNO__LIBELF", "libelf failed"],
  4001: ["LIBBPF_ERRNO__FORMAT", "not a valid BPF object file"],
  4002: ["LIBBPF_ERRNO__KVERSION", "wrong version section"],
  4003: ["LIBBPF_ERRNO__ENDIAN", "wrong byte order"],
  4004: ["LIBBPF_ERRNO__INTERNAL", "internal error of libbpf"],
  4005: ["LIBBPF_ERRNO__RELOC", "relocation failed"],
  4006: ["LIBBPF_ERRNO__LOAD", "the program was not loaded"],
  4007: ["LIBBPF_ERRNO__VERIFY", "the verifier refused the program"],
  4008: ["LIBBPF_ERRNO__PROG2BIG", "the program is too big"],
  4009: ["LIBBPF_ERRNO__KVER", "wrong kernel version"],
  4010: ["LIBBPF_ERRNO__PROGTYPE", "the kernel lacks this program type"],
  4011: ["LIBBPF_ERRNO__WRNGPID", "netlink answered another process"],
  4012: ["LIBBPF_ERRNO__INVSEQ", "netlink answered out of order"],
  4013: ["LIBBPF_ERRNO__NLPARSE", "a netlink answer cannot be read"],
};

interface BpfErrorOptions {
  code?: ErrorCode;
  /** Says more than the errno, where something does. */
  reason?: string | undefined;
  hint?: string | undefined;
  details?: string;
}

/** A call of libbpf or of the kernel that failed. */
export class BpfError extends LasthopError {
  /** Positive. */
  readonly errno: number;
  /** "EBUSY", "LIBBPF_ERRNO__FORMAT"; "errno N" for a number without a name. */
  readonly errnoName: string;

  constructor(attempt: string, errno: number, options: BpfErrorOptions = {}) {
    const { code = "E_BPF", hint, details = "" } = options;
    const [name, text] = LIBBPF_ERRORS[errno] ?? [errnoName(errno), undefined];
    const reason = options.reason ?? text;
    super(code, `${attempt}: ${reason === undefined ? errnoText(errno) : `${reason} (${name})`}`, {
      ...(hint === undefined ? {} : { hint }),
      ...(details === "" ? {} : { details }),
    });
    this.name = "BpfError";
    this.errno = errno;
    this.errnoName = name;
  }
}

/** True for a BpfError with one of these numbers: `isErrno(error, "ENOENT")`. */
export function isErrno(error: unknown, ...names: ErrnoName[]): error is BpfError {
  return error instanceof BpfError && names.some((name) => ERRNO[name] === error.errno);
}

/** What loading and attaching need; CAP_SYS_ADMIN stands for all of them. */
const NEEDED = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"] as const;

function missingCapabilities(): string[] {
  const held = capabilities();
  return NEEDED.filter((name) => !held.has(name) && !(held.has("CAP_SYS_ADMIN") && name !== "CAP_NET_ADMIN"));
}

/**
 * The error for a negative result of libbpf, with libbpf's own words as details. `attempt` says what was tried
 * on what: "cannot pin the map flows4 at /sys/fs/bpf/x". EPERM without a needed capability is E_NOT_ROOT.
 */
export function bpfError(attempt: string, result: number, options: BpfErrorOptions = {}): BpfError {
  const errno = Math.abs(result);
  const details = [messages(), options.details ?? ""].filter((text) => text !== "").join("\n");
  const missing = errno === ERRNO.EPERM ? missingCapabilities() : [];
  if (missing.length > 0) {
    const hint = `run as root, or with the missing ${missing.join(", ")}`;
    return new BpfError(attempt, errno, { ...options, code: "E_NOT_ROOT", hint, details });
  }
  return new BpfError(attempt, errno, { ...options, details });
}

/** Returns a result that is not negative; throws the error above otherwise. `attempt` is only built then. */
export function check(result: number, attempt: () => string): number {
  if (result < 0) throw bpfError(attempt(), result);
  return result;
}
