//! Commands, their answers and records: bytes that are one have one meaning, and that meaning
//! has these bytes.

use bytes::Bytes;
use mmapd::machine::{
    Applied, Command, Conditions, Fence, Life, Once, Record, Request, Tags, Written,
};

/// One input.
pub fn run(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Some(request) = Request::decode(&bytes) {
        assert_eq!(request.encode(), bytes);
    }
    if let Some(applied) = Applied::decode(&bytes) {
        assert_eq!(applied.encode(), bytes);
    }
    if let Some(record) = Record::decode(data) {
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(again, data);
    }
}

/// One of each kind.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let conditions =
        Conditions { if_match: Some(Tags::Revisions(vec![1, 2])), if_none_match: Some(Tags::Any) };
    let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
    let (content_type, prev) = ("text/plain".to_owned(), true);
    let mut record = Vec::new();
    let stored = Record {
        create_revision: 1,
        mod_revision: 2,
        nth: 3,
        version: 2,
        lease: 0,
        expiry_ms: 9,
        content_type: "text/plain",
        value: b"value",
    };
    stored.encode(&mut record);
    let prev_record = Some(stored.to_owned());
    [
        Command::Put {
            key: key.clone(),
            value,
            content_type,
            life: Life::Ttl(9),
            conditions: conditions.clone(),
            prev,
        }
        .encode(),
        Request {
            once: Some(Once { key: key.clone(), fingerprint: 7 }),
            fence: Some(Fence { name: key.clone(), token: 8 }),
            command: Command::Delete { key, conditions, prev },
        }
        .encode(),
        Applied::Put(Written {
            revision: 3,
            create_revision: 1,
            version: 2,
            lease: 0,
            ttl_ms: 9,
            prev: prev_record,
        })
        .encode(),
        Applied::Deleted { deleted: 1, revision: 3, prev: None }.encode(),
        Applied::ConditionFailed { current: Some(4) }.encode(),
        Applied::Unknown.encode(),
    ]
    .into_iter()
    .map(Vec::from)
    .chain([record])
    .collect()
}
