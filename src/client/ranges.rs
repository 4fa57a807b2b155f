//! Ranges of keys: list and remove.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use reqwest::Method;
use serde::Deserialize;

use super::body::Body;
use super::error::{Error, Problem};
use super::keys::Answer;
use super::transport::{Call, Client, Kind};
use super::types::{Consistency, Deleted, Entry, RawEntry, bytes_of};

/// One page of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Page {
    /// The revision that the listing is of: the same on all its pages.
    pub revision: u64,
    /// Keys in order.
    pub items: Vec<Entry>,
    /// Groups of keys that share everything up to the delimiter; those that are no UTF-8 in
    /// base64 ([`List::lines`] tells which).
    #[serde(default)]
    pub prefixes: Vec<String>,
    /// Items and prefixes of this page, or all keys of the range when only that was asked for.
    pub count: u64,
    /// Is there more?
    pub more: bool,
    /// The cursor of the next page.
    pub next: Option<String>,
}

impl Client {
    /// Lists keys in order: a page, key by key over all pages, or as one stream.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// let first = client.list().prefix("users/").limit(100).page().await?;
    /// println!("{} of revision {}", first.items.len(), first.revision);
    ///
    /// let mut all = client.list().prefix("users/").items();
    /// while let Some(entry) = all.next().await? {
    ///     println!("{:?} = {:?}", entry.key, entry.value);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn list(&self) -> List {
        let call = Call::new(Method::GET, "/v1/keys", Kind::Read);
        List { client: self.clone(), call }
    }

    /// Removes all keys that begin with `prefix`, which must not be empty, at one revision.
    #[must_use]
    pub fn delete_prefix(&self, prefix: impl AsRef<[u8]>) -> Erase {
        self.erase(|call| call.query("prefix", prefix))
    }

    /// Removes all keys from `start` up to, and without, `end`, at one revision.
    #[must_use]
    pub fn delete_range(&self, start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Erase {
        self.erase(|call| call.query("start", start).query("end", end))
    }

    /// Removes everything, at one revision.
    #[must_use]
    pub fn delete_all(&self) -> Erase {
        self.erase(|call| call.query("all", "true"))
    }

    fn erase(&self, with: impl FnOnce(Call) -> Call) -> Erase {
        let call = with(Call::new(Method::DELETE, "/v1/keys", Kind::Write));
        Erase { client: self.clone(), call }
    }
}

/// A removal of a range; `.await` sends it.
#[derive(Clone, Debug)]
pub struct Erase {
    client: Client,
    call: Call,
}

impl Erase {
    /// A name of one's own for this write, so that another process can ask for it again.
    #[must_use]
    pub fn idempotency_key(mut self, name: impl Into<String>) -> Self {
        self.call = self.call.header("idempotency-key", name);
        self
    }
}

impl IntoFuture for Erase {
    type Output = Result<Deleted, Error>;
    type IntoFuture = Answer<Deleted>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.json(self.call).await })
    }
}

/// A listing.
#[derive(Clone, Debug)]
pub struct List {
    client: Client,
    call: Call,
}

impl List {
    fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.call = self.call.query(name, value);
        self
    }

    /// Only keys that begin so.
    #[must_use]
    pub fn prefix(self, prefix: impl AsRef<[u8]>) -> Self {
        self.with("prefix", prefix)
    }

    /// Only keys from `start` up to, and without, `end`.
    #[must_use]
    pub fn range(self, start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Self {
        self.with("start", start).with("end", end)
    }

    /// Groups keys by what lies between the prefix and this.
    #[must_use]
    pub fn delimiter(self, delimiter: impl AsRef<[u8]>) -> Self {
        self.with("delimiter", delimiter)
    }

    /// At most so many on a page, or as lines in all.
    #[must_use]
    pub fn limit(self, limit: u64) -> Self {
        self.with("limit", limit.to_string())
    }

    /// From the last key to the first.
    #[must_use]
    pub fn descending(self) -> Self {
        self.with("order", "desc")
    }

    /// Without values.
    #[must_use]
    pub fn keys_only(self) -> Self {
        self.with("keys_only", "true")
    }

    /// As everything was after that revision.
    #[must_use]
    pub fn at_revision(self, revision: u64) -> Self {
        self.with("revision", revision.to_string())
    }

    /// How fresh it must be.
    #[must_use]
    pub fn consistency(self, consistency: Consistency) -> Self {
        self.with("consistency", consistency.as_str())
    }

    /// Waits until the node that is asked has applied that revision.
    #[must_use]
    pub fn min_revision(self, revision: u64) -> Self {
        self.with("min_revision", revision.to_string())
    }

    /// One page.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn page(&self) -> Result<Page, Error> {
        self.client.json(self.call.clone()).await
    }

    /// How many keys there are in the whole range.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn count(&self) -> Result<u64, Error> {
        let call = self.call.clone().query("count_only", "true");
        self.client.json::<Page>(call).await.map(|page| page.count)
    }

    /// The listing that goes on after this page; `None`: that was the last.
    #[must_use]
    pub fn after(&self, page: &Page) -> Option<Self> {
        let next = page.next.as_ref()?;
        let (path, query) = self.call.path.split_once('?').unwrap_or((&self.call.path, ""));
        let kept = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
        let path = format!("{path}?{}", kept.collect::<Vec<_>>().join("&"));
        let call = Call { path: path.trim_end_matches('?').to_owned(), ..self.call.clone() };
        Some(Self { client: self.client.clone(), call: call.query("cursor", next) })
    }

    /// All keys of one revision, a page in memory at a time; it outlives nodes.
    #[must_use]
    pub fn items(self) -> Items {
        Items { next: Some(self), page: VecDeque::new() }
    }

    /// All of it in one answer, taken as it comes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lines(&self) -> Result<Lines, Error> {
        let call = self.call.clone().header("accept", "application/x-ndjson");
        let answer = self.client.stream(call).await?;
        Ok(Lines { lines: JsonLines::new(answer.rest), over: false })
    }

    /// All of it at once, however much that is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn all(self) -> Result<Vec<Entry>, Error> {
        let (mut items, mut all) = (self.items(), Vec::new());
        while let Some(entry) = items.next().await? {
            all.push(entry);
        }
        Ok(all)
    }
}

/// Keys in order, over all pages.
#[derive(Debug)]
pub struct Items {
    /// The page after `page`.
    next: Option<List>,
    page: VecDeque<Entry>,
}

impl Items {
    /// The next key; `None`: that was the last.
    ///
    /// # Errors
    /// See [`Error`]; `compacted` when this takes so long that the revision is forgotten.
    pub async fn next(&mut self) -> Result<Option<Entry>, Error> {
        while self.page.is_empty()
            && let Some(list) = &self.next
        {
            let page = list.page().await?;
            self.next = list.after(&page);
            self.page = page.items.into();
        }
        Ok(self.page.pop_front())
    }
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A key.
    Entry(Box<Entry>),
    /// Keys that share everything up to the delimiter.
    Prefix(Bytes),
    /// That was all of it.
    End {
        /// The revision that the listing is of.
        revision: u64,
        /// How many lines there were before.
        count: u64,
        /// The cursor of the rest, if there was a limit, and there is one.
        next: Option<String>,
    },
}

/// A listing that is taken line by line.
#[derive(Debug)]
pub struct Lines {
    lines: JsonLines,
    over: bool,
}

impl Lines {
    /// The next line; `None` after [`Line::End`].
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection ends before that line: what came is right, and
    /// not all of it. Else see [`Error`].
    pub async fn next(&mut self) -> Result<Option<Line>, Error> {
        #[derive(Deserialize)]
        struct Marks {
            error: Option<Problem>,
            prefix: Option<String>,
            prefix_b64: Option<String>,
            end: Option<bool>,
            revision: Option<u64>,
            count: Option<u64>,
            next: Option<String>,
        }
        if self.over {
            return Ok(None);
        }
        let Some(line) = self.lines.next().await? else {
            return Err(Error::Broken("the listing ends before its last line".into()));
        };
        let wrong = |error| Error::Unexpected(format!("a line of a listing: {error}"));
        let marks: Marks = serde_json::from_slice(&line).map_err(wrong)?;
        if let Some(problem) = marks.error {
            return Err(Error::Refused(Box::new(problem)));
        }
        if let (Some(true), Some(revision), Some(count)) = (marks.end, marks.revision, marks.count)
        {
            self.over = true;
            return Ok(Some(Line::End { revision, count, next: marks.next }));
        }
        if marks.prefix.is_some() || marks.prefix_b64.is_some() {
            return Ok(Some(Line::Prefix(bytes_of(marks.prefix, marks.prefix_b64, "prefix")?)));
        }
        let entry: RawEntry = serde_json::from_slice(&line).map_err(wrong)?;
        Ok(Some(Line::Entry(Box::new(entry.read(None)?))))
    }
}

/// A body that is one JSON document a line.
#[derive(Debug)]
pub(super) struct JsonLines {
    body: Option<Body>,
    buffer: BytesMut,
    /// Of the buffer, so much has no end of a line in it.
    seen: usize,
}

impl JsonLines {
    pub(super) fn new(body: Option<Body>) -> Self {
        Self { body, buffer: BytesMut::new(), seen: 0 }
    }

    /// The next whole line; `None`: the body ended.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(at) = self.buffer[self.seen..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.seen + at + 1).freeze();
                self.seen = 0;
                return Ok(Some(line));
            }
            self.seen = self.buffer.len();
            let Some(body) = &mut self.body else { return Ok(None) };
            match body.next().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => self.body = None,
            }
        }
    }
}
