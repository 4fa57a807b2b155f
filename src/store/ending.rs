//! How a map ends: its pages, and the blocks of a file that has no name any more, are let go a
//! piece at a time.
//!
//! All of it at once takes the kernel some ten milliseconds for each hundred megabytes, in which
//! it lets nobody change this process's maps, or files on that file system: a write to the log
//! would wait for the end of an old database.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

/// Bytes that are let go at a time.
const PIECE: usize = 2 << 20;

/// Ends a map of the first `mapped` bytes of `file`, of which nobody has an address any more;
/// `unmap` lets go of so many bytes from an offset on. What fails takes as long as it takes.
pub(super) fn let_go(
    file: &File,
    mapped: usize,
    unmap: impl Fn(usize, usize) -> io::Result<()>,
) -> io::Result<()> {
    let data = file.metadata()?;
    let len = usize::try_from(data.len()).map_or(mapped, |len| len.min(mapped));
    for at in (0..len).step_by(PIECE) {
        unmap(at, PIECE.min(len - at))?;
    }
    if data.nlink() == 0 {
        // Nobody else reads it: a file is mapped once, and a database that a daemon uses is
        // locked. One that was opened for reading cannot be cut, and ends all the same.
        for piece in (1..data.len().div_ceil(PIECE as u64)).rev() {
            file.set_len(piece * PIECE as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_file_without_a_name_is_cut_and_one_with_a_name_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let len = 3 * PIECE + 5;
        file.set_len(len as u64).unwrap();
        let seen = RefCell::new(Vec::new());
        let unmap = |at, len| {
            seen.borrow_mut().push((at, len));
            Ok(())
        };
        let_go(&file, 4 * len, unmap).unwrap();
        let pieces = [(0, PIECE), (PIECE, PIECE), (2 * PIECE, PIECE), (3 * PIECE, 5)];
        assert_eq!(seen.take(), pieces, "to the end of the file, not of the map");
        assert_eq!(file.metadata().unwrap().len(), len as u64, "it has a name");
        std::fs::remove_file(&path).unwrap();
        let_go(&file, PIECE, unmap).unwrap();
        assert_eq!(seen.take(), [(0, PIECE)]);
        assert_eq!(file.metadata().unwrap().len(), PIECE as u64, "the last piece ends with it");
    }
}
