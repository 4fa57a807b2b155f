//! Listings of the past and in lines, ranges that are deleted, and batches, where a transcript
//! does not reach: against a model, in bulk, and while something else happens.

#[path = "support/http.rs"]
mod http;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use http::Server;
use mmapd::config::Config;
use mmapd::machine::DELETE_MAX;
use serde_json::{Value as Json, json};

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// One request, and its answer line by line, as it comes.
struct Stream {
    connection: BufReader<TcpStream>,
    /// Bytes of the answer that are no line yet.
    rest: Vec<u8>,
    over: bool,
}

impl Stream {
    /// Sends a head. A `POST` has a body in chunks.
    fn open(server: &Server, target: &str) -> Self {
        let mut stream = TcpStream::connect(server.address).expect("somebody listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        let body = if target.starts_with("POST") { "Transfer-Encoding: chunked\r\n" } else { "" };
        let head =
            format!("{target} HTTP/1.1\r\nHost: x\r\nAccept: application/x-ndjson\r\n{body}\r\n");
        stream.write_all(head.as_bytes()).expect("it reads");
        Self { connection: BufReader::new(stream), rest: Vec::new(), over: false }
    }

    fn send(&mut self, body: &str) {
        let chunk = format!("{:x}\r\n{body}\r\n", body.len());
        self.connection.get_mut().write_all(chunk.as_bytes()).expect("it reads");
    }

    fn finish(&mut self) {
        self.connection.get_mut().write_all(b"0\r\n\r\n").expect("it reads");
    }

    /// Reads the head, which must say 200.
    fn begin(mut self) -> Self {
        assert_eq!(self.text(), "HTTP/1.1 200 OK");
        while !self.text().is_empty() {}
        self
    }

    fn text(&mut self) -> String {
        let mut line = String::new();
        self.connection.read_line(&mut line).expect("more comes");
        line.truncate(line.trim_end().len());
        line
    }

    /// The next line; `None`: the answer ended as it should.
    fn line(&mut self) -> Option<Json> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a line is JSON"));
            }
            if self.over {
                assert!(self.rest.is_empty(), "half a line");
                return None;
            }
            let size = usize::from_str_radix(&self.text(), 16).expect("a chunk");
            let mut chunk = vec![0; size + 2];
            self.connection.read_exact(&mut chunk).expect("a whole chunk");
            self.rest.extend_from_slice(&chunk[..size]);
            self.over = size == 0;
        }
    }

    fn lines(mut self) -> Vec<Json> {
        std::iter::from_fn(|| self.line()).collect()
    }
}

/// All lines of a listing, and the last one.
fn listed(server: &Server, query: &str) -> (Vec<Json>, Json) {
    let mut lines = Stream::open(server, &format!("GET /v1/keys?{query}")).begin().lines();
    let last = lines.pop().expect("a last line");
    (lines, last)
}

/// Sends a whole batch and answers its lines; the last one is checked and left out.
fn batch(server: &Server, lines: &[Json]) -> Vec<Json> {
    let mut stream = Stream::open(server, "POST /v1/batch");
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    stream.send(&body);
    stream.finish();
    let mut answers = stream.begin().lines();
    let last = answers.pop().expect("a last line");
    let applied = answers.iter().filter(|answer| answer["outcome"].is_null()).count();
    assert_eq!(last, json!({"end": true, "lines": answers.len(), "applied": applied}));
    answers
}

fn put(key: &str, value: &str) -> Json {
    json!({"put": {"key": key, "value": value}})
}

/// Asks until it is so.
fn wait(what: &str, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "no {what}");
        std::thread::yield_now();
    }
}

/// Numbers that look like chance and are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        let at = self.below(list.len() as u64);
        list[usize::try_from(at).expect("below its length")]
    }

    fn key(&mut self) -> String {
        let key = self.pick(&["a", "b/", "b/c/", "b/d", "e//", "f"]);
        format!("{key}{}", self.below(4))
    }
}

type State = BTreeMap<String, String>;

/// What a listing of `state` shows: keys with their values, and groups.
fn expected(state: &State, prefix: &str, delimiter: bool, reverse: bool) -> Vec<(String, Json)> {
    let mut shown: Vec<(String, Json)> = Vec::new();
    for (key, value) in state.iter().filter(|(key, _)| key.starts_with(prefix)) {
        let group = key[prefix.len()..].find('/').filter(|_| delimiter);
        let line = match group {
            Some(at) => (key[..=prefix.len() + at].to_owned(), Json::Null),
            None => (key.clone(), value.as_str().into()),
        };
        if shown.last() != Some(&line) || line.1 != Json::Null {
            shown.push(line);
        }
    }
    if reverse {
        shown.reverse();
    }
    shown
}

fn shown(line: &Json) -> (String, Json) {
    let name = if line["key"].is_null() { &line["prefix"] } else { &line["key"] };
    (name.as_str().expect("a name").to_owned(), line["value"].clone())
}

/// The same by pages; before each page but the first `meanwhile` happens.
fn paged(server: &Server, query: &str, mut meanwhile: impl FnMut()) -> (u64, Vec<(String, Json)>) {
    let (mut all, mut cursor, mut revision) = (Vec::new(), String::new(), None);
    loop {
        let page = server.json(&format!("/v1/keys?{query}{cursor}"));
        let at = page["revision"].as_u64().expect("a revision");
        assert_eq!(*revision.get_or_insert(at), at, "all pages are of one revision");
        let mut here: Vec<_> = page["items"].as_array().expect("items").iter().map(shown).collect();
        let groups = page["prefixes"].as_array().expect("prefixes").iter();
        here.extend(groups.map(|group| (group.as_str().expect("text").to_owned(), Json::Null)));
        if !query.contains("order=desc") {
            here.sort_by(|one, other| one.0.cmp(&other.0));
        }
        all.extend(here);
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (at, all),
        }
        meanwhile();
    }
}

/// One write of chance, by whichever route, noted in the model.
fn write(server: &Server, chance: &mut Chance, states: &mut BTreeMap<u64, State>) {
    let mut state = states.last_key_value().map(|(_, state)| state.clone()).unwrap_or_default();
    let key = chance.key();
    let revision = match chance.below(10) {
        0 => {
            let prefix = &key[..1];
            let reply = server.ask("DELETE", &format!("/v1/keys?prefix={prefix}"));
            let answer: Json = serde_json::from_slice(&reply.body).expect("JSON");
            let before = state.len();
            state.retain(|key, _| !key.starts_with(prefix));
            assert_eq!(answer["deleted"], before - state.len());
            answer["revision"].clone()
        }
        1..=3 => {
            let answers = batch(server, &[json!({"delete": {"key": key}})]);
            assert_eq!(answers[0]["deleted"] == 1, state.remove(&key).is_some());
            answers[0]["revision"].clone()
        }
        _ => {
            let value = chance.below(1000).to_string();
            let keys = [key, chance.key()];
            let answers = batch(server, &keys.each_ref().map(|key| put(key, &value)));
            for (key, answer) in keys.into_iter().zip(&answers) {
                state.insert(key, value.clone());
                // Twice at the same revision, unless it is one key twice.
                states.insert(answer["revision"].as_u64().expect("a revision"), state.clone());
            }
            answers[1]["revision"].clone()
        }
    };
    states.insert(revision.as_u64().expect("a revision"), state);
}

#[test]
fn the_past_is_listed_as_a_model_remembers_it() {
    let server = Server::start(Config::default());
    let (mut chance, mut states) = (Chance(7), BTreeMap::from([(0, State::new())]));
    for _ in 0..60 {
        write(&server, &mut chance, &mut states);
    }
    let past: Vec<u64> = states.keys().copied().collect();
    for round in 0..200 {
        let prefix = chance.pick(&["", "b/", "b/c", "e/", "nothing"]);
        let (delimiter, reverse) = chance.pick(&[(false, false), (false, true), (true, false)]);
        let asked = chance.pick(&past);
        // Revisions without a change show the one before.
        let gap = asked + chance.below(2).min(past[past.len() - 1] - asked);
        let revision = if states.contains_key(&gap) { asked } else { gap };
        let mut query = format!("prefix={prefix}&order={}", if reverse { "desc" } else { "asc" });
        query += if delimiter { "&delimiter=/" } else { "" };
        let (_, state) = states.range(..=revision).next_back().expect("0 is there");
        let want = expected(state, prefix, delimiter, reverse);
        let count = state.keys().filter(|key| key.starts_with(prefix)).count();

        let then = format!("{query}&revision={revision}");
        let (lines, last) = listed(&server, &then);
        assert_eq!(lines.iter().map(shown).collect::<Vec<_>>(), want, "{round}: {then}");
        assert_eq!(last, json!({"end": true, "revision": revision, "count": want.len()}));
        let limit = 1 + chance.below(4);
        assert_eq!(
            paged(&server, &format!("{then}&limit={limit}"), || ()),
            (revision, want),
            "{round}: {then}"
        );
        let counted =
            server.json(&format!("/v1/keys?prefix={prefix}&count_only&revision={revision}"));
        assert_eq!(counted["count"], count);

        // Now, with writes between the pages.
        let (newest, state) = states.last_key_value().expect("0 is there");
        let (newest, want) = (*newest, expected(state, prefix, delimiter, reverse));
        let now = format!("{query}&limit={limit}");
        let got = paged(&server, &now, || write(&server, &mut chance, &mut states));
        assert_eq!(got, (newest, want), "{round}: {now}");
    }
}

#[test]
fn writes_of_a_batch_happen_in_their_order() {
    let server = Server::start(Config::default());
    let (mut chance, mut state) = (Chance(11), State::new());
    for round in 0..30 {
        let (mut lines, mut want) = (Vec::new(), Vec::new());
        for _ in 0..chance.below(700) {
            // Few keys repeat at once, many fill entries.
            let key =
                if round % 2 == 0 { chance.key() } else { format!("n{}", chance.below(5000)) };
            let (tag, there) =
                (chance.pick(&["", "if_match", "if_none_match"]), state.contains_key(&key));
            let holds = match tag {
                "if_match" => there,
                "if_none_match" => !there,
                _ => true,
            };
            let value = chance.below(1000).to_string();
            let (kind, done) = if chance.below(3) == 0 {
                ("delete", 200)
            } else {
                ("put", if there { 200 } else { 201 })
            };
            let mut write = json!({"key": key});
            if !tag.is_empty() {
                write[tag] = "*".into();
            }
            want.push(if holds { done } else { 412 });
            match kind {
                "delete" if holds => drop(state.remove(&key)),
                "put" => {
                    write["value"] = value.as_str().into();
                    if holds {
                        state.insert(key, value);
                    }
                }
                _ => {}
            }
            lines.push(json!({kind: write}));
        }
        let answers = batch(&server, &lines);
        let got: Vec<u64> =
            answers.iter().map(|it| it["status"].as_u64().expect("a status")).collect();
        assert_eq!(got, want);
        assert!(answers.iter().zip(1..).all(|(it, line)| it["line"] == line));
        let revisions: Vec<u64> = answers.iter().filter_map(|it| it["revision"].as_u64()).collect();
        assert!(revisions.is_sorted());
        let puts = answers.iter().filter(|it| it["version"].is_u64()).map(|it| &it["revision"]);
        let puts: Vec<&Json> = puts.collect();
        assert!(puts.chunk_by(|one, other| one == other).all(|entry| entry.len() <= 256));
    }
    let (lines, _) = listed(&server, "");
    assert_eq!(lines.iter().map(shown).collect::<Vec<_>>(), expected(&state, "", false, false));
}

#[test]
fn a_batch_is_answered_while_it_is_sent() {
    let server = Server::start(Config::default());
    let mut stream = Stream::open(&server, "POST /v1/batch");
    stream.send(&format!("{}\n", put("a", "1")));
    let mut stream = stream.begin();
    assert_eq!(stream.line().expect("an answer")["status"], 201);
    stream.send("{\"put\":");
    stream.send("{\"key\":\"a\",\"value\":\"2\"}}\n{\"delete\":{\"key\":\"a\"}}\n");
    assert_eq!(stream.line().expect("an answer")["version"], 2);
    assert_eq!(stream.line().expect("an answer")["deleted"], 1);
    // A node that stops does not wait for what may never come.
    server.handle.end_streams();
    let refused = stream.line().expect("an answer");
    assert_eq!((&refused["line"], &refused["code"]), (&4.into(), &"draining".into()));
    assert_eq!(stream.line(), Some(json!({"end": true, "lines": 4, "applied": 3})));
}

#[test]
fn what_follows_the_end_of_a_batch_does_not_hide_it() {
    let server = Server::start(Config::default());
    let mut stream = Stream::open(&server, "POST /v1/batch");
    stream.send("nonsense\n");
    for n in 0..2000 {
        stream.send(&format!("{}\n", put(&format!("never/{n}"), &"x".repeat(1000))));
    }
    stream.finish();
    let lines = stream.begin().lines();
    assert_eq!((lines.len(), &lines[0]["status"]), (2, &400.into()), "{lines:?}");
    assert_eq!(listed(&server, "").0, Vec::<Json>::new());
}

#[test]
fn no_more_keys_are_deleted_at_once_than_a_node_can_bear() {
    let server = Server::start(Config::default());
    let lines: Vec<Json> = (0..=DELETE_MAX).map(|n| put(&format!("k{n:06}"), "")).collect();
    for part in lines.chunks(20_000) {
        assert!(batch(&server, part).iter().all(|answer| answer["status"] == 201));
    }
    let delete = |query: &str| {
        let reply = server.ask("DELETE", &format!("/v1/keys?{query}"));
        (reply.status(), serde_json::from_slice::<Json>(&reply.body).expect("JSON"))
    };
    let before = server.json("/v1/keys?count_only");
    for query in ["prefix=k", "start=k&end=l", "all=true"] {
        let (status, problem) = delete(query);
        assert_eq!((status, &problem["code"]), (422, &"unprocessable".into()), "{query}");
        assert_eq!(
            (&problem["limit"], &problem["actual"]),
            (&DELETE_MAX.into(), &(DELETE_MAX + 1).into())
        );
    }
    assert_eq!(server.json("/v1/keys?count_only"), before);
    let (keys, last) = listed(&server, "keys_only");
    assert_eq!((keys.len() as u64, &last["count"]), (DELETE_MAX + 1, &(DELETE_MAX + 1).into()));
    assert!(keys.is_sorted_by(|one, other| one["key"].as_str() < other["key"].as_str()));
    assert_eq!(delete("prefix=k000000").1["deleted"], 1);
    assert_eq!(delete("prefix=k").1["deleted"], DELETE_MAX);
    assert_eq!(listed(&server, "").0, Vec::<Json>::new());
}

/// A store with more in it than connections hold on the way.
fn filled(config: Config) -> Server {
    let server = Server::start(config);
    let value = "x".repeat(1 << 20);
    for n in 0..48 {
        assert_eq!(batch(&server, &[put(&format!("big/{n:02}"), &value)])[0]["status"], 201);
    }
    server
}

/// The lines that are left: items without a gap, and then the last one.
fn rest(stream: Stream) -> Json {
    let mut lines = stream.lines();
    let last = lines.pop().expect("a last line");
    for (line, n) in lines.iter().zip(1..) {
        assert_eq!(line["key"], format!("big/{n:02}"));
        assert_eq!(line["version"], 1, "as it was");
    }
    assert!(lines.len() < 47, "it was cut off");
    last
}

#[test]
fn a_listing_whose_revision_is_gone_says_so() {
    let mut config = Config::default();
    config.storage.history = 200;
    let server = filled(config);
    let page = server.json("/v1/keys?limit=1&keys_only");
    let (revision, next) = (&page["revision"], page["next"].as_str().expect("a cursor"));
    let mut stream = Stream::open(&server, "GET /v1/keys").begin();
    assert_eq!(stream.line().expect("an item")["key"], "big/00");
    let past = format!("/v1/keys?keys_only&revision={revision}");
    wait("end of the history", || {
        let lines: Vec<Json> = (0..100).map(|n| put(&format!("big/{n:02}"), "new")).collect();
        batch(&server, &lines);
        server.ask("GET", &past).status() == 410
    });
    let last = rest(stream);
    assert_eq!(last["error"]["code"], "compacted", "{last}");
    assert!(last["error"]["oldest_revision"].as_u64() > revision.as_u64());
    assert!(last["error"]["request_id"].as_str().is_some_and(|id| !id.is_empty()));
    for query in [format!("limit=1&cursor={next}"), format!("count_only&revision={revision}")] {
        let reply = server.ask("GET", &format!("/v1/keys?{query}"));
        let problem: Json = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!((reply.status(), &problem["code"]), (410, &"compacted".into()), "{query}");
        assert!(problem["oldest_revision"].as_u64() > revision.as_u64());
    }
}

#[test]
fn a_node_that_drains_ends_its_listings() {
    let server = filled(Config::default());
    let mut stream = Stream::open(&server, "GET /v1/keys").begin();
    assert_eq!(stream.line().expect("an item")["key"], "big/00");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(server.handle.drain());
    let last = rest(stream);
    assert_eq!(
        (&last["error"]["code"], &last["error"]["status"]),
        (&"draining".into(), &503.into())
    );
}
