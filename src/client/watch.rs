//! Watches that go on at another node when theirs goes away, without a gap and without a
//! duplicate.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use reqwest::{Method, Response};
use serde::Deserialize;

use super::error::Error;
use super::transport::{Call, Client, Kind};
use super::types::{Change, RawChange};

/// What is watched.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    client: Client,
    call: Call,
    after: Option<u64>,
}

/// All that one revision changed of what is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The revision.
    pub revision: u64,
    /// Its changes in their order.
    pub changes: Vec<Change>,
}

impl Client {
    /// A watch of nothing yet: name keys or prefixes, or everything is watched.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// let mut watch = client.watch().prefix("users/").start();
    /// while let Some(event) = watch.next().await? {
    ///     for change in event.changes {
    ///         println!("{} {:?} {:?}", event.revision, change.kind, change.key);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn watch(&self) -> WatchRequest {
        let call = Call::new(Method::GET, "/v1/watch", Kind::Repeatable);
        let call = call.header("accept", "text/event-stream");
        WatchRequest { client: self.clone(), call, after: None }
    }
}

impl WatchRequest {
    /// Keys that begin so.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.call = self.call.query("prefix", prefix.as_ref());
        self
    }

    /// One key.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.call = self.call.query("key", key.as_ref());
        self
    }

    /// With what was there before.
    #[must_use]
    pub fn with_prev(mut self) -> Self {
        self.call = self.call.query("prev", b"true");
        self
    }

    /// From the change after that revision on, instead of from now on.
    #[must_use]
    pub fn after(mut self, revision: u64) -> Self {
        self.after = Some(revision);
        self
    }

    /// Begins, when the first event is asked for.
    #[must_use]
    pub fn start(self) -> Watch {
        let Self { client, call, after } = self;
        let parser = Parser::default();
        Watch { client, call, after, stream: None, parser, failures: 0 }
    }
}

/// A watch under way. Keep [`Watch::revision`] to go on in another process.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    call: Call,
    /// The newest revision that is known to be told.
    after: Option<u64>,
    stream: Option<Response>,
    parser: Parser,
    /// Connections in a row that brought nothing.
    failures: u32,
}

/// Connections in a row that bring nothing before a watch gives up.
const FAILURES_MAX: u32 = 20;

impl Watch {
    /// Everything up to this revision was told; `None`: nothing yet.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.after
    }

    /// The next revision that changes something that is watched. It waits as long as that
    /// takes, and connects anew as often as needed.
    ///
    /// # Errors
    /// See [`Error`]; `compacted` when the watch is so far behind that the history does not
    /// reach back to it.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            while let Some(message) = self.parser.next() {
                self.failures = 0;
                if let Some(event) = self.take(&message)? {
                    return Ok(Some(event));
                }
            }
            let Some(stream) = &mut self.stream else {
                self.connect().await?;
                continue;
            };
            match stream.chunk().await {
                Ok(Some(bytes)) => self.parser.push(&bytes),
                Ok(None) | Err(_) => self.stream = None,
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Error> {
        if self.failures > 0 {
            tokio::time::sleep(Duration::from_millis(50) * self.failures.min(20)).await;
        }
        self.failures += 1;
        let mut call = self.call.clone();
        if let Some(after) = self.after {
            call = call.header("last-event-id", after.to_string());
        }
        self.parser = Parser::default();
        match self.client.send(call).await {
            Ok(stream) if self.failures <= FAILURES_MAX => self.stream = Some(stream),
            Ok(_) => return Err(Error::Unreachable("no watch lasts".into())),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What a message means.
    fn take(&mut self, message: &Message) -> Result<Option<Event>, Error> {
        #[derive(Deserialize)]
        struct Raw {
            revision: u64,
            events: Vec<RawChange>,
        }
        let seen = message.id.as_ref().and_then(|id| id.parse().ok());
        if message.event != "change" {
            // `progress` says how far it is; `draining` and `lagged` end the stream.
            if message.event == "progress" {
                self.after = seen.or(self.after);
            }
            return Ok(None);
        }
        let raw: Raw = serde_json::from_str(&message.data)
            .map_err(|error| Error::Unexpected(format!("a watch's message: {error}")))?;
        let changes = raw.events.into_iter().map(|change| change.read(None, raw.revision));
        let event = Event { revision: raw.revision, changes: changes.collect::<Result<_, _>>()? };
        self.after = Some(raw.revision);
        Ok(Some(event))
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
    message: Message,
    ready: VecDeque<Message>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(end + 1);
            let line = String::from_utf8_lossy(&line);
            self.line(line.trim_end_matches(['\r', '\n']));
        }
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
