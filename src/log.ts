// SPDX-License-Identifier: Apache-2.0
// Structured log lines. Who makes a logger decides where they go; library code is handed one.

const LEVELS = ["debug", "info", "warning", "error"] as const;

export type LogLevel = (typeof LEVELS)[number];
export type LogFields = Record<string, string | number | boolean | null>;
export type Logger = Record<LogLevel, (message: string, fields?: LogFields) => void>;

export interface LoggerOptions {
  /** Lines below this level are not written. */
  level: LogLevel;
  /** `text` for people, `json` for one object a line. */
  format: "text" | "json";
  write(line: string): void;
}

export function createLogger(options: LoggerOptions): Logger {
  const threshold = LEVELS.indexOf(options.level);
  const render = options.format === "json" ? jsonLine : textLine;
  const at =
    (level: LogLevel) =>
    (message: string, fields: LogFields = {}) => {
      if (LEVELS.indexOf(level) >= threshold) options.write(render(level, message, fields));
    };
  return { debug: at("debug"), info: at("info"), warning: at("warning"), error: at("error") };
}

function jsonLine(level: LogLevel, message: string, fields: LogFields): string {
  return `${JSON.stringify({ level, message, ...fields })}\n`;
}

function textLine(level: LogLevel, message: string, fields: LogFields): string {
  const pairs = Object.entries(fields).map(([key, value]) => ` ${key}=${quoted(String(value))}`);
  return `lasthop: ${level}: ${message}${pairs.join("")}\n`;
}

function quoted(value: string): string {
  return /^[^\s"=]+$/.test(value) ? value : JSON.stringify(value);
}
