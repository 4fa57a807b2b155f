//! Why the store could not do its work.

use std::io;

/// Sorted by what the caller can do about it: `Locked`, `Foreign` and `Invalid` are told
/// to the operator at the start, `Full` to the client, the others end the process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database reached its quota. Writes fail, reads and deletes go on.
    #[error("the database is full at {limit} bytes")]
    Full {
        /// The quota in bytes.
        limit: u64,
    },
    /// Bytes on disk contradict the format. Never repaired silently.
    #[error("corrupt {what} at byte {offset} of {file}: {why}")]
    Corrupt {
        /// File name.
        file: String,
        /// Part of the format.
        what: &'static str,
        /// Byte offset in the file.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The files belong to another node or cluster, or to another version of the program.
    #[error("{file} belongs to {found}, not to {wanted}")]
    Foreign {
        /// File name.
        file: String,
        /// Whose it is.
        found: String,
        /// Who opened it.
        wanted: String,
    },
    /// Another process uses the files.
    #[error("{file} is in use by another process ({holder})")]
    Locked {
        /// The lock file.
        file: String,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// The path cannot be used as it is, for instance a plain file where a
    /// directory is wanted.
    #[error("{file}: {why}")]
    Invalid {
        /// The path.
        file: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// Work that can be left undone was, because the node stops.
    #[error("the work was given up, the node stops")]
    Ended,
    /// The operating system said no. After a failed sync the page cache cannot
    /// be trusted, so this is fatal: no retry, whatever the cause.
    #[error("{action} {file} failed: {source}")]
    Io {
        /// What was tried: `pwrite`, `msync`, `rename` and so on.
        action: &'static str,
        /// The file.
        file: String,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// An [`StoreError::Io`] for `map_err`.
    pub fn io(action: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { action, file, source }
    }
}

/// Did a write fail because the disk, or our share of it, is full? Nothing is lost then and
/// the write can be tried again. A sync is never meant: after it failed nobody knows what is
/// on the disk, whatever the reason.
#[must_use]
pub fn is_no_space(error: &StoreError) -> bool {
    match error {
        StoreError::Io { action: "pwrite" | "create", source, .. } => {
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        }
        StoreError::Io { .. }
        | StoreError::Full { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Foreign { .. }
        | StoreError::Locked { .. }
        | StoreError::Invalid { .. }
        | StoreError::Ended => false,
    }
}
