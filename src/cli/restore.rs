//! `mmapd restore`: a new cluster from a backup.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;

use super::exit::{Exit, Fatal};
use super::place::{Counted, Place, bar};
use crate::config::{Flag, FlagKind};
use crate::node::backup::BackupError;
use crate::node::import::ImportError;
use crate::node::restore::{RestoreError, leftovers, restore as restore_node};
use crate::store::StoreError;

/// Reads a backup, as from GET /v1/backup, into a store that does not exist yet. The node is
/// one of a new cluster, with the members of the settings: restore the same file with the
/// same members for each of them.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// The backup; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    /// A member of the new cluster, this node too; repeat for each
    #[arg(long, value_name = "ID=URL")]
    peer: Vec<String>,
    /// URL at which other nodes and clients reach this node
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// How far after the backup's last revision the new cluster begins; more than the old one
    /// wrote since, so that no revision means two things
    #[arg(long, value_name = "N", default_value_t = 1_000_000_000,
        value_parser = clap::value_parser!(u64).range(1..))]
    bump: u64,
}

pub(crate) fn restore(args: &RestoreArgs) -> Result<Exit, Fatal> {
    let mut flags = Vec::new();
    flags
        .extend(args.advertise.as_ref().map(|url| Flag::key("--advertise", "node.advertise", url)));
    if !args.peer.is_empty() {
        flags.push(Flag { name: "--peer", kind: FlagKind::Peers(args.peer.clone()) });
    }
    let config = args.place.load_and(flags)?;
    let name = args.file.display().to_string();
    let unreadable = |error: &dyn std::fmt::Display| Fatal {
        exit: Exit::Io,
        message: format!("{name} cannot be read: {error}"),
    };
    let (input, bytes): (Box<dyn Read>, u64) = if name == "-" {
        (Box::new(io::stdin().lock()), 0)
    } else {
        let file = File::open(&args.file).map_err(|error| unreadable(&error))?;
        let bytes = file.metadata().map_err(|error| unreadable(&error))?.len();
        (Box::new(file), bytes)
    };
    let progress = bar(bytes, "restoring");
    let input = Counted { input, progress: progress.clone() };
    let outcome = restore_node(&config, BufReader::with_capacity(1 << 18, input), args.bump);
    progress.finish_and_clear();
    // Refused before anything was made: what is there may be another process's.
    let theirs = matches!(
        &outcome,
        Err(RestoreError::Place(
            ImportError::NotEmpty(_) | ImportError::Store(StoreError::Locked { .. })
        ))
    );
    if !theirs {
        let (dir, file) = leftovers(&config);
        // What is still there is no part of a store, and the next restore removes it as well.
        let _ = fs::remove_dir_all(dir);
        let _ = fs::remove_file(file);
    }
    let done = outcome.map_err(|error| match error {
        RestoreError::Backup(BackupError::Read(error)) => unreadable(&error),
        RestoreError::Backup(error @ BackupError::Damaged { .. }) => {
            let message = format!("{name}: {error}; nothing was restored");
            Fatal { exit: Exit::Corrupt, message }
        }
        RestoreError::Unfit(why) => {
            Fatal { exit: Exit::Config, message: format!("{name}: {why}; nothing was restored") }
        }
        RestoreError::Place(error) => error.into(),
    })?;
    let _ = writeln!(
        io::stderr(),
        "mmapd: restored {} keys; the store is at revision {}, in the backup it was {}; the new \
         cluster is {:032x}",
        done.keys,
        done.revision,
        done.was,
        done.cluster
    );
    Ok(Exit::Normal)
}
