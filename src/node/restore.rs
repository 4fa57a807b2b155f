//! The files of a new node from a backup: what `mmapd restore` does.
//!
//! The result is another cluster than the one that was backed up: with another id, so that
//! no node of the old one talks to it, with a new beginning of the log far after the old end,
//! so that no revision means two things, and with the members that the settings name. Every
//! node that restores the same backup with the same members makes the same cluster.
//!
//! As for an import, all is made beside the files of the configuration, which get their
//! names when everything is durable, the database first and `hard.state` last.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use super::backup::{BackupError, BackupReader, Description};
use super::import::{Draft, ImportError, claim};
use super::join::Joined;
use super::{OpenOptions, chance, open_options};
use crate::config::Config;
use crate::raft::message::IoToken;
use crate::raft::types::{HardState, Index, LogId, Membership, NodeId, Term};
use crate::store::disk::LinuxDisk;
use crate::store::{
    Db, DbOptions, DbState, Disk, Identity, Log, LogOptions, PendingInstall, Receiver, StoreError,
    Tree,
};
use crate::wire;

/// What the files are called until they are whole.
const DRAFT: &str = "restoring";

/// What was made.
#[derive(Clone, Copy, Debug)]
pub struct Restored {
    /// Keys in the store.
    pub keys: u64,
    /// Its revision.
    pub revision: u64,
    /// The revision in the backup.
    pub was: u64,
    /// The id of the new cluster.
    pub cluster: u128,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// It cannot become a cluster of these settings.
    #[error("{0}")]
    Unfit(String),
    /// There is a store already, or the files fail.
    #[error(transparent)]
    Place(#[from] ImportError),
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> Self {
        Self::Place(error.into())
    }
}

/// Where a restore that did not end may have left files: a directory to be removed, with all
/// that is in it, and a file. They are no part of a store.
#[must_use]
pub fn leftovers(config: &Config) -> (PathBuf, PathBuf) {
    let files = Draft::of(config, DRAFT);
    (files.draft_log, files.draft_db)
}

/// Where the new cluster begins.
struct Beginning {
    identity: Identity,
    base: LogId,
    chain: u64,
    membership: Vec<u8>,
}

/// Makes the files of a node from a backup. Revisions go on `bump` after the backup's last
/// entry.
///
/// # Errors
/// See [`RestoreError`]. The files of the configuration do not exist then; remove the
/// [`leftovers`].
pub fn restore(config: &Config, input: impl Read, bump: u64) -> Result<Restored, RestoreError> {
    let disk: Arc<dyn Disk> = Arc::new(LinuxDisk::new(None));
    let _locks = claim(&*disk, config)?;
    if !config.cluster.join.is_empty() || Joined::load(config)?.is_some() {
        let why = "a node that joins gets its data from the cluster; name the members with \
                   cluster.peers instead of cluster.join";
        return Err(RestoreError::Unfit(why.into()));
    }
    let files = Draft::of(config, DRAFT);
    let mut reader = BackupReader::open(input)?;
    let OpenOptions { mut db, mut log, members, .. } = open_options(config)?;
    db.path.clone_from(&files.draft_db);
    log.dir.clone_from(&files.draft_log);
    let node = NodeId(config.node.id);
    let membership = Membership::of(members);
    let beginning = Beginning::after(reader.description(), node, &membership, bump)?;

    disk.make_dir(&files.draft_log)?;
    for name in disk.list(&files.draft_log)? {
        disk.remove(&files.draft_log.join(name))?;
    }
    receive(&disk, &mut reader, &db, beginning.identity)?;
    let was = reader.description().revision;
    let keys = rebase(&disk, db, &beginning)?;
    make_log(&disk, log, &beginning)?;
    files.publish(&*disk)?;
    Ok(Restored {
        keys,
        revision: beginning.base.index.0,
        was,
        cluster: beginning.identity.cluster,
    })
}

impl Beginning {
    fn after(
        old: &Description,
        node: NodeId,
        membership: &Membership,
        bump: u64,
    ) -> Result<Self, RestoreError> {
        let newest = old.applied.index.0.max(old.revision);
        let (term, index) = (old.applied.term.0.checked_add(1), newest.checked_add(bump));
        let (Some(term), Some(index)) = (term, index) else {
            return Err(RestoreError::Unfit("no revisions are left after that of it".into()));
        };
        let base = LogId { term: Term(term), index: Index(index) };
        let encoded = wire::encode_membership(membership);
        if encoded.len() > wire::MEMBERSHIP_MAX {
            return Err(RestoreError::Unfit("the members' names and URLs are too long".into()));
        }
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(&old.cluster.to_le_bytes());
        hash.update(&old.digest.to_le_bytes());
        hash.update(&old.chain.to_le_bytes());
        hash.update(&term.to_le_bytes());
        hash.update(&index.to_le_bytes());
        hash.update(&encoded);
        let (cluster, chain) = (hash.digest128(), hash.digest());
        let identity = Identity { cluster, node, incarnation: chance() };
        Ok(Self { identity, base, chain, membership: encoded })
    }

    fn state(&self, old: &DbState) -> DbState {
        DbState {
            applied: self.base,
            chain: self.chain,
            revision: self.base.index.0,
            // Whoever saw later changes of the old cluster must not go on here unawares.
            compact_revision: self.base.index.0,
            membership: self.membership.clone(),
            ..old.clone()
        }
    }
}

/// Writes the database of the backup to its draft, whole and verified.
fn receive(
    disk: &Arc<dyn Disk>,
    reader: &mut BackupReader<impl Read>,
    options: &DbOptions,
    identity: Identity,
) -> Result<(), RestoreError> {
    let receiver = Receiver::create(disk.clone(), &options.path, identity, options.map_max)?;
    let mut receiver = receiver.from_cluster(reader.description().cluster);
    let mut chunk = Vec::new();
    loop {
        let at = reader.at();
        if !reader.next(&mut chunk)? {
            break;
        }
        receiver.push(&chunk).map_err(|error| its_fault(at, error))?;
    }
    let state = receiver.finish().map_err(|error| its_fault(reader.at(), error))?;
    if !reader.description().fits(&state) {
        let why = "the database in it is another one than it describes".to_owned();
        return Err(BackupError::Damaged { at: 0, why }.into());
    }
    Ok(())
}

/// Damage found while the database is made is the backup's.
fn its_fault(at: u64, error: StoreError) -> RestoreError {
    match error {
        StoreError::Corrupt { what, why, .. } => {
            BackupError::Damaged { at, why: format!("{what}: {why}") }.into()
        }
        StoreError::Foreign { found, wanted, .. } => {
            let why = format!("it says that it is of {wanted}, and the database is of {found}");
            BackupError::Damaged { at, why }.into()
        }
        error @ (StoreError::Full { .. }
        | StoreError::Locked { .. }
        | StoreError::Invalid { .. }
        | StoreError::Ended
        | StoreError::Io { .. }) => error.into(),
    }
}

/// Lets the database be as of the new beginning; answers how many keys it has.
fn rebase(
    disk: &Arc<dyn Disk>,
    options: DbOptions,
    beginning: &Beginning,
) -> Result<u64, StoreError> {
    let mut db = Db::open(disk.clone(), options, beginning.identity)?;
    // Twice, so that neither of the two checkpoints of the file is of the old cluster.
    for _ in 0..2 {
        let mut state = beginning.state(db.state());
        state.time_ms = state.time_ms.saturating_add(1);
        let mut txn = db.begin();
        *txn.state_mut() = state;
        txn.commit()?;
        if let Some(job) = db.begin_checkpoint()? {
            drop(db.finish_checkpoint(job.run()?)?);
        }
    }
    Ok(db.published().snapshot().entries(Tree::Kv))
}

/// Makes a log that begins where the database ends.
fn make_log(
    disk: &Arc<dyn Disk>,
    options: LogOptions,
    beginning: &Beginning,
) -> Result<(), StoreError> {
    let Beginning { identity, base, chain, .. } = beginning;
    let (mut log, _) = Log::open(disk.clone(), options, identity.node, || *identity)?;
    // In the term of the last entry nobody was elected, so nobody can have had our vote.
    log.stage_hard_state(HardState { term: base.term, vote: None });
    if let Some(job) = log.write(IoToken(1))? {
        log.synced(job.run()?);
    }
    log.begin_install(PendingInstall { last: *base, chain: *chain })?;
    log.reset(*base, *chain)?;
    log.end_install()?;
    log.mark_clean()
}
