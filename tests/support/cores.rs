//! One core with a log, a disk and a state machine of numbers around it: what a
//! driver does, without files and threads. Whoever owns the hosts owns time and
//! the network.

use std::collections::VecDeque;

use mmapd::raft::Raft;
use mmapd::raft::config::{Config, Restored};
use mmapd::raft::message::{
    AppendSource, Effects, EntryRun, Envelope, Input, IoToken, Message, SnapshotMeta,
};
use mmapd::raft::types::{HardState, Index, LogId, Membership, NodeId, Term};

/// An entry with its payload: a number instead of a command, 0 for an empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: LogId,
    pub(crate) payload: u64,
    pub(crate) config: Option<Membership>,
}

/// What travels between hosts.
#[derive(Clone, Debug)]
pub(crate) enum Packet {
    /// A message, with the entries of an append.
    Message(Envelope, Vec<Entry>),
    /// A whole snapshot.
    Snapshot { from: NodeId, to: NodeId, term: Term, meta: SnapshotMeta },
    /// How the snapshot fared, told to its sender.
    SnapshotSent { from: NodeId, to: NodeId, installed: Option<LogId> },
}

impl Packet {
    pub(crate) fn from(&self) -> NodeId {
        match self {
            Self::Message(envelope, _) => envelope.from,
            Self::Snapshot { from, .. } | Self::SnapshotSent { from, .. } => *from,
        }
    }

    pub(crate) fn to(&self) -> NodeId {
        match self {
            Self::Message(envelope, _) => envelope.to,
            Self::Snapshot { to, .. } | Self::SnapshotSent { to, .. } => *to,
        }
    }
}

/// A log with what is remembered beside it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    pub(crate) base: LogId,
    pub(crate) base_membership: Membership,
    pub(crate) entries: Vec<Entry>,
    /// It lost entries, of this term at most.
    pub(crate) amnesia: Option<Term>,
}

impl Disk {
    pub(crate) fn last(&self) -> LogId {
        self.entries.last().map_or(self.base, |entry| entry.id)
    }

    /// The entry at `index`, if it is held.
    pub(crate) fn at(&self, index: Index) -> Option<&Entry> {
        let offset = index.0.checked_sub(self.base.index.0 + 1)?;
        self.entries.get(usize::try_from(offset).unwrap())
    }

    pub(crate) fn range(&self, after: Index, upto: Index) -> Vec<Entry> {
        (after.0 + 1..=upto.0).map(|at| self.at(Index(at)).unwrap().clone()).collect()
    }

    /// Adds `entries`, which replace whatever was there and after it.
    fn write(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        self.entries.retain(|entry| entry.id.index < first.id.index);
        assert_eq!(self.last().index.next(), first.id.index, "a log has no gaps");
        self.entries.extend_from_slice(entries);
    }

    fn compact(&mut self, upto: LogId, membership: Membership) {
        self.entries.retain(|entry| entry.id.index > upto.index);
        (self.base, self.base_membership) = (upto, membership);
    }
}

/// A write that is not on disk yet.
#[derive(Clone, Debug)]
struct Write {
    io: IoToken,
    hard_state: Option<HardState>,
    entries: Vec<Entry>,
}

/// A node that runs.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) raft: Raft,
    /// What the process sees: readable as soon as it is written.
    pub(crate) log: Disk,
    /// What a crash leaves.
    pub(crate) disk: Disk,
    queue: VecDeque<Write>,
    /// Snapshots wait for [`Host::install`].
    pub(crate) installs_later: bool,
    installing: Option<(Option<NodeId>, SnapshotMeta)>,
    /// What was applied since the owner last looked.
    pub(crate) applied: Vec<Entry>,
}

impl Host {
    /// Starts a node on what its disk holds.
    pub(crate) fn start(config: Config, disk: Disk) -> Self {
        let mut runs: Vec<LogId> = Vec::new();
        for entry in &disk.entries {
            if runs.last().is_none_or(|run| run.term < entry.id.term) {
                runs.push(entry.id);
            }
        }
        let configs = disk.entries.iter().filter_map(|e| Some((e.id.index, e.config.clone()?)));
        let restored = Restored {
            hard_state: disk.hard_state,
            base: disk.base,
            base_membership: disk.base_membership.clone(),
            runs,
            last: disk.last(),
            configs: configs.collect(),
            applied: disk.base.index,
            amnesia: disk.amnesia,
        };
        let raft = Raft::new(config, restored);
        Self {
            raft,
            log: disk.clone(),
            disk,
            queue: VecDeque::new(),
            installs_later: false,
            installing: None,
            applied: Vec::new(),
        }
    }

    /// A stop without warning: of the writes under way the first `kept` are on disk.
    pub(crate) fn crash(mut self, kept: usize) -> Disk {
        for _ in 0..kept {
            self.write_next();
        }
        self.disk
    }

    /// Steps the core and does what it asks for. `entries` are the payloads of a
    /// proposal or of a received append. What is to be sent is added to `sent`.
    pub(crate) fn step(
        &mut self,
        input: Input,
        entries: &[Entry],
        sent: &mut Vec<Packet>,
    ) -> Effects {
        let mut out = Effects::default();
        self.raft.step(input, &mut out);
        if let Some(io) = out.io {
            let mut all = Vec::new();
            for append in &out.appends {
                let new: Vec<Entry> = (append.first.0..=append.last.0)
                    .map(|at| match append.source {
                        AppendSource::Noop => own(append.term, at, 0),
                        AppendSource::Config => {
                            let config = self.raft.membership_at(append.first).clone();
                            Entry { config: Some(config), ..own(append.term, at, 0) }
                        }
                        AppendSource::Proposed => {
                            let number = usize::try_from(at - append.first.0).unwrap();
                            own(append.term, at, entries[number].payload)
                        }
                        AppendSource::Received => {
                            entries.iter().find(|e| e.id.index.0 == at).unwrap().clone()
                        }
                    })
                    .collect();
                self.log.write(&new);
                all.extend(new);
            }
            if let Some(hard_state) = out.hard_state {
                self.log.hard_state = hard_state;
            }
            self.queue.push_back(Write { io, hard_state: out.hard_state, entries: all });
        }
        self.perform(&out, sent);
        out
    }

    fn perform(&mut self, out: &Effects, sent: &mut Vec<Packet>) {
        let from = self.raft.id();
        for order in &out.replicate {
            let entries = self.log.range(order.prev.index, order.upto);
            let message = Message::Append {
                prev: order.prev,
                entries: run_of(&entries, order.upto),
                commit: order.commit,
                read_seq: order.read_seq,
            };
            let envelope = Envelope { from, to: order.to, term: order.term, message };
            sent.push(Packet::Message(envelope, entries));
        }
        for envelope in &out.messages {
            sent.push(Packet::Message(envelope.clone(), Vec::new()));
        }
        for &to in &out.snapshots {
            let last = self.log.base;
            let meta = SnapshotMeta { last, membership: self.log.base_membership.clone() };
            sent.push(Packet::Snapshot { from, to, term: self.raft.term(), meta });
        }
        if let Some(commit) = out.commit {
            let new = self.log.range(self.raft.applied(), commit);
            self.applied.extend(new);
            self.step_quietly(Input::Applied { index: commit }, sent);
        }
        if let Some(Some(meta)) = &out.install {
            self.installing = Some((None, meta.clone()));
            if !self.installs_later {
                let _ = self.install(sent);
            }
        }
    }

    /// Installs the snapshot that waits for it.
    pub(crate) fn install(&mut self, sent: &mut Vec<Packet>) -> Effects {
        let (from, meta) = self.installing.take().expect("a snapshot waits");
        let last = meta.last;
        while self.write_next() {}
        for disk in [&mut self.log, &mut self.disk] {
            if disk.at(meta.last.index).is_none_or(|entry| entry.id != meta.last) {
                disk.entries.clear();
            }
            disk.compact(meta.last, meta.membership.clone());
        }
        let out = self.step(Input::SnapshotInstalled { meta }, &[], sent);
        if let Some(to) = from {
            sent.push(Packet::SnapshotSent { from: self.raft.id(), to, installed: Some(last) });
        }
        out
    }

    fn step_quietly(&mut self, input: Input, sent: &mut Vec<Packet>) {
        let _ = self.step(input, &[], sent);
    }

    /// Hands over what arrived.
    pub(crate) fn receive(&mut self, packet: Packet, sent: &mut Vec<Packet>) -> Effects {
        match packet {
            Packet::Message(envelope, entries) => {
                self.step(Input::Receive(envelope), &entries, sent)
            }
            Packet::Snapshot { from, to, term, meta } => {
                let last = meta.last;
                let input = Input::SnapshotReceived { from, term, meta };
                let out = self.step(input, &[], sent);
                let installed = matches!(out.install, Some(Some(_))).then_some(last);
                if installed.is_some()
                    && let Some((waits, _)) = &mut self.installing
                {
                    *waits = Some(from);
                    return out;
                }
                sent.push(Packet::SnapshotSent { from: to, to: from, installed });
                out
            }
            Packet::SnapshotSent { from, installed, .. } => {
                self.step(Input::SnapshotSent { to: from, installed }, &[], sent)
            }
        }
    }

    /// The last of the first `count` writes under way.
    pub(crate) fn first_writes(&self, count: usize) -> Option<IoToken> {
        self.queue.get(count.checked_sub(1)?).map(|write| write.io)
    }

    /// The newest write under way.
    pub(crate) fn newest_write(&self) -> Option<IoToken> {
        self.first_writes(self.queue.len())
    }

    pub(crate) fn writes_under_way(&self) -> usize {
        self.queue.len()
    }

    /// The disk is done with everything up to `io`.
    pub(crate) fn sync(&mut self, io: IoToken, sent: &mut Vec<Packet>) -> Effects {
        while self.queue.front().is_some_and(|write| write.io <= io) {
            self.write_next();
        }
        self.step(Input::Durable { io }, &[], sent)
    }

    fn write_next(&mut self) -> bool {
        let Some(write) = self.queue.pop_front() else { return false };
        if let Some(hard_state) = write.hard_state {
            self.disk.hard_state = hard_state;
        }
        self.disk.write(&write.entries);
        true
    }

    /// Drops the applied part of the log: it is in the state machine's snapshot.
    pub(crate) fn compact(&mut self, sent: &mut Vec<Packet>) {
        let Some(last) = self.log.at(self.raft.applied()).map(|entry| entry.id) else { return };
        let membership = self.raft.membership_at(last.index).clone();
        self.log.compact(last, membership.clone());
        self.disk.compact(last, membership);
        self.step_quietly(Input::Compacted { upto: last }, sent);
    }
}

fn own(term: Term, at: u64, payload: u64) -> Entry {
    Entry { id: LogId { term, index: Index(at) }, payload, config: None }
}

/// Entries as a message describes them.
fn run_of(entries: &[Entry], last: Index) -> EntryRun {
    let mut run = EntryRun { last, ..EntryRun::default() };
    for entry in entries {
        if run.terms.last().is_none_or(|newest| newest.term < entry.id.term) {
            run.terms.push(entry.id);
        }
        run.configs.extend(entry.config.clone().map(|config| (entry.id.index, config)));
    }
    run
}

/// Payloads as a proposal brings them.
pub(crate) fn payloads(numbers: &[u64]) -> Vec<Entry> {
    numbers.iter().map(|&payload| own(Term(0), 0, payload)).collect()
}
