//! A backup made of the files of a node that does not run: what `mmapd backup` does.
//!
//! It has the form of one from GET /v1/backup, so `mmapd restore` makes a new cluster of it. That
//! is how data gets out of the last node of a cluster whose majority is lost for good, and why
//! all of the log counts here: a write that was acknowledged may be known as such only to nodes
//! that are gone.
//!
//! The files are only read. The last checkpoint is copied to a draft elsewhere and verified, the
//! log is applied to it, and the draft is streamed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{Files, apply, members};
use crate::node::backup::Backup;
use crate::raft::types::{EntryKind, Index, LogId, Membership, NodeId};
use crate::store::db::discard;
use crate::store::disk::LinuxDisk;
use crate::store::inspect::{DbLook, Findings, Harm, LogReport, inspect_log};
use crate::store::{
    Db, DbOptions, DbState, Disk, Identity, PinnedCheckpoint, Receiver, Shrink, StoreError, Tree,
};

/// What is in a backup of [`Files::backup`].
#[derive(Clone, Debug)]
pub struct Saved {
    /// Keys in it.
    pub keys: u64,
    /// Its revision.
    pub revision: u64,
    /// The last entry in it.
    pub last: LogId,
    /// The last entry of which the files say that a majority had it.
    pub committed: Index,
    /// Whose files these are.
    pub node: NodeId,
    /// The voters of its cluster.
    pub voters: Vec<NodeId>,
}

/// Why no backup was made.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// Others may have more, and nobody said that they are lost.
    #[error("{node} is not the only voter of its cluster")]
    NotAlone {
        /// Whose files these are.
        node: NodeId,
        /// Who votes.
        voters: Vec<NodeId>,
    },
    /// The files.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Files {
    /// A backup of all that is durable here. Refuses to speak for a cluster of which this node is
    /// not the only voter, unless `lost` says that no majority of it is left. `configured` are the
    /// members when the files do not name them. The backup is read from a database that is made at
    /// `draft`, which is the caller's to remove, whatever happens.
    ///
    /// # Errors
    /// See [`OfflineError`].
    pub fn backup(
        &self,
        configured: &BTreeMap<NodeId, String>,
        map_max: u64,
        lost: bool,
        draft: &Path,
    ) -> Result<(Saved, Backup), OfflineError> {
        self.refuse_damage(configured)?;
        let log = inspect_log(&*self.disk, &self.log, &mut |_| {})?;
        let (pinned, identity, map_max) = self.checkpoint(map_max)?;
        let stored = pinned.as_ref().map_or_else(DbState::default, |it| it.state().clone());
        let applied = stored.applied;
        // Between the rename and the reset of an install the log is one that came before.
        let installed = log.saved().and_then(|slot| slot.install);
        let stale = installed.is_some_and(|install| install.last == applied);
        let last = if stale { applied.index } else { log.last().index.max(applied.index) };
        let committed = if stale { applied.index } else { log.commit.max(applied.index).min(last) };
        let voters = Self::voters(&log, &stored, configured, committed);
        if voters != [identity.node] && !lost {
            return Err(OfflineError::NotAlone { node: identity.node, voters });
        }
        let committed = if voters == [identity.node] { last } else { committed };

        let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(None));
        if let Some(pinned) = pinned {
            let mut receiver = Receiver::create(disk.clone(), draft, identity, map_max)?;
            for n in 0..pinned.chunks() {
                receiver.push(&pinned.chunk(n)?.expect("there are that many"))?;
            }
            drop(receiver.finish()?);
        } else {
            // Nothing was in the database yet, so all is in the log.
            discard(&*disk, draft)?;
        }
        let mut db = Db::open(disk, options(draft, map_max), identity)?;
        apply(&mut db, &log, last)?;
        if let Some(job) = db.begin_checkpoint()? {
            drop(db.finish_checkpoint(job.run()?)?);
        }
        let pinned = db.pin()?.ok_or_else(|| self.nothing())?;
        let (state, keys) = (pinned.state().clone(), db.published().snapshot().entries(Tree::Kv));
        let (revision, last) = (state.revision, state.applied);
        let saved = Saved { keys, revision, last, committed, node: identity.node, voters };
        Ok((saved, Backup::new(identity.cluster, pinned)))
    }

    /// What cannot be read cannot be backed up; entries that the database has are not needed.
    fn refuse_damage(&self, configured: &BTreeMap<NodeId, String>) -> Result<(), StoreError> {
        let checked = self.check(configured, &mut |_| {})?;
        let bad = |harm| matches!(harm, Harm::Keys | Harm::Contradiction);
        match checked.findings.list.into_iter().find(|finding| bad(finding.harm)) {
            None => Ok(()),
            Some(found) => Err(StoreError::Corrupt {
                file: found.file,
                what: found.what,
                offset: found.offset,
                why: found.why,
            }),
        }
    }

    fn nothing(&self) -> StoreError {
        super::absent(&self.db, "nothing was ever written to it")
    }

    /// The last checkpoint as it is on the disk, if there was one; whose it is, and how much of
    /// it may be mapped.
    fn checkpoint(
        &self,
        map_max: u64,
    ) -> Result<(Option<PinnedCheckpoint>, Identity, u64), StoreError> {
        let look = DbLook::open(&*self.disk, &self.db, &mut Findings::default())?;
        let (size, identity) = match &look {
            Some(look) => (look.size_bytes(), look.identity()),
            None => (0, None),
        };
        drop(look);
        let identity = identity.ok_or_else(|| super::absent(&self.db, "there is no database"))?;
        let map_max = map_max.max(size.saturating_mul(2));
        let mut db = Db::open(self.disk.clone(), options(&self.db, map_max), identity)?;
        Ok((db.pin()?, identity, map_max))
    }

    /// Everybody who votes by the newest configuration, or by the newest that is committed.
    fn voters(
        log: &LogReport,
        state: &DbState,
        configured: &BTreeMap<NodeId, String>,
        committed: Index,
    ) -> Vec<NodeId> {
        let newest = members(log, state, configured);
        let applied = state.applied.index;
        let since = (applied.0 + 1).max(log.first().0)..=committed.0.min(log.last().index.0);
        let entries = since.rev().filter_map(|place| log.entry(Index(place)));
        let known = entries.into_iter().find(|entry| entry.kind == EntryKind::Config);
        let stored = known.map_or(state.membership.clone(), |entry| entry.payload.into());
        let known = super::membership_of(&stored, &Membership::of(configured.clone()));
        let of = |one: Membership| one.voters.into_iter().chain(one.outgoing);
        let mut voters: Vec<NodeId> = of(newest).chain(of(known)).collect();
        voters.sort_unstable();
        voters.dedup();
        voters
    }
}

fn options(path: &Path, map_max: u64) -> DbOptions {
    DbOptions {
        path: path.to_owned(),
        map_max,
        quota: u64::MAX,
        grow_step: 1 << 24,
        shrink: Shrink::default(),
    }
}
