//! What commands print: tables for people, JSON for scripts.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::{Failure, Output};
use crate::config::{show_duration, show_size};

/// Prints on standard output. That nobody reads it any more is no failure.
///
/// # Errors
/// It cannot be written.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::silent(0)),
        result => {
            result.map_err(|error| Failure::other(format!("the output cannot be written: {error}")))
        }
    }
}

/// A line for people.
///
/// # Errors
/// See [`bytes`].
pub(super) fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// A line for scripts.
///
/// # Errors
/// See [`bytes`].
pub(super) fn json(what: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(what).map_err(|error| Failure::other(error.to_string()))?;
    line(&text)
}

/// The one for scripts, or else the other for people.
///
/// # Errors
/// See [`bytes`].
pub(super) fn either(
    output: Output,
    what: &impl Serialize,
    people: impl FnOnce() -> String,
) -> Result<(), Failure> {
    if output == Output::Json { json(what) } else { line(&people()) }
}

/// May standard output have colours? <https://no-color.org>
pub(super) fn colour() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

/// Bytes of others on a terminal: nothing of them moves the cursor.
pub(super) fn text(bytes: &[u8]) -> String {
    let mut safe = String::with_capacity(bytes.len());
    for letter in String::from_utf8_lossy(bytes).chars() {
        if letter.is_control() {
            safe.extend(letter.escape_default());
        } else {
            safe.push(letter);
        }
    }
    safe
}

/// The same in one cell of a table.
pub(super) fn short(bytes: &[u8]) -> String {
    const WIDTH: usize = 60;
    let whole = text(bytes);
    match whole.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}...", &whole[..end]),
        None => whole,
    }
}

/// A size as people say it, with three digits.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => show_size(bytes),
    }
}

/// What there may be, or a dash.
pub(super) fn maybe(what: Option<impl ToString>) -> String {
    what.map_or_else(|| "-".into(), |what| what.to_string())
}

/// A time there may be, or a dash.
pub(super) fn span(time: Option<Duration>) -> String {
    maybe(time.map(show_duration))
}

/// Columns as wide as they must be; the headings in bold on a terminal.
///
/// # Errors
/// See [`bytes`].
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    bytes(lines(head, rows, colour()).as_bytes())
}

fn lines(head: &[&str], rows: &[Vec<String>], colour: bool) -> String {
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let cells = cells.map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(head[column].len())
        })
        .collect();
    let one = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        line.truncate(line.trim_end().len());
        line
    };
    let mut all = String::new();
    if !head.is_empty() {
        let line = one(&mut head.iter().copied());
        all.push_str(&if colour { format!("\x1b[1m{line}\x1b[0m") } else { line });
        all.push('\n');
    }
    for row in rows {
        all.push_str(&one(&mut row.iter().map(String::as_str)));
        all.push('\n');
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "1".into()], vec!["longer".into(), "2".into()]];
        assert_eq!(lines(&["KEY", "N"], &rows, false), "KEY     N\na       1\nlonger  2\n");
        assert!(lines(&["KEY", "N"], &rows, true).starts_with("\x1b[1mKEY     N\x1b[0m\n"));
    }

    #[test]
    fn nothing_of_others_moves_the_cursor() {
        assert_eq!(text(b"a\x1b[2Jb\n\xff"), "a\\u{1b}[2Jb\\n\u{fffd}");
        assert_eq!(short("\u{e9}".repeat(61).as_bytes()), format!("{}...", "\u{e9}".repeat(60)));
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size(900), "900B");
        assert_eq!(size(1536), "1.5 KiB");
    }
}
