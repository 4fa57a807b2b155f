//! Medians, tables and verdicts.

/// The smallest, the middle and the largest of some samples.
pub(crate) fn spread(samples: &[f64]) -> (f64, f64, f64) {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    (sorted[0], sorted[middle], sorted[sorted.len() - 1])
}

/// The value that `share` of the samples do not exceed.
pub(crate) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil();
    // A rank is a small whole number.
    let at = (0..sorted.len()).find(|at| (at + 1) as f64 >= rank).unwrap_or(0);
    sorted[at]
}

/// Says whether a measured value meets its target.
pub(crate) fn verdict(met: bool) -> &'static str {
    if met { "PASS" } else { "MISS" }
}

/// A figure beside the most it may be.
pub(crate) fn at_most(what: &str, measured: f64, unit: &str, target: f64) {
    let verdict = verdict(measured <= target);
    println!("{what}: {measured:.2} {unit} (target <= {target}): {verdict}");
}
