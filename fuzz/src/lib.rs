//! What the fuzz targets do with their input. Two kinds of runs: with real checksums, where
//! damage must be refused and nothing else than what was written may be read, and with blind
//! ones (`weak/`), where every byte reaches the decoders, which must not panic, hang or read
//! out of bounds, and may say anything.

pub mod command;
pub mod frame;
pub mod page;
pub mod segment;
pub mod snapshot;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mmapd::raft::types::NodeId;
use mmapd::store::Identity;
use mmapd::store::disk::{Disk, FileKind};
use mmapd::store::simdisk::SimDisk;

const IDENTITY: Identity = Identity { cluster: 7, node: NodeId(1), incarnation: 3 };

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Are checksums blind from now on?
fn set_weak(weak: bool) {
    crc32c::set_weak(weak);
    xxhash_rust::xxh3::set_weak(weak);
}

/// The input, taken from the front; zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first)
    }

    fn half(&mut self) -> usize {
        self.byte() | self.byte() << 8
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes.to_vec()
    }

    /// Overwrites part of `bytes`: 24 bits of offset, a length, what to write.
    fn overwrite(&mut self, bytes: &mut [u8]) {
        let (at, len) = (self.half() | self.byte() << 16, self.byte() % 64 + 1);
        let new = self.bytes(len);
        let Some(at) = at.checked_rem(bytes.len()) else { return };
        let end = (at + new.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&new[..end - at]);
    }
}

fn files(disk: &SimDisk, dir: &str) -> Files {
    let dir = Path::new(dir);
    let names = disk.list(dir).expect("a simulated disk");
    names.iter().map(|name| (dir.join(name), disk.contents(&dir.join(name)))).collect()
}

fn disk_of(files: &Files) -> SimDisk {
    let disk = SimDisk::new(1);
    for (path, bytes) in files {
        let region = disk.create(path, FileKind::Db, bytes.len() as u64).expect("a new file");
        region.write_at(0, bytes).expect("as reserved");
        region.sync_all().expect("a simulated disk");
        disk.sync_dir(path.parent().expect("in a directory")).expect("a simulated disk");
    }
    disk
}

/// Seeds of every target.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    vec![
        ("frame", frame::seeds()),
        ("page", page::seeds()),
        ("segment", segment::seeds()),
        ("snapshot", snapshot::seeds()),
        ("command", command::seeds()),
    ]
}
