//! `mmapd check`: is everything in the files as it should be? Never writes.

use std::io::{self, Write};

use super::exit::{Exit, Fatal};
use super::place::{Paths, bar, stdout, written};
use crate::node::node_ids;
use crate::node::offline::{Checked, DbChecked, meaning};
use crate::store::inspect::{Checkpoint, LogReport, SlotOfMeta};

/// Exit codes: 0 clean, 65 damage, 74 unreadable, 77 in use, 2 usage.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    paths: Paths,
    /// One JSON document for programs instead of a report for people
    #[arg(long)]
    json: bool,
}

pub(super) fn check(args: &CheckArgs) -> Result<Exit, Fatal> {
    let (config, files) = args.paths.open()?;
    let progress = bar(files.size_bytes()?, "checking");
    let checked = files.check(&node_ids(&config.members()), &mut |bytes| progress.inc(bytes))?;
    progress.finish_and_clear();
    let mut out = stdout();
    let shown = if args.json { checked.write_json(&mut out) } else { report(&checked, &mut out) };
    written(shown.and_then(|()| out.flush()))?;
    Ok(if checked.findings.is_empty() { Exit::Normal } else { Exit::Corrupt })
}

fn report(checked: &Checked, out: &mut dyn Write) -> io::Result<()> {
    log_section(&checked.log, out)?;
    match &checked.db {
        Some(db) => db_section(db, out)?,
        None => writeln!(out, "Database: there is none")?,
    }
    if !checked.notes.is_empty() {
        writeln!(out, "Notes")?;
    }
    for note in &checked.notes {
        writeln!(out, "  {note}")?;
    }
    if checked.findings.is_empty() {
        return writeln!(out, "Clean: nothing is damaged, and log and database agree.");
    }
    let count = checked.findings.list.len() as u64 + checked.findings.omitted;
    writeln!(out, "Damage: {count} found")?;
    for (number, finding) in (1..).zip(&checked.findings.list) {
        writeln!(out, "  {number}. {}, byte {}: {}", finding.file, finding.offset, finding.what)?;
        writeln!(out, "     {}", finding.why)?;
        match (finding.entry, finding.entries) {
            (Some(id), _) => writeln!(out, "     entry {} of term {}", id.index, id.term)?,
            (None, Some((first, last))) => writeln!(out, "     entries {first} to {last}")?,
            (None, None) => {}
        }
        writeln!(out, "     {}", meaning(finding, checked).1)?;
    }
    if checked.findings.omitted > 0 {
        writeln!(out, "  and {} more", checked.findings.omitted)?;
    }
    Ok(())
}

fn log_section(log: &LogReport, out: &mut dyn Write) -> io::Result<()> {
    if !log.found {
        return writeln!(out, "Log {}: there is none", log.dir);
    }
    writeln!(out, "Log {}", log.dir)?;
    if let Some(slot) = log.saved() {
        let identity = slot.identity;
        writeln!(out, "  node {} of cluster {:032x}", identity.node.0, identity.cluster)?;
    }
    let whole = log.slots.iter().flatten().count();
    let vote = log.hard.vote.map_or("no vote".into(), |vote| format!("vote for {}", vote.0));
    let stop = match log.saved() {
        Some(slot) if slot.clean => "stopped as asked",
        Some(_) | None => "not stopped as asked",
    };
    writeln!(
        out,
        "  hard.state: {whole} of 4 slots whole, term {}, {vote}, {stop}",
        log.hard.term
    )?;
    for segment in &log.segments {
        let name = segment.file.rsplit('/').next().unwrap_or(&segment.file);
        let entries = match (segment.first, segment.last) {
            (Some(first), Some(last)) => format!(
                "entries {} (term {}) to {} (term {})",
                first.index, first.term, last.index, last.term
            ),
            _ => "no entries".to_owned(),
        };
        let state = if segment.sealed { "sealed" } else { "open" };
        writeln!(
            out,
            "  {name}: {} of {} bytes, {} batches, {entries}, {state}",
            segment.used, segment.bytes, segment.batches
        )?;
    }
    let last = log.last();
    writeln!(
        out,
        "  holds entries {} to {} (term {}), {} of them lost; known to be committed: {}",
        log.first(),
        last.index,
        last.term,
        log.lost,
        log.commit
    )
}

fn db_section(db: &DbChecked, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Database {}", db.file)?;
    writeln!(out, "  {} bytes", db.bytes)?;
    for (number, slot) in (1..).zip(&db.slots) {
        match slot {
            SlotOfMeta::Empty => writeln!(out, "  meta page {number}: not used yet")?,
            SlotOfMeta::Damaged => writeln!(out, "  meta page {number}: damaged")?,
            SlotOfMeta::Checkpoint { seq, state } => {
                writeln!(out, "  meta page {number}: checkpoint {seq} at entry {}", state.applied)?;
            }
        }
    }
    let section = |name, about: &Option<Checkpoint>, out: &mut dyn Write| match about {
        None => Ok(()),
        Some(about) => writeln!(
            out,
            "  {name} checkpoint: {} keys at revision {}, {} tree pages, {} value pages, {}",
            about.keys,
            about.state.revision,
            about.tree_pages,
            about.run_pages,
            if about.whole { "whole" } else { "not whole" }
        ),
    };
    section("newest", &db.newest, out)?;
    section("older", &db.older, out)?;
    match db.digest {
        Some(digest) => writeln!(out, "  digest of the keys: {digest:032x}"),
        None => writeln!(out, "  digest of the keys: not all of them can be read"),
    }
}
