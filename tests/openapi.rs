//! The committed description of the public surface equals the code, is complete, and keeps
//! its own promises. `UPDATE_OPENAPI=1 cargo test --test openapi` rewrites it.

#[path = "support/http.rs"]
mod http;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use http::Server;
use mmapd::config::Config;
use serde_json::Value as Json;

const METHODS: [&str; 6] = ["get", "head", "put", "post", "patch", "delete"];

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn description() -> Json {
    serde_json::to_value(mmapd::http::openapi()).expect("plain data")
}

/// Path, method and description of every operation.
fn operations(description: &Json) -> Vec<(String, String, Json)> {
    let paths = description["paths"].as_object().expect("paths");
    let mut all = Vec::new();
    for (path, methods) in paths {
        for (method, operation) in methods.as_object().expect("methods") {
            assert!(METHODS.contains(&method.as_str()), "{method} of {path}");
            all.push((path.clone(), method.clone(), operation.clone()));
        }
    }
    all
}

#[test]
fn the_committed_file_equals_the_code() {
    let now = mmapd::http::openapi().to_pretty_json().expect("plain data") + "\n";
    let path = file("openapi/mmapd.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &now).expect("it can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == now,
        "openapi/mmapd.json is not what the code says; run with UPDATE_OPENAPI=1"
    );
}

#[test]
fn every_operation_is_routed() {
    let server = Server::start(Config::default());
    for (path, method, _) in operations(&description()) {
        let path = path.replace("{key}", "color");
        // A stream would never end; the refusal of a parameter shows as well that it is routed.
        let path = if path == "/v1/watch" { format!("{path}?since=never") } else { path };
        let mut connection = server.connect();
        let method = method.to_uppercase();
        let length =
            if matches!(method.as_str(), "GET" | "HEAD") { "" } else { "Content-Length: 0\r\n" };
        connection.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n").as_bytes());
        let reply = connection.reply(method == "HEAD").expect("an answer");
        let body = String::from_utf8_lossy(&reply.body);
        assert_ne!(reply.status(), 405, "{method} {path}");
        assert!(!body.contains("there is no route"), "{method} {path}: {body}");
    }
    assert_eq!(server.json("/openapi.json"), description());
}

/// Reads the routes off the source, since a router does not tell them.
#[test]
fn every_route_is_described() {
    let source = std::fs::read_to_string(file("src/http/mod.rs")).expect("the source");
    let source: String = source.split_whitespace().collect();
    let mut routed = BTreeSet::new();
    for part in source.split(".route(\"").skip(1) {
        let call = part.split(".route").next().unwrap_or_default();
        let call = call.split("))}").next().unwrap_or_default();
        let path = call.split('"').next().unwrap_or_default().replace("{*", "{");
        // Only say that a key is missing, or a name.
        if matches!(path.as_str(), "/v1/keys/" | "/v1/history/" | "/v1/locks/") {
            continue;
        }
        let call = call.replace("one_key()", "get(.head(.put(.patch(.delete(");
        for method in METHODS {
            if call.contains(&format!("{method}(")) {
                routed.insert((path.clone(), method.to_owned()));
            }
        }
    }
    let described = operations(&description()).into_iter().map(|(path, method, _)| (path, method));
    assert_eq!(routed, described.collect());
}

#[test]
fn operations_are_named_and_refusals_are_problems() {
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&description()) {
        let what = format!("{method} {path}");
        let id = operation["operationId"].as_str().expect("an id").to_owned();
        assert!(ids.insert(id), "{what}: its id is taken");
        assert!(operation["summary"].is_string(), "{what}: no summary");
        assert!(operation["tags"][0].is_string(), "{what}: no tag");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameter["description"].is_string(), "{what}: {parameter}");
        }
        for (status, response) in operation["responses"].as_object().expect("responses") {
            assert!(response["description"].is_string(), "{what}: {status}");
            if status.as_str() < "400" || method == "head" {
                continue;
            }
            let problem = &response["content"]["application/problem+json"]["schema"]["$ref"];
            assert_eq!(problem, "#/components/schemas/Problem", "{what}: {status}");
        }
    }
}

#[test]
fn schemas_require_what_is_always_there() {
    let description = description();
    let schemas = description["components"]["schemas"].as_object().expect("schemas");
    let problem: Vec<&str> = schemas["Problem"]["required"]
        .as_array()
        .expect("a list")
        .iter()
        .flat_map(Json::as_str)
        .collect();
    for member in
        ["type", "title", "status", "code", "detail", "outcome", "retryable", "request_id"]
    {
        assert!(problem.contains(&member), "{member}");
    }
    for (name, schema) in schemas {
        assert!(schema["description"].is_string(), "{name} is not described");
        let properties = schema["properties"].as_object();
        for (field, property) in properties.into_iter().flatten() {
            let kinds = property["type"].to_string();
            if kinds.contains("integer") {
                assert_eq!(property["minimum"], 0, "{name}.{field}");
            }
        }
        let example = schema["example"].as_object();
        for field in example.into_iter().flat_map(|example| example.keys()) {
            assert!(properties.is_some_and(|known| known.contains_key(field)), "{name}.{field}");
        }
        for field in schema["required"].as_array().into_iter().flatten().flat_map(Json::as_str) {
            assert!(example.is_none_or(|example| example.contains_key(field)), "{name}.{field}");
        }
    }
}
