//! Is a backup whole?

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::exit::{Exit, Fatal};
use super::place::{Counted, bar};
use crate::node::backup::{BackupError, BackupReader};

/// What a backup that is whole says of itself.
#[derive(Debug)]
pub(crate) struct Verified {
    /// Of the file.
    pub(crate) bytes: u64,
    /// What it is of.
    pub(crate) revision: u64,
    /// Whose it is.
    pub(crate) cluster: u128,
    /// The digest of the state, which a restore compares with what it made of it.
    pub(crate) digest: u128,
}

/// Reads all of a backup, and compares its checksums.
///
/// # Errors
/// It cannot be read, is damaged or is not whole.
pub(crate) fn verify(path: &Path, what: &'static str) -> Result<Verified, Fatal> {
    let name = path.display();
    let unreadable = |error: &dyn std::fmt::Display| Fatal {
        exit: Exit::Io,
        message: format!("{name} cannot be read: {error}"),
    };
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    let bytes = file.metadata().map_err(|error| unreadable(&error))?.len();
    let progress = bar(bytes, what);
    let input = Counted { input: Box::new(file), progress: progress.clone() };
    let wrong = |error| match error {
        BackupError::Read(error) => unreadable(&error),
        error @ BackupError::Damaged { .. } => {
            Fatal { exit: Exit::Corrupt, message: format!("{name}: {error}") }
        }
    };
    let mut reader = BackupReader::open(BufReader::with_capacity(1 << 18, input)).map_err(wrong)?;
    let mut chunk = Vec::new();
    while reader.next(&mut chunk).map_err(wrong)? {}
    progress.finish_and_clear();
    let it = reader.description();
    let (revision, cluster, digest) = (it.revision, it.cluster, it.digest);
    Ok(Verified { bytes: reader.at(), revision, cluster, digest })
}
