//! A stream of chunks that was changed on the way, or never was one.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use mmapd::store::disk::Disk;
use mmapd::store::simdisk::SimDisk;
use mmapd::store::snapshot::Receiver;

use super::page::{self, MAP_MAX};
use super::{Files, IDENTITY, Input, disk_of, set_weak};

fn chunks(weak: bool) -> &'static [Vec<u8>] {
    static CHUNKS: [OnceLock<Vec<Vec<u8>>>; 2] = [OnceLock::new(), OnceLock::new()];
    CHUNKS[usize::from(weak)].get_or_init(|| {
        let base = page::base(weak);
        set_weak(weak);
        let disk = disk_of(&Files::from([(page::path(), base.file.clone())]));
        let mut db = page::open(&disk).expect("whole");
        let pinned = db.pin().expect("a simulated disk").expect("a checkpoint");
        (0..pinned.chunks())
            .map(|n| pinned.chunk(n).expect("a simulated disk").expect("one of them").to_vec())
            .collect()
    })
}

/// One input: whether checksums are blind, and what happens to the chunks.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mode = input.byte();
    let weak = mode % 2 == 1;
    let mut stream = chunks(weak).to_vec();
    set_weak(weak);
    while !input.0.is_empty() {
        let what = input.byte();
        let at = what % stream.len();
        match what / 16 {
            12 => stream[at].truncate(input.half() | input.byte() << 16),
            13 => stream[at] = input.bytes(200),
            14 => stream.insert(at, stream[at].clone()),
            15 if stream.len() > 1 => drop(stream.remove(at)),
            _ => input.overwrite(&mut stream[at]),
        }
    }
    // Half of the runs get through the envelope: only the database's own checksums are left.
    if mode & 2 != 0 {
        for chunk in stream.iter_mut().filter(|chunk| chunk.len() > 4) {
            let crc = crc32c::crc32c(&chunk[4..]);
            chunk[..4].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let disk = SimDisk::new(1);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let path = page::path();
    let mut receiver =
        Receiver::create(shared, Path::new(&path), IDENTITY, MAP_MAX).expect("a simulated disk");
    let taken = stream.iter().all(|chunk| receiver.push(chunk).is_ok());
    if let Ok(state) = receiver.finish() {
        assert!(weak || taken || stream.len() > chunks(weak).len(), "not all of it came");
        let db = page::open(&disk).expect("what was received opens");
        assert_eq!(*db.state(), state);
        db.check().expect("and is whole");
        page::read(&db, (!weak).then(|| page::base(false)));
    }
    set_weak(false);
}

/// The whole stream, and one change of each kind.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    assert!(chunks(false).len() > 1);
    let mut seeds = Vec::new();
    for mode in 0..4 {
        seeds.push(vec![mode]);
        for chunk in 0..2 {
            seeds.push(vec![mode, chunk, 16, 0, 0, 3, 1, 2, 3, 4]);
            seeds.push(vec![mode, chunk, 60, 1, 0, 3, 1, 2, 3, 4]);
            seeds.push(vec![mode, 0xc0 + chunk, 40, 0, 0]);
            seeds.push(vec![mode, 0xd0 + chunk, 1, 2, 3]);
            seeds.push(vec![mode, 0xe0 + chunk]);
            seeds.push(vec![mode, 0xf0 + chunk]);
        }
    }
    seeds
}
