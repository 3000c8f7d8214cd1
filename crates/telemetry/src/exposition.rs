//! Metrics as text: OpenMetrics where the scraper accepts it, else Prometheus text 0.0.4.
//!
//! prometheus-client writes OpenMetrics only. The two formats differ where `promtool check metrics` looks: 0.0.4 has
//! HELP and TYPE under the sample's full name (`x_total`, `x_info`), no UNIT and no EOF line.

pub mod foreign;

use std::fmt::Write as _;

use prometheus_client::registry::Registry;

pub use self::foreign::Foreign;

/// How a scrape's answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What a scraper with this `Accept` header gets.
    #[must_use]
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Text,
        }
    }

    /// `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What stands at the end of the whole answer.
    #[must_use]
    pub const fn end(self) -> &'static str {
        match self {
            Self::Text => "",
            Self::OpenMetrics => "# EOF\n",
        }
    }
}

/// All of `registry`, without [`Format::end`].
#[must_use]
pub fn render(registry: &Registry, format: Format) -> String {
    let mut open_metrics = String::with_capacity(16 * 1024);
    // Writing to a String does not fail; a metric that refuses to encode leaves the rest readable.
    let _ = prometheus_client::encoding::text::encode(&mut open_metrics, registry);
    match format {
        Format::Text => to_text(&open_metrics),
        Format::OpenMetrics => {
            let end = Format::OpenMetrics.end();
            open_metrics.truncate(open_metrics.strip_suffix(end).map_or(open_metrics.len(), str::len));
            open_metrics
        }
    }
}

/// Rewrites OpenMetrics text as Prometheus text 0.0.4.
#[must_use]
pub fn to_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 256);
    let mut pending_help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            pending_help = rest.split_once(' ').or(Some((rest, "")));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "gaugehistogram" => ("", "histogram"),
                "unknown" => ("", "untyped"),
                plain => ("", plain),
            };
            if let Some((_, help)) = pending_help.take().filter(|(of, _)| *of == name) {
                let _ = writeln!(text, "# HELP {name}{suffix} {help}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::histogram::Histogram;

    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        counter.inc_by(3);
        registry.register("postern_requests", "Requests", counter);
        let histogram = Histogram::new([0.1, 1.0]);
        histogram.observe(0.5);
        registry.register("postern_latency_seconds", "Latency", histogram);
        registry
    }

    #[test]
    fn a_plain_scrape_gets_help_and_type_under_the_name_of_the_samples() {
        let body = render(&registry(), Format::accepted(None));
        assert!(body.contains("# HELP postern_requests_total Requests.\n# TYPE postern_requests_total counter\n"));
        assert!(body.contains("\npostern_requests_total 3\n"));
        assert!(body.contains("# TYPE postern_latency_seconds histogram\n"));
        assert!(!body.contains("# EOF"));
    }

    #[test]
    fn open_metrics_is_given_to_whom_accepts_it() {
        let format = Format::accepted(Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"));
        assert_eq!(format, Format::OpenMetrics);
        let body = render(&registry(), format);
        assert!(
            body.contains("# TYPE postern_requests counter\n") && !body.contains("# EOF"),
            "{body}"
        );
        assert_eq!(format.end(), "# EOF\n");
    }
}
