//! `mmapctl`: the command line client, for people at a terminal and for scripts.

#![forbid(unsafe_code)]

mod bench;
mod cluster;
mod debug;
mod endpoints;
mod exit;
mod files;
mod hold;
mod keys;
mod leases;
mod lists;
mod playground;
mod show;
mod signals;
mod torture;
mod txn;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::RestoreArgs;
use crate::client::{Builder, Client};
pub(crate) use exit::Failure;

/// How long a node may look for an answer, and is waited for while there are others.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For scripts: one JSON document, or one a line where there are many.
    Json,
    /// The bytes alone.
    Raw,
}

/// What every subcommand takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// The URL of a node; repeat it for more nodes.
    #[arg(
        long = "endpoint",
        global = true,
        env = "MMAPD_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:3001"
    )]
    pub(crate) endpoints: Vec<String>,
    /// Who is asking.
    #[arg(long, global = true, env = "MMAPD_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// A file with certificates of the authorities to trust, in PEM; no others are.
    #[arg(long, global = true, env = "MMAPD_CACERT", value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// After that time no node is asked any more: 30, 500ms, 2m.
    #[arg(long, global = true, value_name = "TIME", value_parser = endpoints::span, default_value = "30s")]
    pub(crate) timeout: Duration,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub(crate) output: Output,
}

impl Common {
    /// A client of all endpoints.
    ///
    /// # Errors
    /// Endpoints that are no URLs, certificates that are none.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Ok(self.client_of(self.endpoints.iter().cloned())?.build()?)
    }

    /// What becomes a client of some nodes, as it was asked for.
    fn client_of(&self, nodes: impl IntoIterator<Item = String>) -> Result<Builder, Failure> {
        let nodes: Vec<String> = nodes.into_iter().collect();
        let attempt = self.timeout.min(ATTEMPT);
        // Whoever has one node only gains nothing by asking it again.
        let patience = if nodes.len() == 1 { self.timeout } else { Duration::ZERO };
        let mut builder =
            Client::builder(nodes).deadline(self.timeout).timeout(attempt).patience(patience);
        // Set to nothing is how scripts say that there is none.
        if let Some(token) = self.token.as_ref().filter(|token| !token.is_empty()) {
            builder = builder.token(token.clone());
        }
        if let Some(file) = &self.cacert {
            let pem = std::fs::read(file)
                .map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
            builder = builder.authority(&pem)?;
        }
        Ok(builder)
    }
}

/// Reads, writes and looks after a mmapd cluster.
#[derive(Parser, Debug)]
#[command(name = "mmapctl", version, max_term_width = 100, after_help = exit::HELP)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Reads a key.
    Get(keys::Get),
    /// Writes a key.
    Put(keys::Put),
    /// Removes a key, or many.
    Del(keys::Del),
    /// Lists keys.
    Ls(lists::Ls),
    /// Follows changes.
    Watch(lists::Watch),
    /// Changes several keys at once, if comparisons hold.
    Txn(txn::Txn),
    /// Changes the time a key has, without a write.
    Touch(keys::Touch),
    /// What happened to a key.
    History(keys::History),
    /// Makes, keeps and ends leases.
    #[command(subcommand)]
    Lease(leases::Lease),
    /// Takes and gives back locks; runs a command under one.
    #[command(subcommand)]
    Lock(leases::Lock),
    /// What each node says of itself.
    Status,
    /// The members.
    Cluster,
    /// Changes who the members are.
    #[command(subcommand)]
    Member(cluster::Member),
    /// Who leads; moves leadership.
    Leader(cluster::Leader),
    /// Saves all keys to a file.
    Backup(files::Backup),
    /// Makes the files of a new cluster from a backup, on this machine.
    Restore(RestoreArgs),
    /// Is a backup whole?
    Verify(files::Verify),
    /// Gives space in a node's database back to the file system.
    Compact,
    /// Lets a node look for damage in its files.
    Scrub,
    /// Which lines a node writes to its log.
    Log(cluster::Log),
    /// How fast a live cluster is.
    Bench(bench::Bench),
    /// Is a live cluster linearizable?
    Torture(torture::Torture),
    /// Starts a cluster on this machine, to watch and to break.
    Playground(playground::Playground),
    /// Collects what a report about a cluster should have.
    Debug(debug::Debug),
    /// Prints what lets a shell complete commands.
    Completions(files::Completions),
    /// Prints the manual page.
    Man(files::Man),
}

/// Runs the command line `args`, the program's name first.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // A pipe that closed early.
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::other(format!("no runtime: {error}")).report(),
    };
    match runtime.block_on(perform(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn perform(cli: Cli) -> Result<(), Failure> {
    let common = &cli.common;
    match cli.command {
        Command::Get(it) => it.run(common).await,
        Command::Put(it) => it.run(common).await,
        Command::Del(it) => it.run(common).await,
        Command::Ls(it) => it.run(common).await,
        Command::Watch(it) => it.run(common).await,
        Command::Txn(it) => it.run(common).await,
        Command::Touch(it) => it.run(common).await,
        Command::History(it) => it.run(common).await,
        Command::Lease(it) => it.run(common).await,
        Command::Lock(it) => it.run(common).await,
        Command::Status => cluster::status(common).await,
        Command::Cluster => cluster::cluster(common).await,
        Command::Member(it) => it.run(common).await,
        Command::Leader(it) => it.run(common).await,
        Command::Backup(it) => it.run(common).await,
        Command::Restore(it) => files::restored(&it),
        Command::Verify(it) => it.run(common),
        Command::Compact => cluster::compact(common).await,
        Command::Scrub => cluster::scrub(common).await,
        Command::Log(it) => it.run(common).await,
        Command::Bench(it) => it.run(common).await,
        Command::Torture(it) => it.run(common).await,
        Command::Playground(it) => it.run(common).await,
        Command::Debug(it) => it.run(common).await,
        Command::Completions(it) => it.run(),
        Command::Man(it) => it.run(),
    }
}
