//! What components show of themselves, read as a scraper reads it.

use postern_e2e::lab::Pod;

/// One scrape in Prometheus text.
pub struct Scrape(pub String);

impl Scrape {
    /// A proxy's, from inside its pod.
    pub fn proxy(pod: &Pod) -> Self {
        Self::of(pod, 15_020)
    }

    /// A component's that shares `pod`.
    pub fn of(pod: &Pod, port: u16) -> Self {
        Self(pod.prints(&format!("curl -s -m 5 http://127.0.0.1:{port}/metrics")))
    }

    /// All samples: name, labels as written, value.
    pub fn samples(&self) -> impl Iterator<Item = (&str, &str, f64)> {
        self.0.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            Some((name, labels.trim_end_matches('}'), value.parse().ok()?))
        })
    }

    /// The sum of a metric's series that have all these labels (such as `reason="plaintext"`).
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.samples()
            .filter(|(n, with, _)| *n == name && labels.iter().all(|label| with.contains(label)))
            .map(|(_, _, value)| value)
            .sum()
    }
}
