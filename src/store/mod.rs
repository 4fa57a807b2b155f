//! FILES: the only code that opens, maps, writes and syncs data.

mod batches;
mod check;
mod checkpoint;
pub mod compact;
pub mod db;
pub mod disk;
#[cfg(not(miri))]
mod ending;
pub mod error;
pub mod frame;
mod front;
mod hard_state;
mod heap;
mod held;
pub mod inspect;
mod inspect_db;
mod inspect_log;
mod log;
pub mod map;
mod meta;
pub mod note;
pub mod pace;
mod page;
mod reader;
pub mod readonly;
mod recovery;
mod repair;
mod resident;
mod salvage;
pub mod scan;
mod scrub;
mod segment;
pub mod simdisk;
pub mod snapshot;
mod space;
mod spare;
mod tree;
mod txn;

pub use check::Checked;
pub use checkpoint::{CheckpointDone, CheckpointJob};
pub use compact::CompactJob;
pub use db::{Db, DbOptions, DbState, Published, Shrink, Snapshot, Tree};
pub use disk::Disk;
pub use error::{StoreError, is_no_space};
pub use hard_state::PendingInstall;
pub use heap::HeapPages;
pub use held::Held;
pub use log::{Log, LogOptions, Recovered, SyncJob, Synced};
pub use pace::{Pace, Unpaced};
pub use reader::{Entry, LogReader};
pub use resident::resident_bytes;
pub use scan::Scan;
pub use scrub::{Finding, Scrub, ScrubProgress};
pub use snapshot::{PinnedCheckpoint, Receiver};
pub use spare::{SpareDone, SpareJob};
pub use txn::{Pairs, Txn};

use crate::raft::types::NodeId;

/// Whose files these are; every file of the log and the database carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Drawn or derived once, when the cluster is founded.
    pub cluster: u128,
    /// The node's name in it.
    pub node: NodeId,
    /// Drawn when this node's data directory was made: a node that lost its disk comes
    /// back as another incarnation.
    pub incarnation: u64,
}
