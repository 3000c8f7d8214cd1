//! What was brought and is not used: each with what is wrong, where, and what to do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use world::pki::{EXTENSIONS, Files, Mount, Party, authority, cacerts, openssl, p256, pem, tls};
use world::program::{done, failed, path, serve_by};

mod world;

/// Longer than any file of an issuer is.
const MAX_FILE: usize = 64 * 1024;

struct Case {
    what: &'static str,
    files: Files,
    /// In the message: the place, what is wrong, and what to do.
    says: [&'static str; 3],
}

fn root() -> Party {
    Party::root(&authority("root", None), p256())
}

fn issuer() -> CertificateParams {
    authority("issuer", Some(0))
}

fn changed(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = issuer();
    change(&mut params);
    params
}

/// Of an issuer that differs in this, under a good root.
fn issuer_with(what: &'static str, change: impl FnOnce(&mut CertificateParams), says: [&'static str; 2]) -> Case {
    let root = root();
    let [wrong, remedy] = says;
    Case {
        what,
        files: tls(&[&root.sign(&changed(change))], &root),
        says: ["tls.crt, certificate 1", wrong, remedy],
    }
}

/// Of a root that differs in this, with a good issuer.
fn root_with(what: &'static str, change: impl FnOnce(&mut CertificateParams), says: [&'static str; 2]) -> Case {
    let mut params = authority("root", None);
    change(&mut params);
    let root = Party::root(&params, p256());
    let [wrong, remedy] = says;
    Case {
        what,
        files: tls(&[&root.sign(&issuer())], &root),
        says: ["ca.crt, certificate 1", wrong, remedy],
    }
}

fn with(what: &'static str, change: impl FnOnce(&mut Files), says: [&'static str; 3]) -> Case {
    let root = root();
    let mut files = tls(&[&root.sign(&issuer())], &root);
    change(&mut files);
    Case { what, files, says }
}

fn constraints(permitted: Vec<GeneralSubtree>, excluded: Vec<GeneralSubtree>) -> Option<NameConstraints> {
    Some(NameConstraints {
        permitted_subtrees: permitted,
        excluded_subtrees: excluded,
    })
}

fn days(days: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::now_utc() + time::Duration::days(days)
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn by_themselves() -> Vec<Case> {
    const CONSTRAINED: [&str; 2] = ["has name constraints", "have it signed again without"];
    const ID: [&str; 2] = [
        "and this trust domain is spiffe://cluster.local",
        "subjectAltName=URI:spiffe://<trust domain>",
    ];
    const CA: &str = "basicConstraints=critical,CA:TRUE";
    let dns = || GeneralSubtree::DnsName("cluster.local".to_owned());
    let ip = || GeneralSubtree::IpAddress(CidrSubnet::V4([10, 0, 0, 0], [255, 0, 0, 0]));
    vec![
        issuer_with(
            "permitted names",
            |it| it.name_constraints = constraints(vec![dns()], vec![]),
            CONSTRAINED,
        ),
        root_with(
            "excluded names",
            |it| it.name_constraints = constraints(vec![], vec![ip()]),
            CONSTRAINED,
        ),
        issuer_with(
            "no CA",
            |it| it.is_ca = IsCa::ExplicitNoCa,
            ["is not a CA certificate", CA],
        ),
        issuer_with(
            "no keyCertSign",
            |it| it.key_usages = vec![KeyUsagePurpose::CrlSign],
            ["keyCertSign", CA],
        ),
        root_with(
            "no keyCertSign",
            |it| it.key_usages = vec![KeyUsagePurpose::CrlSign],
            ["keyCertSign", CA],
        ),
        issuer_with(
            "expired",
            |it| (it.not_before, it.not_after) = (days(-9), days(-8)),
            ["expired at", "renew it"],
        ),
        root_with(
            "expired",
            |it| (it.not_before, it.not_after) = (days(-9), days(-8)),
            ["expired at", "renew it"],
        ),
        issuer_with(
            "early",
            |it| (it.not_before, it.not_after) = (days(8), days(9)),
            ["valid from", "set the clock"],
        ),
        root_with(
            "early",
            |it| (it.not_before, it.not_after) = (days(8), days(9)),
            ["valid from", "set the clock"],
        ),
        root_with(
            "pathLen 0 above an issuer",
            |it| it.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
            [
                "allows 0 CA certificates below it (pathLen), and 1 are there",
                "with room",
            ],
        ),
        issuer_with(
            "another trust domain",
            |it| it.subject_alt_names = vec![uri("spiffe://other.example")],
            ID,
        ),
        issuer_with(
            "a path",
            |it| it.subject_alt_names = vec![uri("spiffe://cluster.local/ns/a/sa/b")],
            ID,
        ),
        root_with(
            "another trust domain",
            |it| it.subject_alt_names = vec![uri("spiffe://other.example")],
            ID,
        ),
        issuer_with(
            "two URIs",
            |it| it.subject_alt_names.push(uri("spiffe://cluster.local")),
            ["names 2 URIs", "subjectAltName=URI:spiffe://<trust domain>"],
        ),
        issuer_with(
            "an unknown critical extension",
            |it| {
                let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
                extension.set_criticality(true);
                it.custom_extensions.push(extension);
            },
            ["critical extension that is not understood", "not critical"],
        ),
        issuer_with(
            "for servers alone",
            |it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            ["is not believed by this mesh's own verifier", "docs/brought-root.md"],
        ),
        issuer_with(
            "no subject",
            |it| it.distinguished_name = rcgen::DistinguishedName::new(),
            ["subject is empty, has an attribute twice", "such as O and CN"],
        ),
    ]
}

fn together() -> Vec<Case> {
    let (one, other) = (root(), Party::root(&authority("other root", None), p256()));
    let good = one.sign(&issuer());
    let short = Party::root(&authority("root", None), p256()).sign(&authority("between", Some(0)));
    let deep: Vec<Party> = (0..4_u8).fold(vec![root()], |mut chain, n| {
        let next = chain[0].sign(&authority(&format!("ca {n}"), Some(3 - n)));
        chain.insert(0, next);
        chain
    });
    let key = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    let chain: Vec<&Party> = deep.iter().take(4).collect();
    let mut out = vec![
        Case {
            what: "a root as issuer",
            files: tls(&[&one], &one),
            says: [
                "tls.crt, certificate 1",
                "self-signed certificate, a root",
                "sign an intermediate",
            ],
        },
        Case {
            what: "under another root",
            files: tls(&[&good], &other),
            says: [
                "tls.crt, certificate 1",
                "which no certificate in",
                "put the root there",
            ],
        },
        Case {
            what: "no room between",
            files: {
                let issuer = short.sign(&issuer());
                tls(&[&issuer, &short], &one)
            },
            says: [
                "tls.crt, certificate 2",
                "allows 0 CA certificates below it",
                "with room",
            ],
        },
        Case {
            what: "a chain in the wrong order",
            files: {
                let issuer = deep[3].sign(&issuer());
                tls(&[&issuer, &one.sign(&authority("stranger", None)), &deep[3]], &deep[4])
            },
            says: [
                "tls.crt, certificate 1",
                "not signed by that in",
                "after each certificate the one that signed it",
            ],
        },
        Case {
            what: "a chain that is too long",
            files: tls(&chain, &deep[4]),
            says: ["tls.crt", "4 certificates below the root, and at most 3", "leave out"],
        },
        Case {
            what: "P-521",
            files: tls(&[&one.sign_for(&issuer(), key(&rcgen::PKCS_ECDSA_P521_SHA512))], &one),
            says: ["tls.crt, certificate 1", "on a curve other than", "make another key"],
        },
        Case {
            what: "Ed25519",
            files: tls(&[&one.sign_for(&issuer(), key(&rcgen::PKCS_ED25519))], &one),
            says: ["tls.crt, certificate 1", "of Ed25519", "make another key"],
        },
        with(
            "another key",
            |it| drop(it.insert("tls.key", p256().serialize_pem())),
            [
                "tls.key",
                "not that of the certificate in",
                "bring the certificate and the key that belong together",
            ],
        ),
        with(
            "no root",
            |it| drop(it.remove("ca.crt")),
            ["ca.crt", "no root certificate", "put the root there"],
        ),
        with(
            "no key file",
            |it| drop(it.remove("tls.key")),
            ["tls.key", "cannot be read", "the files are"],
        ),
        with(
            "no certificate file",
            |it| drop(it.remove("tls.crt")),
            ["tls.crt", "cannot be read", "the files are"],
        ),
        with(
            "a key for a certificate",
            |it| drop(it.insert("tls.crt", it["tls.key"].clone())),
            ["tls.crt", "no certificate in it", "put the certificates there as PEM"],
        ),
        with(
            "a certificate for a key",
            |it| drop(it.insert("tls.key", it["tls.crt"].clone())),
            ["tls.key", "no private key in it", "put the key there as PEM"],
        ),
        with(
            "no base64",
            |it| drop(it.insert("tls.crt", "-----BEGIN CERTIFICATE-----\n!\n".to_owned())),
            ["tls.crt", "no PEM (a section does not end)", "put it there as PEM"],
        ),
        with(
            "no DER",
            |it| drop(it.insert("tls.crt", pem("CERTIFICATE", b"no"))),
            ["tls.crt, certificate 1", "not well-formed DER", "writes RFC 5280"],
        ),
        with(
            "too much",
            |it| it.get_mut("ca.crt").unwrap().push_str(&" ".repeat(MAX_FILE)),
            ["ca.crt", "longer than 65536 bytes", "leave out"],
        ),
    ];
    let between = one.sign(&authority("between", None));
    let below = between.sign(&issuer());
    // By the root's name and with a key of its own: "new with old" of RFC 4210 4.4.
    let namesake = one.sign(&authority("root", None));
    let roots = |mut files: Files, roots: &[&Party]| {
        files.insert("ca.crt", roots.iter().map(|root| root.pem()).collect());
        files
    };
    const NO_ROOT: [&str; 2] = [
        "is signed by `O=Example, CN=root`, which no certificate in",
        "put the root there",
    ];
    for (what, files, place) in [
        (
            "an intermediate for a root",
            tls(&[&below], &between),
            "ca.crt, certificate 1",
        ),
        (
            "an intermediate twice",
            tls(&[&below, &between], &between),
            "tls.crt, certificate 2",
        ),
        (
            "a root's namesake",
            tls(&[&namesake.sign(&issuer())], &namesake),
            "ca.crt, certificate 1",
        ),
    ] {
        out.push(Case {
            what,
            files,
            says: [place, NO_ROOT[0], NO_ROOT[1]],
        });
    }
    out.push(Case {
        what: "a chain that is too long by what is among the roots",
        files: roots(tls(&chain[..3], &deep[4]), &[&deep[3], &deep[4]]),
        says: ["tls.crt", "4 certificates below the root, and at most 3", "leave out"],
    });
    let mut both = tls(&[&good], &one);
    both.extend(cacerts(&[&good], &one));
    out.push(Case {
        what: "both namings",
        files: both,
        says: [
            "/issuer",
            "both namings (tls.crt and ca-cert.pem)",
            "take one of them away",
        ],
    });
    out
}

/// What rcgen does not make.
fn by_openssl() -> Vec<Case> {
    let of = |what, root_more: &str, key: &str, subject: &str, extensions: &str, says| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("issuer.ext"), extensions).unwrap();
        let line = format!(
            "openssl ecparam -genkey -name prime256v1 -noout -out root.key
             openssl req -x509 -new -key root.key -subj '/CN=root' -days 9 -out root.pem {root_more} \
               -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign'
             {key} -out issuer.key 2>/dev/null
             openssl req -new -key issuer.key {subject} -out issuer.csr
             openssl x509 -req -in issuer.csr -CA root.pem -CAkey root.key -days 9 -extfile issuer.ext -out issuer.pem 2>/dev/null"
        );
        openssl(dir.path(), &line);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        Case {
            what,
            files: BTreeMap::from([
                ("tls.crt", read("issuer.pem")),
                ("tls.key", read("issuer.key")),
                ("ca.crt", read("root.pem")),
            ]),
            says,
        }
    };
    const EC: &str = "openssl ecparam -genkey -name prime256v1 -noout";
    const NAME: [&str; 3] = [
        "tls.crt, certificate 1",
        "has an attribute twice, several in one RDN",
        "single attributes",
    ];
    let plain = "-subj '/CN=issuer'";
    let constrained = format!("{EXTENSIONS}nameConstraints = permitted;URI:.cluster.local\n");
    vec![
        of(
            "RSA of 1024 bits",
            "",
            "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024",
            plain,
            EXTENSIONS,
            [
                "tls.crt, certificate 1",
                "less than 2048 bits",
                "RSA of at least 2048 bits",
            ],
        ),
        of("two OU", "", EC, "-subj '/OU=one/OU=two/CN=issuer'", EXTENSIONS, NAME),
        of(
            "two DC",
            "",
            EC,
            "-subj '/DC=com/DC=example/CN=issuer'",
            EXTENSIONS,
            NAME,
        ),
        of(
            "two in one RDN",
            "",
            EC,
            "-subj '/O=one+CN=issuer' -multivalue-rdn",
            EXTENSIONS,
            NAME,
        ),
        of(
            "URI name constraints",
            "",
            EC,
            plain,
            &constrained,
            [
                "tls.crt, certificate 1",
                "has name constraints",
                "decided by attestation",
            ],
        ),
        of(
            "URI name constraints of the root",
            "-addext 'nameConstraints=excluded;URI:.example'",
            EC,
            plain,
            EXTENSIONS,
            [
                "ca.crt, certificate 1",
                "has name constraints",
                "decided by attestation",
            ],
        ),
        of(
            "a usage that is not critical",
            "",
            EC,
            plain,
            &EXTENSIONS.replace("keyUsage = critical, ", "keyUsage = "),
            [
                "tls.crt, certificate 1",
                "KeyUsage is not critical",
                "keyUsage=critical,keyCertSign",
            ],
        ),
        of(
            "an encrypted key",
            "",
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes256 -pass pass:x",
            "-passin pass:x -subj '/CN=issuer'",
            EXTENSIONS,
            ["tls.key", "the key is encrypted", "openssl pkcs8"],
        ),
    ]
}

fn written(dir: &Path, files: &Files) -> String {
    let dir = dir.join("issuer");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).unwrap();
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
    dir.to_str().unwrap().to_owned()
}

#[test]
fn whatever_our_verifier_would_not_believe_is_refused_with_the_place_the_reason_and_the_remedy() {
    let mut cases = by_themselves();
    cases.extend(together());
    cases.extend(by_openssl());
    assert!(cases.len() >= 40, "{}", cases.len());
    let dir = tempfile::tempdir().unwrap();
    for Case { what, files, says } in cases {
        let at = written(dir.path(), &files);
        let error = failed(&["issuer", "check", &at]);
        for part in says {
            assert!(error.contains(part), "{what}: `{part}` is not in: {error}");
        }
        // A CA does not begin with it either, and leaves nothing.
        let error = failed(&["init", "--store", &path(dir.path(), "ca"), "--issuer-dir", &at]);
        assert!(error.contains(says[1]), "{what}: {error}");
        assert!(
            !dir.path().join("ca").exists() && !dir.path().join("ca.kek").exists(),
            "{what}"
        );
    }
}

#[test]
fn what_stands_at_a_bound_or_says_less_than_it_might_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let root = root();
    let two = root.sign(&authority("two", Some(2)));
    let one = two.sign(&authority("one", Some(1)));
    let bare = changed(|it| it.subject_alt_names.clear());
    let web = changed(|it| it.subject_alt_names = vec![uri("https://pki.example")]);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let named = changed(|it| it.distinguished_name.push(DnType::OrganizationalUnitName, "mesh"));
    let mut full = tls(&[&root.sign(&issuer())], &root);
    let roots = full.get_mut("ca.crt").unwrap();
    *roots = format!("{}{roots}", Party::root(&authority("elder", None), p256()).pem());
    let left = MAX_FILE - roots.len();
    roots.push_str(&"\n".repeat(left));
    for files in [
        tls(&[&one.sign(&issuer()), &one, &two], &root),
        cacerts(&[&one.sign(&issuer()), &one, &two], &root),
        tls(&[&root.sign(&bare)], &root),
        tls(&[&root.sign(&web)], &root),
        tls(&[&root.sign_for(&issuer(), key)], &root),
        tls(&[&root.sign(&named)], &root),
        // 65,536 bytes of roots, of which the second is the one.
        full,
    ] {
        let told = done(&["issuer", "check", &written(dir.path(), &files)]);
        assert!(told.contains("would be taken"), "{told}");
    }
}

#[test]
fn a_root_that_is_brought_for_a_new_store_is_refused_alike() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| path(dir.path(), name);
    let flat = Party::root(&authority("root", Some(0)), p256());
    let foreign = {
        let mut params = authority("root", None);
        params.subject_alt_names = vec![uri("spiffe://other.example")];
        Party::root(&params, p256())
    };
    let good = root();
    let between = good.sign(&authority("between", None));
    let signed = "it is not signed by itself, but by `O=Example, CN=root`";
    for (cert, key, says) in [
        (between.pem(), None, signed),
        (between.pem(), Some(between.key_pem()), signed),
        (good.sign(&authority("root", None)).pem(), None, signed),
        (flat.pem(), None, "allows 0 CA certificates below it"),
        (foreign.pem(), None, "names spiffe://other.example"),
        (
            format!("{}{}", good.pem(), flat.pem()),
            None,
            "2 certificates in it, and not one",
        ),
        (
            good.pem(),
            Some(flat.key_pem()),
            "root.key: the key is not that of the certificate",
        ),
        (
            good.pem(),
            Some("none".to_owned()),
            "root.key: there is no private key in it",
        ),
    ] {
        fs::write(at("root.pem"), cert).unwrap();
        let store = at("ca");
        let mut init = vec!["init", "--store", &store, "--root-cert"];
        let (root, file) = (at("root.pem"), at("root.key"));
        init.push(&root);
        if let Some(key) = key {
            fs::write(&file, key).unwrap();
            init.extend(["--root-key", &file]);
        }
        let error = failed(&init);
        assert!(error.contains(says), "{says}: {error}");
        assert!(!dir.path().join("ca").exists() && !dir.path().join("ca.kek").exists());
    }
    // A root that names an attribute twice could not be written into issuers; without its key that is nobody's trouble.
    openssl(
        dir.path(),
        "openssl ecparam -genkey -name prime256v1 -noout -out root.key
         openssl req -x509 -new -key root.key -subj '/DC=com/DC=example/CN=root' -days 9 -out root.pem \
           -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign'",
    );
    let (store, root, key) = (at("ca"), at("root.pem"), at("root.key"));
    let error = failed(&["init", "--store", &store, "--root-cert", &root, "--root-key", &key]);
    assert!(error.contains("has an attribute twice"), "{error}");
    done(&["init", "--store", &store, "--root-cert", &root]);
    let other = at("other");
    for (flags, says) in [
        (["--root-key", &key, "--root-life", "1y"], "cannot be used with"),
        (["--root-key", &key, "--issuer-life", "1d"], "--root-cert"),
        (["--root-cert", &root, "--root-life", "1y"], "cannot be used with"),
        (["--root-cert", &root, "--issuer-dir", "/x"], "cannot be used with"),
    ] {
        let mut line = vec!["init", "--store", &other];
        line.extend(flags);
        assert!(failed(&line).contains(says), "{flags:?}");
    }
}

/// What a key is, in base64 and as the numbers of those letters.
fn traces(key_pem: &str) -> Vec<String> {
    let body: String = key_pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let letters: Vec<char> = body.chars().collect();
    let pieces = letters.chunks_exact(8).map(|piece| piece.iter().collect::<String>());
    pieces
        .flat_map(|piece| {
            let numbers = format!("{:?}", piece.as_bytes());
            [numbers.trim_matches(['[', ']']).to_owned(), piece]
        })
        .collect()
}

fn is_kept_out(key_pem: &str, what: &str, said: &str) {
    for trace in traces(key_pem) {
        assert!(!said.contains(&trace), "{what}: {trace} of the key is in: {said}");
    }
}

#[test]
fn c_10_a_key_that_lost_its_line_breaks_is_refused_and_nothing_of_it_is_said() {
    let root = root();
    let party = root.sign(&issuer());
    let key = party.key_pem();
    let lost = |by: &str| key.lines().collect::<Vec<_>>().join(by);
    let shapes = [
        ("letters for line breaks", lost("\\n") + "\\n"),
        ("letters for line breaks, but at the end", lost("\\n")),
        ("one line", lost("")),
        ("one line with blanks", lost(" ")),
        ("cut off", key[..key.len() / 2].to_owned()),
        ("without dashes", key.replacen("-----\n", "\n", 1)),
        ("a letter too many", key.replacen('\n', "\n!", 1)),
    ];
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| path(dir.path(), name);
    let broken = |file, text: &String| {
        let mut files = tls(&[&party], &root);
        files.insert(file, text.clone());
        files
    };
    for (what, text) in &shapes {
        for file in ["tls.key", "tls.crt", "ca.crt"] {
            let error = failed(&["issuer", "check", &written(dir.path(), &broken(file, text))]);
            assert!(error.contains(file) && error.contains("no PEM"), "{what}: {error}");
            is_kept_out(&key, what, &error);
        }
        fs::write(at("root.pem"), root.pem()).unwrap();
        fs::write(at("root.key"), text).unwrap();
        let store = at("none");
        let error = failed(&[
            "init",
            "--store",
            &store,
            "--root-cert",
            &at("root.pem"),
            "--root-key",
            &at("root.key"),
        ]);
        assert!(error.contains("root.key: it is no PEM"), "{what}: {error}");
        is_kept_out(&key, what, &error);
    }

    // Nor by a CA that runs, in its log and its status.
    let mut mount = Mount::new(dir.path().join("mount"), &tls(&[&root.sign(&issuer())], &root));
    done(&["init", "--store", &at("ca"), "--issuer-dir", mount.path()]);
    let mut shell = Command::new("sh");
    let bin = env!("CARGO_BIN_EXE_postern-ca");
    let line = format!("exec {bin} \"$@\" --issuer-dir {}", mount.path());
    shell.args(["-c", &line, "sh"]);
    let serving = serve_by(shell, dir.path(), "trace");
    for (what, text) in [&shapes[0], &shapes[2]] {
        mount.swap(&broken("tls.key", text));
        let words = if text.ends_with('n') {
            "begins a section"
        } else {
            "does not end"
        };
        let since = Instant::now();
        let status = loop {
            let status = done(&["status", "--admin-socket", &at("admin.sock")]);
            if status.contains(words) {
                break status;
            }
            assert!(since.elapsed() < Duration::from_secs(60), "{what}: {status}");
            std::thread::sleep(Duration::from_millis(50));
        };
        is_kept_out(&key, what, &status);
        assert!(serving.log().contains(words));
        is_kept_out(&key, what, &serving.log());
    }
}
