//! A mounted directory that is swapped while it is read.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rcgen::PKCS_ECDSA_P256_SHA256;

use super::*;
use crate::clock::{earlier, later};
use crate::pem;
use crate::profile::{self, Validity};

const HOUR: Duration = Duration::from_secs(3600);

/// tls.crt, tls.key and ca.crt.
fn minted(domain: &TrustDomain) -> [(&'static str, String); 3] {
    let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let now = UnixTime::now();
    let validity = Validity {
        not_before: earlier(now, HOUR),
        not_after: later(now, HOUR),
    };
    let (above, own) = (key(), key());
    let root = profile::root(domain, "root", &above, validity).unwrap();
    let above = rcgen::Issuer::from_ca_cert_der(&root, above).unwrap();
    let issuer = profile::issuer(domain, 1, &own, validity, &above).unwrap();
    [
        ("tls.crt", pem::encode("CERTIFICATE", &issuer).to_string()),
        ("tls.key", own.serialize_pem()),
        ("ca.crt", pem::encode("CERTIFICATE", &root).to_string()),
    ]
}

/// As the kubelet does, the files before it taken away.
fn swap(dir: &Path, n: usize, files: &[(&str, String)]) {
    let name = format!("..{n}");
    fs::create_dir(dir.join(&name)).unwrap();
    for (file, text) in files {
        fs::write(dir.join(&name).join(file), text).unwrap();
    }
    symlink(&name, dir.join("..tmp")).unwrap();
    fs::rename(dir.join("..tmp"), dir.join(SWAPPED)).unwrap();
    if n > 0 {
        fs::remove_dir_all(dir.join(format!("..{}", n - 1))).unwrap();
    }
}

#[test]
fn what_is_swapped_while_it_is_read_is_read_of_one_swap_or_not_at_all() {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let issuers = [minted(&domain), minted(&domain)];
    swap(dir.path(), 0, &issuers[0]);
    for (file, _) in &issuers[0] {
        symlink(Path::new(SWAPPED).join(file), dir.path().join(file)).unwrap();
    }
    let mounted = IssuerDir::at(dir.path().to_owned());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (n, files) in (1..).zip(issuers.iter().cycle().skip(1)) {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                swap(dir.path(), n, files);
            }
        });
        let (mut whole, mut restless) = (0, 0);
        while whole < 50 {
            match mounted.look(&domain, None, UnixTime::now()) {
                Ok(_) => whole += 1,
                // Never a key of one and a certificate of the other.
                Err(error) => {
                    let met = *error.fault() == Fault::Restless;
                    if !met {
                        done.store(true, Ordering::Relaxed);
                    }
                    assert!(met, "{error}");
                    restless += 1;
                    assert!(restless < 100_000, "never once was it read whole");
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
