//! What one workload believes, and the verification of a token.

use std::fmt;
use std::sync::Arc;

use hashbrown::HashSet;
use postern_identity::SpiffeId;
use postern_policy::authentication::{Algorithm, Audiences, Content, JwtRule, KeySource};
use postern_policy::{Headers, RequestAuthentication, User};
use serde_json::{Map, Value};

use crate::compact::Compact;
use crate::locate::{Places, Token};
use crate::{KeySet, Refusal, told};

pub(crate) mod claims;

/// Keys as they were fetched.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The keys.
    pub set: Arc<KeySet>,
    /// When they were fetched last, seconds since 1970.
    pub fetched: u64,
}

/// Whose tokens one workload believes. Immutable; made anew when documents or keys change.
#[derive(Debug, Default)]
pub struct Authenticator {
    rules: Vec<Rule>,
    places: Places,
    told: Vec<Box<str>>,
    unreadable: bool,
}

#[derive(Debug)]
struct Rule {
    rule: Arc<JwtRule>,
    keys: Option<Arc<KeySet>>,
    /// Seconds since 1970; `None`: the keys are part of the document.
    fetched: Option<u64>,
}

/// A token that was verified. Who may act as its user is still to be asked: [`Verified::admits`].
pub struct Verified {
    user: Arc<User>,
    rule: Arc<JwtRule>,
    /// Whom the token was issued to.
    client: Option<Box<str>>,
    /// SHA-256 of the one certificate that may bring it (RFC 8705 section 3.1).
    certificate: Option<[u8; 32]>,
    told: Vec<(Box<str>, Box<str>)>,
    until: u64,
}

/// Who brings a token.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller<'a> {
    /// The verified peer; `None` for plaintext.
    pub id: Option<&'a SpiffeId>,
    /// It is of another trust domain.
    pub is_foreign: bool,
    /// SHA-256 of its certificate.
    pub certificate_sha256: Option<&'a [u8; 32]>,
}

impl Authenticator {
    /// What the documents that select a workload say together, with the keys that were fetched under
    /// [`JwtRule::provider`]. Any one rule suffices; a document that could not be read takes all of it back.
    pub fn new(documents: &[RequestAuthentication], keys: impl Fn(&str) -> Option<Keys>) -> Self {
        let rules: Vec<Rule> = documents
            .iter()
            .flat_map(RequestAuthentication::rules)
            .map(|rule| Rule::new(rule, &keys))
            .collect();
        let unreadable = documents
            .iter()
            .any(|document| matches!(document.content, Content::Unreadable { .. }));
        let mut told = HashSet::new();
        for document in documents {
            match &document.content {
                Content::Rules(rules) => told.extend(rules.iter().flat_map(JwtRule::told_headers)),
                Content::Unreadable { headers } => told.extend(headers.iter().map(String::as_str)),
            }
        }
        Self {
            places: Places::new(rules.iter().map(|rule| &*rule.rule), unreadable),
            told: told.into_iter().map(Into::into).collect(),
            unreadable,
            rules,
        }
    }

    /// No document concerns the workload: there is nothing to look for.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.rules.is_empty() && !self.unreadable && self.told.is_empty()
    }

    /// Headers (lower case) that the app believes to be ours: whatever a client sent under them goes, with a token and without.
    pub fn told_headers(&self) -> impl Iterator<Item = &str> {
        self.told.iter().map(|name| &**name)
    }

    /// The token of a request, if it has one. `query`: what stands behind the `?`.
    pub fn find(&self, headers: &dyn Headers, query: Option<&str>) -> Result<Option<Token>, Refusal> {
        match self.places.find(headers, query) {
            Ok(Some(_)) | Err(_) if self.unreadable => Err(Refusal::Unreadable),
            found => found,
        }
    }

    /// Is this one of them, in any of its spellings?
    #[must_use]
    pub fn tells(&self, name: &str) -> bool {
        self.told
            .iter()
            .any(|told| postern_policy::request::is_same_field(name, told))
    }

    /// A token that was found under other documents, as these would have found it; `None`: nobody looks where it stands.
    #[must_use]
    pub fn found_again(&self, token: &Token) -> Option<Token> {
        let looks = |rule: &Rule| rule.rule.locations.iter().any(|location| token.stands_at(location));
        let looking = self.rules.iter().enumerate().filter(|(_, rule)| looks(rule));
        let rules: Arc<[usize]> = looking.map(|(position, _)| position).collect();
        (self.unreadable || !rules.is_empty()).then(|| token.found_by(rules))
    }

    /// Verifies a token that was found. `now`: seconds since 1970.
    pub fn verify(&self, token: &Token, now: u64) -> Result<Verified, Refusal> {
        if self.unreadable {
            return Err(Refusal::Unreadable);
        }
        let compact = Compact::read(token.text())?;
        let issuer = compact
            .claims
            .get("iss")
            .and_then(Value::as_str)
            .ok_or(Refusal::UnknownIssuer)?;
        let mut refusal = Refusal::UnknownIssuer;
        let looking = token.rules.iter().filter_map(|position| self.rules.get(*position));
        for rule in looking.filter(|rule| rule.rule.issuer == issuer) {
            match rule.verify(&compact, now) {
                Ok(verified) => return Ok(verified),
                // The first rule's reason stands.
                Err(first) if refusal == Refusal::UnknownIssuer => refusal = first,
                Err(_) => {}
            }
        }
        Err(refusal)
    }
}

impl Rule {
    fn new(rule: &JwtRule, fetched: impl Fn(&str) -> Option<Keys>) -> Self {
        let keys = rule.provider().and_then(|provider| fetched(&provider));
        let inline = match &rule.keys {
            KeySource::Inline(text) => KeySet::parse(text.as_bytes()).ok().map(Arc::new),
            KeySource::File(_) | KeySource::Uri(_) | KeySource::Discovered => None,
        };
        Self {
            fetched: keys.as_ref().map(|keys| keys.fetched),
            keys: inline.or(keys.map(|keys| keys.set)),
            rule: Arc::new(rule.clone()),
        }
    }

    /// Until when the keys are believed, if they are now.
    fn keys(&self, now: u64) -> Option<(&KeySet, u64)> {
        let until = match self.fetched {
            None => u64::MAX,
            Some(fetched) => fetched.saturating_add(self.rule.max_stale.as_secs()),
        };
        let keys = self.keys.as_deref()?;
        (now < until).then_some((keys, until))
    }

    fn verify(&self, token: &Compact<'_>, now: u64) -> Result<Verified, Refusal> {
        let rule = &self.rule;
        let algorithm = Algorithm::parse(&token.algorithm)
            .filter(|algorithm| rule.algorithms.contains(algorithm))
            .ok_or(Refusal::Unsupported("`alg` is not one that is believed here"))?;
        let provider = || rule.provider();
        let (keys, keys_until) = self.keys(now).ok_or_else(|| Refusal::NoKeys { provider: provider() })?;
        let key = keys
            .find(token.key.as_deref(), algorithm)
            .ok_or_else(|| Refusal::UnknownKey { provider: provider() })?;
        if !key.verifies(algorithm, token.signed, &token.signature) {
            return Err(Refusal::Signature);
        }
        let until = claims::times(&token.claims, now, rule.clock_skew.as_secs())?;
        is_for_us(&rule.audiences, &token.claims)?;
        let told = told::headers(rule, &token.claims, token.payload);
        let client = claims::client(&token.claims)?;
        let certificate = claims::certificate(&token.claims)?;
        let user = User::of_verified(claims::with_words_apart(&token.claims, &rule.space_delimited))?;
        Ok(Verified {
            user: Arc::new(user),
            rule: Arc::clone(rule),
            client,
            certificate,
            told,
            until: until.min(keys_until),
        })
    }
}

fn is_for_us(wanted: &Audiences, claims: &Map<String, Value>) -> Result<(), Refusal> {
    let Audiences::OneOf(wanted) = wanted else {
        return Ok(());
    };
    let is_wanted = |audience: &Value| {
        audience
            .as_str()
            .is_some_and(|audience| wanted.iter().any(|one| one == audience))
    };
    let is_for = match claims.get("aud") {
        Some(Value::Array(several)) => several.iter().any(is_wanted),
        Some(one) => is_wanted(one),
        None => false,
    };
    if is_for { Ok(()) } else { Err(Refusal::Audience) }
}

impl Verified {
    /// The user, if `caller` may bring their token: a stolen token is of no use to another workload.
    pub fn admits(&self, caller: Caller<'_>) -> Result<&Arc<User>, Refusal> {
        if self
            .certificate
            .as_ref()
            .is_some_and(|bound| caller.certificate_sha256 != Some(bound))
        {
            return Err(Refusal::NotTheCallers("it is bound to another certificate"));
        }
        if self.rule.bindings.is_empty() {
            return Ok(&self.user);
        }
        let client = self
            .client
            .as_deref()
            .ok_or(Refusal::NotTheCallers("it does not say whom it was issued to"))?;
        let id = caller.id.ok_or(Refusal::NotTheCallers("the caller is not known"))?;
        let mut bindings = self.rule.bindings.iter().filter(|binding| binding.client == client);
        if bindings.any(|binding| binding.is_of(id, caller.is_foreign)) {
            Ok(&self.user)
        } else {
            Err(Refusal::NotTheCallers("its client is not this workload"))
        }
    }

    /// Second since 1970 from which on it must be verified anew, or is refused: it expires, or its issuer's keys are too old.
    #[must_use]
    pub fn until(&self) -> u64 {
        self.until
    }

    /// Does the app get the token as well?
    #[must_use]
    pub fn is_forwarded(&self) -> bool {
        self.rule.forward
    }

    /// Headers (lower case) that tell the app of it.
    pub fn told(&self) -> impl Iterator<Item = (&str, &str)> {
        self.told.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// Never the claims: they are personal.
impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("issuer", &self.rule.issuer)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}
