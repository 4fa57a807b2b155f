//! `mmapd backup`: a backup from the files of a node that is not running.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::exit::{Exit, Fatal};
use super::place::Place;
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

pub(super) fn backup(args: &BackupArgs) -> Result<Exit, Fatal> {
    let config = args.place.load()?;
    let files = Files::open(&config.storage.db, &config.storage.log)?;
    if fs::symlink_metadata(&args.file).is_ok() {
        let message = format!("{} is there already; nothing was written", args.file.display());
        return Err(Fatal { exit: Exit::Usage, message });
    }
    let ids = node_ids(&config.members());
    let (part, draft) = (beside(&args.file, ".part"), beside(&args.file, ".part.db"));
    let made = files.backup(&ids, config.storage.map_max, args.majority_is_lost, &draft);
    let done = made.map_err(refused).and_then(|(saved, backup)| {
        write(backup, &part, &args.file)?;
        Ok(saved)
    });
    // The database in any case, and of the backup what failed; there may be neither.
    let _ = fs::remove_file(&draft);
    let _ = fs::remove_file(&part);
    let _ = io::stderr().write_all(told(&done?, args).as_bytes());
    Ok(Exit::Normal)
}

fn beside(file: &Path, end: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// Writes all of it to `part`, which gets its name when it is durable.
fn write(mut backup: Backup, part: &Path, to: &Path) -> Result<(), Fatal> {
    let failed = |error: io::Error| Fatal {
        exit: Exit::Io,
        message: format!("{} cannot be written: {error}", to.display()),
    };
    let mut options = OpenOptions::new();
    // It holds all there is, whatever rights readers of the store have.
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(part);
    let mut out = BufWriter::new(file.map_err(failed)?);
    while let Some(piece) = backup.piece()? {
        out.write_all(&piece).map_err(failed)?;
    }
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    fs::rename(part, to).map_err(failed)?;
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
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
