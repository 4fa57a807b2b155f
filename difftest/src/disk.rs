//! A log of numbers on a disk that may lose what it was not asked to sync.

use std::collections::VecDeque;

use mmapd::raft::types::{HardState, Index, LogId, Term};

/// An entry with its payload: a number instead of a command, 0 for an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub id: LogId,
    /// What it holds.
    pub payload: u64,
}

/// All entries from the first on, with what is remembered beside them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Term and vote.
    pub hard: HardState,
    /// Only `raft` saves it.
    pub commit: Index,
    /// The entry at index i is at i - 1.
    pub entries: Vec<Entry>,
}

impl Log {
    /// A log with entries of these terms.
    #[must_use]
    pub fn of_terms(terms: &[u64], hard: Term) -> Self {
        let entries = (1..).zip(terms).map(|(at, &term)| Entry {
            id: LogId { term: Term(term), index: Index(at) },
            payload: term << 32 | at,
        });
        let hard = HardState { term: hard, vote: None };
        Self { hard, commit: Index(0), entries: entries.collect() }
    }

    /// The last entry; 0 of term 0 when there is none.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.entries.last().map_or_else(LogId::default, |entry| entry.id)
    }

    /// The entry at `index`, if it is held.
    #[must_use]
    pub fn at(&self, index: Index) -> Option<Entry> {
        self.entries.get(place(index.0.checked_sub(1)?)).copied()
    }

    /// The entries after `after`, up to `upto`.
    #[must_use]
    pub fn range(&self, after: Index, upto: Index) -> Vec<Entry> {
        self.entries[place(after.0)..place(upto.0)].to_vec()
    }

    /// Adds `entries`, which replace whatever was there and after it.
    pub fn write(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        self.entries.truncate(place(first.id.index.0 - 1));
        assert_eq!(self.last().index.next(), first.id.index, "a log has no gaps");
        self.entries.extend_from_slice(entries);
    }
}

fn place(number: u64) -> usize {
    usize::try_from(number).expect("a small log")
}

/// A write under way.
#[derive(Clone, Debug)]
struct Write {
    token: u64,
    hard: Option<HardState>,
    commit: Option<Index>,
    entries: Vec<Entry>,
}

/// What the process sees, what a crash leaves, and the writes between them.
#[derive(Clone, Debug)]
pub struct Disk {
    log: Log,
    durable: Log,
    queue: VecDeque<Write>,
}

impl Disk {
    /// A disk that holds this.
    #[must_use]
    pub fn new(log: Log) -> Self {
        Self { durable: log.clone(), log, queue: VecDeque::new() }
    }

    /// What the process sees.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// What a crash leaves for certain.
    #[must_use]
    pub fn durable(&self) -> &Log {
        &self.durable
    }

    /// A write begins: it can be read at once.
    pub fn submit(
        &mut self,
        token: u64,
        hard: Option<HardState>,
        commit: Option<Index>,
        entries: Vec<Entry>,
    ) {
        let write = Write { token, hard, commit, entries };
        put(&mut self.log, &write);
        self.queue.push_back(write);
    }

    /// Everything up to `token` is on disk.
    pub fn sync(&mut self, token: u64) {
        while self.queue.front().is_some_and(|write| write.token <= token) {
            self.write_next();
        }
    }

    fn write_next(&mut self) {
        if let Some(write) = self.queue.pop_front() {
            put(&mut self.durable, &write);
        }
    }

    /// The newest write under way.
    #[must_use]
    pub fn newest_write(&self) -> Option<u64> {
        self.queue.back().map(|write| write.token)
    }

    /// How many writes are under way.
    #[must_use]
    pub fn writes_under_way(&self) -> usize {
        self.queue.len()
    }

    /// A stop without warning: of the writes under way the first `kept` are on disk.
    #[must_use]
    pub fn crash(mut self, kept: usize) -> Log {
        for _ in 0..kept {
            self.write_next();
        }
        self.durable
    }
}

fn put(log: &mut Log, write: &Write) {
    log.hard = write.hard.unwrap_or(log.hard);
    log.commit = write.commit.unwrap_or(log.commit);
    log.write(&write.entries);
}
