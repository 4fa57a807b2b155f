//! What entries do to the state, by itself.

mod model;
mod random;
mod rules;

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::raft::types::{EntryKind, Index, LogId, NodeId, Term};
use crate::store::simdisk::SimDisk;
use crate::store::{Db, DbOptions, Identity, Shrink, Snapshot};

/// A state machine on a database of its own.
struct Machine {
    disk: Arc<SimDisk>,
    db: Db,
    /// The time of entries that say none.
    time_ms: u64,
}

fn open(disk: &Arc<SimDisk>) -> Db {
    let options = DbOptions {
        path: Path::new("/d/db").to_owned(),
        map_max: 1 << 30,
        quota: u64::MAX,
        grow_step: 1 << 20,
        shrink: Shrink::default(),
    };
    let identity = Identity { cluster: 7, node: NodeId(1), incarnation: 1 };
    Db::open(Arc::<SimDisk>::clone(disk), options, identity).unwrap()
}

impl Machine {
    fn new() -> Self {
        let disk = Arc::new(SimDisk::new(1));
        let db = open(&disk);
        Self { disk, db, time_ms: 1000 }
    }

    /// The index of the next entry.
    fn next(&self) -> u64 {
        self.db.state().applied.index.0 + 1
    }

    /// Applies entries, given as time and request, as one batch.
    fn apply_all(&mut self, entries: &[(u64, Request)]) -> Vec<Applied> {
        let next = self.next();
        let mut txn = self.db.begin();
        let mut outcomes = Vec::new();
        for (index, (time_ms, request)) in (next..).zip(entries) {
            let id = LogId { term: Term(1), index: Index(index) };
            let payload = request.encode();
            let entry =
                Entry { id, kind: EntryKind::Command, time_ms: *time_ms, chain: 0, payload };
            outcomes.push(apply(&mut txn, &entry).unwrap());
            txn.state_mut().applied = id;
        }
        txn.commit().unwrap();
        outcomes
    }

    fn ask(&mut self, request: Request) -> Applied {
        self.apply_all(&[(self.time_ms, request)]).pop().unwrap()
    }

    fn run(&mut self, command: Command) -> Applied {
        self.ask(command.into())
    }

    /// Writes everything to the file, and opens it again.
    fn reopen(&mut self) {
        if let Some(job) = self.db.begin_checkpoint().unwrap() {
            let done = job.run().unwrap();
            self.db.finish_checkpoint(done).unwrap();
        }
        let state = self.db.state().clone();
        self.db = open(&self.disk);
        assert_eq!(*self.db.state(), state);
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.db.published().snapshot()
    }

    fn view(&self) -> View {
        View::new(self.snapshot())
    }

    fn digest(&self) -> u128 {
        self.db.state().digest
    }

    fn get(&self, key: &[u8]) -> Option<OwnedRecord> {
        self.view().get(key).unwrap().map(|record| record.to_owned())
    }

    /// All pairs of a tree.
    fn tree(&self, tree: Tree) -> Vec<(Vec<u8>, Vec<u8>)> {
        let snapshot = self.snapshot();
        let mut scan = snapshot.scan(tree, Bound::Unbounded, Bound::Unbounded, false);
        let mut found = Vec::new();
        while let Some((key, value)) = scan.next().unwrap() {
            found.push((key.to_vec(), value.to_vec()));
        }
        found
    }
}

const TREES: [Tree; 6] =
    [Tree::Kv, Tree::History, Tree::Ttl, Tree::Session, Tree::Meta, Tree::Deleted];

fn content(value: &[u8], life: Life) -> Content {
    Content { value: Bytes::copy_from_slice(value), content_type: String::new(), life }
}

fn put(key: &[u8], value: &[u8], life: Life) -> Command {
    Command::Put {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        content_type: String::new(),
        life,
        conditions: Conditions::default(),
        prev: false,
    }
}

fn delete(key: &[u8]) -> Command {
    Command::Delete {
        key: Bytes::copy_from_slice(key),
        conditions: Conditions::default(),
        prev: false,
    }
}

/// Removes what expired, and keeps everything else.
fn expire() -> Command {
    Command::Tidy(Tidy { expire: true, ..keep_all() })
}

fn keep_all() -> Tidy {
    let most = u64::MAX;
    Tidy {
        expire: false,
        history_events: most,
        history_bytes: most,
        once_ms: most,
        once_count: most,
        once_bytes: most,
    }
}
