//! Where the files are that the offline commands look into, and how far they have come.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::exit::Fatal;
use crate::config::{Config, Flag, Sources, load};
use crate::node::offline::Files;

/// The files of a node that is not running; as for the daemon when they are not named.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Settings, as in config.toml; may be repeated, later files win
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Id of this node, from 1 on
    #[arg(long, value_name = "N")]
    id: Option<String>,
    /// The database file
    #[arg(long, value_name = "PATH")]
    db: Option<String>,
    /// The directory of the log
    #[arg(long, value_name = "PATH")]
    log: Option<String>,
}

/// The same by position, for those who have the files at hand.
#[derive(Debug, clap::Args)]
pub(super) struct Paths {
    /// The database file
    #[arg(value_name = "DB", requires = "at_log", conflicts_with = "db")]
    at_db: Option<String>,
    /// The directory of the log
    #[arg(value_name = "LOG", conflicts_with = "log")]
    at_log: Option<String>,
    #[command(flatten)]
    place: Place,
}

fn text(text: OsString) -> Option<String> {
    text.into_string().ok()
}

impl Place {
    /// The settings in effect.
    pub(super) fn load(&self) -> Result<Config, Fatal> {
        self.load_with(None, None, Vec::new())
    }

    /// The same with more flags.
    pub(super) fn load_and(&self, more: Vec<Flag>) -> Result<Config, Fatal> {
        self.load_with(None, None, more)
    }

    fn load_with(
        &self,
        db: Option<&String>,
        log: Option<&String>,
        mut flags: Vec<Flag>,
    ) -> Result<Config, Fatal> {
        let env = std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?)));
        for (name, key, value) in [
            ("--id", "node.id", self.id.as_ref()),
            ("--db", "storage.db", self.db.as_ref()),
            ("--log", "storage.log", self.log.as_ref()),
            ("DB", "storage.db", db),
            ("LOG", "storage.log", log),
        ] {
            flags.extend(value.map(|text| Flag::key(name, key, text)));
        }
        let sources = Sources { files: self.config.clone(), env: env.collect(), flags };
        Ok(load(&sources)?.config)
    }
}

impl Paths {
    /// The settings in effect, and the files, locked.
    pub(super) fn open(&self) -> Result<(Config, Files), Fatal> {
        let config = self.place.load_with(self.at_db.as_ref(), self.at_log.as_ref(), Vec::new())?;
        let files = Files::open(&config.storage.db, &config.storage.log)?;
        Ok((config, files))
    }
}

/// A bar on standard error while it is a terminal, nothing else.
pub(super) fn bar(steps: u64, what: &'static str) -> ProgressBar {
    let terminal = io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(steps), target).with_style(style).with_message(what)
}

/// Tells the bar how far reading has come.
pub(super) struct Counted {
    pub(super) input: Box<dyn Read>,
    pub(super) progress: ProgressBar,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        self.progress.inc(read as u64);
        Ok(read)
    }
}

/// What became of writing to standard output: a closed pipe is no failure, the reader had
/// enough.
pub(super) fn written(result: io::Result<()>) -> Result<(), Fatal> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => {
            result.map_err(|error| Fatal::failure(format!("the output cannot be written: {error}")))
        }
    }
}

/// Standard output, written in larger pieces.
pub(super) fn stdout() -> io::BufWriter<impl Write> {
    io::BufWriter::with_capacity(1 << 16, io::stdout().lock())
}
