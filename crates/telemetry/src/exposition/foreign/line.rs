//! One line of an exposition: a comment or a sample. (Prometheus text format 0.0.4; OpenMetrics 1.0, "ABNF".)

use std::fmt::Write as _;

use super::super::Format;

/// What a line that begins with `#` is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Comment<'a> {
    /// HELP, TYPE or UNIT that a scraper takes.
    Metadata {
        /// The family.
        name: &'a str,
        /// The line.
        line: &'a str,
    },
    /// `# EOF`.
    End,
    /// Anything else: no loss.
    Other,
}

/// A sample's parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    /// Name and labels.
    series: &'a str,
    value: &'a str,
    timestamp: Option<&'a str>,
    /// OpenMetrics: from `#` on.
    exemplar: Option<&'a str>,
}

impl<'a> Comment<'a> {
    pub(super) fn parse(line: &'a str, format: Format) -> Self {
        if line == "# EOF" {
            return Self::End;
        }
        let words = ["# HELP ", "# TYPE ", "# UNIT "];
        let Some((word, rest)) = words
            .iter()
            .find_map(|word| line.strip_prefix(word).map(|rest| (*word, rest)))
        else {
            return Self::Other;
        };
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let taken = match word {
            "# TYPE " => kinds(format).contains(&rest),
            // A unit must be the name's end, and text has none.
            "# UNIT " => {
                let end = name.strip_suffix(rest).is_some_and(|stem| stem.ends_with('_'));
                format == Format::OpenMetrics && !rest.is_empty() && end
            }
            _ => true,
        };
        let whole = metric_name(name).is_some_and(str::is_empty);
        if taken && whole {
            Self::Metadata { name, line }
        } else {
            Self::Other
        }
    }
}

fn kinds(format: Format) -> &'static [&'static str] {
    match format {
        Format::Text => &["counter", "gauge", "histogram", "summary", "untyped"],
        Format::OpenMetrics => &[
            "counter",
            "gauge",
            "histogram",
            "gaugehistogram",
            "stateset",
            "info",
            "summary",
            "unknown",
        ],
    }
}

impl<'a> Sample<'a> {
    pub(super) fn parse(line: &'a str, format: Format) -> Option<Self> {
        let line = line.trim_ascii_start();
        let after_name = metric_name(line)?;
        let name = &line[..line.len() - after_name.len()];
        let after_name = after_name.trim_start_matches([' ', '\t']);
        let rest = match after_name.strip_prefix('{') {
            Some(labels) => after_labels(labels)?,
            None => after_name,
        };
        let series = line[..line.len() - rest.len()].trim_ascii_end();
        let (rest, exemplar) = match rest.find('#').filter(|_| format == Format::OpenMetrics) {
            Some(at) => (&rest[..at], Some(exemplar(&rest[at..])?)),
            None => (rest, None),
        };
        let mut fields = rest.split_ascii_whitespace();
        let (value, timestamp) = (number(fields.next()?)?, fields.next());
        if fields.next().is_some() {
            return None;
        }
        match (timestamp, format) {
            (None, _) => {}
            (Some(ms), Format::Text) => {
                ms.parse::<i64>().ok()?;
            }
            (Some(seconds), Format::OpenMetrics) => {
                number(seconds)?;
            }
        }
        Some(Self {
            name,
            series,
            value,
            timestamp,
            exemplar,
        })
    }

    /// Writes the sample; `None` if its timestamp has no place in `to`.
    pub(super) fn write(&self, text: &mut String, from: Format, to: Format) -> Option<()> {
        let _ = write!(text, "{} {}", self.series, self.value);
        if let Some(timestamp) = self.timestamp {
            if from == to {
                let _ = write!(text, " {timestamp}");
            } else {
                // Seconds, and milliseconds in text.
                let ms = timestamp.parse::<f64>().ok().map(|seconds| (seconds * 1e3).round())?;
                let in_range = ms.is_finite() && ms.abs() < 9e15;
                let _ = write!(text, " {}", in_range.then_some(ms as i64)?);
            }
        }
        if let Some(exemplar) = self.exemplar.filter(|_| to == Format::OpenMetrics) {
            let _ = write!(text, " {exemplar}");
        }
        text.push('\n');
        Some(())
    }
}

/// What follows a metric's name.
fn metric_name(text: &str) -> Option<&str> {
    name(text, |c| c == '_' || c == ':')
}

/// What follows a name of ASCII letters, digits (not first) and what `also` says.
fn name(text: &str, also: impl Fn(char) -> bool) -> Option<&str> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let rest = text.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || also(c));
    (rest.len() < text.len()).then_some(rest)
}

/// What follows `name="value",...}`.
fn after_labels(mut rest: &str) -> Option<&str> {
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some(after);
        }
        rest = name(rest, |c| c == '_')?.trim_start_matches([' ', '\t']);
        rest = rest.strip_prefix('=')?.trim_start_matches([' ', '\t']);
        rest = after_quoted(rest.strip_prefix('"')?)?.trim_start_matches([' ', '\t']);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return None,
        }
    }
}

/// What follows the closing quote. A backslash stands before `\`, `"` or `n`.
fn after_quoted(text: &str) -> Option<&str> {
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return text.get(at + 1..),
            '\\' => {
                let (_, escaped) = characters.next()?;
                if !matches!(escaped, '\\' | '"' | 'n') {
                    return None;
                }
            }
            _ => {}
        }
    }
    None
}

/// `# {labels} value timestamp`, as it stands.
fn exemplar(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("# {")?;
    let mut fields = after_labels(rest)?.split_ascii_whitespace();
    number(fields.next()?)?;
    if let Some(timestamp) = fields.next() {
        number(timestamp)?;
    }
    fields.next().is_none().then(|| text.trim_ascii_end())
}

fn number(text: &str) -> Option<&str> {
    text.parse::<f64>().ok().map(|_| text)
}
