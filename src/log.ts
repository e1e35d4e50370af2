// SPDX-License-Identifier: Apache-2.0
// Structured log lines. Who makes a logger decides where they go; library code is handed one.

const LEVELS = ["debug", "info", "warning", "error"] as const;
/** Priorities of syslog(3), as sd-daemon(3) has them before a line. */
const PRIORITIES: Record<LogLevel, number> = { debug: 7, info: 6, warning: 4, error: 3 };
const MINUTE_MS = 60_000;

export type LogLevel = (typeof LEVELS)[number];
export type LogFields = Record<string, string | number | boolean | null>;
export type Logger = Record<LogLevel, (message: string, fields?: LogFields) => void>;

export interface LoggerOptions {
  /** Lines below this level are not written. */
  level: LogLevel;
  /** `text` for people, `json` for one object a line. */
  format: "text" | "json";
  write(line: string): void;
  /** Lines with the same message that a minute may have; of the others only their number is written. */
  perMinute?: number;
  /** Before each line of text its priority, for journald. */
  journal?: boolean;
  /** With it, JSON has the time. */
  now?(): Date;
}

/** A logger for a process that goes on for long. */
export interface RunningLogger extends Logger {
  configure(changes: Partial<Pick<LoggerOptions, "level" | "format">>): void;
  /** Writes what has been held back. Nothing may be logged afterwards. */
  close(): void;
}

/** One message in the minute since it was first written. */
interface Window {
  written: number;
  suppressed: number;
  timer: NodeJS.Timeout;
}

export function createLogger(options: LoggerOptions): RunningLogger {
  let { level: threshold, format } = options;
  const windows = new Map<string, Window>();

  const write = (level: LogLevel, message: string, fields: LogFields): void => {
    if (format === "json") options.write(jsonLine(level, message, fields, options.now?.()));
    else options.write((options.journal ? `<${PRIORITIES[level]}>` : "") + textLine(level, message, fields));
  };
  const settle = (key: string, level: LogLevel, message: string): void => {
    const window = windows.get(key);
    if (!window) return;
    clearTimeout(window.timer);
    windows.delete(key);
    if (window.suppressed > 0) write(level, `${message}: suppressed ${window.suppressed} more`, {});
  };
  const admitted = (level: LogLevel, message: string): boolean => {
    if (options.perMinute === undefined) return true;
    const key = `${level} ${message}`;
    let window = windows.get(key);
    if (!window) {
      const timer = setTimeout(() => settle(key, level, message), MINUTE_MS);
      timer.unref();
      window = { written: 0, suppressed: 0, timer };
      windows.set(key, window);
    }
    if (window.written < options.perMinute) window.written++;
    else window.suppressed++;
    return window.suppressed === 0;
  };
  const at =
    (level: LogLevel) =>
    (message: string, fields: LogFields = {}) => {
      if (LEVELS.indexOf(level) < LEVELS.indexOf(threshold) || !admitted(level, message)) return;
      write(level, message, fields);
    };
  return {
    debug: at("debug"),
    info: at("info"),
    warning: at("warning"),
    error: at("error"),
    configure(changes) {
      threshold = changes.level ?? threshold;
      format = changes.format ?? format;
    },
    close() {
      for (const key of [...windows.keys()]) {
        const blank = key.indexOf(" ");
        settle(key, key.slice(0, blank) as LogLevel, key.slice(blank + 1));
      }
    },
  };
}

/**
 * Whether a stream goes to journald: `journalStream` is the environment's JOURNAL_STREAM, "device:inode"
 * (systemd.exec(5)), and `stream` what fstat says of it.
 */
export function isJournal(
  journalStream: string | undefined,
  stream: { dev: number | bigint; ino: number | bigint },
): boolean {
  return journalStream === `${stream.dev}:${stream.ino}`;
}

function jsonLine(level: LogLevel, message: string, fields: LogFields, time: Date | undefined): string {
  return `${JSON.stringify({ ...(time && { time: time.toISOString() }), level, message, ...fields })}\n`;
}

function textLine(level: LogLevel, message: string, fields: LogFields): string {
  const pairs = Object.entries(fields).map(([key, value]) => ` ${key}=${quoted(String(value))}`);
  return `lasthop: ${level}: ${message}${pairs.join("")}\n`;
}

function quoted(value: string): string {
  return /^[^\s"=]+$/.test(value) ? value : JSON.stringify(value);
}
