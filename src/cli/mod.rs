//! The command line of the daemon: what may be asked, and what happens until a node serves.
//!
//! The doc comments of `Args` are the help text. Values are checked by `config`, like
//! those of files and of the environment, so a wrong one is exit code 78 and not 2.

#![forbid(unsafe_code)]

mod audit;
mod backup;
mod check;
mod draft;
mod dump;
mod exit;
mod export;
mod import;
mod logs;
mod notify;
mod place;
mod private;
mod restore;
mod serve;
mod token;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

pub(crate) use draft::Draft;
pub use exit::{Exit, Fatal};
pub(crate) use restore::{RestoreArgs, restore};
pub(crate) use verify::{Verified, verify};

use crate::config::{Flag, FlagKind, Loaded, Sources, load};
use crate::metrics::{COMMIT, VERSION};

/// A distributed, strongly consistent key-value store served over plain HTTP.
///
/// Without any option: one node on port 3001 that stores below ./data.
#[derive(Debug, Parser)]
#[command(name = "mmapd", disable_version_flag = true, args_conflicts_with_subcommands = true)]
struct Args {
    /// Settings, as in config.toml; may be repeated, later files win
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Id of this node, from 1 on
    #[arg(long, value_name = "N")]
    id: Option<String>,
    /// Address and port to bind
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "port")]
    listen: Option<String>,
    /// Port to bind, at the address configured otherwise
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
    /// The database file
    #[arg(long, value_name = "PATH")]
    db: Option<String>,
    /// The directory of the log
    #[arg(long, value_name = "PATH")]
    log: Option<String>,
    /// A member of the cluster, this node too; repeat for each
    #[arg(long, value_name = "ID=URL")]
    peer: Vec<String>,
    /// A member of a running cluster that shall take this node in; repeat for more
    #[arg(long, value_name = "URL")]
    join: Vec<String>,
    /// URL at which other nodes and clients reach this node
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Check the settings and exit
    #[arg(long)]
    check_config: bool,
    /// Print the settings in effect, and where each came from, and exit
    #[arg(long)]
    print_config: bool,
    /// Print the version and exit
    #[arg(long, short = 'V')]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the OpenAPI description of the HTTP interface
    Openapi,
    /// Verify the files of a node that is not running, without changing them
    Check(check::CheckArgs),
    /// Print everything in the files of a node that is not running, as JSON lines
    Dump(dump::DumpArgs),
    /// Print all keys of a node that is not running, as a JSON map
    Export(export::ExportArgs),
    /// Make the files of a new node from a JSON map
    Import(import::ImportArgs),
    /// Make a backup from the files of a node that is not running
    Backup(backup::BackupArgs),
    /// Make the files of a node of a new cluster from a backup
    Restore(RestoreArgs),
    /// Make a token, or a secret for nodes, and print what goes into the files of `auth`
    Token(token::TokenArgs),
}

/// Does what the command line says; returns when the process should end.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args.into_iter().map(two_dashes)) {
        Ok(args) => args,
        Err(error) => {
            // Help goes to standard output and is no failure. A closed pipe is no news.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Normal }.into();
        }
    };
    match dispatch(&args) {
        Ok(exit) => exit.into(),
        Err(fatal) => {
            let _ = writeln!(std::io::stderr(), "mmapd: {}", fatal.message);
            fatal.exit.into()
        }
    }
}

fn dispatch(args: &Args) -> Result<Exit, Fatal> {
    match &args.command {
        Some(Command::Openapi) => openapi().map(|()| Exit::Normal),
        Some(Command::Check(args)) => check::check(args),
        Some(Command::Dump(args)) => dump::dump(args),
        Some(Command::Export(args)) => export::export(args),
        Some(Command::Import(args)) => import::import(args),
        Some(Command::Backup(args)) => backup::backup(args),
        Some(Command::Restore(args)) => restore(args),
        Some(Command::Token(args)) => token::token(args).map(|()| Exit::Normal),
        None => daemon(args).map(|()| Exit::Normal),
    }
}

fn openapi() -> Result<(), Fatal> {
    match crate::http::openapi().to_pretty_json() {
        Ok(text) => print(&format!("{text}\n")),
        Err(error) => Err(Fatal::failure(format!("the description has no JSON form: {error}"))),
    }
}

fn daemon(args: &Args) -> Result<(), Fatal> {
    if args.version {
        return print(&format!("mmapd {VERSION} (commit {COMMIT})\n"));
    }
    let sources = args.sources();
    let loaded = load(&sources)?;
    if args.print_config {
        return print(&loaded.print());
    }
    if args.check_config {
        return print(&summary(&loaded));
    }
    serve::serve(loaded.config, &sources)
}

impl Args {
    fn sources(&self) -> Sources {
        let text = |text: OsString| text.into_string().ok();
        let env = std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?)));
        let mut flags = Vec::new();
        for (name, key, value) in [
            ("--id", "node.id", &self.id),
            ("--listen", "node.listen", &self.listen),
            ("--advertise", "node.advertise", &self.advertise),
            ("--db", "storage.db", &self.db),
            ("--log", "storage.log", &self.log),
            ("--log-level", "log.level", &self.log_level),
        ] {
            flags.extend(value.as_ref().map(|text| Flag::key(name, key, text)));
        }
        let port = self.port.clone().map(FlagKind::Port);
        flags.extend(port.map(|kind| Flag { name: "--port", kind }));
        if !self.join.is_empty() {
            flags.push(Flag::key("--join", "cluster.join", self.join.join(",")));
        }
        if !self.peer.is_empty() {
            flags.push(Flag { name: "--peer", kind: FlagKind::Peers(self.peer.clone()) });
        }
        Sources { files: self.config.clone(), env: env.collect(), flags }
    }
}

/// `-port 3001 -db a -log b -config c`: spellings that are older than the rest.
fn two_dashes(arg: OsString) -> OsString {
    let old = arg.to_str().and_then(|arg| arg.strip_prefix('-')).filter(|arg| {
        let name = arg.split_once('=').map_or(*arg, |(name, _)| name);
        ["port", "db", "log", "config"].contains(&name)
    });
    match old {
        Some(rest) => format!("--{rest}").into(),
        None => arg,
    }
}

fn summary(loaded: &Loaded) -> String {
    let config = &loaded.config;
    let members = config.members().len();
    format!(
        "the settings are sound: node {} of {members}, listening on {}, reached at {}\n",
        config.node.id, config.node.listen, config.node.advertise
    )
}

fn print(text: &str) -> Result<(), Fatal> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Fatal::failure(format!("standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn one_dash_is_enough_for_the_old_spellings_only() {
        for (given, want) in [
            ("-port", "--port"),
            ("-db=a", "--db=a"),
            ("-log", "--log"),
            ("-config", "--config"),
            ("--port", "--port"),
            ("-V", "-V"),
            ("-logs", "-logs"),
            ("-", "-"),
            ("port", "port"),
        ] {
            assert_eq!(two_dashes(given.into()), OsString::from(want));
        }
    }

    #[test]
    fn flags_become_settings_with_their_names() {
        let args = ["mmapd", "-port", "4000", "--peer", "1=http://a:1", "--peer=2=http://b:1"];
        let args = Args::try_parse_from(args.map(|arg| two_dashes(arg.into()))).unwrap();
        let mut sources = args.sources();
        sources.env.clear();
        let loaded = load(&sources).unwrap();
        assert_eq!(loaded.config.node.listen.port(), 4000);
        assert_eq!(loaded.config.members().len(), 2);
        assert_eq!(loaded.origin("node.listen"), "--port");
        assert_eq!(loaded.origin("cluster.peers"), "--peer");
    }
}
