//! What a check finds in a database whose pages are all intact.

#![expect(clippy::big_endian_bytes, reason = "in the keys of a tree, bytes are in its order")]

use bytes::Bytes;

use super::*;
use crate::machine::{Command, Conditions, Life, digest};
use crate::raft::types::Term;
use crate::store::disk::LinuxDisk;

/// A database in `dir` with a key that expires, and `also` in its trees, which no entry put there.
fn store(dir: &Path, also: &[(Tree, &[u8], &[u8])]) -> PathBuf {
    let path = dir.join("db");
    let options = DbOptions {
        path: path.clone(),
        map_max: 64 << 20,
        quota: u64::MAX,
        grow_step: 1 << 20,
        shrink: Shrink::default(),
    };
    let identity = Identity { cluster: 7, node: NodeId(1), incarnation: 1 };
    let mut db = Db::open(Arc::new(LinuxDisk::new(None)), options, identity).unwrap();
    let put = Command::Put {
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
        content_type: String::new(),
        life: Life::Ttl(50),
        conditions: Conditions::default(),
        prev: false,
    };
    let id = LogId { term: Term(1), index: Index(1) };
    let (kind, payload) = (EntryKind::Command, put.encode());
    let entry = Entry { id, kind, time_ms: 9, chain: 0, payload };
    let mut txn = db.begin();
    machine::apply(&mut txn, &entry).unwrap();
    txn.state_mut().applied = id;
    for (tree, key, value) in also {
        txn.put(*tree, key, value).unwrap();
        let state = txn.state_mut();
        state.digest = state.digest.wrapping_add(digest(*tree, key, value));
    }
    txn.commit().unwrap();
    let job = db.begin_checkpoint().unwrap().unwrap();
    db.finish_checkpoint(job.run().unwrap()).unwrap();
    path
}

fn findings(also: &[(Tree, &[u8], &[u8])]) -> Vec<(&'static str, String)> {
    let dir = tempfile::tempdir().unwrap();
    let db = store(dir.path(), also);
    let files = Files::open(&db, &dir.path().join("log")).unwrap();
    let checked = files.check(&BTreeMap::new(), &mut |_| {}).unwrap();
    let found = checked.findings.list.into_iter().filter(|finding| finding.harm == Harm::Keys);
    found.map(|finding| (finding.what, finding.why)).collect()
}

#[test]
fn a_check_finds_an_index_that_disagrees_with_the_keys() {
    assert_eq!(findings(&[]), []);
    let end = [&9_u64.to_be_bytes()[..], b"\0other"].concat();
    let hung = [b"K", &3_u64.to_be_bytes()[..], b"k"].concat();
    let wrong = findings(&[
        (Tree::Ttl, &end, b""),
        (Tree::Meta, &hung, b""),
        (Tree::Deleted, b"gone", &[1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]),
    ]);
    let disagrees = |what| format!("the index of {what} disagrees with what it is made from");
    let wanted = [
        ("index", disagrees("when keys expire")),
        ("index", disagrees("which keys hang on a lease")),
        ("index", disagrees("the newest event of each key")),
        ("index", "keys hang on lease 3, and there is none".to_owned()),
    ];
    assert_eq!(wrong, wanted);
}
