//! Roots and issuers that are not ours: made by rcgen, or by openssl as docs/brought-root.md shows; and a directory that is swapped
//! as a kubelet does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::CertificateDer;

use super::program::{Serving, svid};

pub struct Party {
    pub der: CertificateDer<'static>,
    pub key: KeyPair,
}

pub fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// A CA of this name, for a day, that names cluster.local.
pub fn authority(name: &str, path_len: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_len.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI("spiffe://cluster.local".try_into().unwrap())];
    params.use_authority_key_identifier_extension = true;
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::minutes(1);
    params.not_after = now + time::Duration::days(1);
    params
}

impl Party {
    pub fn root(params: &CertificateParams, key: KeyPair) -> Self {
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { der, key }
    }

    pub fn sign_for(&self, params: &CertificateParams, key: KeyPair) -> Self {
        let above = Issuer::from_ca_cert_der(&self.der, &self.key).unwrap();
        let der = params.signed_by(&key, &above).unwrap().der().clone();
        Self { der, key }
    }

    pub fn sign(&self, params: &CertificateParams) -> Self {
        self.sign_for(params, p256())
    }

    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.der)
    }
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

pub type Files = BTreeMap<&'static str, String>;

/// As cert-manager writes them.
pub fn tls(chain: &[&Party], root: &Party) -> Files {
    BTreeMap::from([
        ("tls.crt", chain.iter().map(|party| party.pem()).collect()),
        ("tls.key", chain[0].key_pem()),
        ("ca.crt", root.pem()),
    ])
}

/// As Istio's `cacerts` has them: the issuer once more in its chain, and the root at the end.
pub fn cacerts(chain: &[&Party], root: &Party) -> Files {
    let whole: String = chain.iter().map(|party| party.pem()).collect();
    BTreeMap::from([
        ("ca-cert.pem", chain[0].pem()),
        ("ca-key.pem", chain[0].key_pem()),
        ("cert-chain.pem", whole + &root.pem()),
        ("root-cert.pem", root.pem()),
    ])
}

/// A mounted Secret.
pub struct Mount {
    pub dir: PathBuf,
    swaps: usize,
}

impl Mount {
    pub fn new(dir: PathBuf, files: &Files) -> Self {
        fs::create_dir(&dir).unwrap();
        let mut mount = Self { dir, swaps: 0 };
        mount.swap(files);
        mount
    }

    /// Whole, as the kubelet's AtomicWriter does: a new directory, `..data` renamed over, the old one gone.
    pub fn swap(&mut self, files: &Files) {
        let old = fs::read_link(self.dir.join("..data")).ok();
        self.swaps += 1;
        let name = format!("..2026_11_29_{}", self.swaps);
        fs::create_dir(self.dir.join(&name)).unwrap();
        for (file, text) in files {
            fs::write(self.dir.join(&name).join(file), text).unwrap();
            let shown = self.dir.join(file);
            if fs::symlink_metadata(&shown).is_err() {
                symlink(Path::new("..data").join(file), &shown).unwrap();
            }
        }
        let temporary = self.dir.join("..data_tmp");
        symlink(&name, &temporary).unwrap();
        fs::rename(&temporary, self.dir.join("..data")).unwrap();
        if let Some(old) = old {
            fs::remove_dir_all(self.dir.join(old)).unwrap();
        }
    }

    pub fn path(&self) -> &str {
        self.dir.to_str().unwrap()
    }
}

/// Runs openssl in `dir`.
pub fn openssl(dir: &Path, line: &str) -> String {
    let out = Command::new("sh")
        .args(["-ec", line])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// The extensions that docs/brought-root.md asks for.
pub const EXTENSIONS: &str = "basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectAltName = URI:spiffe://cluster.local
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
";

/// `root.pem` and `root.key`; `key` is how openssl makes the key.
pub fn openssl_root(dir: &Path, key: &str) {
    openssl(
        dir,
        &format!(
            "{key} -out root.key 2>/dev/null
             openssl req -x509 -new -key root.key -sha256 -days 3650 -subj '/C=DE/O=Example AG/CN=Example root' -out root.pem \
             -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign'"
        ),
    );
}

/// `issuer.csr` becomes `issuer.pem`, by the command of the document.
pub fn openssl_signs(dir: &Path) {
    fs::write(dir.join("issuer.ext"), EXTENSIONS).unwrap();
    openssl(
        dir,
        "openssl x509 -req -in issuer.csr -CA root.pem -CAkey root.key -days 90 -extfile issuer.ext -out issuer.pem 2>/dev/null",
    );
}

/// A leaf of the CA that serves in `dir`, believed by openssl under this root, for both uses.
pub fn issues_under(serving: &Serving, dir: &Path, name: &str, root: &str) {
    svid(serving, dir, name);
    for purpose in ["sslclient", "sslserver"] {
        openssl(
            dir,
            &format!(
                "openssl verify -x509_strict -no-CApath -no-CAstore -purpose {purpose} -CAfile {root} -untrusted {name}/svid.pem \
                 {name}/svid.pem"
            ),
        );
    }
}
