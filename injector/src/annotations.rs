//! What a pod may say about its own sidecar, under `postern.dev/`.

/// A log filter such as `info` or `warn,postern_proxy=debug`: what an environment variable and a log filter both take.
pub(crate) fn is_log_filter(text: &str) -> bool {
    const MAX: usize = 256;
    let level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
    let target = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
    };
    text.len() <= MAX
        && text.split(',').all(|directive| match directive.split_once('=') {
            None => level(directive),
            Some((name, word)) => target(name) && level(word),
        })
}

/// A positive Kubernetes quantity in the forms that people write: `50m`, `0.5`, `32Mi`, `1G`.
pub(crate) fn is_quantity(text: &str) -> bool {
    const SUFFIXES: [&str; 13] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "m", "k", "M", "G", "T", "P", "E"];
    const MAX_DIGITS: usize = 15;
    let number = SUFFIXES
        .iter()
        .find_map(|suffix| text.strip_suffix(suffix))
        .unwrap_or(text);
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.len() <= MAX_DIGITS && text.bytes().all(|b| b.is_ascii_digit());
    digits(whole) && digits(part) && number.bytes().any(|b| (b'1'..=b'9').contains(&b))
}
