//! Where a redirect leads (RFC 3986 5.2), as far as it stays at the same host.

use http::Uri;
use http::uri::{PathAndQuery, Scheme};

/// A place at the host that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) scheme: Scheme,
    pub(super) port: u16,
    pub(super) path: PathAndQuery,
}

/// The text is no URL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoUrl;

/// Does it say a scheme and a host?
pub(super) fn is_absolute(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    })
}

/// Where `text` leads from `at`; `None`: to another host, or to no HTTP at all.
pub(super) fn follow(at: &Location, host: &str, text: &str) -> Result<Option<Location>, NoUrl> {
    let text = text.split('#').next().unwrap_or_default();
    if is_absolute(text) || text.starts_with("//") {
        let whole = if text.starts_with("//") {
            format!("{}:{text}", at.scheme)
        } else {
            text.to_owned()
        };
        let Some(scheme) = [Scheme::HTTP, Scheme::HTTPS].into_iter().find(|scheme| {
            let given = whole.split(':').next().unwrap_or_default();
            given.eq_ignore_ascii_case(scheme.as_str())
        }) else {
            return Ok(None);
        };
        let uri: Uri = whole.parse().map_err(|_| NoUrl)?;
        let authority = uri.authority().ok_or(NoUrl)?;
        if authority.host() != host {
            return Ok(None);
        }
        let default = if scheme == Scheme::HTTPS { 443 } else { 80 };
        // `Uri` passes over a port that is none.
        let after = authority
            .as_str()
            .rsplit('@')
            .next()
            .and_then(|text| text.strip_prefix(host));
        let port = match after.ok_or(NoUrl)?.strip_prefix(':') {
            None | Some("") => default,
            Some(port) => port.parse().map_err(|_| NoUrl)?,
        };
        let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        return Ok(Some(Location { scheme, port, path }));
    }
    let base = at.path.path();
    let path = match text.as_bytes().first() {
        None => at.path.as_str().to_owned(),
        Some(b'/') => text.to_owned(),
        Some(b'?') => format!("{base}{text}"),
        Some(_) => {
            let directory = base.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{directory}/{text}")
        }
    };
    Ok(Some(Location {
        scheme: at.scheme.clone(),
        port: at.port,
        path: without_dots(&path).parse().map_err(|_| NoUrl)?,
    }))
}

fn without_dots(path: &str) -> String {
    let (path, query) = path
        .split_once('?')
        .map_or((path, None), |(path, query)| (path, Some(query)));
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    let path = format!("/{}", kept.join("/"));
    match query {
        None => path,
        Some(query) => format!("{path}?{query}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn redirects_lead_elsewhere_at_the_same_host_or_are_the_answer() {
        let at = Location {
            scheme: Scheme::HTTP,
            port: 8_080,
            path: PathAndQuery::from_static("/a/b?c=d"),
        };
        let same = |text: &str| {
            follow(&at, "10.0.0.1", text).map(|to| to.map(|to| format!("{}:{}{}", to.scheme, to.port, to.path)))
        };
        for (text, leads) in [
            ("/healthz", "http:8080/healthz"),
            ("/healthz?x=1#top", "http:8080/healthz?x=1"),
            ("c", "http:8080/a/c"),
            ("c/../d", "http:8080/a/d"),
            ("../../..", "http:8080/"),
            (".", "http:8080/a/"),
            ("?e=f", "http:8080/a/b?e=f"),
            ("", "http:8080/a/b?c=d"),
            ("http://10.0.0.1:9090/x", "http:9090/x"),
            ("https://10.0.0.1", "https:443/"),
            ("HTTP://10.0.0.1/y", "http:80/y"),
            ("//10.0.0.1:81/z", "http:81/z"),
        ] {
            assert_eq!(same(text), Ok(Some(leads.to_owned())), "{text}");
        }
        for text in [
            "http://shop.example/",
            "https://10.0.0.2:8080/",
            "//10.0.0.2/",
            "mailto:a@b",
            "ftp://10.0.0.1/",
        ] {
            assert_eq!(same(text), Ok(None), "{text}");
        }
        for text in ["http://10.0.0.1:99999/", "http://", "/a b"] {
            assert_eq!(same(text), Err(NoUrl), "{text}");
        }
    }
}
