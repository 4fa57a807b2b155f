//! Opening a node's files, and making log and database agree before anything else runs.
//!
//! After a crash the two may be apart in ways that each have one right answer:
//!
//! | found | meaning | answer |
//! |---|---|---|
//! | database behind the log | the usual case | entries are applied again |
//! | database at a pending install | crash between rename and log reset | finish the reset |
//! | pending install, database older | crash before the rename | forget the install |
//! | database ahead of the log, or of another branch | the log lost what was durable | go on after the database, in amnesia |
//! | log begins after the database | the database lost what was durable | wait for a snapshot |
//! | database damaged | | move it away: one of the above |
//!
//! The last three need others that hold what was lost. A node alone refuses to start, unless
//! its log still reaches back to the first entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::raft::Raft;
use crate::raft::config::{Config, Restored};
use crate::raft::message::EntryRun;
use crate::raft::types::{EntryKind, Index, LogId, Membership, NodeId};
use crate::store::compact::compacting;
use crate::store::db::{discard, quarantine_file, unfinished};
use crate::store::disk::parent;
use crate::store::{
    Db, DbOptions, Disk, Identity, Log, LogOptions, PendingInstall, Recovered, StoreError, frame,
};
use crate::wire::{self, Address};

/// Where the files are and whose they should be.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Whose files these are; `cluster` and `incarnation` count only when there are none.
    pub fresh: Identity,
    /// Members of a new cluster; for an old one only their addresses are taken.
    pub members: BTreeMap<NodeId, String>,
    /// What this node was told when it joined the cluster, if it did not found it.
    pub joined: Option<Membership>,
    /// The log.
    pub log: LogOptions,
    /// The database.
    pub db: DbOptions,
    /// The protocol's settings.
    pub raft: Config,
}

/// The parts of a node, consistent with each other.
#[derive(Debug)]
pub struct Parts {
    /// Who this node is.
    pub us: Address,
    /// The protocol, restored.
    pub raft: Raft,
    /// The log.
    pub log: Log,
    /// The database.
    pub db: Db,
    /// Where both live.
    pub disk: Arc<dyn Disk>,
    /// The database was damaged and is being made anew: what was wrong.
    pub lost: Option<String>,
}

/// Opens the files of a node.
///
/// # Errors
/// Those of the store. `Foreign`: another node's files; `Corrupt`: damaged, or log and
/// database contradict each other.
pub fn open(disk: Arc<dyn Disk>, options: OpenOptions) -> Result<(Parts, Recovered), StoreError> {
    let OpenOptions { fresh, members, joined, log, db, mut raft } = options;
    let (log_dir, db_path) = (log.dir.clone(), db.path.clone());
    disk.make_dir(&parent(&db_path))?;
    disk.make_dir(&log_dir)?;
    // As in the log: a rename that only the cache knows must not be undone later.
    disk.sync_dir(&parent(&db_path))?;
    let has_db = Db::exists(&*disk, &db_path)?;
    let has_log = disk.list(&log_dir)?.iter().any(|name| name != "LOCK");
    if has_db && !has_log {
        return Err(corrupt(
            &log_dir,
            "is empty although the database is not; restore it, or remove both to begin anew",
        ));
    }
    let alone = members.len() < 2 && joined.is_none();
    let (mut log, mut recovered) = Log::open(disk.clone(), log, fresh.node, || fresh)?;
    let (db, lost) = open_db(&disk, db, &recovered, alone)?;
    let founding = joined.unwrap_or_else(|| Membership::of(members.clone()));
    let mut base_membership = membership_of(&db.state().membership, &founding);
    let alone = alone && base_membership.members().len() < 2;
    agree(&mut log, &mut recovered, &db, &log_dir, alone)?;
    discard(&*disk, &unfinished(&db_path))?;
    discard(&*disk, &compacting(&db_path))?;

    let state = db.state();
    correct(&mut base_membership, &members);
    let configs = recovered
        .configs
        .iter()
        .filter(|(index, _)| *index > state.applied.index)
        .map(|(index, payload)| {
            let mut membership = wire::decode_membership(payload).ok()?;
            correct(&mut membership, &members);
            Some((*index, membership))
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| corrupt(&log_dir, "holds a configuration that cannot be read"))?;
    let Identity { cluster, node, incarnation } = recovered.identity;
    let restored = Restored {
        hard_state: log.hard_state(),
        amnesia: log.amnesia(),
        base: recovered.base,
        base_membership,
        runs: recovered.runs.clone(),
        last: recovered.last,
        configs,
        applied: state.applied.index,
    };
    raft.incarnation = Some(incarnation);
    let us = Address { cluster, node, incarnation };
    let raft = Raft::new(raft, restored);
    Ok((Parts { us, raft, log, db, disk, lost }, recovered))
}

/// The file of settings is where an operator corrects an address, of whoever is a member: in
/// every configuration, as each may be the one that rules, the newest or one that it is cut
/// back to.
fn correct(membership: &mut Membership, members: &BTreeMap<NodeId, String>) {
    let known = membership.members();
    let theirs = members.iter().filter(|(id, _)| known.contains(id));
    membership.addresses.extend(theirs.map(|(id, url)| (*id, url.clone())));
}

/// Opens the database. A damaged one is moved away where its content can be had again: from
/// others, or from a log that reaches back to the first entry.
fn open_db(
    disk: &Arc<dyn Disk>,
    options: DbOptions,
    recovered: &Recovered,
    alone: bool,
) -> Result<(Db, Option<String>), StoreError> {
    match Db::open(disk.clone(), options.clone(), recovered.identity) {
        Ok(db) => Ok((db, None)),
        Err(error @ StoreError::Corrupt { .. }) => {
            if alone && recovered.base.index > Index(0) {
                return Err(error);
            }
            let kept_in = quarantine_file(&**disk, &options.path)?;
            let db = Db::open(disk.clone(), options, recovered.identity)?;
            Ok((db, Some(format!("{error}; it is kept in {}", kept_in.display()))))
        }
        Err(error) => Err(error),
    }
}

/// The table at the top of the module.
fn agree(
    log: &mut Log,
    recovered: &mut Recovered,
    db: &Db,
    dir: &std::path::Path,
    alone: bool,
) -> Result<(), StoreError> {
    let (applied, chain) = (db.state().applied, db.state().chain);
    if let Some(pending) = recovered.pending_install.take() {
        if pending.last == applied {
            let held = log.reader().term_at(applied.index) == Some(applied.term)
                || recovered.base == applied;
            if !held {
                begin_after(log, recovered, applied, chain)?;
            }
        }
        log.end_install()?;
    }
    // What is applied is committed: entries that contradict it were replaced by ones that
    // are lost now.
    let held = if applied.index == recovered.base.index {
        Some(recovered.base.term)
    } else {
        log.reader().term_at(applied.index)
    };
    let other_branch = applied.index >= recovered.base.index && held != Some(applied.term);
    if other_branch && alone {
        return Err(corrupt(
            dir,
            &format!(
                "ends at entry {} although the database holds entry {applied}: durable entries \
                 are lost; remove this node's data and let it rejoin",
                recovered.last
            ),
        ));
    }
    if other_branch {
        // What is applied is no loss; what came after it may be one.
        log.begin_amnesia()?;
        log.begin_install(PendingInstall { last: applied, chain })?;
        begin_after(log, recovered, applied, chain)?;
        log.end_install()?;
    }
    if applied.index < recovered.base.index && alone {
        return Err(corrupt(
            dir,
            &format!(
                "begins after entry {} although the database ends at {applied}: the database \
                 lost what was durable; remove this node's data and let it rejoin",
                recovered.base
            ),
        ));
    }
    Ok(())
}

/// Makes the log begin anew after an entry that the database holds.
fn begin_after(
    log: &mut Log,
    recovered: &mut Recovered,
    applied: LogId,
    chain: u64,
) -> Result<(), StoreError> {
    log.reset(applied, chain)?;
    (recovered.base, recovered.base_chain, recovered.last) = (applied, chain, applied);
    recovered.runs.clear();
    recovered.configs.clear();
    Ok(())
}

fn corrupt(file: &std::path::Path, why: &str) -> StoreError {
    StoreError::Corrupt {
        file: file.display().to_string(),
        what: "log",
        offset: 0,
        why: why.to_owned(),
    }
}

/// The configuration stored with a state; `or` when none was stored, as in a database that
/// has not applied a configuration entry.
#[must_use]
pub(super) fn membership_of(stored: &[u8], or: &Membership) -> Membership {
    wire::decode_membership(stored).unwrap_or_else(|_| or.clone())
}

/// What the core must know of received frames: places, terms and configurations, never
/// payloads. `None`: they are damaged, or do not follow `prev`.
#[must_use]
pub(super) fn describe(prev: LogId, frames: &Bytes) -> Option<EntryRun> {
    let mut run = EntryRun { last: prev.index, ..EntryRun::default() };
    let mut term = None;
    for entry in frame::Frames::new(frames) {
        let entry = entry.ok()?;
        if entry.id.index != run.last.next() || entry.id.term < prev.term {
            return None;
        }
        if term != Some(entry.id.term) {
            term = Some(entry.id.term);
            run.terms.push(entry.id);
        }
        if entry.kind == EntryKind::Config {
            let membership = wire::decode_membership(entry.payload).ok()?;
            run.configs.push((entry.id.index, membership));
        }
        run.last = entry.id.index;
    }
    Some(run)
}

/// The members of a configuration file, by their ids.
#[must_use]
pub fn node_ids(members: &BTreeMap<u64, String>) -> BTreeMap<NodeId, String> {
    members.iter().map(|(id, url)| (NodeId(*id), url.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::message::IoToken;
    use crate::raft::types::Term;
    use crate::store::Shrink;
    use crate::store::simdisk::SimDisk;

    fn options() -> OpenOptions {
        let node = NodeId(1);
        let members = [(node, "http://a:1".to_owned()), (NodeId(2), "http://b:1".to_owned())];
        OpenOptions {
            fresh: Identity { cluster: 7, node, incarnation: 3 },
            members: members.into(),
            joined: None,
            log: LogOptions { dir: "/log".into(), segment_bytes: 64 << 10, repairable: true },
            db: DbOptions {
                path: "/db".into(),
                map_max: 64 << 20,
                quota: u64::MAX,
                grow_step: 1 << 20,
                shrink: Shrink::default(),
            },
            raft: Config::new(node, 1),
        }
    }

    fn at(term: u64, index: u64) -> LogId {
        LogId { term: Term(term), index: Index(index) }
    }

    /// What was lost of the log replaced an entry that came to light again: the database
    /// knows better (seed 2342 of the simulator of 2026-11-23).
    #[test]
    fn a_database_of_another_branch_than_a_damaged_log_wins() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let (mut parts, _) = open(disk.clone(), options()).expect("it opens");
        for index in 1..=3 {
            parts.log.stage_own(at(1, index), EntryKind::Noop, &[], 0);
        }
        let job = parts.log.write(IoToken(1)).expect("it writes").expect("something is staged");
        parts.log.synced(job.run().expect("it syncs"));
        let mut txn = parts.db.begin();
        (txn.state_mut().applied, txn.state_mut().chain) = (at(2, 2), 99);
        txn.commit().expect("it commits");
        let job = parts.db.begin_checkpoint().expect("it begins").expect("something changed");
        parts.db.finish_checkpoint(job.run().expect("it runs")).expect("it ends");
        drop(parts);

        let (parts, recovered) = open(disk, options()).expect("it opens again");
        assert_eq!((recovered.base, recovered.last), (at(2, 2), at(2, 2)));
        assert_eq!(parts.log.chain_at(Index(2)), Some(99), "what follows continues from it");
        assert!(parts.raft.is_amnesiac(), "who knows what came after it");
    }

    /// Else a cluster whose nodes all got other addresses never hears of each other again.
    #[test]
    fn addresses_of_the_settings_win_over_those_in_the_log() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let (mut parts, _) = open(disk.clone(), options()).expect("it opens");
        let mut noted = Membership::of(options().members);
        noted.addresses.insert(NodeId(1), "http://old:1".into());
        let payload = wire::encode_membership(&noted);
        parts.log.stage_own(at(1, 1), EntryKind::Config, &payload, 0);
        parts.log.stage_own(at(1, 2), EntryKind::Config, &payload, 0);
        let job = parts.log.write(IoToken(1)).expect("it writes").expect("something is staged");
        parts.log.synced(job.run().expect("it syncs"));
        drop(parts);

        let mut moved = options();
        moved.members.insert(NodeId(2), "http://new:2".into());
        moved.members.insert(NodeId(3), "http://new:3".into());
        let (parts, recovered) = open(disk, moved).expect("it opens again");
        assert_eq!(recovered.configs.len(), 2, "both are in the log");
        for index in [1, 2] {
            let ruling = parts.raft.membership_at(Index(index));
            let url = |id| ruling.addresses.get(&NodeId(id)).map(String::as_str);
            assert_eq!((url(1), url(2)), (Some("http://a:1"), Some("http://new:2")));
            assert_eq!(url(3), None, "who is no member does not become one");
        }
    }
}
