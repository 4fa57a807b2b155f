//! A long value that can be read as long as somebody holds it.

use std::sync::Arc;

use super::db::{Snapshot, Tree};
use super::error::StoreError;
use super::page::{Run, Value};
use super::tree::{self, Source};

/// A stored value in pages of its own, with the snapshot that keeps these pages. While it
/// lives, no page that the snapshot sees can be used again: let go of it soon.
#[derive(Debug)]
pub struct Held {
    snapshot: Arc<Snapshot>,
    run: Run,
}

impl Snapshot {
    /// Holds the value of a key; `None`: there is none, or it is short and lies among others.
    /// Its bytes are intact when they are held.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn hold(this: &Arc<Self>, tree: Tree, key: &[u8]) -> Result<Option<Held>, StoreError> {
        match tree::find(&**this, this.root(tree), key)? {
            None | Some(Value::Short(_)) => Ok(None),
            Some(Value::Long(run)) => {
                this.run(&run)?;
                Ok(Some(Held { snapshot: Arc::clone(this), run }))
            }
        }
    }
}

impl AsRef<[u8]> for Held {
    /// The bytes as slice of the map or the heap. They were there when they were held, and
    /// the pages of a snapshot stay; empty if a bug of ours let them go.
    fn as_ref(&self) -> &[u8] {
        self.snapshot.run(&self.run).unwrap_or_default()
    }
}
