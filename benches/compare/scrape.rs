//! What a proxy says about itself: sums over a family of its Prometheus text.

use postern_e2e::lab::Pod;

use crate::Flaw;

/// The sum of the series of `family` that carry all of `labels` (each such as `tls="mutual"`).
pub(crate) fn sum(pod: &Pod, url: &str, family: &str, labels: &[&str]) -> Result<u64, Flaw> {
    let out = pod.run(&format!("curl -sf -m 5 {url}"));
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        return Err(Flaw::Scrape(format!("{url}: {}", out.status)));
    }
    sum_of(&text, family, labels).ok_or_else(|| Flaw::Scrape(format!("{url}: a value of {family} is no count")))
}

/// The value of a family without labels.
pub(crate) fn value(pod: &Pod, url: &str, family: &str) -> Result<u64, Flaw> {
    let out = pod.run(&format!("curl -sf -m 5 {url}"));
    let text = String::from_utf8_lossy(&out.stdout);
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(family)?.strip_prefix(' ')?.trim().parse().ok());
    value.ok_or_else(|| Flaw::Scrape(format!("{url}: there is no {family}")))
}

/// A family without any series counts as zero: a series appears with its first request.
fn sum_of(text: &str, family: &str, labels: &[&str]) -> Option<u64> {
    let series = text
        .lines()
        .filter_map(|line| line.strip_prefix(family)?.strip_prefix('{'));
    let wanted = series.filter_map(|line| line.rsplit_once("} ")).filter(|(has, _)| {
        // With a comma on either side, so that `port="80"` is not found in `aport="80"`.
        let has = format!(",{has},");
        labels.iter().all(|label| has.contains(&format!(",{label},")))
    });
    wanted
        .map(|(_, value)| value.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP p_requests_total x\n# TYPE p_requests_total counter\n\
        p_requests_total{direction=\"inbound\",tls=\"mutual\",code=\"2xx\"} 40\n\
        p_requests_total{direction=\"inbound\",tls=\"none\",code=\"2xx\"} 2\n\
        p_requests_total{direction=\"inbound\",tls=\"mutual\",code=\"4xx\"} 1\n\
        p_requests_total_other{tls=\"mutual\"} 1000\n";

    #[test]
    fn only_series_with_all_labels_of_exactly_this_family_are_summed() {
        let of = |labels: &[&str]| sum_of(TEXT, "p_requests_total", labels);
        assert_eq!(of(&[]), Some(43));
        assert_eq!(of(&["tls=\"mutual\""]), Some(41));
        assert_eq!(of(&["tls=\"mutual\"", "code=\"2xx\""]), Some(40));
        assert_eq!(of(&["ls=\"mutual\""]), Some(0));
        assert_eq!(sum_of(TEXT, "p_requests", &[]), Some(0));
    }

    #[test]
    fn a_value_that_is_no_count_is_an_error() {
        assert_eq!(sum_of("a{b=\"c\"} NaN\n", "a", &[]), None);
    }
}
