//! The audit log: a file of JSON lines that outlives rotations.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

use super::exit::{Exit, Fatal};

/// The file, shared by all who write.
#[derive(Clone, Debug)]
pub(super) struct Audit {
    path: PathBuf,
    file: Arc<Mutex<File>>,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

impl Audit {
    /// Opens the file, or makes it, readable by its owner alone.
    pub(super) fn open(path: &Path) -> Result<Self, Fatal> {
        let file = open(path).map_err(|error| {
            let path = path.display();
            let message = format!("log.audit: {path} cannot be opened: {error}; correct the path");
            Fatal { exit: Exit::Config, message }
        })?;
        Ok(Self { path: path.to_owned(), file: Arc::new(Mutex::new(file)) })
    }

    /// Goes on in a file of that name, which may be a new one.
    pub(super) fn reopen(&self) {
        match open(&self.path) {
            Ok(file) => *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file,
            Err(error) => {
                let path = self.path.display();
                tracing::error!(%error, %path, "the audit log goes on in the file before");
            }
        }
    }
}

/// One line at a time.
#[derive(Debug)]
pub(super) struct Line<'a>(&'a Audit);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Audit {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}
