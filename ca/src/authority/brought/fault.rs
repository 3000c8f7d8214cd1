//! What is wrong with what was brought: where, what, and what to do.

use postern_identity::authority::Unfit;

/// Why it is not used; what is in use stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fault}; {}", fault.remedy())]
pub struct BroughtError {
    /// A file, and which certificate in it.
    place: String,
    fault: Fault,
}

impl BroughtError {
    /// What is wrong.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// The same at any time: two looks at one file say so.
    pub(crate) fn lasting(&self) -> Self {
        let mut same = self.clone();
        match &mut same.fault {
            Fault::NotYetValid { now, .. } | Fault::Expired { now, .. } => now.clear(),
            _ => {}
        }
        same
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// No such file, or no right to it.
    #[error("it cannot be read ({0})")]
    Unreadable(String),
    /// More than such a file can need.
    #[error("it is longer than {0} bytes")]
    TooLarge(u64),
    /// Not what its name says.
    #[error("it is no PEM ({0})")]
    Pem(&'static str),
    /// More than the one that is asked for.
    #[error("there are {0} certificates in it, and not one")]
    Several(usize),
    /// PEM without one.
    #[error("there is no certificate in it")]
    NoCertificate,
    /// PEM without one.
    #[error("there is no private key in it")]
    NoKey,
    /// In need of a passphrase.
    #[error("the key is encrypted")]
    EncryptedKey,
    /// Both kinds of names.
    #[error("there are files of both namings ({0} and {1})")]
    Ambiguous(&'static str, &'static str),
    /// Swapped while it was read, again and again.
    #[error("it was replaced each time it was read")]
    Restless,
    /// By itself.
    #[error("the certificate {}", .0.as_str())]
    Unfit(Unfit),
    /// Kind or strength.
    #[error("the certificate's key is {0}")]
    Key(&'static str),
    /// Of a CA that signs here.
    #[error("the certificate's KeyUsage is not critical")]
    UsageNotCritical,
    /// In time.
    #[error("the certificate is valid from {from} only, and it is {now}")]
    NotYetValid {
        /// Its beginning.
        from: String,
        /// The CA's clock.
        now: String,
    },
    /// In time.
    #[error("the certificate expired at {until}, and it is {now}")]
    Expired {
        /// Its end.
        until: String,
        /// The CA's clock.
        now: String,
    },
    /// pathLen.
    #[error("the certificate allows {room} CA certificates below it (pathLen), and {below} are there")]
    NoRoom {
        /// What it allows.
        room: u32,
        /// What there is.
        below: usize,
    },
    /// SAN.
    #[error("the certificate names {uri}, and this trust domain is {wanted}")]
    TrustDomain {
        /// What it names.
        uri: String,
        /// The trust domain's own ID.
        wanted: String,
    },
    /// SAN.
    #[error("the certificate names {0} URIs, or one that cannot be read")]
    Uris(usize),
    /// The subject.
    #[error(
        "the certificate's subject is empty, has an attribute twice, several in one RDN, or one of a rare encoding"
    )]
    Name,
    /// A root in an issuer's place.
    #[error("the issuer is a self-signed certificate, a root")]
    SelfSigned,
    /// An intermediate in a root's place.
    #[error("the certificate is no root: it is not signed by itself, but by `{0}`")]
    NotSelfSigned(String),
    /// Of another certificate.
    #[error("the key is not that of the certificate in {0}")]
    KeyMismatch(String),
    /// Of the chain.
    #[error("the certificate is not signed by that in {0}")]
    Broken(String),
    /// Of the chain.
    #[error("there are {found} certificates below the root, and at most {most} are shown to peers")]
    TooLong {
        /// What there are.
        found: usize,
        /// What there may be.
        most: usize,
    },
    /// None at all.
    #[error("there is no root certificate")]
    NoRoot,
    /// None of these.
    #[error("the certificate is signed by `{wanted}`, which no certificate in {roots} is")]
    OtherRoot {
        /// The name of its issuer.
        wanted: String,
        /// Where roots were looked for.
        roots: String,
    },
    /// So soon that every certificate would be cut short.
    #[error(
        "the issuer, or what is above it, ends at {until}: sooner than what it would sign now, and than the one that signs"
    )]
    EndsSoon {
        /// Its end.
        until: String,
    },
    /// It was in use, and another followed.
    #[error("the issuer was replaced before, and is not taken a second time")]
    Replaced,
    /// By our own verifier.
    #[error("what it signs is not believed by this mesh's own verifier ({0})")]
    Unverified(String),
}

impl Fault {
    pub(crate) fn at(self, place: &str) -> BroughtError {
        BroughtError {
            place: place.to_owned(),
            fault: self,
        }
    }

    /// What to do.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => {
                "the files are tls.crt, tls.key and ca.crt, or ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, \
                 readable by the CA's user"
            }
            Self::TooLarge(_) | Self::TooLong { .. } => "leave out what does not stand between the issuer and its root",
            Self::Pem(_) => {
                "put it there as PEM, with its line breaks (a copied `\\n`, or all of it on one line, is none), the issuer first"
            }
            Self::NoCertificate => "put the certificates there as PEM, the issuer first",
            Self::Several(_) => "put the root there alone",
            Self::NoKey => "put the key there as PEM: PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY",
            Self::EncryptedKey => "put it there in clear (openssl pkcs8 -in KEY): the CA's state is sealed by itself",
            Self::Ambiguous(..) => "take one of them away",
            Self::Restless => "write the files in another directory and rename it, as a Secret's `..data` does",
            Self::Unfit(Unfit::NameConstraints) => {
                "have it signed again without: who may have which name is decided by attestation, and a verifier of SPIFFE \
                 IDs refuses every chain with them"
            }
            Self::Unfit(Unfit::UnknownCritical) => "have it signed again without, or not critical",
            Self::Unfit(Unfit::NotCa | Unfit::NoCertSign) | Self::UsageNotCritical => {
                "have it signed again with basicConstraints=critical,CA:TRUE and keyUsage=critical,keyCertSign,cRLSign"
            }
            Self::Unfit(
                Unfit::Malformed
                | Unfit::TrailingBytes
                | Unfit::DuplicateExtension
                | Unfit::BasicConstraints
                | Unfit::KeyUsage
                | Unfit::Validity,
            ) => "have it signed again by a tool that writes RFC 5280",
            Self::Key(_) => "make another key: P-256, P-384, or RSA of at least 2048 bits",
            Self::NotYetValid { .. } => "wait, or set the clock of the CA or of what signed it",
            Self::Expired { .. } => "renew it",
            Self::EndsSoon { .. } => "have it signed for longer, by what lasts longer",
            Self::NoRoom { .. } => {
                "have it signed again with room (pathlen:0 for the issuer, at least one more above each)"
            }
            Self::TrustDomain { .. } | Self::Uris(_) => {
                "have it signed again with subjectAltName=URI:spiffe://<trust domain> alone, or without a URI"
            }
            Self::Name => "have it signed again with a subject of single attributes, each once, such as O and CN",
            Self::SelfSigned => "keep the root as ca.crt, and sign an intermediate with it to be the issuer",
            Self::NotSelfSigned(_) => {
                "put the root there that signed it; an intermediate is brought as issuer, or stands above one in its chain"
            }
            Self::KeyMismatch(_) => "bring the certificate and the key that belong together",
            Self::Broken(_) => "put the issuer first, and after each certificate the one that signed it",
            Self::NoRoot | Self::OtherRoot { .. } => "put the root there that the chain ends at",
            Self::Replaced => {
                "bring the one that follows; to go back to it on purpose, have its key certified anew (a restored or late \
                 mount mends itself)"
            }
            Self::Unverified(_) => "have it signed again as docs/brought-root.md shows",
        }
    }
}
