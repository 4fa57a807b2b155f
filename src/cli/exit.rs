//! How the process ends, as a number that a supervisor can act on.

use std::process::ExitCode;

use crate::config::ConfigError;
use crate::node;
use crate::store::StoreError;

/// Exit codes, most of them those of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Stopped as asked.
    Normal = 0,
    /// Something failed while starting or running, for instance the port is taken.
    Failure = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Data is damaged and cannot be repaired here. Restarting does not help.
    Corrupt = 65,
    /// The disk refused; a failed sync is fatal. Restarting recovers what was acknowledged.
    Io = 74,
    /// Another process uses the data.
    InUse = 77,
    /// A setting is wrong, or does not fit the data found. Restarting does not help.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        let code = match exit {
            Exit::Normal => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::Corrupt => 65,
            Exit::Io => 74,
            Exit::InUse => 77,
            Exit::Config => 78,
        };
        Self::from(code)
    }
}

/// Why the process ends before anybody asked it to: a code and one message.
#[derive(Debug)]
pub struct Fatal {
    /// For the supervisor.
    pub exit: Exit,
    /// For the operator.
    pub message: String,
}

impl Fatal {
    /// A failure of the surroundings, with what to do about it.
    pub fn failure(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failure, message: message.into() }
    }
}

impl From<ConfigError> for Fatal {
    fn from(error: ConfigError) -> Self {
        Self { exit: Exit::Config, message: error.to_string() }
    }
}

impl From<StoreError> for Fatal {
    fn from(error: StoreError) -> Self {
        let (exit, remedy) = match &error {
            StoreError::Full { .. } => (Exit::Failure, "raise storage.quota"),
            StoreError::Corrupt { .. } => (
                Exit::Corrupt,
                "keep the files for inspection; restore them, or let the node rejoin empty",
            ),
            StoreError::Foreign { .. } => (
                Exit::Config,
                "correct node.id, cluster.name, storage.db and storage.log, or move the files away",
            ),
            StoreError::Locked { .. } => (
                Exit::InUse,
                "stop the other process, or give this one its own storage.db and storage.log",
            ),
            StoreError::Invalid { .. } => (Exit::Config, "correct storage.db or storage.log"),
            StoreError::Ended => (Exit::Failure, "start it again"),
            StoreError::Io { .. } => {
                (Exit::Io, "check the disk, its free space and permissions, then start again")
            }
        };
        Self { exit, message: format!("{error}; {remedy}") }
    }
}

impl From<node::Fatal> for Fatal {
    fn from(fatal: node::Fatal) -> Self {
        match fatal {
            node::Fatal::Store(error) => error.into(),
            node::Fatal::Panicked(_) => {
                Self::failure(format!("{fatal}; keep the log lines above, they name the place"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_storage_failure_has_its_code() {
        let file = || "data/log".to_owned();
        let io = StoreError::io("msync", file())(std::io::Error::other("EIO"));
        let foreign =
            StoreError::Foreign { file: file(), found: "node 2".into(), wanted: "node 1".into() };
        for (error, exit) in [
            (io, Exit::Io),
            (foreign, Exit::Config),
            (StoreError::Locked { file: file(), holder: "pid 7".into() }, Exit::InUse),
            (StoreError::Invalid { file: file(), why: "is a plain file".into() }, Exit::Config),
            (
                StoreError::Corrupt { file: file(), what: "frame", offset: 9, why: "crc".into() },
                Exit::Corrupt,
            ),
        ] {
            let fatal = Fatal::from(error);
            assert_eq!(fatal.exit, exit, "{}", fatal.message);
            assert!(fatal.message.contains("data/log"), "{}", fatal.message);
        }
    }
}
