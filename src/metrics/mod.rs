//! Every number this process exports, with its name, its help text and its buckets.
//!
//! To learn what can be graphed, read this file; names are an interface, so nobody else
//! writes one. Handles are looked up once and kept: counting is one atomic addition. The
//! registry belongs to the process, so several nodes in one test share it.
//!
//! `/metrics` calls [`render`]. Histograms keep their samples until somebody drains them,
//! so [`upkeep`] must run every [`UPKEEP_INTERVAL`].
//!
//! Left out: labels whose values clients choose. Routes are patterns, peers are members.

#![forbid(unsafe_code)]

mod requests;

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

pub use requests::HttpSeries;

/// Version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit it was built from, when the build was told (`MMAPD_COMMIT`).
pub const COMMIT: &str = match option_env!("MMAPD_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
/// How often [`upkeep`] must run.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// 50 us (an idle NVMe disk, a peer on the same machine) to 3.3 s (something is broken),
/// in steps of 2: wide enough for a bad disk, fine enough to see a good one get worse.
const SYNC_SECONDS: [f64; 17] = [
    50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3, 25.6e-3, 51.2e-3,
    102.4e-3, 204.8e-3, 409.6e-3, 819.2e-3, 1.6384, 3.2768,
];
/// 100 us (a read from memory) to 10 s (beyond the usual time-out of 5 s).
const REQUEST_SECONDS: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// 1 ms (nothing changed) to 65 s (a large database on a slow disk), in steps of 4.
const CHECKPOINT_SECONDS: [f64; 9] =
    [0.001, 0.004, 0.016, 0.064, 0.256, 1.024, 4.096, 16.384, 65.536];
/// 1 (no batching) to 4096 (as many as may be in flight).
const BATCH_ENTRIES: [f64; 13] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

const COMMIT_LATENCY: &str = "mmapd_raft_commit_latency_seconds";
const ROUND_TRIP: &str = "mmapd_raft_peer_round_trip_seconds";
const MSYNC_DURATION: &str = "mmapd_mmap_msync_duration_seconds";
const BATCH: &str = "mmapd_log_batch_entries";
const CHECKPOINT_DURATION: &str = "mmapd_db_checkpoint_duration_seconds";
const COMPACTION_DURATION: &str = "mmapd_db_compaction_duration_seconds";
const REQUEST_DURATION: &str = "mmapd_http_request_duration_seconds";
const REQUESTS: &str = "mmapd_http_requests_total";

/// All that `alarms` of `/v1/status` can say; each is a series from the first scrape on.
pub const ALARMS: [&str; 10] = [
    "quota",
    "no-space",
    "log-damaged",
    "log-lost",
    "database-damaged",
    "database-rebuilding",
    "disk-damage",
    "digest-mismatch",
    "not-a-member",
    "foreign-member",
];

const BUCKETS: [(&str, &[f64]); 7] = [
    (COMMIT_LATENCY, &SYNC_SECONDS),
    (ROUND_TRIP, &SYNC_SECONDS),
    (MSYNC_DURATION, &SYNC_SECONDS),
    (BATCH, &BATCH_ENTRIES),
    (CHECKPOINT_DURATION, &CHECKPOINT_SECONDS),
    (COMPACTION_DURATION, &CHECKPOINT_SECONDS),
    (REQUEST_DURATION, &REQUEST_SECONDS),
];

/// Handles of everything that has no label, or labels known in advance.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the help text in `Metrics::register` is the documentation")]
pub struct Metrics {
    pub process_start: Gauge,
    pub alarms: AlarmMetrics,
    pub elections_started: Counter,
    pub elections_won: Counter,
    pub leader_changes: Counter,
    pub role: Gauge,
    pub term: Gauge,
    pub has_leader: Gauge,
    pub commit_latency: Histogram,
    pub proposals_applied: Counter,
    pub proposals_refused: Counter,
    pub proposals_unknown: Counter,
    pub commit_index: Gauge,
    pub applied_index: Gauge,
    pub applied_batches: Counter,
    pub applied_entries: Counter,
    pub snapshots: SnapshotMetrics,
    pub repaired_entries: Counter,
    pub lost_databases: Counter,
    pub digest_mismatches: Counter,
    pub log_file: FileMetrics,
    pub db_file: FileMetrics,
    pub log_batch_entries: Histogram,
    pub log_size_bytes: Gauge,
    pub db_size_bytes: Gauge,
    pub db_live_bytes: Gauge,
    pub db_checkpoint_duration: Histogram,
    pub db_compactions: CompactionMetrics,
    pub scrub: ScrubMetrics,
    pub kv_keys: Gauge,
    pub kv_revision: Gauge,
    pub watch: WatchMetrics,
    pub config_reloads: ReloadMetrics,
    pub refused_connections: Counter,
}

/// What is counted of the mapped files of one kind.
#[derive(Clone, Debug)]
pub struct FileMetrics {
    remaps: Counter,
    msyncs: Counter,
    msync_errors: Counter,
    msync_duration: Histogram,
    msync_bytes: Counter,
    mapped_bytes: Gauge,
    resident_bytes: Gauge,
}

/// What is counted of one peer. Look it up once with [`Metrics::peer`] and keep it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the help text in `Registry::peer` is the documentation")]
pub struct PeerMetrics {
    pub lag_entries: Gauge,
    pub round_trip: Histogram,
    pub messages_sent: Counter,
    pub messages_dropped: Counter,
}

#[derive(Debug)]
struct Registry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    metrics: Metrics,
}

/// The handles; the first call declares everything.
#[must_use]
pub fn install() -> &'static Metrics {
    &registry().metrics
}

/// The text for `GET /metrics` (`text/plain; version=0.0.4`).
#[must_use]
pub fn render() -> String {
    registry().handle.render()
}

/// Moves the samples of histograms into their buckets.
pub fn upkeep() {
    registry().handle.run_upkeep();
}

/// The series of `method` on `route`, a pattern such as `/v1/keys/{key}`.
#[must_use]
pub fn http_request(route: &'static str, method: &'static str) -> HttpSeries {
    registry().http_request(route, method)
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::new)
}

impl Registry {
    fn new() -> Self {
        let builder = BUCKETS.iter().fold(PrometheusBuilder::new(), |builder, (name, bounds)| {
            builder
                .set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds)
                .expect("the list of bounds is not empty")
        });
        let recorder = builder.build_recorder();
        let metrics = Metrics::register(&Declare(&recorder));
        Self { handle: recorder.handle(), recorder, metrics }
    }

    fn peer(&self, id: u64) -> PeerMetrics {
        let r = Declare(&self.recorder);
        let id = id.to_string();
        let labels = [("peer", id.as_str())];
        PeerMetrics {
            lag_entries: r.gauge(
                "mmapd_raft_peer_lag_entries",
                "Entries the peer lacks of this leader's log; 0 when this node does not lead",
                &labels,
            ),
            round_trip: r.histogram(
                ROUND_TRIP,
                "Time from a message to the peer until its answer",
                &labels,
            ),
            messages_sent: r.counter(
                "mmapd_raft_peer_messages_sent_total",
                "Messages handed to the peer's connection",
                &labels,
            ),
            messages_dropped: r.counter(
                "mmapd_raft_peer_messages_dropped_total",
                "Messages dropped because the peer's queue was full or it was not connected",
                &labels,
            ),
        }
    }
}

impl Metrics {
    fn register(r: &Declare<'_>) -> Self {
        let outcome = |outcome| {
            let help = "Writes proposed here, by what the client was told";
            r.counter("mmapd_raft_proposals_total", help, &[("outcome", outcome)])
        };
        let counter = |name, help| r.counter(name, help, &[]);
        let gauge = |name, help| r.gauge(name, help, &[]);
        let histogram = |name, help| r.histogram(name, help, &[]);
        Self {
            process_start: process(r),
            alarms: AlarmMetrics::register(r),
            elections_started: counter(
                "mmapd_raft_elections_started_total",
                "Elections this node began, counted from the pre-vote on",
            ),
            elections_won: counter("mmapd_raft_elections_won_total", "Elections this node won"),
            leader_changes: counter(
                "mmapd_raft_leader_changes_total",
                "Times this node learned of another leader than the one before",
            ),
            role: gauge("mmapd_raft_role", "0 follower, 1 candidate, 2 leader, 3 learner"),
            term: gauge("mmapd_raft_term", "Current term"),
            has_leader: gauge("mmapd_raft_has_leader", "1 if this node knows a leader, else 0"),
            commit_latency: histogram(
                COMMIT_LATENCY,
                "Time from proposal to commit, on the leader",
            ),
            proposals_applied: outcome("applied"),
            proposals_refused: outcome("refused"),
            proposals_unknown: outcome("unknown"),
            commit_index: gauge("mmapd_raft_commit_index", "Last entry known to be committed"),
            applied_index: gauge("mmapd_raft_applied_index", "Last entry applied"),
            applied_batches: counter(
                "mmapd_raft_applied_batches_total",
                "Batches of committed entries applied",
            ),
            applied_entries: counter("mmapd_raft_applied_entries_total", "Entries applied"),
            snapshots: SnapshotMetrics::register(r),
            repaired_entries: counter(
                "mmapd_log_repaired_entries_total",
                "Damaged entries of the log that were had again from a peer",
            ),
            lost_databases: counter(
                "mmapd_db_lost_total",
                "Damaged or diverged databases that were given up and made anew",
            ),
            digest_mismatches: counter(
                "mmapd_db_digest_mismatches_total",
                "Comparisons of the state with a peer that found another digest",
            ),
            log_file: FileMetrics::register(r, "log"),
            db_file: FileMetrics::register(r, "db"),
            log_batch_entries: histogram(BATCH, "Entries made durable by one sync of the log"),
            log_size_bytes: gauge("mmapd_log_size_bytes", "Bytes of all files of the log"),
            db_size_bytes: gauge("mmapd_db_size_bytes", "Bytes of the database file"),
            db_live_bytes: gauge("mmapd_db_live_bytes", "Bytes of it that hold live data"),
            db_checkpoint_duration: histogram(
                CHECKPOINT_DURATION,
                "Time to make the database durable up to one entry",
            ),
            db_compactions: CompactionMetrics::register(r),
            scrub: ScrubMetrics::register(r),
            kv_keys: gauge("mmapd_kv_keys", "Keys stored"),
            kv_revision: gauge("mmapd_kv_revision", "Revision of the newest change"),
            watch: WatchMetrics::register(r),
            config_reloads: ReloadMetrics::register(r),
            refused_connections: counter(
                "mmapd_http_refused_connections_total",
                "Connections closed at once because there were too many, of one address or in all",
            ),
        }
    }

    /// The series of one peer, by its id.
    #[must_use]
    pub fn peer(&self, id: u64) -> PeerMetrics {
        registry().peer(id)
    }
}

/// What runs, and since when: the caller has the clock.
fn process(r: &Declare<'_>) -> Gauge {
    let build = [("version", VERSION), ("commit", COMMIT)];
    r.gauge("mmapd_build_info", "Always 1; the labels say what runs", &build).set(1.0);
    let help = "When this process started its node, in seconds since 1970";
    r.gauge("mmapd_process_start_time_seconds", help, &[])
}

/// What a node is worried about.
#[derive(Clone, Debug)]
pub struct AlarmMetrics([(&'static str, Gauge); ALARMS.len()]);

impl AlarmMetrics {
    fn register(r: &Declare<'_>) -> Self {
        let help = "1 while the node raises this alarm (alarms of /v1/status), else 0";
        Self(ALARMS.map(|alarm| (alarm, r.gauge("mmapd_alarm", help, &[("alarm", alarm)]))))
    }

    /// These are raised now, and no others.
    pub fn set(&self, raised: &[&str]) {
        for (alarm, gauge) in &self.0 {
            gauge.set(u32::from(raised.contains(alarm)));
        }
    }
}

/// Snapshots between nodes.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the help text in `register` is the documentation")]
pub struct SnapshotMetrics {
    pub sent: Counter,
    pub resumes: Counter,
    pub received: Counter,
}

impl SnapshotMetrics {
    fn register(r: &Declare<'_>) -> Self {
        let counter = |name, help| r.counter(name, help, &[]);
        Self {
            sent: counter("mmapd_raft_snapshots_sent_total", "Snapshots sent whole"),
            resumes: counter(
                "mmapd_raft_snapshot_resumes_total",
                "Snapshots that went on where their connection broke",
            ),
            received: counter(
                "mmapd_raft_snapshots_received_total",
                "Snapshots received and installed",
            ),
        }
    }
}

/// Compactions of the database.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "a metric is described where it is registered")]
pub struct CompactionMetrics {
    pub done: Counter,
    pub failed: Counter,
    pub duration: Histogram,
}

impl CompactionMetrics {
    fn register(r: &Declare<'_>) -> Self {
        let outcome = |outcome| {
            let help = "Compactions of the database, by what became of them";
            r.counter("mmapd_db_compactions_total", help, &[("outcome", outcome)])
        };
        let help = "Time to write the database anew and take its place";
        let duration = r.histogram(COMPACTION_DURATION, help, &[]);
        Self { done: outcome("done"), failed: outcome("failed"), duration }
    }
}

/// Of those who watch keys.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "a metric is described where it is registered")]
pub struct WatchMetrics {
    pub streams: Gauge,
    pub events: Counter,
    pub lagged: Counter,
}

impl WatchMetrics {
    fn register(r: &Declare<'_>) -> Self {
        let counter = |name, help| r.counter(name, help, &[]);
        Self {
            streams: r.gauge("mmapd_watch_streams", "Open watches", &[]),
            events: counter("mmapd_watch_events_total", "Changes told to watches"),
            lagged: counter(
                "mmapd_watch_lagged_total",
                "Watches that were ended because their clients were too slow",
            ),
        }
    }
}

/// Settings that were read again, on SIGHUP.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "a metric is described where it is registered")]
pub struct ReloadMetrics {
    pub done: Counter,
    pub failed: Counter,
}

impl ReloadMetrics {
    fn register(r: &Declare<'_>) -> Self {
        let outcome = |outcome| {
            let help = "Times the settings were read again, by whether they were taken over";
            r.counter("mmapd_config_reloads_total", help, &[("outcome", outcome)])
        };
        Self { done: outcome("done"), failed: outcome("failed") }
    }
}

/// Of looking at the disk itself.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "a metric is described where it is registered")]
pub struct ScrubMetrics {
    pub bytes_log: Counter,
    pub bytes_db: Counter,
    pub findings_log: Counter,
    pub findings_db: Counter,
    pub passes: Counter,
}

impl ScrubMetrics {
    fn register(r: &Declare<'_>) -> Self {
        let bytes = |file| {
            let help = "Bytes read from the disk to look for damage";
            r.counter("mmapd_scrub_bytes_total", help, &[("file", file)])
        };
        let findings = |file| {
            let help = "Places on the disk that contradicted their checksums";
            r.counter("mmapd_scrub_findings_total", help, &[("file", file)])
        };
        let help = "Times that all of the disk was read for damage";
        Self {
            bytes_log: bytes("log"),
            bytes_db: bytes("db"),
            findings_log: findings("log"),
            findings_db: findings("db"),
            passes: r.counter("mmapd_scrub_passes_total", help, &[]),
        }
    }
}

impl FileMetrics {
    fn register(r: &Declare<'_>, file: &'static str) -> Self {
        let labels = [("file", file)];
        Self {
            remaps: r.counter(
                "mmapd_mmap_remaps_total",
                "Times a file was mapped again because it outgrew its map",
                &labels,
            ),
            msyncs: r.counter("mmapd_mmap_msyncs_total", "Syncs that succeeded", &labels),
            msync_errors: r.counter(
                "mmapd_mmap_msync_errors_total",
                "Syncs that failed; the first one ends the process",
                &labels,
            ),
            msync_duration: r.histogram(MSYNC_DURATION, "Time one sync took", &labels),
            msync_bytes: r.counter(
                "mmapd_mmap_msync_bytes_total",
                "Bytes in the ranges that were synced",
                &labels,
            ),
            mapped_bytes: r.gauge(
                "mmapd_mmap_mapped_bytes",
                "Address space reserved by maps, most of it without memory behind it",
                &labels,
            ),
            resident_bytes: r.gauge(
                "mmapd_mmap_resident_bytes",
                "Bytes of the maps that are in memory",
                &labels,
            ),
        }
    }

    /// A range of this many bytes was made durable.
    pub fn synced(&self, bytes: u64, took: Duration) {
        self.msyncs.increment(1);
        self.msync_bytes.increment(bytes);
        self.msync_duration.record(took.as_secs_f64());
    }

    /// A sync failed.
    pub fn sync_failed(&self) {
        self.msync_errors.increment(1);
    }

    /// A file was mapped with this much address space.
    pub fn mapped(&self, bytes: u64) {
        self.mapped_bytes.increment(lossy(bytes));
    }

    /// A map of this much address space was released.
    pub fn unmapped(&self, bytes: u64) {
        self.mapped_bytes.decrement(lossy(bytes));
    }

    /// A file outgrew its map and was mapped again.
    pub fn remapped(&self) {
        self.remaps.increment(1);
    }

    /// This much of the maps is in memory now.
    pub fn set_resident(&self, bytes: u64) {
        self.resident_bytes.set(lossy(bytes));
    }
}

/// A gauge's number: exact up to 2^53, which no size, term or index here comes near.
#[must_use]
pub fn lossy(number: u64) -> f64 {
    number as f64
}

/// Describes and registers in one step, so that no series lacks its help text.
struct Declare<'a>(&'a PrometheusRecorder);

const METADATA: Metadata<'static> = Metadata::new("mmapd", Level::INFO, None);

impl Declare<'_> {
    fn counter(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Counter {
        self.0.describe_counter(name.into(), None, help.into());
        self.0.register_counter(&key(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
        self.0.describe_gauge(name.into(), None, help.into());
        self.0.register_gauge(&key(name, labels), &METADATA)
    }

    fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
    ) -> Histogram {
        self.0.describe_histogram(name.into(), None, help.into());
        self.0.register_histogram(&key(name, labels), &METADATA)
    }
}

fn key(name: &'static str, labels: &[(&str, &str)]) -> Key {
    let label = |(name, value): &(&str, &str)| Label::new((*name).to_owned(), (*value).to_owned());
    Key::from_parts(name, labels.iter().map(label).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;
