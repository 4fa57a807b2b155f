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
//! it out once, however often it arrives.
//!
//! Left out: pools of nodes that are discovered. The nodes are those that are named.

mod cluster;
mod error;
mod keys;
mod leases;
mod locks;
mod transport;
mod txn;
mod types;
mod watch;

pub use error::{Error, Outcome, Problem};
pub use keys::{Delete, Get, List, Put};
pub use leases::LeaseInfo;
pub use locks::{Lock, LockOptions};
pub use transport::{Builder, Client};
pub use txn::{Cmp, Compare, Op, OpResult, Txn, TxnResult};
pub use types::{
    Change, ChangeKind, Consistency, Deleted, Entry, History, Lease, Leases, Page, Touched, Written,
};
pub use watch::{Event, Watch, WatchRequest};
