//! Rules that span keys, and values that are derived from others. Each rule says why.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::load::{Loaded, describe};
use super::units::{show_duration, show_size};
use super::{Config, ConfigError};

/// What an entry adds to its value at most: key, content type, conditions, frame.
const ENTRY_ROOM: u64 = 64 << 10;
/// Largest value: a log entry holds 16 MiB.
const VALUE_MAX: u64 = (16 << 20) - ENTRY_ROOM;
/// Largest transaction: its entry is hardly larger than its JSON, and never by a quarter.
const TXN_MAX: u64 = 12 << 20;
/// Smallest log file. A batch that is larger than a file gets one of its own size.
const SEGMENT_MIN: u64 = 64 << 10;
/// Unit in which files grow.
const PAGE: u64 = 4096;

/// Fills in what is derived: the URL of this node, and URLs without a closing slash.
pub(super) fn complete(config: &mut Config) {
    for peer in &mut config.cluster.peers {
        peer.url.truncate(peer.url.trim_end_matches('/').len());
    }
    let (node, scheme) = (&mut config.node, config.tls.scheme());
    node.advertise.truncate(node.advertise.trim_end_matches('/').len());
    if node.advertise.is_empty() {
        let listed = config.cluster.peers.iter().find(|peer| peer.id == node.id);
        node.advertise =
            listed.map_or_else(|| format!("{scheme}://{}", node.listen), |peer| peer.url.clone());
    }
}

/// Past this point nobody checks again.
pub(super) fn check(loaded: &Loaded) -> Result<(), ConfigError> {
    check_members(loaded)?;
    check_tls(loaded)?;
    check_address(loaded)?;
    check_limits(loaded)?;
    check_storage(loaded)?;
    check_raft(loaded)
}

/// Blames the first of `keys` that somebody set, else the first.
fn rule(
    loaded: &Loaded,
    holds: bool,
    keys: &[&str],
    problem: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    let set = keys.iter().find(|key| loaded.origin(key) != "default");
    let key = set.or(keys.first()).expect("a rule is about a key");
    Err(ConfigError(format!("{}: {key}: {}", describe(loaded.origin(key)), problem())))
}

fn check_address(loaded: &Loaded) -> Result<(), ConfigError> {
    let node = &loaded.config.node;
    let keys = ["node.advertise", "node.listen"];
    rule(loaded, !is_unspecified(&node.advertise), &keys, || {
        format!(
            "other nodes cannot reach {}; set node.advertise to an address of this machine, \
             for example http://10.0.0.1:{}",
            node.advertise,
            node.listen.port()
        )
    })?;
    let auth = &loaded.config.auth;
    let has_tokens = !auth.tokens.as_os_str().is_empty();
    check_guard(loaded, node.listen)?;
    let cluster = &loaded.config.cluster;
    let alone = cluster.peers.len() < 2 && cluster.join.is_empty();
    let keys = ["auth.tokens", "auth.peer_secret"];
    rule(loaded, !has_tokens || alone || loaded.config.knows_nodes(), &keys, || {
        "tokens close the door of nodes as well, and nothing says who is one; set auth.peer_secret \
         or tls.ca on all of them"
            .into()
    })?;
    let problem = url_problem(&node.advertise);
    rule(loaded, problem.is_none(), &["node.advertise"], || problem.unwrap_or_default())
}

/// Is this address safe to listen on?
fn check_guard(loaded: &Loaded, address: SocketAddr) -> Result<(), ConfigError> {
    let config = &loaded.config;
    let keys = ["node.listen", "auth.tokens", "auth.peer_secret"];
    let is_safe = address.ip().is_loopback() || config.is_guarded() || config.auth.open;
    rule(loaded, is_safe, &keys, || {
        format!(
            "whoever reaches {address} could read, write and take part in the protocol; set \
             auth.tokens and auth.peer_secret (or tls.ca), or say auth.open = true where the \
             network is trusted"
        )
    })
}

/// May a process that was started with `running` and is bound take these over?
pub(super) fn check_change(loaded: &Loaded, running: &Config) -> Result<(), ConfigError> {
    let (tls, was) = (loaded.config.tls.is_on(), running.tls.is_on());
    rule(loaded, tls == was, &["tls.cert"], || {
        let now = if was { "speaks TLS" } else { "speaks no TLS" };
        format!("this process {now}, and URLs of nodes say so; restart it to change that")
    })?;
    // The settings may name another address by now, which counts at the next start.
    check_guard(loaded, running.node.listen)
}

fn check_tls(loaded: &Loaded) -> Result<(), ConfigError> {
    let Config { tls, node, cluster, .. } = &loaded.config;
    let (cert, key, ca) = (&tls.cert, &tls.key, &tls.ca);
    let is_set = |path: &PathBuf| !path.as_os_str().is_empty();
    rule(loaded, is_set(cert) == is_set(key), &["tls.cert", "tls.key"], || {
        "a certificate is of no use without its key, nor a key without its certificate; set both"
            .into()
    })?;
    rule(loaded, is_set(cert) || !is_set(ca), &["tls.ca"], || {
        "an authority of nodes is of no use where this node has no certificate; set tls.cert".into()
    })?;
    let urls = cluster.peers.iter().map(|peer| peer.url.clone()).chain(cluster.join_urls());
    let wrong = urls.chain([node.advertise.clone()]).find(|url| {
        let scheme = url.split_once("://").map(|(scheme, _)| scheme);
        scheme.is_some_and(|scheme| scheme != tls.scheme())
    });
    let keys = ["cluster.peers", "node.advertise", "cluster.join"];
    rule(loaded, wrong.is_none(), &keys, || {
        let url = wrong.unwrap_or_default();
        let not = if tls.is_on() { "" } else { "not " };
        let scheme = tls.scheme();
        format!("{url} does not begin with {scheme}://, although tls.cert is {not}set; correct one")
    })?;
    let alone = cluster.peers.len() < 2 && cluster.join.is_empty();
    rule(loaded, !tls.is_on() || is_set(ca) || alone, &["tls.ca", "tls.cert"], || {
        "nodes that speak TLS to each other need tls.ca, the authority of their certificates".into()
    })
}

fn check_members(loaded: &Loaded) -> Result<(), ConfigError> {
    let Config { node, cluster, .. } = &loaded.config;
    for url in cluster.join_urls() {
        let problem = url_problem(&url);
        rule(loaded, problem.is_none(), &["cluster.join"], || problem.unwrap_or_default())?;
    }
    let both = !cluster.join.is_empty() && !cluster.peers.is_empty();
    rule(loaded, !both, &["cluster.join", "cluster.peers"], || {
        "cluster.join asks a running cluster to be taken in, and cluster.peers founds one; \
         give one of them"
            .into()
    })?;
    rule(loaded, node.id > 0, &["node.id"], || {
        "0 means \"nobody\" in the protocol; choose an id from 1 on".into()
    })?;
    let keys = ["cluster.peers"];
    let mut ids = BTreeSet::new();
    let mut urls = BTreeSet::new();
    for peer in &cluster.peers {
        rule(loaded, peer.id > 0, &keys, || {
            "a peer has id 0, which means \"nobody\" in the protocol; number peers from 1 on".into()
        })?;
        rule(loaded, ids.insert(peer.id), &keys, || {
            format!("two peers have the id {}; give each its own", peer.id)
        })?;
        let problem = url_problem(&peer.url);
        rule(loaded, problem.is_none(), &keys, || problem.unwrap_or_default())?;
        rule(loaded, !is_unspecified(&peer.url), &keys, || {
            format!("peer {} cannot be reached at {}; name its real address", peer.id, peer.url)
        })?;
        rule(loaded, urls.insert(&peer.url), &keys, || {
            format!("two peers have the URL {}; correct one", peer.url)
        })?;
    }
    if cluster.peers.is_empty() {
        return Ok(());
    }
    rule(loaded, ids.contains(&node.id), &["cluster.peers", "node.id"], || {
        format!(
            "the list has no node {}, which this is; add it with its URL, or correct node.id",
            node.id
        )
    })?;
    let listed = loaded.config.members().remove(&node.id).unwrap_or_default();
    rule(loaded, listed == node.advertise, &["node.advertise"], || {
        format!("is {} and cluster.peers says {listed}; make them equal", node.advertise)
    })
}

/// Why it is not a URL that nodes can use.
#[must_use]
pub fn url_problem(url: &str) -> Option<String> {
    let secure = url.strip_prefix("https://");
    let Some(authority) = secure.or_else(|| url.strip_prefix("http://")) else {
        return Some(format!("{url:?} does not start with http://; write http://host:port"));
    };
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let ok = |c: char| {
        c.is_ascii_alphanumeric() || ".-_".contains(c) || (bracketed && "[]:".contains(c))
    };
    let sound = !host.is_empty() && host.chars().all(ok) && port.parse::<u16>().is_ok();
    (!sound).then(|| format!("{url:?} is not http://host:port; write it so, without a path"))
}

fn is_unspecified(url: &str) -> bool {
    ["http://0.0.0.0:", "http://[::]:", "https://0.0.0.0:", "https://[::]:"]
        .iter()
        .any(|prefix| url.starts_with(prefix))
}

fn check_storage(loaded: &Loaded) -> Result<(), ConfigError> {
    let storage = &loaded.config.storage;
    let (db, log) = (plain(&storage.db), plain(&storage.log));
    let paths = ["storage.db", "storage.log"];
    rule(loaded, db.file_name().is_some(), &["storage.db"], || {
        format!("{} names no file; write for example data/db.mmapd", storage.db.display())
    })?;
    rule(loaded, log.file_name().is_some(), &["storage.log"], || {
        format!("{} names no directory; write for example data/log", storage.log.display())
    })?;
    rule(loaded, db != log, &paths, || {
        format!("database and log are both {}; give each a path of its own", db.display())
    })?;
    rule(loaded, !db.starts_with(&log), &paths, || {
        format!(
            "the database {} lies inside the log directory {}, which the log alone may use; \
             move one of them",
            db.display(),
            log.display()
        )
    })?;
    rule(loaded, !log.starts_with(&db), &paths, || {
        format!(
            "the log directory {} lies below {}, which is a file; move one of them",
            log.display(),
            db.display()
        )
    })?;
    rule(loaded, storage.segment >= SEGMENT_MIN, &["storage.segment"], || {
        format!(
            "a log in files of {} would be nothing but files; use at least {}",
            show_size(storage.segment),
            show_size(SEGMENT_MIN)
        )
    })?;
    rule(loaded, storage.segment.is_multiple_of(PAGE), &["storage.segment"], || {
        format!("{} is not a multiple of 4KiB; round it up", show_size(storage.segment))
    })?;
    rule(loaded, storage.segment <= 1 << 30, &["storage.segment"], || {
        format!("{} is too large for one log file; use at most 1GiB", show_size(storage.segment))
    })?;
    rule(loaded, storage.quota >= 1 << 20, &["storage.quota"], || {
        format!("{} is too small for a database; use at least 1MiB", show_size(storage.quota))
    })?;
    rule(loaded, storage.map_max >= storage.quota, &["storage.map_max", "storage.quota"], || {
        format!(
            "a map of {} cannot show a database of {}; set storage.map_max to at least storage.quota",
            show_size(storage.map_max),
            show_size(storage.quota)
        )
    })?;
    let year = Duration::from_hours(24 * 366);
    rule(loaded, storage.scrub_interval <= year, &["storage.scrub_interval"], || {
        format!("{} is over a year; use at most 366d", show_duration(storage.scrub_interval))
    })?;
    rule(loaded, storage.scrub_rate >= 64 << 10, &["storage.scrub_rate"], || {
        format!("{} a second never ends; use at least 64KiB", show_size(storage.scrub_rate))
    })?;
    not_zero(loaded, "storage.checkpoint_log", storage.checkpoint_log)?;
    rule(loaded, storage.idempotency_window <= year, &["storage.idempotency_window"], || {
        format!("{} is over a year; use at most 366d", show_duration(storage.idempotency_window))
    })?;
    time(loaded, "storage.checkpoint_interval", storage.checkpoint_interval)
}

/// The path without `.` and `..`, from the root, without asking the file system.
fn plain(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut plain = PathBuf::new();
    for part in absolute.components() {
        if part == Component::ParentDir {
            plain.pop();
        } else {
            plain.push(part);
        }
    }
    plain
}

fn check_raft(loaded: &Loaded) -> Result<(), ConfigError> {
    let raft = &loaded.config.raft;
    time(loaded, "raft.tick", raft.tick)?;
    time(loaded, "raft.heartbeat", raft.heartbeat)?;
    time(loaded, "raft.election_timeout", raft.election_timeout)?;
    // One lost heartbeat must not start an election (Raft 5.6).
    let keys = ["raft.heartbeat", "raft.election_timeout"];
    rule(loaded, raft.heartbeat * 3 < raft.election_timeout, &keys, || {
        format!(
            "a heartbeat every {} is not below a third of the election timeout of {}, so one lost \
             heartbeat could start an election; shorten raft.heartbeat or lengthen \
             raft.election_timeout",
            show_duration(raft.heartbeat),
            show_duration(raft.election_timeout)
        )
    })?;
    for (key, span) in
        [("raft.heartbeat", raft.heartbeat), ("raft.election_timeout", raft.election_timeout)]
    {
        let whole = span.as_millis().is_multiple_of(raft.tick.as_millis());
        rule(loaded, whole, &[key, "raft.tick"], || {
            format!(
                "{key} = {} is not a whole number of ticks of {}; round it",
                show_duration(span),
                show_duration(raft.tick)
            )
        })?;
    }
    not_zero(loaded, "raft.max_batch", raft.max_batch)?;
    not_zero(loaded, "raft.max_inflight", raft.max_inflight.into())?;
    not_zero(loaded, "raft.max_inflight_bytes", raft.max_inflight_bytes)?;
    rule(loaded, raft.clock_drift_percent <= 50, &["raft.clock_drift_percent"], || {
        format!("{} percent leave no lease; use at most 50", raft.clock_drift_percent)
    })?;
    let value = loaded.config.limits.value;
    let keys = ["raft.max_uncommitted", "limits.value"];
    rule(loaded, raft.max_uncommitted >= value + ENTRY_ROOM, &keys, || {
        format!(
            "a leader that holds back at {} could never accept a value of {}; \
             raise raft.max_uncommitted or lower limits.value",
            show_size(raft.max_uncommitted),
            show_size(value)
        )
    })
}

fn check_limits(loaded: &Loaded) -> Result<(), ConfigError> {
    let Config { limits, http, .. } = &loaded.config;
    rule(loaded, limits.value <= VALUE_MAX, &["limits.value"], || {
        format!(
            "{} and its key are more than the 16MiB of a log entry; use at most {}",
            show_size(limits.value),
            show_size(VALUE_MAX)
        )
    })?;
    not_zero(loaded, "limits.value", limits.value)?;
    not_zero(loaded, "limits.connections", limits.connections.into())?;
    not_zero(loaded, "limits.in_flight", limits.in_flight.into())?;
    let keys = ["limits.in_flight_bytes", "limits.value", "limits.txn_bytes"];
    let largest = limits.value.max(limits.txn_bytes);
    rule(loaded, limits.in_flight_bytes >= largest, &keys, || {
        format!(
            "{} in flight do not hold the largest body ({}); raise limits.in_flight_bytes",
            show_size(limits.in_flight_bytes),
            show_size(largest)
        )
    })?;
    not_zero(loaded, "limits.list_items", limits.list_items.into())?;
    not_zero(loaded, "limits.txn_operations", limits.txn_operations.into())?;
    rule(loaded, (1..=TXN_MAX).contains(&limits.txn_bytes), &["limits.txn_bytes"], || {
        format!(
            "a transaction of {} does not fit into a log entry; use 1B to {}",
            show_size(limits.txn_bytes),
            show_size(TXN_MAX)
        )
    })?;
    not_zero(loaded, "limits.watches", limits.watches.into())?;
    time(loaded, "watch.progress", loaded.config.watch.progress)?;
    time(loaded, "watch.patience", loaded.config.watch.patience)?;
    not_zero(loaded, "limits.headers", limits.headers.into())?;
    rule(
        loaded,
        (8 << 10..=1 << 20).contains(&limits.header_bytes),
        &["limits.header_bytes"],
        || format!("{} is outside of 8KiB to 1MiB; choose between", show_size(limits.header_bytes)),
    )?;
    time(loaded, "limits.request_timeout", limits.request_timeout)?;
    let keys = ["limits.max_timeout", "limits.request_timeout"];
    rule(loaded, limits.max_timeout >= limits.request_timeout, &keys, || {
        format!(
            "the longest time a request may ask for ({}) is below the usual one ({}); raise \
             limits.max_timeout or lower limits.request_timeout",
            show_duration(limits.max_timeout),
            show_duration(limits.request_timeout)
        )
    })?;
    time(loaded, "limits.max_timeout", limits.max_timeout)?;
    time(loaded, "http.header_timeout", http.header_timeout)?;
    time(loaded, "http.body_timeout", http.body_timeout)?;
    time(loaded, "http.write_timeout", http.write_timeout)?;
    time(loaded, "http.idle_timeout", http.idle_timeout)?;
    time(loaded, "http.drain_timeout", http.drain_timeout)?;
    rule(loaded, http.workers <= 1024, &["http.workers"], || {
        format!(
            "{} threads help nobody; use at most 1024, or 0 for one per processor",
            http.workers
        )
    })
}

fn not_zero(loaded: &Loaded, key: &str, number: u64) -> Result<(), ConfigError> {
    rule(loaded, number > 0, &[key], || "0 would stop everything; use at least 1".into())
}

fn time(loaded: &Loaded, key: &str, span: Duration) -> Result<(), ConfigError> {
    let sane = Duration::from_millis(1)..=Duration::from_hours(24);
    rule(loaded, sane.contains(&span), &[key], || {
        format!("{} is outside of 1ms to 24h; choose between", show_duration(span))
    })
}
