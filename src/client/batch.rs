//! Many writes in one request, each for itself.

use bytes::BytesMut;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::{Error, Problem};
use super::keys::field;
use super::ranges::JsonLines;
use super::transport::{Call, Client, Kind};
use super::txn::{Op, encoded};

/// What became of one write of a batch.
#[derive(Clone, Debug)]
pub enum Done {
    /// A key was written.
    Put {
        /// The revision of the write.
        revision: u64,
        /// Revision that created the key.
        create_revision: u64,
        /// Writes since its creation.
        version: u64,
    },
    /// A key was removed.
    Deleted {
        /// 1, or 0 when it was not there.
        deleted: u64,
        /// The revision of the change, or the store's when nothing was there.
        revision: u64,
    },
    /// It was refused; see its outcome.
    Refused(Box<Problem>),
}

/// What became of a batch.
#[derive(Debug)]
pub struct BatchResult {
    /// What became of the first writes, in their order. The service ends a batch early after a
    /// line that it cannot read, and when an entry is refused as a whole or its outcome is not
    /// known: the last of these then says why.
    pub done: Vec<Done>,
    /// How many writes there were. Those without an answer did not happen, if nothing is broken.
    pub sent: usize,
    /// Why answers are missing: nothing is known of writes that have none.
    pub broken: Option<Error>,
}

impl BatchResult {
    /// Did all writes happen?
    #[must_use]
    pub fn is_done(&self) -> bool {
        let refused = self.done.iter().any(|done| matches!(done, Done::Refused(_)));
        self.done.len() == self.sent && !refused && self.broken.is_none()
    }
}

/// Writes that are collected; each has its own condition or none.
#[derive(Clone, Debug)]
pub struct Batch {
    client: Client,
    body: BytesMut,
    count: usize,
}

impl Client {
    /// Writes that have nothing to do with each other, in one request. It is sent once: send it
    /// again, or its end, if its conditions make that safe.
    ///
    /// ```no_run
    /// # async fn example(client: mmapd::client::Client) -> Result<(), mmapd::client::Error> {
    /// let mut batch = client.batch();
    /// for number in 0..1000 {
    ///     batch = batch.put(format!("item/{number}"), "new");
    /// }
    /// let result = batch.delete("item/7").send().await?;
    /// assert!(result.is_done());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch { client: self.clone(), body: BytesMut::new(), count: 0 }
    }
}

/// The condition of one write of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum If {
    /// There is no such key.
    Absent,
    /// There is such a key.
    Exists,
    /// The key is at that revision.
    Revision(u64),
}

impl If {
    fn field(self) -> (String, Value) {
        match self {
            Self::Absent => ("if_none_match".into(), "*".into()),
            Self::Exists => ("if_match".into(), "*".into()),
            Self::Revision(revision) => ("if_match".into(), json!([revision])),
        }
    }
}

impl Batch {
    fn line(mut self, line: &Value) -> Self {
        self.body.extend_from_slice(line.to_string().as_bytes());
        self.body.extend_from_slice(b"\n");
        self.count += 1;
        self
    }

    /// How many writes there are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Writes a key.
    #[must_use]
    pub fn put(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.op(&Op::put(key, value))
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(self, key: impl AsRef<[u8]>) -> Self {
        self.op(&Op::delete(key))
    }

    /// A put of one key, with the time, lease or type it was given, or a delete of one key. What
    /// is of use in a transaction only is refused by the service.
    #[must_use]
    pub fn op(self, op: &Op) -> Self {
        self.line(op.json())
    }

    /// Writes a key if the condition holds.
    #[must_use]
    pub fn put_if(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, when: If) -> Self {
        let (value, encoding) = encoded(value.as_ref());
        let mut what = Map::from_iter([field("key", key.as_ref()), when.field()]);
        what.insert("value".into(), value);
        what.extend(encoding.map(|encoding| ("encoding".to_owned(), encoding)));
        self.line(&json!({"put": what}))
    }

    /// Removes a key if the condition holds.
    #[must_use]
    pub fn delete_if(self, key: impl AsRef<[u8]>, when: If) -> Self {
        let what = Map::from_iter([field("key", key.as_ref()), when.field()]);
        self.line(&json!({"delete": what}))
    }

    /// Sends it. An answer, whatever it says of the single writes, is a success.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send(self) -> Result<BatchResult, Error> {
        let mut call = Call::new(Method::POST, "/v1/batch", Kind::Unnamed);
        call.body = self.body.freeze();
        let call = call.header("content-type", "application/x-ndjson");
        let answer = self.client.stream(call).await?;
        let mut lines = JsonLines::new(answer.rest);
        let mut done = Vec::new();
        let broken = loop {
            match lines.next().await.and_then(|line| line.as_deref().map(read).transpose()) {
                Ok(Some(Said::Done(one))) => done.push(one),
                Ok(Some(Said::End)) => break None,
                Ok(None) => break Some(Error::Broken("the answer has no last line".into())),
                Err(error) => break Some(error),
            }
        };
        Ok(BatchResult { done, sent: self.count, broken })
    }
}

enum Said {
    Done(Done),
    End,
}

fn read(line: &[u8]) -> Result<Said, Error> {
    #[derive(Deserialize)]
    struct Marks {
        end: Option<bool>,
        code: Option<String>,
        deleted: Option<u64>,
        revision: Option<u64>,
        create_revision: Option<u64>,
        version: Option<u64>,
    }
    let wrong = |error| Error::Unexpected(format!("an answer to a batch: {error}"));
    let marks: Marks = serde_json::from_slice(line).map_err(wrong)?;
    if marks.code.is_some() {
        let problem = serde_json::from_slice(line).map_err(wrong)?;
        return Ok(Said::Done(Done::Refused(Box::new(problem))));
    }
    match (marks.deleted, marks.revision, marks.create_revision, marks.version) {
        (Some(deleted), Some(revision), _, _) => {
            Ok(Said::Done(Done::Deleted { deleted, revision }))
        }
        (None, Some(revision), Some(create_revision), Some(version)) => {
            Ok(Said::Done(Done::Put { revision, create_revision, version }))
        }
        _ if marks.end == Some(true) => Ok(Said::End),
        _ => Err(Error::Unexpected("an answer to a batch that says nothing".into())),
    }
}
