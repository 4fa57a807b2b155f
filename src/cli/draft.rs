//! A file that has its name only when it is whole: until then it has another one beside it.

use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// A file on its way. Dropped before it is published, nothing of it is left.
#[derive(Debug)]
pub(crate) struct Draft {
    to: PathBuf,
    part: PathBuf,
}

impl Draft {
    /// Makes the file that shall be `to`, for nobody else to read: it will hold all there is,
    /// whatever rights readers of the store have. Its name is its own, so that two who write the
    /// same do not write into each other.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn create(to: &Path) -> io::Result<(Self, File)> {
        loop {
            let mut part = to.as_os_str().to_owned();
            part.push(format!(".{:08x}.part", std::hash::RandomState::new().hash_one(0) >> 32));
            match File::options().write(true).create_new(true).mode(0o600).open(&part) {
                Ok(file) => return Ok((Self { to: to.to_owned(), part: part.into() }, file)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is until it is published.
    pub(crate) fn path(&self) -> &Path {
        &self.part
    }

    /// Gives it its name, durably. What has that name already stays what it is.
    ///
    /// # Errors
    /// `AlreadyExists`, or those of the file system.
    pub(crate) fn publish(self) -> io::Result<()> {
        match renameat_with(CWD, &self.part, CWD, &self.to, RenameFlags::NOREPLACE) {
            // The kernel can, but not on this file system.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => by_hand(&self.part, &self.to)?,
            renamed => renamed?,
        }
        let folder = self.to.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // There is none once it has its name.
        let _ = fs::remove_file(&self.part);
    }
}

/// The same in two steps: a link is never made over a file. Where there are no links either, a
/// file that comes between the look and the rename is lost.
fn by_hand(part: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(part, to) {
        Ok(()) => fs::remove_file(part),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(error),
        Err(_) if fs::symlink_metadata(to).is_ok() => Err(ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(part, to),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.expect("an entry").file_name().to_string_lossy().into_owned()
        };
        fs::read_dir(dir).expect("a folder").map(name).collect()
    }

    #[test]
    fn a_draft_has_its_name_when_it_is_published() {
        let dir = tempfile::tempdir().expect("a folder");
        let to = dir.path().join("file");
        let (one, mut file) = Draft::create(&to).expect("a draft");
        let (two, _) = Draft::create(&to).expect("another");
        assert_ne!(one.path(), two.path(), "they do not share a file");
        file.write_all(b"one").expect("it is written");
        one.publish().expect("nobody has that name");
        let refused = two.publish().expect_err("somebody has");
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        drop(Draft::create(&to).expect("a third"));
        assert_eq!(
            (fs::read(&to).expect("a file"), names(dir.path())),
            (b"one".into(), vec!["file".into()])
        );
    }

    #[test]
    fn where_nothing_is_renamed_without_replacing_nothing_is_replaced_either() {
        let dir = tempfile::tempdir().expect("a folder");
        let (part, to) = (dir.path().join("part"), dir.path().join("file"));
        fs::write(&part, "one").expect("a file");
        by_hand(&part, &to).expect("nobody has that name");
        assert_eq!(names(dir.path()), ["file"]);
        fs::write(&part, "two").expect("a file");
        let refused = by_hand(&part, &to).expect_err("somebody has");
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&to).expect("a file"), b"one");
    }
}
