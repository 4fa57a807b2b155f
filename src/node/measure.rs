//! What a running node tells of itself: metrics after each turn, and the picture behind
//! `/v1/status`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::core::Core;
use super::handle::{MemberStatus, RoleName, Status};
use super::work::{Answer, Measured, NotCompacted};
use crate::config::Config;
use crate::metrics::{self, Metrics, PeerMetrics};
use crate::peers::Lost;
use crate::raft::types::NodeId;
use crate::raft::{Raft, RoleKind};
use crate::store::disk::{FileKind, Observer};

/// Feeds the metrics of one node.
#[derive(Clone, Debug)]
pub(super) struct Measure {
    metrics: &'static Metrics,
    peers: PeerSeries,
    cluster_id: String,
    tick: Duration,
    quota: u64,
    last: Last,
}

/// The series of each peer; peers come and go.
#[derive(Clone, Debug)]
pub(super) struct PeerSeries {
    metrics: &'static Metrics,
    series: Arc<RwLock<BTreeMap<NodeId, PeerMetrics>>>,
}

impl PeerSeries {
    /// Those of one peer, if it is known.
    fn of(&self, peer: NodeId) -> Option<PeerMetrics> {
        self.series.read().unwrap_or_else(PoisonError::into_inner).get(&peer).cloned()
    }

    /// From now on this peer is measured.
    pub(super) fn add(&self, peer: NodeId) {
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        series.entry(peer).or_insert_with(|| self.metrics.peer(peer.0));
    }

    /// How many entries each peer lacks. Only a leader knows, and only of members: all others
    /// count as having everything, or what was once true would be told for ever.
    fn set_lags(&self, lags: &BTreeMap<NodeId, u64>) {
        for (peer, series) in &*self.series.read().unwrap_or_else(PoisonError::into_inner) {
            series.lag_entries.set(metrics::lossy(lags.get(peer).copied().unwrap_or(0)));
        }
    }
}

/// What the last turn looked like, to see changes.
#[derive(Clone, Debug, Default)]
struct Last {
    role: RoleName,
    leader: Option<NodeId>,
}

/// The protocol's role as the edge names it.
pub(super) fn role_name(raft: &Raft) -> RoleName {
    match raft.role() {
        RoleKind::Follower if raft.membership().is_voter(raft.id()) => RoleName::Follower,
        RoleKind::Follower => RoleName::Learner,
        RoleKind::PreCandidate | RoleKind::Candidate => RoleName::Candidate,
        RoleKind::Leader => RoleName::Leader,
    }
}

impl Measure {
    pub(super) fn new(metrics: &'static Metrics, cluster: u128, config: &Config) -> Self {
        metrics.process_start.set(metrics::lossy(super::wall_ms() / 1000));
        let peers = PeerSeries { metrics, series: Arc::default() };
        let cluster_id = format!("{cluster:032x}");
        let (tick, quota) = (config.raft.tick, config.storage.quota);
        Self { metrics, peers, cluster_id, tick, quota, last: Last::default() }
    }

    pub(super) fn peers(&self) -> PeerSeries {
        self.peers.clone()
    }

    /// After a turn; `gauges`: what is, besides what happened.
    pub(super) fn turn<W>(&mut self, core: &Core<W>, measured: &Measured, gauges: bool) {
        let metrics = self.metrics;
        let raft = core.raft();
        let (role, leader) = (role_name(raft), raft.leader());
        if role != self.last.role {
            match role {
                RoleName::Candidate => metrics.elections_started.increment(1),
                RoleName::Leader => metrics.elections_won.increment(1),
                RoleName::Follower | RoleName::Learner => {}
            }
        }
        if leader.is_some() && leader != self.last.leader {
            metrics.leader_changes.increment(1);
        }
        self.last.role = role;
        self.last.leader = leader.or(self.last.leader);
        if measured.batch_entries > 0 {
            metrics.log_batch_entries.record(metrics::lossy(measured.batch_entries));
        }
        for micros in &measured.commit_latency_us {
            metrics.commit_latency.record(Duration::from_micros(*micros).as_secs_f64());
        }
        for (peer, micros) in &measured.round_trips_us {
            if let Some(series) = self.peers.of(*peer) {
                series.round_trip.record(Duration::from_micros(*micros).as_secs_f64());
            }
        }
        if measured.applied > 0 {
            metrics.applied_batches.increment(1);
            metrics.applied_entries.increment(measured.applied);
        }
        if measured.installed {
            metrics.snapshots.received.increment(1);
        }
        if let Some(micros) = measured.compaction_us {
            let took = Duration::from_micros(micros).as_secs_f64();
            metrics.db_compactions.duration.record(took);
        }
        metrics.repaired_entries.increment(measured.repaired);
        metrics.digest_mismatches.increment(measured.digest_mismatches);
        for why in &measured.lost_databases {
            metrics.lost_databases.increment(1);
            tracing::error!(%why, "the database is given up and made anew");
        }
        if measured.repaired > 0 {
            tracing::warn!(entries = measured.repaired, "damaged entries of the log are repaired");
        }
        if gauges {
            self.gauges(core);
        }
    }

    fn gauges<W>(&self, core: &Core<W>) {
        let (metrics, raft) = (self.metrics, core.raft());
        let role: u32 = match role_name(raft) {
            RoleName::Follower => 0,
            RoleName::Candidate => 1,
            RoleName::Leader => 2,
            RoleName::Learner => 3,
        };
        metrics.role.set(role);
        metrics.term.set(metrics::lossy(raft.term().0));
        metrics.has_leader.set(u32::from(raft.leader().is_some()));
        metrics.commit_index.set(metrics::lossy(raft.commit().0));
        metrics.applied_index.set(metrics::lossy(core.applied().0));
        let snapshot = core.published().snapshot();
        metrics.kv_revision.set(metrics::lossy(snapshot.state().revision));
        metrics.kv_keys.set(metrics::lossy(snapshot.entries(crate::store::Tree::Kv)));
        metrics.log_size_bytes.set(metrics::lossy(core.log().size_bytes()));
        metrics.db_size_bytes.set(metrics::lossy(core.db().size_bytes()));
        metrics.db_live_bytes.set(metrics::lossy(core.db().live_bytes()));
        let last = raft.last().index.0;
        let lag = |matched: u64| last.saturating_sub(matched);
        let lags = raft.progress().map(|(id, progress)| (id, lag(progress.matched.0))).collect();
        self.peers.set_lags(&lags);
    }

    /// The alarms of the picture, and that of the quota, which the edge adds to it.
    pub(super) fn alarms(&self, status: &Status) {
        let full = status.db_live_bytes >= self.quota;
        let quota = full.then_some("quota");
        let raised: Vec<_> =
            quota.into_iter().chain(status.alarms.iter().map(String::as_str)).collect();
        self.metrics.alarms.set(&raised);
    }

    /// A client was answered.
    pub(super) fn answered(&self, answer: &Answer) {
        match answer {
            Answer::Written(_) => self.metrics.proposals_applied.increment(1),
            Answer::NotLeader(_) | Answer::Overloaded => {
                self.metrics.proposals_refused.increment(1);
            }
            Answer::Unknown => self.metrics.proposals_unknown.increment(1),
            Answer::Compacted(Ok(done)) => {
                self.metrics.db_compactions.done.increment(1);
                tracing::info!(
                    before_bytes = done.before_bytes,
                    after_bytes = done.after_bytes,
                    revision = done.revision,
                    "the database was compacted"
                );
            }
            Answer::Compacted(Err(NotCompacted::Busy)) => {}
            Answer::Compacted(Err(why)) => {
                self.metrics.db_compactions.failed.increment(1);
                tracing::error!(?why, "the database was not compacted; its file is as it was");
            }
            Answer::Changed(Ok(index)) => tracing::info!(%index, "the membership was changed"),
            Answer::HandingOver(outcome) => match outcome {
                Ok(to) => tracing::info!(%to, "leadership is handed over on demand"),
                Err(why) => tracing::info!(?why, "leadership is not handed over"),
            },
            Answer::Changed(Err(_))
            | Answer::Readable
            | Answer::NotReadable(_)
            | Answer::Installed(_) => {}
        }
    }

    /// A checkpoint took this long.
    pub(super) fn checkpoint(&self, micros: u64) {
        self.metrics.db_checkpoint_duration.record(Duration::from_micros(micros).as_secs_f64());
    }

    /// A snapshot was sent.
    pub(super) fn shipped(&self, installed: bool) {
        if installed {
            self.metrics.snapshots.sent.increment(1);
        }
    }

    /// Counts snapshots that went on where their connection broke.
    pub(super) fn resumes(&self) -> &'static ::metrics::Counter {
        &self.metrics.snapshots.resumes
    }

    /// The picture of the node.
    pub(super) fn status<W>(&self, core: &Core<W>, now_us: u64) -> Status {
        let raft = core.raft();
        let snapshot = core.published().snapshot();
        let leads = raft.is_leader();
        let last = raft.last().index.0;
        let tick_ms = u64::try_from(self.tick.as_millis()).unwrap_or(u64::MAX);
        let membership = raft.membership();
        let members = membership
            .members()
            .into_iter()
            .map(|id| {
                let is_self = id == raft.id();
                let peer =
                    raft.progress().find(|(peer, _)| *peer == id).map(|(_, progress)| progress);
                let matched = if is_self && leads {
                    Some(raft.durable().0)
                } else {
                    peer.map(|peer| peer.matched.0)
                };
                MemberStatus {
                    id: id.0,
                    url: membership.addresses.get(&id).cloned().unwrap_or_default(),
                    voter: membership.is_voter(id),
                    incarnation: membership
                        .incarnations
                        .get(&id)
                        .map(|incarnation| format!("{incarnation:016x}")),
                    leader: raft.leader() == Some(id),
                    is_self,
                    match_index: matched,
                    next_index: peer.map(|peer| peer.next.0),
                    lag: matched.map(|matched| last.saturating_sub(matched)),
                    last_contact_ms: if is_self {
                        Some(0)
                    } else {
                        peer.map(|peer| u64::from(peer.silent_ticks).saturating_mul(tick_ms))
                    },
                }
            })
            .collect();
        let caught_up = raft.leader().is_some()
            && core.is_caught_up()
            && (!leads || raft.terms().at(raft.commit()) == Some(raft.term()));
        Status {
            id: raft.id().0,
            cluster_id: self.cluster_id.clone(),
            role: role_name(raft),
            term: raft.term().0,
            voted_for: raft.voted_for().map(|vote| vote.0),
            leader: raft.leader().map(|leader| leader.0),
            commit_index: raft.commit().0,
            applied_index: core.applied().0,
            revision: snapshot.state().revision,
            last_log_index: last,
            first_log_index: core.log().first().0,
            log_size_bytes: core.log().size_bytes(),
            db_size_bytes: core.db().size_bytes(),
            db_live_bytes: core.db().live_bytes(),
            keys: snapshot.entries(crate::store::Tree::Kv),
            alarms: core.alarms().into_iter().map(str::to_owned).collect(),
            caught_up,
            uptime_ms: now_us / 1000,
            joint: membership.is_joint(),
            members,
        }
    }
}

/// Hears of syncs and maps for the metrics.
#[derive(Debug)]
pub(super) struct FileWatch(pub(super) &'static Metrics);

impl FileWatch {
    fn file(&self, kind: FileKind) -> &metrics::FileMetrics {
        match kind {
            FileKind::Log => &self.0.log_file,
            FileKind::Db => &self.0.db_file,
        }
    }
}

impl Observer for FileWatch {
    fn synced(&self, kind: FileKind, bytes: u64, took: Duration) {
        self.file(kind).synced(bytes, took);
    }

    fn sync_failed(&self, kind: FileKind) {
        self.file(kind).sync_failed();
    }

    fn mapped(&self, kind: FileKind, bytes: u64) {
        self.file(kind).mapped(bytes);
    }

    fn unmapped(&self, kind: FileKind, bytes: u64) {
        self.file(kind).unmapped(bytes);
    }
}

/// Hears of lost packets: counts them and tells the node.
#[derive(Debug)]
pub(super) struct Losses {
    pub(super) peers: PeerSeries,
    pub(super) inbox: super::desk::Inbox,
}

impl Lost for Losses {
    fn lost(&self, peer: NodeId) {
        // A full inbox has other news; the protocol notices the silence as well.
        let event = super::work::Event::Unreachable(peer);
        drop(self.inbox.try_send(super::handle::Mail::Event(event)));
    }

    fn counted(&self, peer: NodeId, sent: bool) {
        if let Some(series) = self.peers.of(peer) {
            if sent { &series.messages_sent } else { &series.messages_dropped }.increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lag of a peer as a scrape tells it.
    fn lag(peer: u64) -> String {
        let series = format!("mmapd_raft_peer_lag_entries{{peer=\"{peer}\"}} ");
        let text = metrics::render();
        let number = text.lines().find_map(|line| line.strip_prefix(&series));
        number.expect("a series of the peer").to_owned()
    }

    #[test]
    fn the_lag_of_a_peer_ends_with_leadership_and_with_its_membership() {
        let peers = PeerSeries { metrics: metrics::install(), series: Arc::default() };
        // No other test of this process has peers of these names.
        let [a, b] = [NodeId(7_001), NodeId(7_002)];
        peers.add(a);
        peers.add(b);
        peers.set_lags(&BTreeMap::from([(a, 20_000), (b, 5)]));
        assert_eq!((lag(a.0), lag(b.0)), ("20000".into(), "5".into()));
        peers.set_lags(&BTreeMap::from([(b, 6)]));
        assert_eq!((lag(a.0), lag(b.0)), ("0".into(), "6".into()), "a is no member any more");
        peers.set_lags(&BTreeMap::new());
        assert_eq!((lag(a.0), lag(b.0)), ("0".into(), "0".into()), "this node does not lead");
    }

    /// By reading the sources: a name that nobody declared would be missing from `/metrics`.
    #[test]
    fn each_alarm_of_a_node_is_a_metric() {
        let mut named = vec!["quota"]; // the edge's
        for (source, before, after) in [
            (include_str!("core/health.rs"), "let alarms = [", "];"),
            (include_str!("run.rs"), "status.alarms.push(", ")"),
        ] {
            for part in source.split(before).skip(1) {
                let list = part.split(after).next().unwrap_or_default();
                named.extend(list.split('"').skip(1).step_by(2));
            }
        }
        named.sort_unstable();
        let mut declared = metrics::ALARMS.to_vec();
        declared.sort_unstable();
        assert_eq!(named, declared);
    }
}
