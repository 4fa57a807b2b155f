//! The Rust client: everything the REST service does, with retries that never apply a write
//! twice.
//!
//! ```no_run
//! # async fn example() -> Result<(), mmapd::client::Error> {
//! use mmapd::client::Client;
//!
//! let client = Client::new(["http://127.0.0.1:3001", "http://127.0.0.1:3002"])?;
//! client.put("color", "blue").await?;
//! let entry = client.get("color").await?.expect("just written");
//! assert_eq!(&entry.value[..], b"blue");
//! # Ok(())
//! # }
//! ```
//!
//! A request goes to one of the nodes, and to the next one when that one cannot be reached, is
//! overloaded or has no leader. A failure says what became of a write (see [`Outcome`]), and
//! only a write that certainly did not happen is sent again - or one that has a name: by
//! default every write gets an `Idempotency-Key` of its own, under which the cluster carries
//! it out once, however often it arrives. (A batch has none: see [`Client::batch`].)
//!
//! A watch goes on at another node when its own is gone, without a gap and without a duplicate;
//! a listing shows one revision, on whichever nodes its pages are read; a session keeps a lease
//! alive, and says when it is not certain any more that it is.
//!
//! Left out: pools of nodes that are discovered. The nodes are those that are named.

mod batch;
mod body;
mod cluster;
mod error;
mod history;
mod keys;
mod leases;
mod locks;
mod ranges;
mod show;
mod transport;
mod txn;
mod types;
mod watch;

pub use batch::{Batch, BatchResult, Done, If};
pub use cluster::{
    Backup, Compaction, Finding, Leader, LogFilter, Member, Members, Role, Scrub, Status,
};
pub use error::{Error, Outcome, Problem};
pub use history::{Change, ChangeKind, History, Past, Reason};
pub use keys::{Delete, Get, Meta, Put, Raw, Touch, Value};
pub use leases::{Lease, LeaseInfo, Leases, Session};
pub use locks::{Lock, LockInfo, LockOptions, Locks, Waiter};
pub use ranges::{Erase, Items, Line, Lines, List, Page};
pub use transport::{Builder, Client};
pub use txn::{Cmp, Compare, Op, OpResult, Txn, TxnResult};
pub use types::{Consistency, Deleted, Entry, Touched, Written};
pub use watch::{Event, Watch, WatchRequest};

/// The example of the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
