//! The node: protocol, log and database behind one thread, and the handle that the edge
//! holds.
//!
//! `core` decides nothing about threads and `run` nothing else; [`open()`] makes the files
//! agree before either starts. Start reading at `core/mod.rs`.

pub mod backup;
pub mod changes;
mod clock;
mod core;
mod departed;
mod desk;
mod handle;
mod handover;
pub mod import;
mod inbound;
pub mod join;
mod measure;
mod members;
pub mod offline;
mod open;
mod pace;
pub mod restore;
mod run;
mod scrub;
mod ticks;
mod work;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

pub use self::core::{CompactionDone, CompactionJob, Core, CoreOptions, Now};
pub use clock::wall_ms;
pub use handle::{
    BackupRefused, CompactError, Consistency, FORWARDED_MAX, Handle, MemberStatus, PeerError,
    ReadError, RoleName, Status, WriteError,
};
pub use handover::HandoverError;
pub use members::{MemberChange, NotChanged, RelayError};
pub use open::{OpenOptions, Parts, node_ids, open};
pub use run::Fatal;
pub use scrub::{ScrubError, Scrubbed};
pub use work::{
    Answer, Arrived, Compacted, Event, Garbage, Measured, NotCompacted, Outgoing, Shipment, Work,
};

use crate::config::Config;
use crate::machine::Tidy;
use crate::metrics::Metrics;
pub use crate::peers::NotHandedOver;
use crate::peers::Peers;
pub use crate::peers::{RELAYED, Relayed, SENDER_URL, Seen};
use crate::raft;
pub use crate::raft::types::NodeId;
use crate::store::db::unfinished;
use crate::store::disk::{LinuxDisk, parent};
use crate::store::map::name_faults;
use crate::store::{
    DbOptions, Disk, Identity, LogOptions, Recovered, Shrink, StoreError, resident_bytes,
};
use changes::Changes;
use desk::Inbox;
use handle::{Mail, Shared};
use join::Joined;
use measure::{FileWatch, Losses, Measure};

/// Requests and packets that may wait for a turn.
const INBOX: usize = 8192;
/// A checkpoint of a small store is due when this much of it has changed in memory.
const DIRTY: u64 = 24 << 20;

/// Nodes compare their states whenever this many entries more are applied.
const DIGEST_ENTRIES: u64 = 4096;
/// The database file grows by this much at a time.
const DB_GROW: u64 = 16 << 20;
/// How often the kernel is asked how much of the maps is in memory.
const RESIDENT_INTERVAL: Duration = Duration::from_secs(15);

/// A running node.
#[derive(Debug)]
pub struct Node {
    handle: Handle,
    thread: JoinHandle<()>,
    fatal: mpsc::UnboundedReceiver<Fatal>,
    /// Keeps other processes away from the files.
    _locks: Locks,
}

struct Locks(#[expect(dead_code, reason = "held, not read")] [Box<dyn Send + Sync>; 2]);

impl std::fmt::Debug for Locks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Locks")
    }
}

impl Node {
    /// Opens the files of a node and starts it. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// Those of the store.
    pub fn start(config: &Config, metrics: &'static Metrics) -> Result<Self, StoreError> {
        name_faults();
        let observer = Arc::new(FileWatch(metrics));
        let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(Some(observer)));
        let locks = lock(&*disk, config)?;
        let options = open_options(config)?;
        let (parts, recovered) = open(disk.clone(), options)?;
        tell(&parts, &recovered, metrics);
        let us = parts.us;
        let (outbox, inbox) = Inbox::new(INBOX);
        let runtime = tokio::runtime::Handle::current();
        let measure = Measure::new(metrics, us.cluster, config);
        let losses = Arc::new(Losses { peers: measure.peers(), inbox: outbox.clone() });
        let peers = Peers::new(us, config, losses, runtime.clone()).map_err(|error| {
            StoreError::io("make the HTTP client of", "peers")(std::io::Error::other(error))
        })?;
        let core = Core::new(parts, core_options(config));
        let (status_sender, status) = watch::channel(Arc::default());
        let (applied_sender, applied) = watch::channel(core.applied().0);
        let (fatal_sender, fatal) = mpsc::unbounded_channel();
        let (scrubs, orders) = std::sync::mpsc::channel();
        let scrubber = scrub::Scrubber {
            interval: config.storage.scrub_interval,
            rate: config.storage.scrub_rate,
            orders,
            busy: Arc::default(),
            outbox: outbox.clone(),
            pace: Arc::new(pace::DiskPace::new()),
            metrics,
        };
        let recent = config.watch.recent;
        let changes = Changes::new(core.published(), applied.clone(), &metrics.watch, recent);
        runtime.spawn(Arc::clone(&changes).follow());
        let handle = Handle {
            shared: Arc::new(Shared {
                us,
                inbox: outbox.clone(),
                status,
                published: core.published(),
                applied,
                told_revision: AtomicU64::new(0),
                peers: peers.clone(),
                draining: watch::Sender::new(false),
                quota: config.storage.quota,
                disk,
                incoming: inbound::Landing::at(unfinished(&config.storage.db), &scrubber.pace),
                map_max: config.storage.map_max,
                stopping: watch::Sender::new(false),
                scrubs: scrubs.clone(),
                scrubbing: Arc::clone(&scrubber.busy),
                changes,
            }),
            trace: None,
        };
        watch_residents(&runtime, metrics, config, handle.shared.stopping.subscribe());
        let shell = run::Shell {
            inbox,
            outbox,
            tick: config.raft.tick,
            status: status_sender,
            applied: applied_sender,
            peers,
            runtime,
            measure,
            pace: Arc::clone(&scrubber.pace),
            fatal: fatal_sender,
            scrubs,
            scrubbing: Arc::clone(&scrubber.busy),
        };
        let thread = run::start(core, shell, scrubber)?;
        Ok(Self { handle, thread, fatal, _locks: locks })
    }

    /// What the edge needs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until the node cannot go on. Then the process must end at once.
    pub async fn failed(&mut self) -> Fatal {
        match self.fatal.recv().await {
            Some(fatal) => fatal,
            // The senders live in the threads; without a message they ended in good order.
            None => std::future::pending().await,
        }
    }

    /// Finishes what is running, makes it durable and ends the threads.
    ///
    /// # Errors
    /// What stopped them, if it was not this.
    pub async fn stop(mut self) -> Result<(), Fatal> {
        self.handle.end_streams();
        let stop = self.handle.shared.inbox.send(Mail::Stop).await;
        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if let Ok(fatal) = self.fatal.try_recv() {
            return Err(fatal);
        }
        match (stop, joined) {
            (Ok(()), Ok(Ok(()))) => Ok(()),
            _ => Err(Fatal::Panicked("node")),
        }
    }
}

fn lock(disk: &dyn Disk, config: &Config) -> Result<Locks, StoreError> {
    let (db, log) = (&config.storage.db, &config.storage.log);
    disk.make_dir(&parent(db))?;
    disk.make_dir(log)?;
    let mut db_lock = db.as_os_str().to_owned();
    db_lock.push(".lock");
    let locks = [disk.lock(db_lock.as_ref())?, disk.lock(&log.join("LOCK"))?];
    Ok(Locks(locks))
}

/// Asks now and then how much of the maps is in memory, off every hot path.
fn watch_residents(
    runtime: &tokio::runtime::Handle,
    metrics: &'static Metrics,
    config: &Config,
    mut stopping: watch::Receiver<bool>,
) {
    let (db, log) = (config.storage.db.clone(), config.storage.log.clone());
    runtime.spawn(async move {
        let mut due = tokio::time::interval(RESIDENT_INTERVAL);
        loop {
            tokio::select! {
                _ = due.tick() => {}
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
            let (db, log) = (db.clone(), log.clone());
            let look = move || {
                metrics.log_file.set_resident(resident_bytes(&log));
                metrics.db_file.set_resident(resident_bytes(&db));
            };
            if tokio::task::spawn_blocking(look).await.is_err() {
                return;
            }
        }
    });
}

/// What was found in the files, for the operator.
fn tell(parts: &Parts, recovered: &Recovered, metrics: &Metrics) {
    if let Some(cut) = &recovered.cut {
        tracing::warn!(%cut, "a torn tail of the log was cut off; nothing of it was acknowledged");
    }
    if !recovered.damaged.is_empty() {
        let entries = &recovered.damaged;
        tracing::error!(?entries, "entries of the log are damaged; other nodes are asked for them");
    }
    if let Some(lost) = &recovered.lost {
        let kept = &recovered.quarantined;
        tracing::error!(%lost, ?kept, "entries of the log are lost; the leader has them");
    }
    if let Some(lost) = &parts.lost {
        metrics.lost_databases.increment(1);
        tracing::error!(%lost, "the database is damaged and is made anew");
    }
    tracing::info!(
        node = %parts.us.node,
        cluster = format!("{:032x}", parts.us.cluster),
        last = %recovered.last,
        applied = %parts.db.state().applied,
        "log and database are open"
    );
}

fn open_options(config: &Config) -> Result<OpenOptions, StoreError> {
    let joined = Joined::load(config)?;
    let members = node_ids(&config.members());
    let node = NodeId(config.node.id);
    let mut raft = raft::config::Config::new(node, chance());
    raft.election_ticks = config.raft.election_ticks();
    raft.heartbeat_ticks = config.raft.heartbeat_ticks();
    raft.max_inflight = usize::try_from(config.raft.max_inflight).unwrap_or(usize::MAX);
    raft.max_uncommitted_bytes = config.raft.max_uncommitted;
    let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    raft.lease = config.raft.lease_span().map(micros);
    let fresh = match &joined {
        Some(joined) => Identity { cluster: joined.cluster, node, incarnation: joined.incarnation },
        None => Identity {
            cluster: cluster_id(&config.cluster.name, &members),
            node,
            incarnation: chance(),
        },
    };
    Ok(OpenOptions {
        fresh,
        log: LogOptions {
            dir: config.storage.log.clone(),
            segment_bytes: config.storage.segment,
            repairable: members.len() > 1 || joined.is_some(),
        },
        members,
        joined: joined.map(|joined| joined.membership),
        db: DbOptions {
            path: config.storage.db.clone(),
            map_max: config.storage.map_max,
            // The edge refuses puts over the quota; an entry that is committed is applied.
            quota: u64::MAX,
            grow_step: DB_GROW,
            shrink: Shrink::default(),
        },
        raft,
    })
}

fn core_options(config: &Config) -> CoreOptions {
    let tick = config.raft.tick.as_millis().max(1);
    let interval = config.storage.checkpoint_interval.as_millis() / tick;
    CoreOptions {
        batch_bytes: usize::try_from(config.raft.max_batch).unwrap_or(usize::MAX),
        inflight_bytes: usize::try_from(config.raft.max_inflight_bytes).unwrap_or(usize::MAX),
        checkpoint_log_bytes: config.storage.checkpoint_log,
        checkpoint_dirty_bytes: DIRTY,
        checkpoint_ticks: u64::try_from(interval).unwrap_or(u64::MAX),
        active_ticks: 4 * config.raft.election_ticks(),
        mark_ticks: u64::try_from(50_u128.div_ceil(tick)).map_or(2, |ticks| ticks.max(2)),
        log_retain_bytes: config.storage.log_retain,
        digest_entries: DIGEST_ENTRIES,
        tidy: Tidy {
            expire: true,
            history_events: config.storage.history,
            history_bytes: config.storage.history_bytes,
            once_ms: u64::try_from(config.storage.idempotency_window.as_millis())
                .unwrap_or(u64::MAX),
            once_count: u64::MAX,
            once_bytes: config.storage.idempotency_bytes,
        },
    }
}

/// The id of a cluster that is founded now: the same on all of its first members, since
/// they are configured alike; a node alone draws one.
fn cluster_id(name: &str, members: &std::collections::BTreeMap<NodeId, String>) -> u128 {
    if members.len() == 1 {
        return u128::from(chance()) << 64 | u128::from(chance());
    }
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(name.as_bytes());
    for (id, url) in members {
        hash.update(&id.0.to_le_bytes());
        hash.update(&(url.len() as u64).to_le_bytes());
        hash.update(url.as_bytes());
    }
    hash.digest128()
}

/// Sixty-four bits that nobody can foretell: the standard library's hash keys.
fn chance() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0)
}
