//! `mmapd backup`: a backup from the files of a node that is not running.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressStyle;

use super::draft::Draft;
use super::exit::{Exit, Fatal};
use super::place::{Place, bar};
use crate::node::backup::Backup;
use crate::node::node_ids;
use crate::node::offline::{Files, OfflineError, Saved};

/// Writes a backup for `mmapd restore`, as GET /v1/backup does, from the files of a node that is
/// not running, which are only read. It has all entries of the node's log. This is for the last
/// node of a cluster whose majority is lost for good: while a majority can still be started,
/// start it and use GET /v1/backup.
#[derive(Debug, clap::Args)]
pub(super) struct BackupArgs {
    /// Where to write it; there must be no such file. While it is made, a copy of the database is
    /// beside it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    /// No majority of this node's cluster will ever run again, and what only the others
    /// acknowledged may be missing. Not needed where this node is the only voter
    #[arg(long)]
    majority_is_lost: bool,
}

/// Between two signs of life.
const TICK: Duration = Duration::from_millis(100);

pub(super) fn backup(args: &BackupArgs) -> Result<Exit, Fatal> {
    let config = args.place.load()?;
    let files = Files::open(&config.storage.db, &config.storage.log)?;
    if fs::symlink_metadata(&args.file).is_ok() {
        let message = format!("{} is there already; nothing was written", args.file.display());
        return Err(Fatal { exit: Exit::Usage, message });
    }
    let ids = node_ids(&config.members());
    let failed = |error: io::Error| Fatal {
        exit: Exit::Io,
        message: format!("{} cannot be written: {error}", args.file.display()),
    };
    let (draft, file) = Draft::create(&args.file).map_err(failed)?;
    let db = copy_beside(draft.path());
    let progress = bar(0, "copying the database");
    progress.set_style(ProgressStyle::default_spinner());
    progress.enable_steady_tick(TICK);
    let made = files.backup(&ids, config.storage.map_max, args.majority_is_lost, &db);
    progress.finish_and_clear();
    let done = made.map_err(refused).and_then(|(saved, backup)| {
        write(backup, file, failed)?;
        Ok(saved)
    });
    // In any case; there may be none.
    let _ = fs::remove_file(&db);
    let done = done?;
    draft.publish().map_err(failed)?;
    let _ = io::stderr().write_all(told(&done, args).as_bytes());
    Ok(Exit::Normal)
}

fn copy_beside(part: &Path) -> PathBuf {
    let mut name = part.as_os_str().to_owned();
    name.push(".db");
    name.into()
}

/// Writes all of it, until it is durable.
fn write(mut backup: Backup, file: File, failed: impl Fn(io::Error) -> Fatal) -> Result<(), Fatal> {
    let progress = bar(backup.pieces(), "writing the backup");
    let mut out = BufWriter::new(file);
    while let Some(piece) = backup.piece()? {
        out.write_all(&piece).map_err(&failed)?;
        progress.inc(1);
    }
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(&failed)?;
    progress.finish_and_clear();
    Ok(())
}

fn told(saved: &Saved, args: &BackupArgs) -> String {
    let Saved { keys, revision, last, committed, node, voters } = saved;
    let mut text = format!(
        "mmapd: wrote {keys} keys at revision {revision} to {}; the last entry is {} of term {}\n",
        args.file.display(),
        last.index,
        last.term
    );
    if *voters != [*node] {
        if *committed < last.index {
            text.push_str(&format!(
                "mmapd: entries {} to {} are in it, and nothing here says that a majority had them\n",
                committed.next(),
                last.index
            ));
        }
        text.push_str(
            "mmapd: what was acknowledged without this node is missing: where several nodes are \
             left, take the one whose last entry has the greatest term, then index\n",
        );
    }
    text
}

fn refused(error: OfflineError) -> Fatal {
    match error {
        OfflineError::NotAlone { node, voters } => {
            let voters: Vec<String> = voters.iter().map(|voter| voter.0.to_string()).collect();
            let message = format!(
                "node {} is not the only voter of its cluster, which are {}: the others may have \
                 writes that were acknowledged and are not here. If a majority of them can be \
                 started, start it and use GET /v1/backup. If it is lost for good, say \
                 --majority-is-lost",
                node.0,
                voters.join(", ")
            );
            Fatal { exit: Exit::Usage, message }
        }
        OfflineError::Store(error) => error.into(),
    }
}
