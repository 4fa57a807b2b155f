//! What commands print: tables for people, JSON for scripts.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{Failure, Output};
use crate::config::{show_duration, show_size};

/// The reader of standard output closed it. There is one of it in a process, so there is one of
/// this.
static GONE: AtomicBool = AtomicBool::new(false);

/// Does nobody read standard output any more? Whoever prints without an end stops then.
pub(super) fn gone() -> bool {
    GONE.load(Ordering::Relaxed)
}

/// Prints on standard output. That nobody reads it any more is no failure, and changes nothing:
/// what else there is to do is done, and the exit code tells of that.
///
/// # Errors
/// It cannot be written.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    if gone() {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            GONE.store(true, Ordering::Relaxed);
            Ok(())
        }
        result => {
            result.map_err(|error| Failure::other(format!("the output cannot be written: {error}")))
        }
    }
}

/// A line for people that is no result, on standard error. That nobody reads it is no failure.
pub(super) fn aside(text: &str) {
    let _ = writeln!(io::stderr(), "mmapctl: {text}");
}

/// How far long work is, on standard error while it is a terminal: of so many steps, or nobody
/// knows how many. `template` has the words of `indicatif`.
pub(super) fn progress(steps: Option<u64>, template: &str, what: String) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = steps.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_message(what)
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
    Table::new(head).rows(rows)
}

/// A table that is printed some rows at a time.
#[derive(Debug)]
pub(super) struct Table {
    head: Vec<String>,
    /// Of the columns so far: they never become narrower again.
    widths: Vec<usize>,
    /// Are the headings printed?
    begun: bool,
}

impl Table {
    /// With these headings.
    pub(super) fn new(head: &[&str]) -> Self {
        let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
        let widths = head.iter().map(String::len).collect();
        Self { head, widths, begun: false }
    }

    /// Prints some more rows, the first time below the headings.
    ///
    /// # Errors
    /// See [`bytes`].
    pub(super) fn rows(&mut self, rows: &[Vec<String>]) -> Result<(), Failure> {
        bytes(self.lines(rows, colour()).as_bytes())
    }

    fn lines(&mut self, rows: &[Vec<String>], colour: bool) -> String {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut all = String::new();
        if !self.begun {
            self.begun = true;
            let line = self.line(&self.head);
            all.push_str(&if colour { format!("\x1b[1m{line}\x1b[0m") } else { line });
            all.push('\n');
        }
        for row in rows {
            all.push_str(&self.line(row));
            all.push('\n');
        }
        all
    }

    fn line(&self, cells: &[String]) -> String {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&self.widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        line.truncate(line.trim_end().len());
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "1".into()], vec!["longer".into(), "2".into()]];
        let lines = |colour| Table::new(&["KEY", "N"]).lines(&rows, colour);
        assert_eq!(lines(false), "KEY     N\na       1\nlonger  2\n");
        assert!(lines(true).starts_with("\x1b[1mKEY     N\x1b[0m\n"));
    }

    #[test]
    fn a_table_goes_on_as_it_began() {
        let mut table = Table::new(&["KEY", "N"]);
        let mut lines = |key: &str| table.lines(&[vec![key.to_owned(), "1".into()]], false);
        assert_eq!(lines("longer"), "KEY     N\nlonger  1\n");
        assert_eq!(lines("a"), "a       1\n");
        assert_eq!(table.lines(&[], false), "");
        assert_eq!(Table::new(&["KEY", "N"]).lines(&[], false), "KEY  N\n");
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
