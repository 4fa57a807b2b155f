//! Who else on this machine can look into our files: folders of data are closed to others, and
//! what cannot be closed here is told to the operator.
//!
//! The files of the store are their owner's alone since they were made; a folder may have been
//! made by somebody else. One that holds other things as well is not ours to close.

use std::ffi::OsString;
use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::config::Config;

/// What others than the owner may do.
const OTHERS: u32 = 0o077;
/// What others than the owner may read.
const READABLE: u32 = 0o044;
/// Everybody may put things there, as in `/tmp`.
const STICKY: u32 = 0o1000;

/// Warns of files with tokens, secrets and keys that others can read.
pub(super) fn warn_of_readable(config: &Config) {
    for path in readable(config) {
        let path = path.display();
        tracing::warn!(
            %path,
            "others on this machine can read this file, which is for this process alone; chmod 600"
        );
    }
}

fn readable(config: &Config) -> Vec<&Path> {
    let secret = [&config.auth.tokens, &config.auth.peer_secret, &config.tls.key];
    let named = secret.into_iter().filter(|path| !path.as_os_str().is_empty());
    let is_readable =
        |path: &&PathBuf| fs::metadata(path).is_ok_and(|meta| meta.mode() & READABLE != 0);
    named.filter(is_readable).map(PathBuf::as_path).collect()
}

/// Closes the folders of data to others, or warns.
pub(super) fn close_folders(config: &Config) {
    let storage = &config.storage;
    let db = storage.db.file_name().unwrap_or_default().to_owned();
    let above = storage.db.parent().unwrap_or(Path::new(""));
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    let log = storage.log.file_name().unwrap_or_default().to_owned();
    close(&storage.log, |_| true);
    close(above, |name| is_ours(name, &db, &log));
}

/// Is it the database, something that is made beside it, or the log? `lost+found`: a volume has
/// it at its top.
fn is_ours(name: &OsString, db: &OsString, log: &OsString) -> bool {
    let begins = name.to_string_lossy().starts_with(&*db.to_string_lossy());
    begins || name == log || name == "quarantine" || name == "lost+found"
}

fn close(folder: &Path, is_ours: impl Fn(&OsString) -> bool) {
    let closed = match fs::metadata(folder) {
        Ok(meta) if meta.mode() & OTHERS != 0 => close_open(folder, &meta, is_ours),
        // Closed, or not made yet: then it is made so.
        Ok(_) | Err(_) => return,
    };
    let path = folder.display();
    match closed {
        Ok(()) => {
            tracing::info!(%path, "others could look into this folder of data; now it is 0700")
        }
        Err(why) => tracing::warn!(
            %path,
            why,
            "others can look into this folder of data; make it 0700 where that is not meant"
        ),
    }
}

fn close_open(
    folder: &Path,
    meta: &Metadata,
    is_ours: impl Fn(&OsString) -> bool,
) -> Result<(), String> {
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err("it is somebody else's".into());
    }
    let told = |error: io::Error| error.to_string();
    if meta.mode() & STICKY != 0 {
        return Err("it is for everybody".into());
    }
    for entry in fs::read_dir(folder).map_err(told)? {
        let name = entry.map_err(told)?.file_name();
        if !is_ours(&name) {
            return Err(format!("it also holds {}", name.display()));
        }
    }
    fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").mode() & 0o7777
    }

    fn open(path: &Path, mode: u32) {
        fs::create_dir_all(path).expect("a folder");
        fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
    }

    #[test]
    fn folders_of_data_are_closed_and_others_are_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let data = dir.path().join("data");
        let mut config = Config::default();
        config.storage.db = data.join("db.mmapd");
        config.storage.log = data.join("log");
        // Not made yet.
        close_folders(&config);
        open(&data, 0o755);
        open(&config.storage.log, 0o750);
        fs::write(&config.storage.db, "").expect("a file");
        fs::write(data.join("db.mmapd.compacting"), "").expect("a file");
        close_folders(&config);
        assert_eq!((mode(&data), mode(&config.storage.log)), (0o700, 0o700));
        // It holds more, or is for everybody.
        open(&data, 0o755);
        fs::write(data.join("node.toml"), "").expect("a file");
        close_folders(&config);
        assert_eq!(mode(&data), 0o755);
        fs::remove_file(data.join("node.toml")).expect("a file");
        open(&data, 0o1777);
        close_folders(&config);
        assert_eq!(mode(&data), 0o1777);
    }

    #[test]
    fn files_that_others_can_read_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            fs::write(&path, "").expect("a file");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
            path
        };
        let mut config = Config::default();
        assert!(readable(&config).is_empty());
        config.auth.tokens = file("tokens", 0o600);
        config.auth.peer_secret = file("secret", 0o640);
        config.tls.key = file("key", 0o604);
        config.tls.cert = file("cert", 0o644);
        assert_eq!(readable(&config), [&config.auth.peer_secret, &config.tls.key]);
    }
}
