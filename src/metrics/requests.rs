//! Requests by route, method and status.
//!
//! Series appear when they are first counted, except for those of status 200: so a route costs
//! two series and not thirty.

use std::sync::{Arc, OnceLock};

use metrics::{Counter, Histogram};

use super::{Declare, REQUEST_DURATION, REQUESTS, Registry};

/// Statuses that get a label of their own; all others are counted as `other`.
const STATUSES: [(u16, &str); 28] = [
    (200, "200"),
    (201, "201"),
    (204, "204"),
    (206, "206"),
    (304, "304"),
    (307, "307"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (406, "406"),
    (408, "408"),
    (409, "409"),
    (410, "410"),
    (412, "412"),
    (413, "413"),
    (414, "414"),
    (415, "415"),
    (416, "416"),
    (421, "421"),
    (422, "422"),
    (429, "429"),
    (431, "431"),
    (500, "500"),
    (503, "503"),
    (504, "504"),
    (507, "507"),
];

/// What is counted of one method on one route. Look it up once with
/// [`http_request`](super::http_request).
#[derive(Clone, Debug)]
pub struct HttpSeries {
    registry: &'static Registry,
    route: &'static str,
    method: &'static str,
    seconds: Histogram,
    by_status: Arc<[OnceLock<Counter>; STATUSES.len() + 1]>,
}

impl HttpSeries {
    /// Counts one answer.
    pub fn record(&self, status: u16, seconds: f64) {
        self.counter(status).increment(1);
        self.seconds.record(seconds);
    }

    fn counter(&self, status: u16) -> &Counter {
        let at = STATUSES.iter().position(|(code, _)| *code == status);
        let label = at.map_or("other", |at| STATUSES[at].1);
        self.by_status[at.unwrap_or(STATUSES.len())].get_or_init(|| {
            let labels = [("route", self.route), ("method", self.method), ("status", label)];
            Declare(&self.registry.recorder).counter(REQUESTS, "Requests answered", &labels)
        })
    }
}

impl Registry {
    pub(super) fn http_request(
        &'static self,
        route: &'static str,
        method: &'static str,
    ) -> HttpSeries {
        let seconds = Declare(&self.recorder).histogram(
            REQUEST_DURATION,
            "Time from a request's headers to its answer's",
            &[("route", route), ("method", method)],
        );
        let by_status = Arc::new([const { OnceLock::new() }; STATUSES.len() + 1]);
        let series = HttpSeries { registry: self, route, method, seconds, by_status };
        series.counter(200);
        series
    }
}
