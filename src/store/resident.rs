//! How much of the mapped files is in memory: what the kernel says of our maps.

use std::fs;
use std::path::Path;

/// Bytes in memory of all maps of this process whose file lies at or below `path`. Walks
/// the kernel's list, so ask it now and then, not on a hot path; 0 when it cannot be read.
#[must_use]
pub fn resident_bytes(path: &Path) -> u64 {
    let Ok(path) = fs::canonicalize(path) else { return 0 };
    let Ok(maps) = fs::read_to_string("/proc/self/smaps") else { return 0 };
    let (mut ours, mut kibibytes) = (false, 0_u64);
    for line in maps.lines() {
        if let Some(size) = line.strip_prefix("Rss:") {
            let size = size.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            kibibytes += if ours { size } else { 0 };
        } else if let Some(at) = line.find('/')
            && line.split_ascii_whitespace().next().is_some_and(|range| range.contains('-'))
        {
            ours = line.get(at..).is_some_and(|file| Path::new(file).starts_with(&path));
        } else if line.split_ascii_whitespace().next().is_some_and(|word| word.contains('-')) {
            ours = false; // a map without a file
        }
    }
    kibibytes * 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::{Disk, FileKind, LinuxDisk, grow_with_zeros};
    use crate::store::map::AppendMap;

    #[test]
    #[cfg_attr(miri, ignore = "a real file")]
    fn pages_that_were_read_are_resident() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let disk = LinuxDisk::new(None);
        let region = disk.create(&path, FileKind::Log, 1 << 20).unwrap();
        grow_with_zeros(&*region, 1 << 20).unwrap();
        let map = AppendMap::sealed(region);
        assert!(map.bytes(0, 1 << 20).unwrap().iter().all(|byte| *byte == 0));
        assert_eq!(resident_bytes(&path), 1 << 20);
        assert_eq!(resident_bytes(dir.path()), 1 << 20, "the directory holds the file");
        drop(map);
        assert_eq!(resident_bytes(&path), 0);
    }
}
