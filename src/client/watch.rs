//! Watches that go on at another node when theirs goes away, without a gap and without a
//! duplicate.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use reqwest::Method;
use serde::Deserialize;

use super::body::Body;
use super::error::Error;
use super::history::{Change, RawChange};
use super::transport::{Call, Client, Kind};

/// What is watched; [`WatchRequest::start`] begins.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    client: Client,
    call: Call,
    after: Option<u64>,
    progress: bool,
}

/// All that one revision changed of what is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision.
    pub revision: u64,
    /// Its changes in their order; none if this only says how far the watch is.
    pub changes: Vec<Change>,
}

impl Client {
    /// A watch of nothing yet: name keys or prefixes, or everything is watched.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// let users = client.list().prefix("users/").page().await?;
    /// let mut watch = client.watch().prefix("users/").after(users.revision).start().await?;
    /// loop {
    ///     let event = watch.next().await?;
    ///     for change in event.changes {
    ///         println!("{} {:?} {:?}", event.revision, change.kind, change.key);
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn watch(&self) -> WatchRequest {
        let call = Call::new(Method::GET, "/v1/watch", Kind::Read);
        let call = call.header("accept", "text/event-stream");
        WatchRequest { client: self.clone(), call, after: None, progress: false }
    }
}

impl WatchRequest {
    /// Keys that begin so; may be given often.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.call = self.call.query("prefix", prefix);
        self
    }

    /// One key; may be given often.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.call = self.call.query("key", key);
        self
    }

    /// With what was there before.
    #[must_use]
    pub fn with_prev(mut self) -> Self {
        self.call = self.call.query("prev", "true");
        self
    }

    /// Without values.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.call = self.call.query("keys_only", "true");
        self
    }

    /// With events without changes, that say up to which revision everything was told.
    #[must_use]
    pub fn with_progress(mut self) -> Self {
        self.progress = true;
        self
    }

    /// From the change after that revision on, instead of from now on.
    #[must_use]
    pub fn after(mut self, revision: u64) -> Self {
        self.after = Some(revision);
        self
    }

    /// Begins: all that is acknowledged after this returns will be told, and all after the
    /// revision that was given.
    ///
    /// # Errors
    /// See [`Error`]; `compacted` when the history does not reach back to that revision.
    pub async fn start(self) -> Result<Watch, Error> {
        let Self { client, call, after, progress } = self;
        let mut watch = Watch { client, call, progress, after, stream: None, failures: 0 };
        while watch.stream.is_none() || watch.after.is_none() {
            // The first message says where it begins, so that it can go on elsewhere.
            watch.step().await?;
        }
        Ok(watch)
    }
}

/// A watch under way. Keep [`Watch::revision`] to go on in another process.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    call: Call,
    progress: bool,
    /// The newest revision that is known to be told.
    after: Option<u64>,
    stream: Option<Stream>,
    /// Connections in a row that brought nothing.
    failures: u32,
}

/// An answer that goes on.
#[derive(Debug)]
struct Stream {
    body: Body,
    parser: Parser,
    /// Who sends it.
    turn: usize,
}

/// Connections in a row that bring nothing before a watch gives up.
const FAILURES_MAX: u32 = 20;
/// The pause before the second of them; each further one is longer by as much.
const PAUSE: Duration = Duration::from_millis(50);

impl Watch {
    /// Everything up to this revision was told.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.after.unwrap_or_default()
    }

    /// The next revision that changes something that is watched. It waits as long as that
    /// takes, and goes to other nodes as often as needed. Nothing is lost when it is dropped
    /// before it is done.
    ///
    /// # Errors
    /// See [`Error`]; `compacted` when the watch is so far behind that the history does not
    /// reach back to it: list what is watched, and begin after the revision of the listing.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.step().await? {
                return Ok(event);
            }
        }
    }

    /// Takes a message, or some bytes, or connects.
    async fn step(&mut self) -> Result<Option<Event>, Error> {
        let Some(stream) = &mut self.stream else {
            self.connect().await?;
            return Ok(None);
        };
        if let Some(message) = stream.parser.next() {
            self.failures = 0;
            return self.take(&message);
        }
        match stream.body.next().await {
            Ok(Some(bytes)) => stream.parser.push(&bytes),
            // It ended, it broke, or there was not even a sign of life.
            Ok(None) | Err(_) => {
                let turn = stream.turn;
                self.client.leave(turn);
                self.stream = None;
            }
        }
        Ok(None)
    }

    async fn connect(&mut self) -> Result<(), Error> {
        if self.failures >= FAILURES_MAX {
            return Err(Error::Broken("no watch lasts".into()));
        }
        if self.failures > 0 {
            tokio::time::sleep(PAUSE * self.failures).await;
        }
        self.failures += 1;
        let mut call = self.call.clone();
        if let Some(after) = self.after {
            call = call.header("last-event-id", after.to_string());
        }
        let answer = self.client.stream(call).await?;
        let parser = Parser::default();
        self.stream = answer.rest.map(|body| Stream { body, parser, turn: answer.turn });
        Ok(())
    }

    /// What a message means.
    fn take(&mut self, message: &Message) -> Result<Option<Event>, Error> {
        #[derive(Deserialize)]
        struct Raw {
            revision: u64,
            events: Vec<RawChange>,
        }
        match message.event.as_str() {
            "change" => {
                let raw: Raw = serde_json::from_str(&message.data)
                    .map_err(|error| Error::Unexpected(format!("a watch's message: {error}")))?;
                let changes = raw.events.into_iter().map(|change| change.read(None));
                let changes = changes.collect::<Result<_, _>>()?;
                self.after = Some(raw.revision);
                Ok(Some(Event { revision: raw.revision, changes }))
            }
            "progress" => {
                let seen = message.id.as_ref().and_then(|id| id.parse().ok());
                self.after = seen.or(self.after);
                let told = self.progress.then_some(self.after).flatten();
                Ok(told.map(|revision| Event { revision, changes: Vec::new() }))
            }
            // `draining` and `lagged` end the stream. After `lagged` the next answer is 410,
            // which says it better.
            _ => Ok(None),
        }
    }
}

/// One message of a stream of server-sent events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Message {
    id: Option<String>,
    event: String,
    data: String,
}

/// Takes such a stream apart, as the HTML standard says (9.2.6).
#[derive(Debug, Default)]
struct Parser {
    buffer: BytesMut,
    /// Of the buffer, so much has no end of a line in it.
    seen: usize,
    message: Message,
    ready: VecDeque<Message>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        while let Some(at) = self.buffer[self.seen..].iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(self.seen + at + 1);
            self.seen = 0;
            let line = String::from_utf8_lossy(&line);
            self.line(line.trim_end_matches(['\r', '\n']));
        }
        self.seen = self.buffer.len();
    }

    fn line(&mut self, line: &str) {
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            if !message.event.is_empty() || !message.data.is_empty() {
                self.ready.push_back(message);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.message.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.message.event),
            "data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            _ => {}
        }
    }

    fn next(&mut self) -> Option<Message> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_apart_wherever_the_stream_is_cut() {
        let text = ": hello\nretry: 1000\n\nid: 7\nevent: change\ndata: {\"a\":\ndata: 1}\n\n\
                    event: progress\r\nid: 8\r\ndata: {}\r\n\r\nid: 9\n";
        let message = |id: &str, event: &str, data: &str| Message {
            id: Some(id.into()),
            event: event.into(),
            data: data.into(),
        };
        let want = [message("7", "change", "{\"a\":\n1}"), message("8", "progress", "{}")];
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            parser.push(&text.as_bytes()[..cut]);
            parser.push(&text.as_bytes()[cut..]);
            let got: Vec<Message> = std::iter::from_fn(|| parser.next()).collect();
            assert_eq!(got, want, "cut at {cut}");
        }
    }
}
