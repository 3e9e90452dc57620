// How values read. Names come from anywhere: what would hide, reorder or break a line is shown for what it is.

const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** Text as it is, each character that cannot be seen replaced by its code. */
export function plain(text: string): string {
  return text.replace(HIDDEN, (c) => {
    const code = c.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/** Arguments as a shell would take them. */
export function words(args: string[]): string {
  return args.map((a) => (/^[\w@%+=:,./-]+$/.test(a) ? a : `'${plain(a).replaceAll("'", "'\\''")}'`)).join(" ");
}

/** The beginning of a hash, a digest or an id. */
export const shortId = (text: string) => plain(text.slice(0, 12));

const NUMBER = new Intl.NumberFormat("en");
export const count = (n: number, one: string, many = `${one}s`) => `${NUMBER.format(n)} ${n === 1 ? one : many}`;
export const number = (n: number) => NUMBER.format(n);

/** A size in bytes, to three digits. */
export function size(bytes: number): string {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; bytes >= 1024 && at < units.length - 1; at++) bytes /= 1024;
  return `${NUMBER.format(Number(bytes.toPrecision(3)))} ${units[at]}`;
}

/** A duration of milliseconds, to about two digits. */
export function duration(ms: number): string {
  const s = Math.max(0, ms) / 1000;
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  const [m, h] = [Math.floor(s / 60), Math.floor(s / 3600)];
  if (h < 1) return `${m} min ${Math.floor(s % 60)} s`;
  return h < 48 ? `${h} h ${m % 60} min` : `${Math.floor(h / 24)} days`;
}

const pad = (n: number) => String(n).padStart(2, "0");

/** The time of day by this machine's clock, with the day when it is another. */
export function clock(unix_ms: number): string {
  const at = new Date(unix_ms);
  const time = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  if (at.toDateString() === new Date().toDateString()) return time;
  return `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${time}`;
}
