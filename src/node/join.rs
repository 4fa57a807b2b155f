//! What a node was told when it joined a cluster, kept beside its database: who it is and
//! where the others are. Written before any other file, so that a crash in between leaves
//! either a node that has not joined or one that knows where it belongs, and never a node
//! that takes itself for a cluster of its own.

use std::path::{Path, PathBuf};

use crate::config::Config;
pub use crate::peers::{JoinError, JoinRequest, join as ask};
use crate::raft::types::Membership;
use crate::store::disk::LinuxDisk;
use crate::store::note::{read_note, write_note};
use crate::store::{Disk, StoreError};
use crate::wire;

/// A place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The cluster's id.
    pub cluster: u128,
    /// The life that this node told it.
    pub incarnation: u64,
    /// The members as of then; this node is a learner.
    pub membership: Membership,
}

fn place(config: &Config) -> PathBuf {
    let mut path = config.storage.db.as_os_str().to_owned();
    path.push(".joined");
    path.into()
}

impl Joined {
    /// What was noted; `None`: this node did not join, or not yet.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn load(config: &Config) -> Result<Option<Self>, StoreError> {
        let path = place(config);
        let Some(bytes) = read_note(&LinuxDisk::new(None), &path)? else { return Ok(None) };
        Self::decode(&bytes).map(Some).ok_or_else(|| StoreError::Corrupt {
            file: path.display().to_string(),
            what: "note",
            offset: 0,
            why: "it does not say which cluster was joined".to_owned(),
        })
    }

    /// Notes it; durable when this returns.
    ///
    /// # Errors
    /// `Io`.
    pub fn save(&self, config: &Config) -> Result<(), StoreError> {
        write_note(&LinuxDisk::new(None), &place(config), &self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.cluster.to_le_bytes().to_vec();
        bytes.extend(self.incarnation.to_le_bytes());
        bytes.extend(wire::encode_membership(&self.membership));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (cluster, rest) = bytes.split_first_chunk()?;
        let (incarnation, rest) = rest.split_first_chunk()?;
        Some(Self {
            cluster: u128::from_le_bytes(*cluster),
            incarnation: u64::from_le_bytes(*incarnation),
            membership: wire::decode_membership(rest).ok()?,
        })
    }
}

/// Must this node ask a cluster to take it in before it starts? Not if it has files already.
///
/// # Errors
/// `Io`.
pub fn must_join(config: &Config) -> Result<bool, StoreError> {
    if config.cluster.join.is_empty() {
        return Ok(false);
    }
    let disk = LinuxDisk::new(None);
    let has = |dir: &Path, name: &dyn Fn(&str) -> bool| -> Result<bool, StoreError> {
        Ok(disk.list(dir)?.iter().any(|file| name(file)))
    };
    let has_log = has(&config.storage.log, &|name| name != "LOCK")?;
    let db = config.storage.db.file_name().map(|name| name.to_string_lossy().into_owned());
    let has_db =
        has(&crate::store::disk::parent(&config.storage.db), &|name| db.as_deref() == Some(name))?;
    Ok(!has_log && !has_db && Joined::load(config)?.is_none())
}

/// A life for a data folder that is about to be made.
#[must_use]
pub fn draw_incarnation() -> u64 {
    super::chance()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::NodeId;

    #[test]
    fn a_place_in_a_cluster_survives_its_encoding() {
        let joined = Joined {
            cluster: 7 << 90,
            incarnation: 9,
            membership: Membership { learners: vec![NodeId(4)], ..Membership::default() },
        };
        let bytes = joined.encode();
        assert_eq!(Joined::decode(&bytes), Some(joined));
        for cut in 0..bytes.len() {
            assert_eq!(Joined::decode(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}
