//! Settings: what they are, where they come from, and what makes no sense.
//!
//! [`Config`] mirrors `config.toml` at the top of the repository, which explains every key
//! and equals the defaults here (a test says so). [`load`] lays the layers over each other -
//! defaults, files in order, environment, flags - and checks the result once; past that
//! nobody checks again. Whatever is wrong becomes one [`ConfigError`] that names the file,
//! variable or flag, the key, and what to do.
//!
//! Left out: changing settings while the process runs.

#![forbid(unsafe_code)]

mod check;
mod load;
#[cfg(test)]
mod tests;
mod units;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;

use crate::auth::Access;
use crate::logs::{Filter, Switch};
use crate::tls::Tls;

pub use check::url_problem;
pub use load::{Flag, FlagKind, Loaded, Sources, load};
pub use units::{parse_duration, parse_size, show_duration, show_size};

/// Why the settings cannot be used: one message for the operator, complete as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);

/// Every setting, checked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this node is and where it is reached.
    pub node: Node,
    /// Where data lives and how much of it.
    pub storage: Storage,
    /// Who else belongs to the cluster.
    pub cluster: Cluster,
    /// Times and sizes of the consensus protocol.
    pub raft: Raft,
    /// What one client may ask for.
    pub limits: Limits,
    /// `[watch]`
    pub watch: Watch,
    /// Connections of clients and peers.
    pub http: Http,
    /// What is written to standard error.
    pub log: Log,
    /// Who may do what.
    pub auth: Auth,
    /// Certificates.
    pub tls: TlsFiles,
    /// What the files of `tls` hold.
    #[serde(skip)]
    pub certificates: Tls,
    /// Who is known, as the files of `auth` say.
    #[serde(skip)]
    pub access: Access,
    /// Which log lines are written, as `log` says and an operator changes it.
    #[serde(skip)]
    pub logs: Switch,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Its id, unique in the cluster, never 0, never used again for another machine.
    pub id: u64,
    /// Address to bind.
    pub listen: SocketAddr,
    /// URL other nodes and clients reach it at. Never empty once loaded.
    pub advertise: String,
}

/// `[storage]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// The database file.
    pub db: PathBuf,
    /// The directory of the log.
    pub log: PathBuf,
    /// Bytes of one log file.
    #[serde(with = "units::size")]
    pub segment: u64,
    /// Bytes the database may reach; writes are refused beyond.
    #[serde(with = "units::size")]
    pub quota: u64,
    /// Address space reserved for the map of the database.
    #[serde(with = "units::size")]
    pub map_max: u64,
    /// A checkpoint is made once this many bytes of log were applied since the last.
    #[serde(with = "units::size")]
    pub checkpoint_log: u64,
    /// A checkpoint is made this long after the first change since the last.
    #[serde(with = "units::duration")]
    pub checkpoint_interval: Duration,
    /// Bytes of log kept behind a checkpoint for followers that lag.
    #[serde(with = "units::size")]
    pub log_retain: u64,
    /// Changes that can be read and watched after the fact.
    pub history: u64,
    /// Bytes of them.
    #[serde(with = "units::size")]
    pub history_bytes: u64,
    /// How long the outcome of a request with an `Idempotency-Key` is kept.
    #[serde(with = "units::duration")]
    pub idempotency_window: Duration,
    /// Bytes of such outcomes.
    #[serde(with = "units::size")]
    pub idempotency_bytes: u64,
    /// The disk is read for damage this often. Zero: never.
    #[serde(with = "units::duration")]
    pub scrub_interval: Duration,
    /// Bytes a second that are read then.
    #[serde(with = "units::size")]
    pub scrub_rate: u64,
}

/// `[cluster]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// Its name: nodes with different names refuse each other. Empty: none.
    pub name: String,
    /// The members it starts with, this node among them. Empty: this node alone.
    pub peers: Vec<Peer>,
    /// URLs of members of a running cluster to join, separated by commas. Empty: none.
    pub join: String,
    /// A node that joins receives the log and does not vote, until it is promoted.
    pub learner: bool,
}

impl Cluster {
    /// The URLs to join by.
    #[must_use]
    pub fn join_urls(&self) -> Vec<String> {
        let urls = self.join.split(',').map(|url| url.trim().trim_end_matches('/'));
        urls.filter(|url| !url.is_empty()).map(str::to_owned).collect()
    }
}

/// One of `[[cluster.peers]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its id.
    pub id: u64,
    /// Its URL, `http://host:port`.
    pub url: String,
}

/// `[raft]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raft {
    /// The only clock the protocol knows.
    #[serde(with = "units::duration")]
    pub tick: Duration,
    /// Time between two heartbeats of a leader.
    #[serde(with = "units::duration")]
    pub heartbeat: Duration,
    /// Shortest time without a leader before a follower campaigns.
    #[serde(with = "units::duration")]
    pub election_timeout: Duration,
    /// Bytes of entries in one message.
    #[serde(with = "units::size")]
    pub max_batch: u64,
    /// Bytes of entries a leader accepts beyond what is committed.
    #[serde(with = "units::size")]
    pub max_uncommitted: u64,
    /// Messages with entries under way to one follower.
    pub max_inflight: u32,
    /// Bytes of entries under way to one follower.
    #[serde(with = "units::size")]
    pub max_inflight_bytes: u64,
    /// May the leader answer reads that ask for it without a round trip?
    pub lease: bool,
    /// By how many percent the clocks of two nodes may run apart.
    pub clock_drift_percent: u32,
}

impl Raft {
    /// [`Raft::heartbeat`] in ticks.
    #[must_use]
    pub fn heartbeat_ticks(&self) -> u32 {
        ticks(self.heartbeat, self.tick)
    }

    /// [`Raft::election_timeout`] in ticks.
    #[must_use]
    pub fn election_ticks(&self) -> u32 {
        ticks(self.election_timeout, self.tick)
    }

    /// How long a lease is; `None`: there are none. Two ticks less than what voters promise:
    /// they count one that came just before the heartbeat and one just after it. And their
    /// clocks may run faster than the leader's.
    #[must_use]
    pub fn lease_span(&self) -> Option<Duration> {
        let promised = self.election_timeout.saturating_sub(2 * self.tick);
        let share = 100 - self.clock_drift_percent.min(100);
        self.lease.then(|| promised * share / 100)
    }
}

fn ticks(span: Duration, tick: Duration) -> u32 {
    u32::try_from(span.as_millis() / tick.as_millis()).expect("checked: fits, tick is not 0")
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of a value.
    #[serde(with = "units::size")]
    pub value: u64,
    /// Open connections, peers included.
    pub connections: u32,
    /// Of those from one address. 0: as many as there may be at all.
    pub connections_per_address: u32,
    /// Requests to the data API being worked on.
    pub in_flight: u32,
    /// Bytes of their bodies.
    #[serde(with = "units::size")]
    pub in_flight_bytes: u64,
    /// Items in one page of a listing.
    pub list_items: u32,
    /// Comparisons and operations of a transaction.
    pub txn_operations: u32,
    /// Bytes of a transaction's body.
    #[serde(with = "units::size")]
    pub txn_bytes: u64,
    /// Watches being served.
    pub watches: u32,
    /// How long a request may take when it does not say.
    #[serde(with = "units::duration")]
    pub request_timeout: Duration,
    /// The longest time a request may ask for.
    #[serde(with = "units::duration")]
    pub max_timeout: Duration,
    /// Headers in one request.
    pub headers: u32,
    /// Bytes of a request's first line and headers together.
    #[serde(with = "units::size")]
    pub header_bytes: u64,
}

/// `[watch]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watch {
    /// How often a watch says how far it is when nothing changes.
    #[serde(with = "units::duration")]
    pub progress: Duration,
    /// Bytes of recent changes that all watches share in memory.
    #[serde(with = "units::size")]
    pub recent: u64,
    /// A client that takes nothing for so long, while there is something for it, is cut off.
    #[serde(with = "units::duration")]
    pub patience: Duration,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// A request's headers must have arrived by then.
    #[serde(with = "units::duration")]
    pub header_timeout: Duration,
    /// A request's body must have arrived by then.
    #[serde(with = "units::duration")]
    pub body_timeout: Duration,
    /// A client that takes nothing of its answer for so long is cut off.
    #[serde(with = "units::duration")]
    pub write_timeout: Duration,
    /// A connection without requests is closed after this.
    #[serde(with = "units::duration")]
    pub idle_timeout: Duration,
    /// How long requests may finish in when the process is told to stop.
    #[serde(with = "units::duration")]
    pub drain_timeout: Duration,
    /// Threads that serve connections. 0: one per processor.
    pub workers: usize,
}

/// `[auth]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The file of tokens and roles. Empty: everybody may do everything.
    pub tokens: PathBuf,
    /// The file of secrets that nodes know each other by. Empty: whoever reaches the port may
    /// take part in the protocol.
    pub peer_secret: PathBuf,
    /// Listens beyond this machine although one of these files is missing.
    pub open: bool,
}

/// `[tls]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate that this node shows, and those between it and its authority. Empty: no
    /// TLS.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority of the nodes' certificates.
    pub ca: PathBuf,
}

impl TlsFiles {
    /// Is TLS spoken?
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.cert.as_os_str().is_empty()
    }

    /// How URLs of nodes begin.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.is_on() { "https" } else { "http" }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The least important lines still written.
    pub level: Level,
    /// How a line looks.
    pub format: Format,
    /// The file of the audit log. Empty: there is none.
    pub audit: PathBuf,
    /// The audit log tells of reads as well.
    pub audit_reads: bool,
}

/// How important a log line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something failed that should not.
    Error,
    /// Something is odd; the process copes.
    Warn,
    /// Milestones.
    #[default]
    Info,
    /// Steps.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// As written in the settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// All lines down to this level.
    #[must_use]
    pub fn filter(self) -> Filter {
        Filter::all(match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        })
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// The members the cluster starts with, by id: just this node when no peers are named.
    #[must_use]
    pub fn members(&self) -> BTreeMap<u64, String> {
        if self.cluster.peers.is_empty() {
            return BTreeMap::from([(self.node.id, self.node.advertise.clone())]);
        }
        self.cluster.peers.iter().map(|peer| (peer.id, peer.url.clone())).collect()
    }

    /// Do tokens say who a client is, and a secret or certificates who is a node?
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        !self.auth.tokens.as_os_str().is_empty() && self.knows_nodes()
    }

    /// Does a secret say who is a node, or do certificates?
    fn knows_nodes(&self) -> bool {
        [&self.auth.peer_secret, &self.tls.ca].iter().any(|path| !path.as_os_str().is_empty())
    }

    /// Takes note of the port that the system chose when `node.listen` asked for port 0.
    pub fn bound_to(&mut self, address: SocketAddr) {
        let scheme = self.tls.scheme();
        let derived = self.node.advertise == format!("{scheme}://{}", self.node.listen);
        self.node.listen = address;
        if derived {
            self.node.advertise = format!("{scheme}://{address}");
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self { id: 1, listen: SocketAddr::from(([127, 0, 0, 1], 3001)), advertise: String::new() }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            db: "data/db.mmapd".into(),
            log: "data/log".into(),
            segment: 16 << 20,
            quota: 2 << 30,
            map_max: 64 << 30,
            checkpoint_log: 128 << 20,
            checkpoint_interval: Duration::from_secs(30),
            log_retain: 64 << 20,
            history: 100_000,
            history_bytes: 64 << 20,
            idempotency_window: Duration::from_hours(24),
            idempotency_bytes: 64 << 20,
            scrub_interval: Duration::from_hours(24),
            scrub_rate: 8 << 20,
        }
    }
}

impl Default for Raft {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(25),
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_millis(500),
            max_batch: 1 << 20,
            max_uncommitted: 64 << 20,
            max_inflight: 64,
            max_inflight_bytes: 16 << 20,
            lease: false,
            clock_drift_percent: 5,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            value: 8 << 20,
            connections: 10_000,
            connections_per_address: 1000,
            in_flight: 4096,
            in_flight_bytes: 64 << 20,
            list_items: 1000,
            txn_operations: 1024,
            txn_bytes: 8 << 20,
            watches: 8192,
            request_timeout: Duration::from_secs(5),
            max_timeout: Duration::from_mins(1),
            headers: 64,
            header_bytes: 32 << 10,
        }
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            progress: Duration::from_secs(10),
            recent: 16 << 20,
            patience: Duration::from_secs(30),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(1),
            drain_timeout: Duration::from_secs(10),
            workers: 0,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Level::Info, format: Format::Text, audit: PathBuf::new(), audit_reads: false }
    }
}
