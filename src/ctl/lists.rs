//! `mmapctl` ls and watch: many keys.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde_json::json;

use super::keys::Fresh;
use super::show;
use super::{Common, Failure, Output};
use crate::client::{Change, ChangeKind, Entry, Line};

/// Rows that are held before the columns of a table are set.
const ROWS: usize = 1000;

/// Which keys.
#[derive(Args, Debug)]
pub(super) struct Ls {
    /// Keys that begin so; all of them if there is none.
    prefix: Option<OsString>,
    /// Keys from the first up to, and without, the second.
    #[arg(long, num_args = 2, value_names = ["START", "END"], conflicts_with = "prefix")]
    range: Option<Vec<OsString>>,
    /// Keys that share everything up to the next one of these are shown as one.
    #[arg(short, long, value_name = "TEXT")]
    delimiter: Option<OsString>,
    /// Values too.
    #[arg(long)]
    values: bool,
    /// At most so many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// The last key first.
    #[arg(long)]
    reverse: bool,
    /// How many there are, no more.
    #[arg(long, conflicts_with_all = ["delimiter", "values", "limit", "reverse"])]
    count: bool,
    /// As it was at this revision, if that is still known.
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
    /// How fresh the answer must be.
    #[arg(long, value_enum, default_value_t)]
    consistency: Fresh,
}

impl Ls {
    fn list(&self, common: &Common) -> Result<crate::client::List, Failure> {
        let mut list = common.client()?.list().consistency(self.consistency.into());
        if let Some(prefix) = &self.prefix {
            list = list.prefix(prefix.as_bytes());
        }
        if let Some([start, end]) = self.range.as_deref() {
            list = list.range(start.as_bytes(), end.as_bytes());
        }
        if let Some(delimiter) = &self.delimiter {
            list = list.delimiter(delimiter.as_bytes());
        }
        if let Some(limit) = self.limit {
            list = list.limit(limit);
        }
        if let Some(revision) = self.revision {
            list = list.at_revision(revision);
        }
        if self.reverse {
            list = list.descending();
        }
        Ok(if self.values { list } else { list.keys_only() })
    }

    /// Prints keys, in bounded memory however many there are.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let list = self.list(common)?;
        if self.count {
            let count = list.count().await.map_err(Failure::of_read)?;
            return show::either(common.output, &json!({"count": count}), || count.to_string());
        }
        let mut lines = list.lines().await.map_err(Failure::of_read)?;
        let mut head = vec!["KEY", "REVISION", "VERSION", "SIZE", "TTL"];
        head.extend(self.values.then_some("VALUE"));
        let (mut table, mut rows) = (show::Table::new(&head), Vec::new());
        while let Some(line) = lines.next().await.map_err(Failure::of_read)? {
            match (common.output, line) {
                (_, Line::End { .. }) => {}
                (Output::Json, Line::Entry(entry)) => show::json(&entry)?,
                (Output::Json, Line::Prefix(prefix)) => {
                    show::json(&json!({"prefix": show::text(&prefix)}))?;
                }
                (Output::Raw, Line::Entry(entry)) => {
                    show::bytes(&[&entry.key, &b"\n"[..]].concat())?
                }
                (Output::Raw, Line::Prefix(prefix)) => {
                    show::bytes(&[&prefix, &b"\n"[..]].concat())?;
                }
                (Output::Table, Line::Entry(entry)) => rows.push(self.row(&entry)),
                (Output::Table, Line::Prefix(prefix)) => rows.push(vec![show::text(&prefix)]),
            }
            if rows.len() == ROWS {
                table.rows(&rows)?;
                rows.clear();
            }
            if show::gone() {
                return Ok(());
            }
        }
        if common.output == Output::Table {
            table.rows(&rows)?;
        }
        Ok(())
    }

    fn row(&self, entry: &Entry) -> Vec<String> {
        let mut row = vec![
            show::text(&entry.key),
            entry.mod_revision.to_string(),
            entry.version.to_string(),
            show::size(entry.size),
            show::span(entry.ttl),
        ];
        row.extend(self.values.then(|| show::short(&entry.value)));
        row
    }
}

/// What to follow.
#[derive(Args, Debug)]
pub(super) struct Watch {
    /// Keys that begin so; everything if nothing is named.
    prefix: Vec<OsString>,
    /// This key alone; may be repeated.
    #[arg(long)]
    key: Vec<OsString>,
    /// Everything after that revision, if it is still known; else what comes from now on.
    #[arg(long, value_name = "REVISION")]
    after: Option<u64>,
    /// What was there before too; shown with -o json.
    #[arg(long)]
    prev: bool,
    /// Ends after so many revisions.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
}

impl Watch {
    /// Prints changes as they come, on another node when one is gone.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let mut watch = common.client()?.watch();
        for prefix in &self.prefix {
            watch = watch.prefix(prefix.as_bytes());
        }
        for key in &self.key {
            watch = watch.key(key.as_bytes());
        }
        if self.prev {
            watch = watch.with_prev();
        }
        if let Some(revision) = self.after {
            watch = watch.after(revision);
        }
        let mut watch = watch.start().await.map_err(Failure::of_read)?;
        let mut seen = 0;
        while self.count.is_none_or(|count| seen < count) && !show::gone() {
            let event = watch.next().await.map_err(Failure::of_read)?;
            if event.changes.is_empty() {
                continue;
            }
            seen += 1;
            match common.output {
                Output::Json => show::json(&event)?,
                Output::Raw => {
                    for change in &event.changes {
                        show::bytes(&[&change.value, &b"\n"[..]].concat())?;
                    }
                }
                Output::Table => {
                    for change in &event.changes {
                        show::line(&said(change))?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn said(change: &Change) -> String {
    let (revision, key) = (change.revision, show::text(&change.key));
    let (on, off) = if show::colour() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    match change.kind {
        ChangeKind::Put => format!("{revision} put {on}{key}{off} {}", show::short(&change.value)),
        ChangeKind::Delete => format!("{revision} delete {on}{key}{off}"),
    }
}
