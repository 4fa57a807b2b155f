//! `mmapd dump`: everything in the files, one JSON object a line.

use std::io::{self, Write};

use super::exit::{Exit, Fatal};
use super::place::{Paths, stdout, written};
use crate::node::offline::Wanted;

/// First a line of type "hard_state", then "entry" for each entry of the log, then "state"
/// and "key" for each key at the last checkpoint; "damaged" for what cannot be read.
#[derive(Debug, clap::Args)]
pub(super) struct DumpArgs {
    #[command(flatten)]
    paths: Paths,
    /// Only the log
    #[arg(long, conflicts_with = "db_only")]
    log_only: bool,
    /// Only the database
    #[arg(long)]
    db_only: bool,
    /// No values
    #[arg(long)]
    keys_only: bool,
    /// Of the database only keys that begin so
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
}

pub(super) fn dump(args: &DumpArgs) -> Result<Exit, Fatal> {
    let (_, files) = args.paths.open()?;
    let wanted =
        Wanted { log: !args.db_only, db: !args.log_only, prefix: args.prefix.clone().into_bytes() };
    let mut out = stdout();
    let mut result: io::Result<()> = Ok(());
    let intact = files.dump(&wanted, &mut |line| {
        let written = line.write_json(!args.keys_only, &mut out);
        result = written.and_then(|()| out.write_all(b"\n"));
        result.is_ok()
    })?;
    let enough = result.is_err();
    written(result.and_then(|()| out.flush()))?;
    Ok(if intact || enough { Exit::Normal } else { Exit::Corrupt })
}
