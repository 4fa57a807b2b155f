// Bytes as text, hex, base64 and parts of URLs. Keys and values are any bytes.

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export function fromText(text) {
  return new TextEncoder().encode(text);
}

// The text that these bytes are, or null when they are none.
export function toText(bytes) {
  try {
    return strict.decode(bytes);
  } catch {
    return null;
  }
}

export function fromBase64(text) {
  try {
    return Uint8Array.from(atob(text.replace(/\s+/g, "")), (letter) => letter.charCodeAt(0));
  } catch {
    return null;
  }
}

export function toBase64(bytes) {
  let binary = "";
  for (let at = 0; at < bytes.length; at += 8192) {
    binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
  }
  return btoa(binary);
}

export function toHex(bytes) {
  return Array.from(bytes, hexByte).join("");
}

// Space between the digits is nothing; null when it is not hex.
export function fromHex(text) {
  const digits = text.replace(/\s+/g, "");
  if (digits.length % 2 || /[^0-9a-fA-F]/.test(digits)) return null;
  const bytes = new Uint8Array(digits.length / 2);
  for (let at = 0; at < bytes.length; at += 1) {
    bytes[at] = parseInt(digits.slice(2 * at, 2 * at + 2), 16);
  }
  return bytes;
}

// Lines of sixteen bytes: where they are, what they are, and as letters.
export function hexDump(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const part = bytes.subarray(at, at + 16);
    const hex = Array.from(part, hexByte).join(" ").padEnd(47);
    const letters = Array.from(part, (byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "."));
    lines.push(`${at.toString(16).padStart(8, "0")}  ${hex}  ${letters.join("")}`);
  }
  return lines.join("\n");
}

function hexByte(byte) {
  return byte.toString(16).padStart(2, "0");
}

// Bytes as they stand in a path or a query. Also `/` is written as %2F: as a part of its own
// `..` would be taken away by the browser.
export function percent(bytes) {
  let text = "";
  for (const byte of bytes) {
    const letter = String.fromCharCode(byte);
    text += /[A-Za-z0-9._~-]/.test(letter) ? letter : `%${hexByte(byte).toUpperCase()}`;
  }
  return text;
}

// What a field says, as "text", "hex" or "base64"; null when it says nothing sensible.
export function parse(text, as) {
  if (as === "hex") return fromHex(text);
  if (as === "base64") return fromBase64(text);
  return fromText(text);
}

// The bytes of a key as the API shows it.
export function keyOf(item) {
  return item.key === undefined ? fromBase64(item.key_b64) : fromText(item.key);
}

// The bytes of a value as the API shows it; null when it has none.
export function valueOf(item) {
  if (item.value === undefined) return null;
  return item.encoding === "base64" ? fromBase64(item.value) : fromText(item.value);
}

// A key for people: letters that cannot be seen, or that turn the direction, are written out.
export function showKey(bytes) {
  const text = toText(bytes);
  if (text === null) return `0x${toHex(bytes)}`;
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (letter) => `\\u{${letter.codePointAt(0).toString(16)}}`);
}

export function same(a, b) {
  return a.length === b.length && a.every((byte, at) => byte === b[at]);
}

export function startsWith(bytes, prefix) {
  return bytes.length >= prefix.length && prefix.every((byte, at) => byte === bytes[at]);
}
