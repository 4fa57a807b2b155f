//! The Rust client against real servers: every call against a node alone, and what it promises
//! about retries and watches against a cluster whose leaders are killed.

mod support {
    pub(crate) mod http;
    pub(crate) mod process;
}

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mmapd::client::{
    Batch, ChangeKind, Client, Cmp, Compare, Consistency, Done, Error, Event, If, Line,
    LockOptions, Meta, Op, OpResult, Outcome, Reason, Role, Watch,
};
use mmapd::config::Config;
use support::http::Server;
use support::process::{Cluster, free_port, wait};
use tokio::runtime::Runtime;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

/// Runs it to its end, which must come.
fn run<T>(test: impl Future<Output = T>) -> T {
    let end = runtime().block_on(async { tokio::time::timeout(PATIENCE, test).await });
    end.expect("it ends in time")
}

/// A node alone, and a client of it.
fn alone() -> (Server, Client) {
    let server = Server::start(Config::default());
    let client = Client::new([format!("http://{}", server.address)]).expect("a URL");
    (server, client)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The refusal that this must be.
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, code: &str) -> mmapd::client::Problem {
    let error = answer.expect_err(code);
    assert!(error.is(code), "{error}");
    error.problem().expect("a refusal").clone()
}

#[test]
fn keys_are_written_read_and_removed() {
    let (_server, client) = alone();
    run(async {
        assert_eq!(client.get("none").await?, None);
        assert_eq!(client.get("none").head().await?, None);
        assert_eq!(client.get("none").raw().await?, None);

        let first = client.put("a/b c", "one").content_type("text/plain").await?;
        assert!(first.created && first.version == 1 && first.prev.is_none());
        let second = client.put("a/b c", "two").with_prev().if_revision(first.revision).await?;
        let prev = second.prev.expect("it was asked for");
        assert_eq!((&prev.value[..], prev.mod_revision), (&b"one"[..], first.revision));
        assert_eq!((second.created, second.version), (false, 2));

        let entry = client.get("a/b c").await?.expect("it is there");
        assert_eq!((&entry.key[..], &entry.value[..]), (&b"a/b c"[..], &b"two"[..]));
        assert_eq!((entry.size, entry.version, entry.lease, entry.ttl), (3, 2, None, None));
        assert_eq!(entry.content_type, "application/octet-stream");
        let then = client.get("a/b c").at_revision(first.revision).await?.expect("it was there");
        assert_eq!((&then.value[..], &then.content_type[..]), (&b"one"[..], "text/plain"));
        let stale = client.get("a/b c").consistency(Consistency::Stale);
        assert_eq!(stale.min_revision(second.revision).await?, Some(entry));

        // Any bytes are a key and a value.
        let odd: Vec<u8> = (0..=255).collect();
        client.put(&odd, odd.clone()).only_if_absent().await?;
        let entry = client.get(&odd).await?.expect("it is there");
        assert_eq!((&entry.key[..], &entry.value[..]), (&odd[..], &odd[..]));

        let failed = client.put(&odd, "x").only_if_absent().await;
        let problem = refused(failed, "precondition-failed");
        assert_eq!(problem.current_revision(), Some(entry.mod_revision));
        assert_eq!((problem.outcome, problem.status), (Outcome::NotApplied, 412));
        refused(client.put("none", "x").if_exists().await, "precondition-failed");
        refused(client.delete("none").if_exists().await, "precondition-failed");

        let gone = client.delete("a/b c").if_revision(second.revision).with_prev().await?;
        assert_eq!((gone.deleted, gone.prev.map(|prev| prev.version)), (1, Some(2)));
        assert_eq!(client.delete("a/b c").await?.deleted, 0);
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn large_values_are_read_in_parts() {
    let (_server, client) = alone();
    run(async {
        let large: Vec<u8> =
            (0..3_000_000_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
        let written = client.put("large", large.clone()).content_type("image/png").await?;
        let meta =
            Meta { revision: written.revision, content_type: "image/png".into(), size: 3_000_000 };
        assert_eq!(client.get("large").head().await?, Some(meta.clone()));
        let whole = client.get("large").raw().await?.expect("it is there");
        assert!(whole.bytes == large && !whole.partial && whole.meta == meta);
        let part = client.get("large").raw().part(1_000_000..1_000_100);
        let part = part.if_still(written.revision).await?.expect("it is there");
        assert!(part.partial && part.bytes == large[1_000_000..1_000_100] && part.meta == meta);
        let other = client.get("large").raw().part(0..10).if_still(1).await?.expect("there");
        assert!(!other.partial && other.bytes == large, "another version comes whole");
        refused(
            client.get("large").raw().part(3_000_000..3_000_001).await,
            "range-not-satisfiable",
        );
        let over = client.put("larger", vec![0; (8 << 20) + 1]).await;
        let problem = refused(over, "too-large");
        assert_eq!((problem.limit, problem.status), (Some(8 << 20), 413));
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn keys_have_their_time() {
    let (_server, client) = alone();
    run(async {
        let written = client.put("k", "v").ttl(seconds(300)).await?;
        assert_eq!(written.ttl, Some(seconds(300)));
        let left = client.get("k").await?.and_then(|entry| entry.ttl).expect("it has an end");
        assert!(left <= seconds(300) && left > seconds(200));
        let touched = client.touch("k", Some(seconds(600))).if_revision(written.revision).await?;
        assert_eq!((touched.mod_revision, touched.ttl), (written.revision, Some(seconds(600))));
        assert_eq!(client.touch("k", None).await?.ttl, None);
        refused(client.touch("none", None).await, "not-found");

        // A long poll: nothing happens, then something does.
        assert_eq!(client.changed("k", written.revision, seconds(1)).await?, None);
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.changed("k", written.revision, seconds(30)).await }
        });
        let next = client.put("k", "w").await?;
        let entry = waiting.await.expect("no panic")?.expect("it changed");
        assert_eq!((&entry.value[..], entry.mod_revision), (&b"w"[..], next.revision));
        client.delete("k").await?;
        refused(client.changed("k", next.revision, seconds(30)).await, "not-found");

        let short = client.put("short", "v").ttl(Duration::from_millis(50)).await?;
        let mut watch = client.watch().key("short").after(short.revision).start().await?;
        let event = watch.next().await?;
        assert_eq!(
            (event.changes[0].kind, event.changes[0].reason),
            (ChangeKind::Delete, Reason::Ttl)
        );
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn ranges_are_listed_and_removed() {
    let (_server, client) = alone();
    run(async {
        let mut batch = client.batch();
        for number in 0..250 {
            batch = batch.put(format!("n/{number:03}"), number.to_string());
        }
        let batch = batch.put("dir/a/x", "1").put("dir/a/y", "2").put("dir/b", "3");
        assert!(batch.put(b"\xff\xfe", "4").send().await?.is_done());

        let page = client.list().prefix("n/").limit(100).page().await?;
        assert_eq!((page.items.len(), page.count, page.more), (100, 100, true));
        client.delete("n/249").await?;
        // All pages are of the revision of the first.
        let mut items = client.list().prefix("n/").limit(100).at_revision(page.revision).items();
        for number in 0..250 {
            let entry = items.next().await?.expect("there are 250");
            assert_eq!(&entry.key[..], format!("n/{number:03}").as_bytes());
            assert_eq!(&entry.value[..], number.to_string().as_bytes());
        }
        assert_eq!(items.next().await?, None);
        assert_eq!(client.list().prefix("n/").count().await?, 249);
        let list = client.list().range("n/100", "n/110").descending().keys_only();
        let keys: Vec<_> = list.all().await?.into_iter().map(|entry| entry.key).collect();
        assert_eq!((keys.len(), &keys[0][..], &keys[9][..]), (10, &b"n/109"[..], &b"n/100"[..]));

        let groups = client.list().prefix("dir/").delimiter("/");
        let page = groups.page().await?;
        assert_eq!(page.prefixes, ["dir/a/"]);
        assert_eq!((page.items.len(), &page.items[0].key[..]), (1, &b"dir/b"[..]));
        let mut lines = groups.lines().await?;
        assert_eq!(lines.next().await?, Some(Line::Prefix("dir/a/".into())));
        let second = lines.next().await?;
        assert!(matches!(second, Some(Line::Entry(entry)) if entry.key == "dir/b"));
        let end = lines.next().await?;
        assert!(matches!(end, Some(Line::End { count: 2, next: None, .. })), "{end:?}");
        assert_eq!(lines.next().await?, None);

        let stale = client.list().consistency(Consistency::Stale).min_revision(page.revision);
        assert_eq!(stale.count().await?, 253);
        assert_eq!(client.delete_range("n/000", "n/010").await?.deleted, 10);
        let erase = || client.delete_prefix("n/").idempotency_key("once");
        let erased = erase().await?;
        assert_eq!(erased.deleted, 239);
        client.put("n/new", "").await?;
        assert_eq!(erase().await?, erased, "the answer is that of the first");
        assert_eq!(client.delete_all().await?.deleted, 5);
        assert_eq!(client.list().count().await?, 0);
        refused(client.delete_prefix("").await, "bad-request");
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn the_past_is_known() {
    let (_server, client) = alone();
    run(async {
        let one = client.put("k", "1").await?.revision;
        let two = client.put("k", "2").content_type("text/plain").await?.revision;
        let three = client.delete("k").await?.revision;
        let page = client.history("k").limit(2).consistency(Consistency::Linearizable).await?;
        let kinds: Vec<_> = page.changes.iter().map(|it| (it.kind, it.revision)).collect();
        assert_eq!(kinds, [(ChangeKind::Delete, three), (ChangeKind::Put, two)]);
        assert_eq!((page.revision, page.next_before), (three, Some(two)));
        let put = &page.changes[1];
        assert_eq!((&put.key[..], &put.value[..]), (&b"k"[..], &b"2"[..]));
        assert_eq!(
            (put.version, put.prev_revision, put.reason),
            (Some(2), Some(one), Reason::Request)
        );
        let rest = client.history("k").before(two).await?;
        assert_eq!((rest.changes.len(), rest.next_before), (1, None));
        assert_eq!(rest.changes[0].revision, one);
        refused(client.history("other").await, "not-found");
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn transactions_do_all_of_one_branch() {
    let (_server, client) = alone();
    run(async {
        client.put("a", "1").await?;
        client.put("tmp/1", "x").await?;
        let txn = || {
            client
                .txn()
                .when(Compare::value("a", Cmp::Eq, "1"))
                .when(Compare::exists("b", false))
                .when(Compare::version("a", Cmp::Lt, 2))
                .when(Compare::create_revision("a", Cmp::Gt, 0))
                .when(Compare::mod_revision("b", Cmp::Eq, 0))
                .then(Op::lease(seconds(60)))
                .then(Op::put("a", "2").with_prev().content_type("text/plain"))
                .then(Op::put(b"\xff", b"\x00\xff").on_new_lease())
                .then(Op::put("c", "3").ttl(seconds(30)))
                .then(Op::delete_prefix("tmp/").with_prev())
                .then(Op::delete_range("x", "y"))
                .then(Op::get_range("a", "d").limit(1))
                .or_else(Op::get("a"))
                .idempotency_key("txn-1")
        };
        let done = txn().commit().await?;
        assert!(done.succeeded);
        let [lease, put, odd, timed, tmp, none, got] = &done.results[..] else {
            panic!("{done:?}")
        };
        let OpResult::Lease(lease) = lease else { panic!("{lease:?}") };
        assert!(matches!(put, OpResult::Put(put) if put.version == 2
            && put.prev.as_ref().is_some_and(|prev| prev.value == "1")));
        assert!(matches!(odd, OpResult::Put(put) if put.lease == Some(lease.id)));
        assert!(matches!(timed, OpResult::Put(put) if put.ttl == Some(seconds(30))));
        assert!(matches!(tmp, OpResult::Delete { deleted: 1, prev } if prev[0].key == "tmp/1"));
        assert!(matches!(none, OpResult::Delete { deleted: 0, .. }));
        assert!(matches!(got, OpResult::Get { items, more: true } if items[0].value == "2"));
        assert_eq!(txn().commit().await?, done, "asked for again it is the same");

        let other = client.txn().when(Compare::exists("none", true)).or_else(Op::get_prefix(""));
        let read = other.consistency(Consistency::Stale).commit().await?;
        assert!(!read.succeeded);
        assert!(matches!(&read.results[0], OpResult::Get { items, .. } if items.len() == 3));
        let empty = client.get(b"\xff").await?.expect("it is there");
        assert_eq!((&empty.value[..], empty.lease), (&b"\x00\xff"[..], Some(lease.id)));
        let twice = client.txn().then(Op::put("a", "1")).then(Op::put("a", "2")).commit().await;
        refused(twice, "unprocessable");
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn writes_of_a_batch_are_answered_one_by_one() {
    let (_server, client) = alone();
    run(async {
        let first = client.put("a", "1").await?.revision;
        assert!(client.batch().is_empty());
        let batch = client
            .batch()
            .put_if("a", "2", If::Revision(first))
            .put_if("a", "3", If::Absent)
            .delete_if("none", If::Exists)
            .op(&Op::put(b"\xff", b"\xfe").ttl(seconds(60)))
            .delete("a");
        assert_eq!(batch.len(), 5);
        let result = batch.send().await?;
        assert!(!result.is_done() && result.broken.is_none());
        let [put, refused_put, refused_delete, timed, deleted] = &result.done[..] else {
            panic!("{result:?}")
        };
        assert!(matches!(put, Done::Put { version: 2, create_revision, .. } if *create_revision == first));
        for refused in [refused_put, refused_delete] {
            assert!(matches!(refused, Done::Refused(why) if why.code == "precondition-failed"));
        }
        assert!(matches!(timed, Done::Put { version: 1, .. }));
        assert!(matches!(deleted, Done::Deleted { deleted: 1, .. }));
        let entry = client.get(b"\xff").await?.expect("it is there");
        assert!(entry.ttl.is_some() && &entry.value[..] == b"\xfe");

        // What cannot be read ends it, and says where.
        let wrong = Batch::put(client.batch(), "b", "1").op(&Op::get("b")).put("c", "1");
        let result = wrong.send().await?;
        assert_eq!((result.done.len(), result.sent, result.is_done()), (2, 3, false));
        assert!(matches!(&result.done[1], Done::Refused(why) if why.code == "bad-request"));
        assert_eq!(client.get("c").await?, None);
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn leases_end_when_nobody_keeps_them() {
    let (_server, client) = alone();
    run(async {
        let lease = client.grant(seconds(60)).await?;
        assert_eq!(lease.ttl, Some(seconds(60)));
        assert_eq!(client.grant_as(7, seconds(30)).await?.id, 7);
        refused(client.grant_as(7, seconds(30)).await, "conflict");
        client.put(b"\xffk", "v").lease(7).await?;
        client.put("k", "v").lease(7).await?;
        let info = client.lease(7).await?.expect("it is there");
        assert_eq!((info.id, info.ttl, info.keys), (7, seconds(30), 2));
        assert_eq!(info.attached.expect("asked for"), ["k".as_bytes(), b"\xffk"]);
        assert!(info.left <= seconds(30));
        assert_eq!(client.keep_alive(7).await?.ttl, Some(seconds(30)));
        let kept = client.keep_all_alive(&[7, 8, lease.id]).await?;
        let alive: Vec<_> = kept.iter().map(|it| (it.id, it.ttl.is_some())).collect();
        assert_eq!(alive, [(7, true), (8, false), (lease.id, true)]);
        let page = client.leases(0, 1).await?;
        assert_eq!((page.leases.len(), page.more), (1, true));
        let rest = client.leases(page.next.expect("there is more"), 10).await?;
        assert_eq!((rest.leases.len(), rest.more), (1, false));
        assert_eq!(client.revoke(7).await?.deleted, 2);
        assert_eq!(client.lease(7).await?, None);
        assert_eq!(client.get("k").await?, None);
        refused(client.revoke(7).await, "not-found");
        refused(client.keep_alive(7).await, "not-found");

        // A session outlives its time to live, and knows when it is over.
        let session = client.session(seconds(1)).await?;
        let mut ends = client.watch().key("worker").start().await?;
        client.put("worker", "here").lease(session.lease()).await?;
        assert_eq!(ends.next().await?.changes[0].kind, ChangeKind::Put);
        let outlived = tokio::time::timeout(seconds(3), ends.next()).await;
        assert!(outlived.is_err() && session.is_alive(), "{outlived:?}");
        client.revoke(session.lease()).await?;
        session.lost().await;
        assert!(!session.is_alive());
        session.end().await?;
        let other = client.session(seconds(30)).await?;
        let id = other.lease();
        other.end().await?;
        assert_eq!(client.lease(id).await?, None);
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn a_lock_fences_who_held_it_before() {
    let (_server, client) = alone();
    run(async {
        assert_eq!(client.lock_info("jobs").await?, None);
        let named = |owner: &str| LockOptions { owner: Some(owner.into()), ..Default::default() };
        let first = client.lock("jobs", &named("first")).await?;
        assert_eq!((&first.name[..], &first.owner[..]), (&b"jobs"[..], "first"));
        let problem = refused(client.lock("jobs", &named("second")).await, "conflict");
        assert!(problem.detail.contains("first"), "{}", problem.detail);

        let session = client.session(seconds(30)).await?;
        let waits = LockOptions {
            lease: Some(session.lease()),
            wait: Some(seconds(30)),
            ..named("second")
        };
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.lock("jobs", &waits).await }
        });
        let queue = loop {
            let info = client.lock_info("jobs").await?.expect("it is held");
            assert_eq!(info.holder, first);
            if info.queue > 0 {
                break info.waiting;
            }
        };
        assert_eq!((&queue[0].owner[..], queue[0].lease), ("second", session.lease()));
        let fenced = client.fenced("jobs", first.token);
        fenced.put("jobs/last", "1").await?;
        client.unlock(&first).await?;
        let second = waiting.await.expect("no panic")?;
        assert!(second.token > first.token);
        refused(fenced.put("jobs/last", "late").await, "precondition-failed");
        refused(fenced.txn().then(Op::put("x", "late")).commit().await, "precondition-failed");
        refused(fenced.delete_prefix("jobs/").await, "precondition-failed");
        assert_eq!(fenced.get("jobs/last").await?.expect("it is there").value, "1", "who reads");
        let late = fenced.batch().put("x", "late").send().await?;
        assert!(
            matches!(&late.done[..], [Done::Refused(why)] if why.code == "precondition-failed")
        );
        client.unlock(&first).await?;

        let odd = client.lock(b"\xff lock", &LockOptions::default()).await?;
        client.fenced(b"\xff lock", odd.token).put("y", "1").await?;
        let all = client.locks("", 10).await?.locks;
        assert_eq!(all, [second.clone(), odd.clone()]);
        assert_eq!(client.locks("jobs", 10).await?.locks, std::slice::from_ref(&odd));
        client.give_up(b"\xff lock", odd.ticket).await?;
        refused(client.give_up(b"\xff lock", odd.ticket).await, "not-found");
        session.end().await?;
        assert_eq!(client.lock_info("jobs").await?, None, "its lease is over");
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn watches_tell_what_was_asked_for() {
    let (_server, client) = alone();
    run(async {
        let start = client.put("a/1", "old").content_type("text/plain").await?.revision;
        let request = client.watch().prefix("a/").key(b"\xff");
        let mut watch = request.clone().with_prev().start().await?;
        let mut keys = request.clone().keys_only().start().await?;
        let mut past = request.after(start - 1).with_progress().start().await?;
        assert_eq!(watch.revision(), start);
        let two = client.put("a/1", "new").await?.revision;
        client.put("b", "not watched").await?;
        let txn = client.txn().then(Op::put(b"\xff", b"\xfe")).then(Op::delete("a/1"));
        let three = txn.commit().await?.revision;

        let event = watch.next().await?;
        assert_eq!((event.revision, event.changes.len()), (two, 1));
        let change = &event.changes[0];
        assert_eq!((change.kind, &change.value[..]), (ChangeKind::Put, &b"new"[..]));
        assert_eq!((change.version, change.create_revision), (Some(2), Some(start)));
        let prev = change.prev.as_ref().expect("it was asked for");
        assert_eq!((&prev.key[..], &prev.value[..]), (&b"a/1"[..], &b"old"[..]));
        assert_eq!((&prev.content_type[..], prev.mod_revision), ("text/plain", start));
        let event = watch.next().await?;
        let seen: Vec<_> = event.changes.iter().map(|it| (it.kind, &it.key[..])).collect();
        assert_eq!(seen, [(ChangeKind::Put, &b"\xff"[..]), (ChangeKind::Delete, &b"a/1"[..])]);
        assert_eq!((event.revision, watch.revision()), (three, three));

        let told = keys.next().await?;
        assert!(told.changes[0].value.is_empty() && told.changes[0].prev.is_none());
        let told: Vec<Event> = [past.next().await?, past.next().await?, past.next().await?].into();
        let told: Vec<_> = told.iter().filter(|event| !event.changes.is_empty()).collect();
        assert_eq!(
            told.iter().map(|event| event.revision).take(2).collect::<Vec<_>>(),
            [start, two]
        );
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn a_watch_of_what_is_forgotten_is_refused() {
    let mut config = Config::default();
    config.storage.history = 10;
    let server = Server::start(config);
    let client = Client::new([format!("http://{}", server.address)]).expect("a URL");
    run(async {
        let first = client.put("k", "").await?.revision;
        let problem = loop {
            client.put("k", "").await?;
            match client.get("k").at_revision(first).await {
                Ok(_) => {}
                answer @ Err(_) => break refused(answer, "compacted"),
            }
        };
        let oldest = problem.oldest_revision.expect("it says so");
        assert!(oldest > first);
        let late = refused(client.watch().after(first).start().await, "compacted");
        assert!(late.oldest_revision >= Some(oldest));
        let list = client.list().at_revision(first).page().await;
        refused(list, "compacted");
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

#[test]
fn a_cluster_is_looked_at_and_changed() {
    let (_server, client) = alone();
    run(async {
        let written = client.put("k", "v").await?;
        let status = client.status().await?;
        assert_eq!((status.id, status.role, status.leader), (1, Role::Leader, Some(1)));
        assert!(status.last_log_index > 0 && status.alarms.is_empty(), "{status:?}");
        let leader = client.leader().await?;
        assert_eq!((leader.id, leader.term), (1, status.term));
        let members = client.members().await?;
        assert_eq!((members.cluster_id, members.members.len()), (status.cluster_id, 1));
        assert_eq!(members.members[0].url, leader.url);

        let gone = format!("http://127.0.0.1:{}", free_port());
        let joined = client.add_member(2, &gone).await?;
        let second = &joined.members[1];
        assert_eq!((second.id, &second.url, second.role), (2, &gone, Role::Learner));
        assert!(!second.voter);
        let moved = client.set_url(2, "http://127.0.0.1:9").await?;
        assert_eq!(moved.members[1].url, "http://127.0.0.1:9");
        refused(client.set_voter(2, true).await, "unprocessable");
        assert_eq!(client.remove_member(2).await?.members.len(), 1);
        refused(client.remove_member(2).await, "not-found");
        let same = client.set_members(&[(1, &leader.url)]).await?;
        assert_eq!(same.members.len(), 1);
        assert_eq!(client.transfer_leadership(Some(1)).await?.id, 1);

        let compaction = client.compact().await?;
        assert!(compaction.after_bytes >= compaction.live_bytes);
        let scrub = client.scrub().await?;
        assert!(scrub.findings.is_empty() && scrub.log_bytes > 0);
        let changed = client.set_log_filter("mmapd::raft=trace", Some(seconds(60))).await?;
        assert_eq!(changed.filter, "info,mmapd::raft=trace");
        assert_eq!((&changed.configured[..], changed.remaining_ms), ("info", Some(60_000)));
        let now = client.log_filter().await?;
        assert!(now.filter == changed.filter && now.remaining_ms.is_some());
        refused(client.set_log_filter("loud", None).await, "bad-request");
        let back = client.set_log_filter("info", None).await?;
        assert_eq!((back.filter, back.remaining_ms), ("info".into(), None));
        let mut backup = client.backup().await?;
        assert!(backup.revision >= written.revision && !backup.digest.is_empty());
        let mut bytes = 0;
        while let Some(piece) = backup.next().await? {
            bytes += piece.len();
        }
        assert!(bytes > 0);
        Ok::<_, Error>(())
    })
    .expect("no refusal");
}

/// Somebody who takes requests and ends the connection before an answer, the first so many
/// times; then it answers as a server that wrote the key.
fn breaks_off(times: usize) -> (String, Arc<AtomicUsize>, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let asked = Arc::new(AtomicUsize::new(0));
    let same_name = Arc::new(AtomicBool::new(true));
    let (count, same) = (Arc::clone(&asked), Arc::clone(&same_name));
    std::thread::spawn(move || {
        let mut name = None;
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let (mut length, mut line) = (0, String::new());
            while stream.read_line(&mut line).expect("a head") > 2 {
                let (field, value) = line.split_once(':').unwrap_or_default();
                match field {
                    "content-length" => length = value.trim().parse().expect("a number"),
                    "idempotency-key" => {
                        let given = Some(value.trim().to_owned());
                        same.fetch_and(name.is_none() || name == given, Ordering::SeqCst);
                        name = given;
                    }
                    _ => {}
                }
                line.clear();
            }
            stream.read_exact(&mut vec![0; length]).expect("a body");
            if count.fetch_add(1, Ordering::SeqCst) >= times {
                let body = r#"{"revision":1,"create_revision":1,"version":1,"created":true}"#;
                let answer =
                    format!("HTTP/1.1 201 x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.get_mut().write_all(answer.as_bytes()).expect("it reads");
            }
        }
    });
    (url, asked, same_name)
}

/// Somebody who answers with these pieces, each so many milliseconds after the one before, and
/// then is silent.
fn dribbles(pieces: &'static [(u64, &'static [u8])]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        let mut open = Vec::new();
        let (never, silence) = std::sync::mpsc::channel::<()>();
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let mut line = String::new();
            while stream.read_line(&mut line).expect("a head") > 2 {
                line.clear();
            }
            for (millis, piece) in pieces {
                let pause = Duration::from_millis(*millis);
                assert!(silence.recv_timeout(pause).is_err(), "nobody says anything");
                stream.get_mut().write_all(piece).expect("it reads");
            }
            open.push(stream);
        }
        drop(never);
    });
    url
}

#[test]
fn a_node_that_freezes_in_an_answer_is_left() {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nMmapd-Revision: 7\r\nContent-Length: 1000\r\n\r\n";
    let url = dribbles(&[(0, HEAD), (0, b"some of it")]);
    run(async {
        let quick = Client::builder([url]).silence(Duration::from_millis(200)).attempts(1);
        let client = quick.build().expect("a URL");
        let mut backup = client.backup().await.expect("it begins");
        assert_eq!(backup.revision, 7);
        assert_eq!(backup.next().await.expect("a piece").expect("there is more"), "some of it");
        let error = tokio::time::timeout(PATIENCE, backup.next()).await.expect("it does not hang");
        assert!(matches!(error, Err(Error::Broken(_))), "{error:?}");
        let mut lines = client.list().lines().await.expect("it begins");
        let error = tokio::time::timeout(PATIENCE, lines.next()).await.expect("it does not hang");
        assert!(matches!(error, Err(Error::Broken(_))), "{error:?}");
    });
}

/// What is long may take longer, as long as something comes.
#[test]
fn an_attempt_has_time_for_its_body() {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nETag: \"7\"\r\nContent-Length: 1000001\r\n\r\n";
    const MOST: &[u8] = &[b'x'; 1_000_000];
    let url = dribbles(&[(0, HEAD), (0, MOST), (1500, b"y")]);
    run(async {
        // A second more than that is given without a body.
        let builder = Client::builder([url.clone()]).timeout(Duration::from_millis(100));
        let client = builder.attempts(1).build().expect("a URL");
        let value = client.get("k").raw().await.expect("it is long").expect("it is there");
        assert_eq!(value.bytes.len(), 1_000_001);
        // Who is alone is waited for, if that is wished for.
        let slow = dribbles(&[(1800, HEAD)]);
        let ask = |patience| {
            let builder = Client::builder([slow.clone()]).timeout(Duration::from_millis(100));
            builder.patience(patience).attempts(1).build().expect("a URL")
        };
        assert!(ask(Duration::ZERO).backup().await.is_err());
        let late = ask(PATIENCE).list().lines().await;
        assert!(late.is_ok(), "{late:?}");
    });
}

#[test]
fn only_what_has_a_name_is_sent_again_when_its_outcome_is_unknown() {
    run(async {
        let (url, asked, same) = breaks_off(2);
        let quick = || Client::builder([url.clone()]).pause(Duration::from_millis(1));
        let client = quick().build().expect("a URL");
        assert_eq!(client.put("k", "v").await.expect("the third answer").revision, 1);
        assert_eq!((asked.load(Ordering::SeqCst), same.load(Ordering::SeqCst)), (3, true));

        let (url, asked, _) = breaks_off(9);
        let quick = || Client::builder([url.clone()]).pause(Duration::from_millis(1));
        let error = quick().unnamed().build().expect("a URL").put("k", "v").await;
        let error = error.expect_err("nobody answers");
        assert!(matches!(error, Error::Broken(_)), "{error}");
        assert_eq!((error.outcome(), asked.load(Ordering::SeqCst)), (Outcome::Unknown, 1));
        // The last word does not count when an earlier one left it open.
        let client = Client::builder([url, format!("http://127.0.0.1:{}", free_port())]);
        let client = client.pause(Duration::from_millis(1)).attempts(2).build().expect("URLs");
        let error = client.put("k", "v").await.expect_err("nobody answers");
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    });
}

#[test]
fn who_cannot_be_reached_changed_nothing() {
    run(async {
        let (_server, client) = alone();
        let gone = || format!("http://127.0.0.1:{}", free_port());
        let quick = Client::builder([gone(), gone()]).deadline(Duration::from_millis(200));
        let error = quick.build().expect("URLs").put("k", "v").await.expect_err("nobody is there");
        assert!(matches!(error, Error::Unreachable(_)), "{error}");
        assert_eq!(error.outcome(), Outcome::NotApplied);
        // Others are asked, at once.
        let url = client.leader().await.expect("it leads").url;
        let mixed = Client::builder([gone(), gone(), url]).attempts(3).build().expect("URLs");
        mixed.put("k", "v").await.expect("the third is there");
        mixed.put("k", "v").await.expect("and is asked first from now on");
    });
}

const WRITERS: usize = 4;

/// Counts what it is told of each writer's key until it is told of the end.
async fn count(mut watch: Watch) -> Result<[u64; WRITERS], Error> {
    let (mut counts, mut newest) = ([0; WRITERS], watch.revision());
    loop {
        let event = watch.next().await?;
        assert!(event.revision > newest, "{} after {newest}", event.revision);
        newest = event.revision;
        for change in event.changes {
            if change.key == "count/end" {
                return Ok(counts);
            }
            let writer = usize::from(change.key[change.key.len() - 1] - b'0');
            counts[writer] += 1;
            assert_eq!(change.version, Some(counts[writer]), "each once, in order");
        }
    }
}

/// Writes its key until it is stopped, and compares what it did with what the key says.
async fn write(
    client: Client,
    writer: usize,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
) -> Result<u64, Error> {
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        let written = client.put(format!("count/{writer}"), "").await?;
        count += 1;
        assert_eq!(written.version, count, "each write happens once");
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    Ok(count)
}

/// What is acknowledged happened once, says the version of the key. And who watches sees each
/// write once and in order, though its node is killed as well.
#[test]
fn leaders_are_killed_and_every_write_happens_once() {
    const ROUNDS: usize = 6;
    let mut cluster = Cluster::start(3, "");
    let urls = cluster.nodes.iter().map(|node| format!("http://{}", node.addr));
    let urls: Vec<String> = urls.collect();
    let client = |first: usize| {
        let urls = urls.iter().cycle().skip(first).take(urls.len());
        Client::new(urls.cloned()).expect("URLs")
    };
    let runtime = runtime();
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let watches = [0, 1, 2].map(|first| {
        let watch = runtime.block_on(client(first).watch().prefix("count/").start());
        runtime.spawn(count(watch.expect("a watch")))
    });
    let writers = [0, 1, 2, 3].map(|writer| {
        let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        runtime.spawn(write(client(writer), writer, stop, acknowledged))
    });
    let mut term = 0;
    for _ in 0..ROUNDS {
        let (leader, now) = cluster.leader_after(term);
        let goal = acknowledged.load(Ordering::SeqCst) + 100;
        wait("writes go on", || (acknowledged.load(Ordering::SeqCst) >= goal).then_some(()));
        cluster.nodes[leader].kill();
        term = now;
        cluster.leader_after(term);
        cluster.nodes[leader].start();
    }
    stop.store(true, Ordering::SeqCst);
    let counts = writers.map(|task| {
        let done: Result<Result<u64, Error>, _> = runtime.block_on(task);
        done.expect("no panic").expect("no write fails")
    });
    runtime.block_on(async { client(0).put("count/end", "").await }).expect("a last write");
    for watch in watches {
        let ended = runtime.block_on(async { tokio::time::timeout(PATIENCE, watch).await });
        let seen = ended.expect("in time").expect("no panic").expect("no watch fails");
        assert_eq!(seen, counts);
    }
    let total: u64 = counts.iter().sum();
    println!("{total} writes by {WRITERS} clients, {ROUNDS} leaders killed, each once");
}
