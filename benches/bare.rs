//! What axum answers by itself, on the same machine: nothing that is built on it can be faster.
//!
//! A control for `benches/end_to_end/run.py`, which starts it on a port. It knows the routes of
//! keys alone and answers with as many headers and bytes as mmapd does, whatever was asked: no
//! store, no log, no other nodes, no limits, no metrics.
#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first surprise")]

use axum::Router;
use axum::body::Bytes;
use axum::response::{AppendHeaders, IntoResponse};
use axum::routing::get;
use axum::serve::ListenerExt;

static VALUE: [u8; 256] = [b'v'; 256];
const WRITTEN: &str = r#"{"key":"bench/1234","revision":123456,"create_revision":1234,"version":12,"created":false,"lease":null,"ttl":null}"#;

/// What every answer of mmapd says.
const ALWAYS: [(&str, &str); 6] = [
    ("etag", "\"123456\""),
    ("request-id", "6b75-12345"),
    ("mmapd-node", "1"),
    ("mmapd-term", "1"),
    ("mmapd-revision", "123456"),
    ("cache-control", "no-cache"),
];

async fn read() -> impl IntoResponse {
    let headers = [
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "sandbox; default-src 'none'"),
        ("accept-ranges", "bytes"),
        ("vary", "Accept"),
    ];
    // A slice says its own content-type.
    (AppendHeaders(ALWAYS), AppendHeaders(headers), VALUE.as_slice())
}

/// Takes the whole value before it answers, as whoever stores it has to.
async fn write(_value: Bytes) -> impl IntoResponse {
    (AppendHeaders(ALWAYS), [("content-type", "application/json")], WRITTEN)
}

#[tokio::main]
async fn main() {
    let Some(port) = std::env::args().find_map(|argument| argument.parse::<u16>().ok()) else {
        println!("bare: give it a port to serve, as benches/end_to_end/run.py does");
        return;
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    let router = Router::new().route("/v1/keys/{*key}", get(read).put(write));
    axum::serve(listener, router).await.unwrap();
}
