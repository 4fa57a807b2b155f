//! What the service answers, as JSON again, in the form the service has for it: for programs that
//! pass it on.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::ser::Serializer;
use serde_json::{Map, Value};

use super::history::{Change, ChangeKind, History};
use super::keys::field;
use super::locks::Lock;
use super::txn::encoded;
use super::types::Entry;
use super::watch::Event;
use crate::config::show_duration;

type Object = Map<String, Value>;

fn value_into(object: &mut Object, value: &[u8]) {
    let (value, encoding) = encoded(value);
    object.insert("value".into(), value);
    object.extend(encoding.map(|encoding| ("encoding".to_owned(), encoding)));
}

impl Entry {
    fn object(&self) -> Object {
        let mut object = Object::from_iter([field("key", &self.key)]);
        // Of a listing of keys alone the value is not known.
        if self.value.len() as u64 == self.size {
            value_into(&mut object, &self.value);
        }
        for (name, number) in [
            ("size", self.size),
            ("create_revision", self.create_revision),
            ("mod_revision", self.mod_revision),
            ("version", self.version),
        ] {
            object.insert(name.into(), number.into());
        }
        object.insert("content_type".into(), self.content_type.as_str().into());
        object.extend(self.lease.map(|id| ("lease".to_owned(), id.into())));
        object.extend(self.ttl.map(|ttl| ("ttl".to_owned(), show_duration(ttl).into())));
        object
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        self.object().serialize(out)
    }
}

impl Serialize for Change {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let kind = serde_json::to_value(self.kind).unwrap_or_default();
        let mut object = Object::from_iter([("type".to_owned(), kind), field("key", &self.key)]);
        object.insert("revision".into(), self.revision.into());
        if self.kind == ChangeKind::Put {
            value_into(&mut object, &self.value);
            object.insert("content_type".into(), self.content_type.as_str().into());
        }
        for (name, number) in [
            ("version", self.version),
            ("create_revision", self.create_revision),
            ("prev_revision", self.prev_revision),
        ] {
            object.extend(number.map(|number| (name.to_owned(), number.into())));
        }
        object.extend(self.prev.as_ref().map(|prev| ("prev".to_owned(), prev.object().into())));
        object.insert("reason".into(), serde_json::to_value(self.reason).unwrap_or_default());
        object.serialize(out)
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            revision: u64,
            changes: &'a [Change],
        }
        Shown { revision: self.revision, changes: &self.changes }.serialize(out)
    }
}

impl Serialize for History {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a> {
            revision: u64,
            oldest_revision: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            next_before: Option<u64>,
            changes: &'a [Change],
        }
        let Self { changes, revision, next_before, oldest_revision } = self;
        let (revision, oldest_revision, next_before) = (*revision, *oldest_revision, *next_before);
        Shown { revision, oldest_revision, next_before, changes }.serialize(out)
    }
}

impl Serialize for Lock {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut object = Object::from_iter([field("name", &self.name)]);
        object.insert("token".into(), self.token.into());
        object.insert("ticket".into(), self.ticket.into());
        object.insert("lease".into(), self.lease.into());
        object.insert("owner".into(), self.owner.as_str().into());
        object.serialize(out)
    }
}

/// A time, as the service writes it.
#[expect(clippy::ref_option, reason = "serde hands it over so")]
pub(super) fn ttl<S: Serializer>(ttl: &Option<Duration>, out: S) -> Result<S::Ok, S::Error> {
    ttl.map(show_duration).serialize(out)
}

/// The same of one that is always there.
pub(super) fn duration<S: Serializer>(span: &Duration, out: S) -> Result<S::Ok, S::Error> {
    show_duration(*span).serialize(out)
}

/// Keys that hang on a lease.
#[expect(clippy::ref_option, reason = "serde hands it over so")]
pub(super) fn keys<S: Serializer>(keys: &Option<Vec<Bytes>>, out: S) -> Result<S::Ok, S::Error> {
    let one = |key: &Bytes| Object::from_iter([field("key", key)]);
    keys.as_ref().map(|keys| keys.iter().map(one).collect::<Vec<_>>()).serialize(out)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_read_is_shown_as_it_came() {
        for entry in [
            json!({"key": "a", "value": "x", "size": 1, "create_revision": 1, "mod_revision": 2,
                   "version": 2, "content_type": "text/plain", "lease": 7, "ttl": "5s"}),
            json!({"key_b64": "/w==", "value": "AP8=", "encoding": "base64", "size": 2,
                   "create_revision": 1, "mod_revision": 1, "version": 1, "content_type": ""}),
            json!({"key": "keys-only", "size": 9, "create_revision": 1, "mod_revision": 1,
                   "version": 1, "content_type": ""}),
        ] {
            let read = Entry::deserialize(&entry).expect("an entry");
            assert_eq!(serde_json::to_value(&read).expect("JSON"), entry);
        }
        let lock = json!({"name_b64": "/w==", "token": 9, "ticket": 8, "lease": 7, "owner": "me"});
        let read = Lock::deserialize(&lock).expect("a lock");
        assert_eq!(serde_json::to_value(&read).expect("JSON"), lock);
    }
}
