//! `mmapctl` backup, restore, verify, completions and man: what ends in files.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use super::show;
use super::signals::{Signals, apart};
use super::{Cli, Common, Failure};
use crate::cli::{Draft, RestoreArgs, Verified, restore, verify};

/// Where to.
#[derive(Args, Debug)]
pub(super) struct Backup {
    /// The file, which must not be there yet; - for standard output.
    file: PathBuf,
}

impl Backup {
    /// Writes it. The file has its name only when it is whole, verified and on the disk.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        if self.file == Path::new("-") {
            fetch(common, &mut io::stdout().lock()).await?;
            return Ok(());
        }
        let wrong = |error: io::Error| Failure::other(format!("{}: {error}", self.file.display()));
        if self.file.try_exists().map_err(wrong)? {
            return Err(Failure::usage(format!("{} is there already", self.file.display())));
        }
        let mut signals = Signals::new()?;
        let done = tokio::select! {
            done = self.write(common) => done?,
            // What was written so far goes with the future.
            _ = signals.next() => return Err(Failure::other("interrupted, nothing was kept")),
        };
        show::either(common.output, &said(&self.file, &done), || {
            let file = self.file.display();
            format!("{file}: revision {}, {}", done.revision, show::size(done.bytes))
        })
    }

    async fn write(&self, common: &Common) -> Result<Verified, Failure> {
        let wrong = |error: io::Error| Failure::other(format!("{}: {error}", self.file.display()));
        let (draft, mut file) = Draft::create(&self.file).map_err(wrong)?;
        let revision = fetch(common, &mut file).await?;
        file.sync_all().map_err(wrong)?;
        let part = draft.path().to_owned();
        let done = apart(move || verify(&part, "verifying")).await??;
        if done.revision != revision {
            return Err(Failure::other("what came is of another revision than was said"));
        }
        draft.publish().map_err(wrong)?;
        Ok(done)
    }
}

/// The revision of what was written to `out`.
async fn fetch(common: &Common, out: &mut (impl Write + ?Sized)) -> Result<u64, Failure> {
    let template = "{spinner} {msg} {bytes} {binary_bytes_per_sec}";
    let progress = show::progress(None, template, "backup".into());
    let mut backup = common.client()?.backup().await.map_err(Failure::of_read)?;
    while let Some(bytes) = backup.next().await.map_err(Failure::of_read)? {
        out.write_all(&bytes).map_err(|error| Failure::other(format!("writing it: {error}")))?;
        progress.inc(bytes.len() as u64);
    }
    out.flush().map_err(|error| Failure::other(format!("writing it: {error}")))?;
    progress.finish_and_clear();
    Ok(backup.revision)
}

fn said(file: &Path, done: &Verified) -> serde_json::Value {
    json!({
        "file": file, "bytes": done.bytes, "revision": done.revision,
        "cluster_id": format!("{:032x}", done.cluster), "digest": format!("{:032x}", done.digest),
    })
}

/// Which file.
#[derive(Args, Debug)]
pub(super) struct Verify {
    /// The backup.
    file: PathBuf,
}

impl Verify {
    /// Reads all of it, and prints what it is of.
    pub(super) fn run(&self, common: &Common) -> Result<(), Failure> {
        let done = verify(&self.file, "verifying")?;
        show::either(common.output, &said(&self.file, &done), || {
            let (cluster, size) = (done.cluster, show::size(done.bytes));
            format!("whole: revision {} of cluster {cluster:032x}, {size}", done.revision)
        })
    }
}

/// As `mmapd restore`, in this process.
pub(super) fn restored(args: &RestoreArgs) -> Result<(), Failure> {
    restore(args)?;
    Ok(())
}

/// For which shell.
#[derive(Args, Debug)]
pub(super) struct Completions {
    /// What reads them.
    shell: Shell,
}

impl Completions {
    /// Prints them.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "mmapctl", &mut text);
        show::bytes(&text)
    }
}

/// Where to.
#[derive(Args, Debug)]
pub(super) struct Man {
    /// Writes a page for each command into this folder, instead of one on standard output.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

impl Man {
    /// Prints or writes them.
    pub(super) fn run(&self) -> Result<(), Failure> {
        if let Some(dir) = &self.dir {
            return clap_mangen::generate_to(Cli::command(), dir)
                .map_err(|error| Failure::other(format!("{}: {error}", dir.display())));
        }
        let mut text = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut text)
            .map_err(|error| Failure::other(error.to_string()))?;
        show::bytes(&text)
    }
}
